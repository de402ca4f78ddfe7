use causeway_schemas::Region;

use crate::{Affine, Picture, jpeg, resize, warp};

/// How much of the surroundings is shown: the side of the square, as a multiple of the region's longer side.
const ROOM: f64 = 1.3;

/// JPEG quality, 1 to 100: a face of 96 px takes about 4 KB.
const QUALITY: u8 = 85;

/// Longest side of the square that is cut out before it is scaled, px: 50 MB. One around a strip could be a thousand times as much.
const LONGEST: u32 = 4096;

/// A square JPEG of `size × size` px that shows a region with a little room around it; black where that leaves the picture.
pub fn thumbnail(picture: &Picture, region: &Region, size: u32) -> Vec<u8> {
    let size = size.max(1);
    let side = square_side(picture, region);
    if side > LONGEST {
        let by = f64::from(LONGEST) / f64::from(side);
        let scaled = |len: u32| ((f64::from(len) * by) as u32).max(1);
        let smaller = resize(picture, scaled(picture.width()), scaled(picture.height()));
        let [x, y, w, h] = [region.x, region.y, region.w, region.h].map(|number| (f64::from(number) * by) as f32);
        return thumbnail(&smaller, &Region { x, y, w, h, ..region.clone() }, size);
    }
    let left = f64::from(region.x) + f64::from(region.w) / 2.0 - f64::from(side) / 2.0;
    let top = f64::from(region.y) + f64::from(region.h) / 2.0 - f64::from(side) / 2.0;
    // Whole pixels are cut out first, then scaled: a large face is averaged down instead of being sampled here and there.
    let cut_out: Affine = [[1.0, 0.0, -left.round()], [0.0, 1.0, -top.round()]];
    let square = warp(picture, &cut_out, side, side).unwrap_or_else(|| Picture::black(side, side));
    jpeg::encode(&resize(&square, size, size), QUALITY).expect("memory takes any JPEG of at most 65500 px a side")
}

/// The side of the square around a region, px; never larger than the picture's longer side, whatever the region says.
fn square_side(picture: &Picture, region: &Region) -> u32 {
    let longest = f64::from(picture.width().max(picture.height()));
    let wanted = f64::from(region.w.max(region.h)) * ROOM;
    (wanted.min(longest).round() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;

    fn region(x: f32, y: f32, w: f32, h: f32) -> Region {
        Region { x, y, w, h, score: 1.0, sharpness: 0.0, landmarks: Vec::new(), frame: [40, 40] }
    }

    #[test]
    fn any_region_gives_a_square() {
        let picture = Picture::new(40, 40, vec![120; 40 * 40 * 3]).unwrap();
        let regions =
            [region(10.0, 10.0, 9.0, 12.0), region(-20.0, -20.0, 30.0, 30.0), region(0.0, 0.0, 0.0, f32::INFINITY)];
        for region in regions {
            let shown = decode(&thumbnail(&picture, &region, 24), 1000).unwrap();
            assert_eq!((shown.width(), shown.height()), (24, 24));
        }
    }

    #[test]
    fn a_strip_is_shown_as_one() {
        let (width, height) = (60_000, 2_000);
        let picture = Picture::new(width, height, vec![120; (width * height * 3) as usize]).unwrap();
        let shown = decode(&thumbnail(&picture, &region(0.0, 0.0, width as f32, height as f32), 60), 10_000).unwrap();
        let column: Vec<u8> = shown.rows().map(|row| row[90]).collect();
        // A thirtieth of the square, black above and below.
        assert!(column[30] > 80 && column[20] < 20 && column[40] < 20, "{column:?}");
    }
}
