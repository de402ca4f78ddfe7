//! Pictures: encoded ones, and odd sizes of decoded ones.

use causeway_imaging::{
    Picture, decode, decode_at_least, fit, format_of, png, probe, resize, sharpness, thumbnail, warp,
};
use causeway_schemas::Region;

use crate::taken::Taken;

/// Pixels that an encoded picture may have here: a fiftieth of what `capture` lets through by default.
const MAX_PIXELS: u64 = 1 << 20;
/// Pixels up to which it is also scaled: what that costs is tried with pictures that need no decoding.
const FEW_PIXELS: u64 = 1 << 16;
/// The longest side that is decoded smaller where that will do, px.
const LONGER_SIDE: u32 = 40;

/// An encoded picture.
pub(crate) fn decoded(bytes: &[u8]) {
    let _ = format_of(bytes);
    let probed = probe(bytes, MAX_PIXELS);
    let Ok(picture) = decode(bytes, MAX_PIXELS) else { return };
    let probed = probed.expect("what can be decoded has a header");
    let sides = [picture.width(), picture.height()];
    let stored = [probed.width, probed.height];
    let upright = if probed.orientation > 4 { [stored[1], stored[0]] } else { stored };
    assert_eq!(sides, upright, "other sides than the header says");
    let pixels = u64::from(sides[0]) * u64::from(sides[1]);
    assert!(pixels <= MAX_PIXELS);
    let (smaller, whole) = decode_at_least(bytes, MAX_PIXELS, LONGER_SIDE).expect("it was decoded before");
    assert_eq!(whole, sides, "another size when it is decoded smaller");
    let longer = smaller.width().max(smaller.height());
    assert!(longer >= LONGER_SIDE.min(sides[0].max(sides[1])), "decoded too small: {longer}");
    if pixels <= FEW_PIXELS {
        let _ = (sharpness(&picture), thumbnail(&picture, &region(sides.map(|side| side as f32)), 32));
        assert_eq!(decode(&png(&picture), MAX_PIXELS).expect("a PNG of ours"), picture);
    }
}

/// A picture of any size and what is done to it: one byte, width, height and the new width and height in two bytes each, then
/// numbers of 32 bits, then its bytes, over and over.
pub(crate) fn resampled(bytes: &[u8]) {
    let mut taken = Taken(bytes);
    let what = taken.u8();
    let [width, height, to_width, to_height] = std::array::from_fn(|_| u32::from(taken.u16()).max(1));
    let numbers: [f32; 6] = std::array::from_fn(|_| taken.f32());
    if u64::from(width) * u64::from(height) > MAX_PIXELS || u64::from(to_width) * u64::from(to_height) > MAX_PIXELS {
        return;
    }
    let values = taken.0.iter().copied().chain([90]).cycle().take((width * height * 3) as usize);
    let picture = Picture::new(width, height, values.collect()).expect("as many bytes as pixels");
    let result = match what % 5 {
        0 => resize(&picture, to_width, to_height),
        1 => {
            let [a, b, c, d, e, f] = numbers.map(f64::from);
            let Some(warped) = warp(&picture, &[[a, b, c], [d, e, f]], to_width, to_height) else { return };
            warped
        }
        2 => fit(&picture, None, [to_width, to_height].map(|side| side.min(2048))).picture,
        3 => {
            let size = [to_width, to_height].map(|side| side.min(2048));
            // What a manifest may say.
            let shorter = (numbers[0].abs() as u32).clamp(size[0].max(size[1]), 2048);
            fit(&picture, Some(shorter), size).picture
        }
        _ => {
            let [x, y, w, h, ..] = numbers;
            let region = Region { x, y, ..region([w, h]) };
            let size = to_width.min(256);
            let shown = thumbnail(&picture, &region, size);
            let shown = decode(&shown, MAX_PIXELS).expect("a JPEG of ours");
            assert_eq!([shown.width(), shown.height()], [size; 2]);
            return;
        }
    };
    assert!(result.pixels().len() as u64 <= 3 * MAX_PIXELS.max(2048 * 2048));
    let _ = sharpness(&result);
}

fn region([w, h]: [f32; 2]) -> Region {
    Region { x: 0.0, y: 0.0, w, h, score: 1.0, sharpness: 0.0, landmarks: Vec::new(), frame: [1, 1] }
}
