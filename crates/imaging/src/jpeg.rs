//! JPEG: the pixels of libjpeg-turbo, whole or at a fraction of the size.

use image::RgbImage;
use libjpeg_turbo_rs::{
    DecodeLimits, DecodeWarning, Decoder, Encoder, JpegError, PixelFormat, ScalingFactor, Subsampling,
};

use crate::decode::Probe;
use crate::{Format, ImageError, Picture};

/// Most passes over a progressive picture: encoders make about ten. Each costs the time of a whole picture.
const MAX_SCANS: usize = 100;

/// Parts of its size that a picture is decoded at for less time: to a quarter takes a third of it. (Half took as long as whole.)
const PARTS: [u32; 2] = [8, 4];

/// A decoder that has read the header, and what that said; refuses more than `max_pixels` pixels.
pub(crate) fn open(bytes: &[u8], max_pixels: u64) -> Result<(Probe, Decoder<'_>), ImageError> {
    let limits = DecodeLimits { max_scans: MAX_SCANS, ..DecodeLimits::default() };
    let decoder = Decoder::new_with_limits(bytes, limits).map_err(|error| meaning(bytes, error, (0, 0)))?;
    let (width, height) = (u32::from(decoder.header().width), u32::from(decoder.header().height));
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, max_pixels });
    }
    let components = decoder.header().components.iter();
    let sampling: Vec<[u8; 2]> = components.map(|one| [one.horizontal_sampling, one.vertical_sampling]).collect();
    if is_sampled_oddly(&sampling) {
        return Err(ImageError::Unsupported { what: "a JPEG of four components that are sampled in this way".into() });
    }
    // A broken EXIF block does not make a picture unreadable: every viewer then shows it as it is stored.
    let orientation = decoder.exif_orientation().filter(|orientation| (1..=8).contains(orientation)).unwrap_or(1);
    Ok((Probe { format: Format::Jpeg, width, height, orientation }, decoder))
}

/// Whether a picture of four components (CMYK, YCCK) has the first or the last of them smaller than it is, or the middle two of two
/// sizes. No encoder makes it so, and the decoder panics there.
fn is_sampled_oddly(sampling: &[[u8; 2]]) -> bool {
    let &[first, second, third, last] = sampling else { return false };
    let most = [0, 1].map(|axis| sampling.iter().map(|one| one[axis]).max().unwrap_or(0));
    first != most || last != most || second != third
}

/// The pixels as stored, not turned; the longer side is not below `longer_side` px unless the whole picture's is.
pub(crate) fn decode(
    bytes: &[u8],
    decoder: Decoder<'_>,
    probe: &Probe,
    longer_side: u32,
) -> Result<RgbImage, ImageError> {
    // The decoder fills what is missing with grey.
    if !has_end_of_image(bytes) {
        return Err(ImageError::Truncated);
    }
    let longer = probe.width.max(probe.height);
    let part = PARTS.into_iter().find(|&part| longer.div_ceil(part) >= longer_side).unwrap_or(1);
    let meant = |error| meaning(bytes, error, (probe.width, probe.height));
    let scale = ScalingFactor::try_new(1, part).map_err(meant)?;
    // Lenient: stray bytes between segments hurt nobody. What does is told as a warning.
    let decoder = decoder.with_output_format(PixelFormat::Rgb).with_scale(scale).with_lenient(true);
    let image = decoder.decode_image().map_err(meant)?;
    for warning in &image.warnings {
        match warning {
            DecodeWarning::ExtraneousData { .. } => {}
            DecodeWarning::TruncatedData { .. } => return Err(ImageError::Truncated),
            other => return Err(ImageError::Corrupt { why: format!("{other:?}") }),
        }
    }
    RgbImage::from_raw(image.width as u32, image.height as u32, image.data)
        .ok_or_else(|| ImageError::Corrupt { why: "its pixels are not RGB".into() })
}

/// A JPEG of a picture; `quality` is 1 to 100.
pub(crate) fn encode(picture: &Picture, quality: u8) -> Result<Vec<u8>, JpegError> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let encoder = Encoder::new(picture.pixels(), width, height, PixelFormat::Rgb);
    encoder.quality(quality).subsampling(Subsampling::S420).encode()
}

/// What the decoder's error means for a picture whose header, as far as it was read, said `size` (width, height).
fn meaning(bytes: &[u8], error: JpegError, (width, height): (u32, u32)) -> ImageError {
    match error {
        JpegError::UnexpectedEof => ImageError::Truncated,
        _ if !has_end_of_image(bytes) => ImageError::Truncated,
        JpegError::Unsupported(what) => ImageError::Unsupported { what },
        JpegError::AllocationFailed { .. } => ImageError::TooMuchMemory { width, height },
        other => ImageError::Corrupt { why: other.to_string() },
    }
}

/// Whether a JPEG's scans end with the marker "end of image" (ITU-T T.81, B.1.1.3: FF D9).
///
/// The segments before the first scan are stepped over: a thumbnail inside them has an end of its own. In scan data an FF is
/// always followed by 00 or by a marker, so FF D9 cannot be data there.
fn has_end_of_image(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xDA;
    let mut at = 2;
    while let Some(&[0xFF, marker, high, low]) = bytes.get(at..at + 4) {
        if marker == 0xFF {
            // A fill byte before a marker.
            at += 1;
            continue;
        }
        at += 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == START_OF_SCAN {
            return bytes.get(at..).is_some_and(|scans| scans.windows(2).any(|pair| pair == [0xFF, 0xD9]));
        }
    }
    // Stuff between segments, which decoders pass over: the last bytes have to do.
    bytes.ends_with(&[0xFF, 0xD9])
}
