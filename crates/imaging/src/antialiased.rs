use crate::Picture;
use crate::picture::CHANNELS;

/// Bits behind the point of a weight: Pillow's `PRECISION_BITS`, 32 less 8 for the value and 2 for the sum's head room.
const PRECISION: u32 = 32 - 8 - 2;

/// One half, in which a sum begins so that it is rounded when it is cut.
const HALF: i32 = 1 << (PRECISION - 1);

/// The pixels that one pixel of the result is made of.
struct Taps {
    /// The first.
    start: usize,
    /// Their weights in fixed point, which add up to 1.
    weights: Vec<i32>,
}

/// Scales to `width × height` as Pillow does with `Image.Resampling.BILINEAR`: a triangle around each pixel of the result, widened
/// where it shrinks so that nothing aliases; first across, then down, each rounded to 8 bits. Bit for bit: `ImagingResample` in
/// Pillow, `src/libImaging/Resample.c`. (`fast_image_resize` rounds weights to 16 bits, so that values differ by 1 here and
/// there, and a classifier that wavers between two labels takes the other.)
pub(crate) fn bilinear(picture: &Picture, [width, height]: [u32; 2]) -> Picture {
    let across = (width != picture.width()).then(|| squeezed(picture, &taps(picture.width(), width)));
    let picture = across.as_ref().unwrap_or(picture);
    if height == picture.height() { picture.clone() } else { stacked(picture, &taps(picture.height(), height)) }
}

/// Rows of another length.
fn squeezed(picture: &Picture, taps: &[Taps]) -> Picture {
    let mut result = Picture::black(taps.len() as u32, picture.height());
    for (from, to) in picture.rows().zip(result.rows_mut()) {
        let (from, _) = from.as_chunks::<CHANNELS>();
        let (to, _) = to.as_chunks_mut::<CHANNELS>();
        for (taps, to) in taps.iter().zip(to) {
            let mut sums = [HALF; CHANNELS];
            for (pixel, weight) in from[taps.start..].iter().zip(&taps.weights) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            *to = sums.map(cut);
        }
    }
    result
}

/// Another number of rows.
fn stacked(picture: &Picture, taps: &[Taps]) -> Picture {
    let mut result = Picture::black(picture.width(), taps.len() as u32);
    let mut sums = vec![0; picture.stride()];
    for (taps, to) in taps.iter().zip(result.rows_mut()) {
        sums.fill(HALF);
        for (at, weight) in taps.weights.iter().enumerate() {
            for (sum, value) in sums.iter_mut().zip(picture.row(taps.start + at)) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (to, sum) in to.iter_mut().zip(&sums) {
            *to = cut(*sum);
        }
    }
    result
}

fn cut(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Which of `from` pixels make each of `to`. `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow.
fn taps(from: u32, to: u32) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    // The triangle reaches as far as the pixels that it has to cover.
    let reach = scale.max(1.0);
    (0..to)
        .map(|at| {
            let centre = (f64::from(at) + 0.5) * scale;
            let start = (centre - reach + 0.5).max(0.0) as u32;
            let end = ((centre + reach + 0.5) as u32).min(from);
            let weight = |place: u32| (1.0 - ((f64::from(place) - centre + 0.5) / reach).abs()).max(0.0);
            let weights: Vec<f64> = (start..end).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| (0.5 + weight / sum * f64::from(1 << PRECISION)) as i32;
            Taps { start: start as usize, weights: weights.iter().map(fixed).collect() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(width: u32, height: u32) -> Picture {
        // The generator of `random.Random` is not at hand: any numbers do, if Pillow is given the same.
        let value = |at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
        Picture::new(width, height, (0..width * height * 3).map(value).collect()).unwrap()
    }

    /// `Image.fromarray(np.uint8([[[v] * 3 for v in (0, 100, 200, 50)]])).resize((n, 1), Image.Resampling.BILINEAR)`.
    #[test]
    fn a_row_is_pillows() {
        let row = Picture::new(4, 1, [0, 100, 200, 50].iter().flat_map(|&value| [value; 3]).collect()).unwrap();
        let values = |width: u32| bilinear(&row, [width, 1]).pixels().iter().copied().step_by(3).collect::<Vec<u8>>();
        assert_eq!(values(2), [71, 121]);
        assert_eq!(values(8), [0, 25, 75, 125, 175, 163, 88, 50]);
    }

    /// Sums over the pixels, weighted by their place, of what Pillow 13 makes of `noise(61, 47)`:
    /// `sum((i + 1) * v for i, v in enumerate(resized.tobytes())) % 2**32`.
    #[test]
    fn pictures_are_pillows() {
        for (size, wanted) in [
            ([30, 20], 206_676_213),
            ([61, 20], 854_313_019),
            ([17, 47], 366_595_884),
            ([100, 90], 3_542_271_337),
            ([33, 90], 768_795_140),
        ] {
            let resized = bilinear(&noise(61, 47), size);
            let numbered = resized.pixels().iter().zip(1_u32..);
            let sum = numbered.fold(0_u32, |sum, (&value, at)| sum.wrapping_add(at.wrapping_mul(u32::from(value))));
            assert_eq!(sum, wanted, "{size:?}");
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        assert_eq!(bilinear(&noise(5, 4), [5, 4]), noise(5, 4));
    }
}
