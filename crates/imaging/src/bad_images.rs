//! What cameras, telephones and strangers send. Each is a picture of 16 × 8 px, red on the left, blue on the right, unless it
//! is none; `testdata/` holds two that the encoders here cannot make, written with Pillow.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageResult};

use crate::{Format, ImageError, Picture, decode, decode_at_least, probe};

const WIDTH: u32 = 16;
const HEIGHT: u32 = 8;
const PLENTY: u64 = 1_000_000;

const CMYK_JPEG: &[u8] = include_bytes!("../testdata/cmyk.jpg");
const ANIMATED_WEBP: &[u8] = include_bytes!("../testdata/animated.webp");

fn pixels() -> Vec<u8> {
    let row = [[255, 0, 0]; 8].into_iter().chain([[0, 0, 255]; 8]).flatten();
    row.collect::<Vec<u8>>().repeat(HEIGHT as usize)
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>) -> ImageResult<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(&mut bytes).unwrap();
    bytes
}

fn jpeg() -> Vec<u8> {
    encoded(|bytes| JpegEncoder::new_with_quality(bytes, 95).encode(&pixels(), WIDTH, HEIGHT, ExtendedColorType::Rgb8))
}

fn png(pixels: &[u8], color: ExtendedColorType) -> Vec<u8> {
    encoded(|bytes| PngEncoder::new(bytes).write_image(pixels, WIDTH, HEIGHT, color))
}

/// A JPEG whose camera was held otherwise: an EXIF block with the orientation `exif`, 1 to 8.
fn rotated_jpeg(exif: u8) -> Vec<u8> {
    // Little-endian TIFF with one entry: tag 0x0112 (orientation), type 3 (16 bits), count 1.
    let tiff = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[exif, 0, 0, 0, 0, 0, 0, 0]].concat();
    let block = [b"Exif\0\0".as_slice(), &tiff].concat();
    let length = (block.len() as u16 + 2).to_be_bytes();
    let plain = jpeg();
    [&plain[..2], &[0xFF, 0xE1], &length, &block, &plain[2..]].concat()
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

#[track_caller]
fn assert_red_and_blue(picture: &Picture) {
    assert_eq!((picture.width(), picture.height()), (WIDTH, HEIGHT));
    for row in picture.rows() {
        assert!(row[0] > 200 && row[1] < 60 && row[2] < 60, "left is {:?}", &row[..3]);
        let right = &row[row.len() - 3..];
        assert!(right[0] < 60 && right[1] < 60 && right[2] > 200, "right is {right:?}");
    }
}

#[track_caller]
fn refused(bytes: &[u8]) -> ImageError {
    let error = decode(bytes, PLENTY).unwrap_err();
    assert!(error.to_string().starts_with("cannot decode the "), "{error}");
    error
}

#[test]
fn what_cameras_send_is_read() {
    let webp =
        encoded(|bytes| WebPEncoder::new_lossless(bytes).encode(&pixels(), WIDTH, HEIGHT, ExtendedColorType::Rgb8));
    for bytes in [&jpeg(), &png(&pixels(), ExtendedColorType::Rgb8), &webp, CMYK_JPEG, ANIMATED_WEBP] {
        assert_red_and_blue(&decode(bytes, PLENTY).unwrap());
    }
}

#[test]
fn alpha_is_dropped() {
    let rgba: Vec<u8> = pixels().chunks_exact(3).flat_map(|rgb| [rgb[0], rgb[1], rgb[2], 7]).collect();
    assert_red_and_blue(&decode(&png(&rgba, ExtendedColorType::Rgba8), PLENTY).unwrap());
}

#[test]
fn grey_of_16_bits_becomes_rgb_of_8() {
    let values: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(|place| (place as u16 * 257).to_ne_bytes()).collect();
    let picture = decode(&png(&values, ExtendedColorType::L16), PLENTY).unwrap();
    let expected: Vec<u8> = (0..WIDTH * HEIGHT).flat_map(|place| [place as u8; 3]).collect();
    assert_eq!(picture.pixels(), expected);
}

#[test]
fn a_camera_held_sideways_gives_an_upright_picture() {
    let bytes = rotated_jpeg(6);
    let found = probe(&bytes, PLENTY).unwrap();
    assert_eq!((found.format, found.width, found.height, found.orientation), (Format::Jpeg, WIDTH, HEIGHT, 6));
    let picture = decode(&bytes, PLENTY).unwrap();
    // Turned by 90° clockwise: what was left is on top.
    assert_eq!((picture.width(), picture.height()), (HEIGHT, WIDTH));
    assert!(picture.row(0)[0] > 200 && picture.row(15)[2] > 200);
    let upside_down = decode(&rotated_jpeg(3), PLENTY).unwrap();
    assert!(upside_down.row(0)[2] > 200 && upside_down.row(0)[45] > 200);
}

#[test]
fn a_large_jpeg_comes_smaller_where_that_will_do() {
    let (width, height) = (160, 80);
    let pixels: Vec<u8> =
        (0..height).flat_map(|_| (0..width).flat_map(|x| if x < 80 { [255, 0, 0] } else { [0, 0, 255] })).collect();
    let large = encoded(|bytes| JpegEncoder::new(bytes).encode(&pixels, width, height, ExtendedColorType::Rgb8));
    for (longer_side, wanted) in
        [(20, [20, 10]), (21, [40, 20]), (40, [40, 20]), (41, [160, 80]), (u32::MAX, [160, 80])]
    {
        let (picture, whole) = decode_at_least(&large, PLENTY, longer_side).unwrap();
        assert_eq!(([picture.width(), picture.height()], whole), (wanted, [width, height]), "for {longer_side}");
        assert!(picture.row(0)[0] > 200 && picture.row(0)[picture.stride() - 1] > 200);
    }
    // A picture on its side: the whole one's size is told upright.
    assert_eq!(decode_at_least(&rotated_jpeg(6), PLENTY, 1).unwrap().1, [HEIGHT, WIDTH]);
}

#[test]
fn an_orientation_that_does_not_exist_is_upright() {
    assert_red_and_blue(&decode(&rotated_jpeg(77), PLENTY).unwrap());
}

#[test]
fn no_picture_is_told_by_its_content() {
    assert!(matches!(refused(b""), ImageError::Empty));
    assert!(matches!(refused(b"just a text that somebody named .jpg"), ImageError::NotAnImage));
    assert!(matches!(refused(&[0; 64]), ImageError::NotAnImage));
    let ImageError::Unsupported { what } = refused(b"GIF89a and so on") else { panic!("a GIF was taken") };
    assert_eq!(what, "GIF");
}

#[test]
fn a_huge_picture_is_refused_by_its_header() {
    for header in [png_header(60_000, 60_000), png_header(u32::MAX >> 1, u32::MAX >> 1)] {
        let error = probe(&header, 50_000_000).unwrap_err();
        assert_eq!(error.reason(), "too-many-pixels", "{error}");
        assert_eq!(refused(&header).reason(), "too-many-pixels");
    }
    let error = probe(&jpeg(), u64::from(WIDTH * HEIGHT) - 1).unwrap_err();
    assert!(matches!(error, ImageError::TooManyPixels { width: WIDTH, height: HEIGHT, .. }), "{error}");
    assert!(probe(&jpeg(), u64::from(WIDTH * HEIGHT)).is_ok());
}

#[test]
fn a_frame_larger_than_its_picture_is_refused() {
    // A canvas of 24 × 17 px with one frame of its size, whose own header says 16155 × 16344 px.
    let vp8 = [b"VP8 \x20\0\0\0\x90\x07\0\x9d\x01\x2a\x1b\x3f\xd8\x3f".as_slice(), &[0; 22]].concat();
    let place = b"\0\0\0\0\0\0\x17\0\0\x10\0\0\x28\0\0\x02";
    let frame = [b"ANMF\x38\0\0\0".as_slice(), place, &vp8].concat();
    let canvas = b"VP8X\x0a\0\0\0\x02\0\0\0\x17\0\0\x10\0\0ANIM\x06\0\0\0\0\0\0\0\0\0";
    let file = [b"RIFF\x66\0\0\0WEBP".as_slice(), canvas, &frame].concat();
    let error = refused(&file);
    assert!(error.to_string().contains("a frame in it is larger than the picture"), "{error}");
}

#[test]
fn a_file_that_ends_early_is_never_a_picture() {
    let plain_png = png(&pixels(), ExtendedColorType::Rgb8);
    let rotated = rotated_jpeg(6);
    for whole in [&jpeg(), &rotated, &plain_png, CMYK_JPEG] {
        for len in 1..whole.len() {
            let Err(error) = decode(&whole[..len], PLENTY) else {
                // A PNG's last chunk is an empty end mark: without it the pixels are still all there.
                assert!(*whole == plain_png && len >= whole.len() - 16, "{len} of {} bytes were taken", whole.len());
                continue;
            };
            assert!(["truncated", "corrupt", "not-an-image"].contains(&error.reason()), "{len}: {error}");
        }
    }
    let half = &jpeg()[..jpeg().len() - 20];
    assert!(matches!(refused(half), ImageError::Truncated));
    assert!(matches!(refused(&plain_png[..plain_png.len() / 2 + 8]), ImageError::Truncated));
}

#[test]
fn the_end_of_a_thumbnail_is_not_the_end_of_the_picture() {
    // A comment that holds an end-of-image marker, as the JPEG thumbnail in an EXIF block does.
    let plain = jpeg();
    let with_comment = [&plain[..2], &[0xFF, 0xFE, 0, 6, 0xFF, 0xD9, 0xFF, 0xD9], &plain[2..]].concat();
    assert_red_and_blue(&decode(&with_comment, PLENTY).unwrap());
    assert!(matches!(refused(&with_comment[..with_comment.len() - 2]), ImageError::Truncated));
}

#[test]
fn broken_bytes_are_an_error_or_a_picture_and_never_a_panic() {
    let files = [jpeg(), png(&pixels(), ExtendedColorType::Rgb8), CMYK_JPEG.into(), ANIMATED_WEBP.into()];
    for whole in &files {
        for place in 0..whole.len() {
            for flip in [0x01, 0x80, 0xFF] {
                let mut broken = whole.clone();
                broken[place] ^= flip;
                if let Ok(picture) = decode(&broken, PLENTY) {
                    assert!(u64::from(picture.width()) * u64::from(picture.height()) <= PLENTY);
                }
            }
        }
    }
}

/// Each component stands in the header with its name and how it is sampled; the decoder panics at some.
#[test]
fn a_jpeg_that_is_sampled_oddly_is_refused() {
    let sampled = |name: u8, sampling: u8| {
        let at = CMYK_JPEG.windows(3).position(|three| three == [name, 0x11, 0]).unwrap();
        [&CMYK_JPEG[..=at], &[sampling], &CMYK_JPEG[at + 2..]].concat()
    };
    for name in *b"CMYK" {
        let odd = decode(&sampled(name, 0x13), PLENTY);
        // Where the first is the largest, the last has to be as large.
        assert!(matches!(&odd, Err(ImageError::Unsupported { .. })), "{}: {odd:?}", char::from(name));
    }
    assert!(decode(&sampled(b'C', 0x11), PLENTY).is_ok());
}
