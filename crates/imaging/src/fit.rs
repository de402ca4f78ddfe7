use crate::Picture;
use crate::antialiased::bilinear;

/// A picture as a model wants to see it, and which part of the original that is.
#[derive(Debug, Clone, PartialEq)]
pub struct Fitted {
    /// The piece, of the size asked for.
    pub picture: Picture,
    /// Left, top, width and height of the piece in the original, px.
    pub part: [f32; 4],
}

/// Scales the picture so that its shorter side is `resize` px and cuts `size` (width, height) from the centre. Without `resize`
/// it is scaled as far as `size` needs.
///
/// Sizes and places are rounded as torchvision's `Resize` and `CenterCrop` round them, and pixels are Pillow's bilinear ones,
/// to the last bit: most classifiers were trained with these.
///
/// # Panics
/// When `resize` or a side of `size` is 0.
pub fn fit(picture: &Picture, resize: Option<u32>, size: [u32; 2]) -> Fitted {
    let whole = [picture.width(), picture.height()];
    let scaled = scaled(whole, resize, size);
    let start = [0, 1].map(|axis| start(scaled[axis], size[axis]));
    let scale = |axis: usize| whole[axis] as f32 / scaled[axis] as f32;
    let part =
        [start[0] as f32 * scale(0), start[1] as f32 * scale(1), size[0] as f32 * scale(0), size[1] as f32 * scale(1)];
    Fitted { picture: bilinear(picture, scaled, start, size), part }
}

/// Longest side that a picture is scaled to, as a multiple of the shorter: a strip of 1 px may not become a wall.
const LONGEST: u32 = 64;

/// Width and height that the picture is scaled to; nowhere less than `size`.
fn scaled(whole: [u32; 2], resize: Option<u32>, size: [u32; 2]) -> [u32; 2] {
    let shorter = whole[0].min(whole[1]);
    if let Some(resize) = resize {
        // torchvision: int(size * longer / shorter).
        return whole.map(|side| {
            let long = u64::from(resize) * u64::from(side) / u64::from(shorter);
            (long.min(u64::from(resize.saturating_mul(LONGEST))) as u32).max(resize)
        });
    }
    let covers = |axis: usize| f64::from(size[axis]) / f64::from(whole[axis]);
    let scale = covers(0).max(covers(1));
    [0, 1].map(|axis| {
        let side = (f64::from(whole[axis]) * scale).round() as u32;
        side.min(size[axis].saturating_mul(LONGEST)).max(size[axis])
    })
}

/// Where the piece begins. torchvision: `int(round((side - piece) / 2.0))`, and Python rounds halves to even.
fn start(side: u32, piece: u32) -> u32 {
    (f64::from(side - piece) / 2.0).round_ties_even() as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::CHANNELS;

    fn grey(width: u32, height: u32, value: impl Fn(u32, u32) -> u8) -> Picture {
        let at = |place: u32| value(place % width, place / width);
        Picture::new(width, height, (0..width * height).flat_map(|place| [at(place); CHANNELS]).collect()).unwrap()
    }

    #[test]
    fn sizes_and_places_are_torchvisions() {
        assert_eq!(scaled([451, 300], Some(256), [224, 224]), [384, 256]);
        assert_eq!(scaled([300, 451], Some(256), [224, 224]), [256, 384]);
        assert_eq!((start(384, 224), start(257, 224), start(259, 224)), (80, 16, 18));
        // No `resize`: the side that needs it most fits, the other is cut.
        assert_eq!(scaled([400, 100], None, [48, 32]), [128, 32]);
        assert_eq!(scaled([100, 400], None, [48, 32]), [48, 192]);
    }

    #[test]
    fn a_strip_does_not_become_a_wall() {
        assert_eq!(scaled([100_000, 1], Some(256), [224, 224]), [256 * 64, 256]);
        assert_eq!(scaled([100_000, 1], None, [48, 32]), [48 * 64, 32]);
    }

    #[test]
    fn the_middle_of_a_strip_is_seen() {
        let strip = grey(1, 200_000, |_, y| (y / 800) as u8);
        let fitted = fit(&strip, Some(32), [32, 32]);
        let middle = fitted.picture.row(16)[0];
        assert!((123..=126).contains(&middle), "{middle}");
    }

    #[test]
    fn the_part_is_told_in_pixels_of_the_original() {
        let fitted = fit(&grey(400, 200, |x, _| (x / 2) as u8), Some(100), [80, 60]);
        assert_eq!((fitted.picture.width(), fitted.picture.height()), (80, 60));
        assert_eq!(fitted.part.map(|px| px as u32), [120, 40, 160, 120]);
        // The left of the piece is the original's at 120 px, where it is 60.
        assert!((59..=61).contains(&fitted.picture.pixels()[0]), "{}", fitted.picture.pixels()[0]);
    }
}
