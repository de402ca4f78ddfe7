use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::{ImageError, Picture, jpeg, webp};

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
    match format_of(bytes)? {
        Format::Jpeg => jpeg::open(bytes, max_pixels).map(|(probe, _)| probe),
        format => open(bytes, format, max_pixels).map(|(probe, _)| probe),
    }
}

/// Decodes a picture of at most `max_pixels` pixels: upright (its EXIF orientation applied), 8 bits a channel, RGB. The pixels
/// of a JPEG are those of libjpeg-turbo.
///
/// Grey is repeated, 16 bits are cut to 8, alpha is dropped as `OpenCV` drops it, CMYK is converted without its profile.
pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Picture, ImageError> {
    decode_at_least(bytes, max_pixels, u32::MAX).map(|(picture, _)| picture)
}

/// As `decode`, but where that is cheaper the picture may come out smaller, its longer side not below `longer_side` px; and the
/// width and height, px, of the whole upright picture.
///
/// A JPEG is scaled to a quarter or an eighth while it is decoded (in its DCT, as libjpeg does); the others come whole.
pub fn decode_at_least(bytes: &[u8], max_pixels: u64, longer_side: u32) -> Result<(Picture, [u32; 2]), ImageError> {
    let format = format_of(bytes)?;
    let (mut upright, probe): (DynamicImage, Probe) = if format == Format::Jpeg {
        let (probe, decoder) = jpeg::open(bytes, max_pixels)?;
        (jpeg::decode(bytes, decoder, &probe, longer_side)?.into(), probe)
    } else {
        let (probe, decoder) = open(bytes, format, max_pixels)?;
        let size = (probe.width, probe.height);
        (DynamicImage::from_decoder(decoder).map_err(|error| ImageError::of(error, size))?, probe)
    };
    let orientation = Orientation::from_exif(probe.orientation).unwrap_or(Orientation::NoTransforms);
    upright.apply_orientation(orientation);
    let rgb = upright.into_rgb8();
    let (width, height) = rgb.dimensions();
    let picture =
        Picture::new(width, height, rgb.into_raw()).ok_or(ImageError::Corrupt { why: "it has no pixels".into() });
    // 5 to 8 lie on their side.
    let whole = if probe.orientation > 4 { [probe.height, probe.width] } else { [probe.width, probe.height] };
    Ok((picture?, whole))
}

/// A decoder of what is no JPEG that has read the header, and what that said.
fn open(bytes: &[u8], format: Format, max_pixels: u64) -> Result<(Probe, impl ImageDecoder + '_), ImageError> {
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
    let mut decoder = reader.into_decoder().map_err(|error| ImageError::of(error, (0, 0)))?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooManyPixels { width, height, max_pixels });
    }
    if format == Format::WebP && webp::has_larger_frame(bytes, width, height) {
        return Err(ImageError::Corrupt { why: "a frame in it is larger than the picture".into() });
    }
    // A broken EXIF block does not make a picture unreadable: every viewer then shows it as it is stored.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms).to_exif();
    Ok((Probe { format, width, height, orientation }, decoder))
}

/// The encoding that the first bytes tell; nothing more is looked at.
pub fn format_of(bytes: &[u8]) -> Result<Format, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    match image::guess_format(bytes) {
        Ok(ImageFormat::Jpeg) => Ok(Format::Jpeg),
        Ok(ImageFormat::Png) => Ok(Format::Png),
        Ok(ImageFormat::WebP) => Ok(Format::WebP),
        Ok(other) => Err(ImageError::Unsupported { what: format!("{other:?}").to_uppercase() }),
        Err(_) => Err(ImageError::NotAnImage),
    }
}
