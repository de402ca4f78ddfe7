//! What has to be known of a WebP before it is decoded.

/// Head of a chunk (name and length), tag of a frame, start code, width and height: RFC 9649, 2.3; RFC 6386, 9.1.
const HEAD: usize = 4 + 4 + 3 + 3 + 2 + 2;

/// Whether a lossy frame, of an animation or beside a header, says that it is larger than the picture. The decoder takes memory for
/// the frame, 400 MB for the largest there can be, before it compares.
pub(crate) fn has_larger_frame(bytes: &[u8], width: u32, height: u32) -> bool {
    // Wherever it stands: without these bytes it is no frame.
    bytes.windows(HEAD).any(|head| {
        let side = |at: usize| u32::from(u16::from_le_bytes([head[at], head[at + 1]]) & 0x3FFF);
        head.starts_with(b"VP8 ") && head[11..14] == [0x9D, 0x01, 0x2A] && (side(14) > width || side(16) > height)
    })
}
