use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{ImageError, Picture};

/// Encodings that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JPEG: grey, colour or CMYK, baseline or progressive.
    Jpeg,
    /// PNG: any depth, palette or alpha.
    Png,
    /// WebP: lossy or lossless; of an animation the first frame.
    WebP,
}

/// What the header of a picture says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Its encoding, by content; a file's name is not looked at.
    pub format: Format,
    /// Width as stored, before EXIF rotation, px.
    pub width: u32,
    /// Height as stored, before EXIF rotation, px.
    pub height: u32,
    /// The EXIF orientation, 1 to 8; 1 is upright.
    pub orientation: u8,
}

/// Bytes that a decoder may take for each pixel: 4 channels of 16 bits, and as much again for its own planes and for turning.
const BYTES_PER_PIXEL: u64 = 16;

/// Memory that a decoder may take beside the pixels (tables, colour profiles, metadata), bytes.
const BYTES_BESIDE: u64 = 16 << 20;

/// Reads the header only, and refuses a picture of more than `max_pixels` pixels.
pub fn probe(bytes: &[u8], max_pixels: u64) -> Result<Probe, ImageError> {
    open(bytes, max_pixels).map(|(probe, _)| probe)
}

/// Decodes a picture of at most `max_pixels` pixels: upright (its EXIF orientation applied), 8 bits a channel, RGB.
///
/// Grey is repeated, 16 bits are cut to 8, alpha is dropped as `OpenCV` drops it, CMYK is converted without its profile.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Picture, ImageError> {
    let (probe, decoder) = open(bytes, max_pixels)?;
    // The JPEG decoder fills what is missing with grey and says nothing.
    if probe.format == Format::Jpeg && !has_end_of_image(bytes) {
        return Err(ImageError::Truncated);
    }
    let size = (probe.width, probe.height);
    let mut decoded = DynamicImage::from_decoder(decoder).map_err(|error| ImageError::of(error, size))?;
    decoded.apply_orientation(Orientation::from_exif(probe.orientation).unwrap_or(Orientation::NoTransforms));
    let rgb = decoded.into_rgb8();
    let (width, height) = rgb.dimensions();
    Picture::new(width, height, rgb.into_raw()).ok_or(ImageError::Corrupt { why: "it has no pixels".into() })
}

/// A decoder that has read the header, and what that said.
fn open(bytes: &[u8], max_pixels: u64) -> Result<(Probe, impl ImageDecoder + '_), ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = format_of(bytes)?;
    let mut reader = ImageReader::with_format(
        Cursor::new(bytes),
        match format {
            Format::Jpeg => ImageFormat::Jpeg,
            Format::Png => ImageFormat::Png,
            Format::WebP => ImageFormat::WebP,
        },
    );
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(max_pixels.saturating_mul(BYTES_PER_PIXEL).saturating_add(BYTES_BESIDE));
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(|error| match format {
        Format::Jpeg if !has_end_of_image(bytes) => ImageError::Truncated,
        _ => ImageError::of(error, (0, 0)),
    })?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, max_pixels });
    }
    // A broken EXIF block does not make a picture unreadable: every viewer then shows it as it is stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms).to_exif();
    Ok((Probe { format, width, height, orientation }, decoder))
}

/// The encoding that the first bytes tell; nothing more is looked at.
pub fn format_of(bytes: &[u8]) -> Result<Format, ImageError> {
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => Ok(Format::Jpeg),
        Ok(ImageFormat::Png) => Ok(Format::Png),
        Ok(ImageFormat::WebP) => Ok(Format::WebP),
        Ok(other) => Err(ImageError::Unsupported { what: format!("{other:?}").to_uppercase() }),
        Err(_) => Err(ImageError::NotAnImage),
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
