//! Motion JPEG with timestamps, as `ffmpeg -f smjpeg` writes it to a pipe: big-endian numbers, each frame with its time and its
//! length before it (<https://wiki.multimedia.cx/index.php/SMJPEG>), so that nothing has to be searched for in the bytes.
//!
//! ```text
//! head    00 0A "SMJPEG" u32 version u32 duration
//! tag     "_TXT" or "_VID" or "_SND", u32 length, that many bytes; any number of them, then "HEND"
//! frame   "vidD" u32 milliseconds u32 length, a JPEG; any number of them, then "DONE"
//! ```

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    /// When it is shown, ms of the video's own time; begins anew after 2³².
    pub(crate) ms: u32,
    /// The JPEG, or where it is longer than it may be, its first bytes.
    pub(crate) jpeg: Vec<u8>,
    /// Its length, bytes.
    pub(crate) len: usize,
}

/// What came is not what `ffmpeg` writes.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("what ffmpeg wrote is no SMJPEG: {0:02x?} where {1} was to come")]
pub(crate) struct Malformed([u8; 4], &'static str);

/// Takes the bytes of a pipe as they come and gives the frames in them. Holds at most one frame, of bounded length.
pub(crate) struct Packets {
    max_bytes: usize,
    state: State,
    /// The beginning of what is not whole yet: a few bytes.
    begun: Vec<u8>,
}

enum State {
    Head,
    Tag,
    Skip { left: usize, then_frames: bool },
    Frame,
    Body { packet: Packet, left: usize },
    Done,
}

const HEAD: usize = 16;
const MAGIC: &[u8; 8] = b"\0\nSMJPEG";

impl Packets {
    /// Keeps one byte more than `max_bytes` of a frame, and never more.
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, state: State::Head, begun: Vec::new() }
    }

    /// Takes some bytes.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut give: impl FnMut(Packet)) -> Result<(), Malformed> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Done => return Ok(()),
                State::Skip { left, .. } => {
                    let some = bytes.len().min(*left);
                    *left -= some;
                    bytes = &bytes[some..];
                }
                State::Body { packet, left } => {
                    let some = bytes.len().min(*left);
                    let room = (self.max_bytes + 1).saturating_sub(packet.jpeg.len());
                    packet.jpeg.extend_from_slice(&bytes[..some.min(room)]);
                    *left -= some;
                    bytes = &bytes[some..];
                }
                State::Head | State::Tag | State::Frame => {
                    self.begun.push(bytes[0]);
                    bytes = &bytes[1..];
                }
            }
            self.advance(&mut give)?;
        }
        Ok(())
    }

    fn advance(&mut self, give: &mut impl FnMut(Packet)) -> Result<(), Malformed> {
        let number = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let begun = &self.begun[..];
        let next = match &mut self.state {
            State::Head if begun.len() == HEAD => {
                if !begun.starts_with(MAGIC) {
                    return Err(Malformed([begun[0], begun[1], begun[2], begun[3]], "the head"));
                }
                State::Tag
            }
            State::Tag if begun == b"HEND" => State::Frame,
            State::Tag if begun.len() == 8 => match &begun[..4] {
                b"_TXT" | b"_VID" | b"_SND" => State::Skip { left: number(&begun[4..]) as usize, then_frames: false },
                other => return Err(Malformed([other[0], other[1], other[2], other[3]], "a tag")),
            },
            State::Frame if begun == b"DONE" => State::Done,
            State::Frame if begun.len() == 4 && begun != b"vidD" => {
                return Err(Malformed([begun[0], begun[1], begun[2], begun[3]], "a frame"));
            }
            State::Frame if begun.len() == 12 => {
                let len = number(&begun[8..]) as usize;
                State::Body { packet: Packet { ms: number(&begun[4..]), jpeg: Vec::new(), len }, left: len }
            }
            State::Skip { left: 0, then_frames: true } => State::Frame,
            State::Skip { left: 0, then_frames: false } => State::Tag,
            State::Body { packet, left: 0 } => {
                let empty = Packet { ms: 0, jpeg: Vec::new(), len: 0 };
                give(std::mem::replace(packet, empty));
                State::Frame
            }
            _ => return Ok(()),
        };
        self.state = next;
        self.begun.clear();
        // What has no length is whole at once.
        match self.state {
            State::Skip { left: 0, .. } | State::Body { left: 0, .. } => self.advance(give),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(frames: &[(u32, &[u8])]) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], &[0; 8], b"_TXT\0\0\0\x03a=b", b"_VID\0\0\0\x0c", &[7; 12], b"HEND"].concat();
        for (ms, jpeg) in frames {
            bytes.extend([b"vidD", &ms.to_be_bytes()[..], &(jpeg.len() as u32).to_be_bytes(), jpeg].concat());
        }
        bytes.extend(b"DONE");
        bytes
    }

    fn all(bytes: &[u8], piece: usize, max_bytes: usize) -> Result<Vec<Packet>, Malformed> {
        let (mut packets, mut given) = (Packets::new(max_bytes), Vec::new());
        for piece in bytes.chunks(piece) {
            packets.take(piece, |packet| given.push(packet))?;
        }
        Ok(given)
    }

    #[test]
    fn frames_come_out_however_the_pipe_cuts_them() {
        let bytes = stream(&[(0, b"first"), (40, b""), (u32::MAX, b"vidD")]);
        for piece in [1, 2, 7, 1000] {
            let given = all(&bytes, piece, 100).unwrap();
            let given: Vec<_> = given.iter().map(|packet| (packet.ms, &packet.jpeg[..])).collect();
            assert_eq!(given, [(0, &b"first"[..]), (40, b""), (u32::MAX, b"vidD")], "pieces of {piece}");
        }
    }

    #[test]
    fn a_frame_is_not_kept_further_than_its_bound() {
        let given = all(&stream(&[(0, &[1; 5000]), (40, b"next")]), 512, 1000).unwrap();
        assert_eq!((given[0].jpeg.len(), given[0].len), (1001, 5000));
        assert_eq!(given[1].jpeg, b"next");
        // A length that is a lie claims no memory.
        let mut packets = Packets::new(1000);
        let head = stream(&[]);
        packets.take(&head[..head.len() - 4], |_| panic!("a frame")).unwrap();
        packets.take(b"vidD\0\0\0\0\xff\xff\xff\xff", |_| panic!("a frame")).unwrap();
        packets.take(&vec![0; 100_000], |_| panic!("a frame")).unwrap();
        assert!(matches!(&packets.state, State::Body { packet, .. } if packet.jpeg.capacity() < 5000));
    }

    #[test]
    fn what_is_something_else_is_refused() {
        assert!(all(b"GIF89a, and more than sixteen bytes", 3, 100).is_err());
        let mut bytes = stream(&[(0, b"x")]);
        let at = bytes.len() - 4;
        bytes[at] = b'Z';
        assert_eq!(all(&bytes, 5, 100), Err(Malformed(*b"ZONE", "a frame")));
    }
}
