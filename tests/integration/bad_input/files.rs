use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;

use harness::{Tools, workspace};
use image::{DynamicImage, ImageFormat};

/// Writes the bad ones and the odd ones; gives those that must end as dead letters with stage and reason.
pub(super) fn write_bad_files(tools: &Tools, to: &Path) -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let photo = std::fs::read(tools.photos().join("input/obama-speaking.jpg")).expect("a photo");
    let upright = image::load_from_memory(&photo).expect("a photo");
    let testdata = workspace().join("crates/imaging/testdata");
    let read = |name| std::fs::read(testdata.join(name)).expect("a picture");
    let files = [
        ("upright.jpg", photo.clone()),
        // Held so that its right side was up: orientation 6 is turned by 90° clockwise to be upright.
        ("rotated.jpg", with_orientation(&encoded(&upright.rotate270(), ImageFormat::Jpeg), 6)),
        ("deep.png", encoded(&DynamicImage::ImageLuma16(upright.to_luma16()), ImageFormat::Png)),
        ("cmyk.jpg", read("cmyk.jpg")),
        ("animated.webp", read("animated.webp")),
        ("truncated.jpg", photo[..photo.len() / 2].to_vec()),
        ("text.jpg", b"dear diary".to_vec()),
        ("huge.png", png_header(60_000, 60_000)),
        ("empty.jpg", Vec::new()),
    ];
    for (name, bytes) in files {
        std::fs::write(to.join(name), bytes).expect("it is written");
    }
    BTreeMap::from([
        ("truncated.jpg", ("preprocess", "truncated")),
        ("text.jpg", ("capture", "not-an-image")),
        ("huge.png", ("capture", "too-many-pixels")),
        ("empty.jpg", ("capture", "empty-file")),
    ])
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("it can be encoded");
    bytes.into_inner()
}

/// A JPEG with an EXIF block that says nothing but the orientation, 1 to 8.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    // Little-endian TIFF with one entry: tag 0x0112 (orientation), type 3 (16 bits), count 1.
    let tiff = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]];
    let block = [b"Exif\0\0".as_slice(), &tiff.concat()].concat();
    let length = u16::try_from(block.len() + 2).expect("a short block").to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &block, &jpeg[2..]].concat()
}

/// A PNG that is nothing but its header.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let sum = crc32(&chunk).to_be_bytes();
    [b"\x89PNG\r\n\x1a\n\0\0\0\x0d".as_slice(), &chunk, &sum, b"\0\0\0\x04IDAT"].concat()
}

/// CRC-32 of the PNG specification, annex D.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// The bytes of one of the bad files.
pub(super) fn bad_file(tools: &Tools, name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    write_bad_files(tools, folder.path());
    std::fs::read(folder.path().join(name)).expect("a bad file")
}
