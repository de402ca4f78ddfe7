use std::collections::VecDeque;
use std::ops::Range;

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

/// Scales to `whole` (width, height) as Pillow does with `Image.Resampling.BILINEAR`, and gives the piece of `size` from `start` on:
/// a triangle around each pixel of the result, widened where it shrinks so that nothing aliases; first across, then down, each
/// rounded to 8 bits. Bit for bit: `ImagingResample` in Pillow, `src/libImaging/Resample.c`. (`fast_image_resize` rounds weights to
/// 16 bits, so that values differ by 1 here and there, and a classifier that wavers between two labels takes the other.)
///
/// Only what the piece is made of is scaled: of a picture that is a strip the rest would be thousands of times as much.
pub(crate) fn bilinear(picture: &Picture, whole: [u32; 2], start: [u32; 2], size: [u32; 2]) -> Picture {
    let [across, down] = [(picture.width(), 0), (picture.height(), 1)]
        .map(|(from, axis)| taps(from, whole[axis], start[axis]..start[axis] + size[axis]));
    let mut squeezed = Squeezed { picture, across: &across, first: 0, rows: VecDeque::new() };
    let mut result = Picture::black(size[0], size[1]);
    let mut sums = vec![0; result.stride()];
    for (taps, to) in down.iter().zip(result.rows_mut()) {
        sums.fill(HALF);
        for (row, weight) in squeezed.rows(taps.start, taps.weights.len()).zip(&taps.weights) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * weight;
            }
        }
        for (to, sum) in to.iter_mut().zip(&sums) {
            *to = cut(*sum);
        }
    }
    result
}

/// Rows of the source that are as wide as the result, as many as one row of that is made of. The next one shares most of them.
struct Squeezed<'a> {
    picture: &'a Picture,
    across: &'a [Taps],
    /// The place of the first of `rows`.
    first: usize,
    rows: VecDeque<Vec<u8>>,
}

impl Squeezed<'_> {
    /// So many rows from `first` on, which never goes back.
    fn rows(&mut self, first: usize, count: usize) -> impl Iterator<Item = &[u8]> {
        let done = first.saturating_sub(self.first).min(self.rows.len());
        let mut spare: Vec<Vec<u8>> = self.rows.drain(..done).collect();
        self.first = first;
        while self.rows.len() < count {
            let mut row = spare.pop().unwrap_or_else(|| vec![0; self.across.len() * CHANNELS]);
            squeeze(self.picture.row(first + self.rows.len()), self.across, &mut row);
            self.rows.push_back(row);
        }
        self.rows.iter().take(count).map(Vec::as_slice)
    }
}

/// One row of another length.
fn squeeze(from: &[u8], taps: &[Taps], to: &mut [u8]) {
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

fn cut(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// Which of `from` pixels make those `wanted` of `to`. `precompute_coeffs` and `normalize_coeffs_8bpc` in Pillow.
fn taps(from: u32, to: u32, wanted: Range<u32>) -> Vec<Taps> {
    let scale = f64::from(from) / f64::from(to);
    // The triangle reaches as far as the pixels that it has to cover.
    let reach = scale.max(1.0);
    wanted
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

    fn whole(picture: &Picture, size: [u32; 2]) -> Picture {
        bilinear(picture, size, [0, 0], size)
    }

    fn noise(width: u32, height: u32) -> Picture {
        // The generator of `random.Random` is not at hand: any numbers do, if Pillow is given the same.
        let value = |at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8;
        Picture::new(width, height, (0..width * height * 3).map(value).collect()).unwrap()
    }

    /// `Image.fromarray(np.uint8([[[v] * 3 for v in (0, 100, 200, 50)]])).resize((n, 1), Image.Resampling.BILINEAR)`.
    #[test]
    fn a_row_is_pillows() {
        let row = Picture::new(4, 1, [0, 100, 200, 50].iter().flat_map(|&value| [value; 3]).collect()).unwrap();
        let values = |width: u32| whole(&row, [width, 1]).pixels().iter().copied().step_by(3).collect::<Vec<u8>>();
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
            let resized = whole(&noise(61, 47), size);
            let numbered = resized.pixels().iter().zip(1_u32..);
            let sum = numbered.fold(0_u32, |sum, (&value, at)| sum.wrapping_add(at.wrapping_mul(u32::from(value))));
            assert_eq!(sum, wanted, "{size:?}");
        }
    }

    #[test]
    fn a_piece_is_a_piece_of_the_whole() {
        for size in [[30, 20], [100, 90], [61, 20]] {
            let (all, piece) = (whole(&noise(61, 47), size), bilinear(&noise(61, 47), size, [7, 5], [11, 9]));
            for (y, row) in piece.rows().enumerate() {
                assert_eq!(row, &all.row(y + 5)[7 * CHANNELS..18 * CHANNELS], "row {y} of {size:?}");
            }
        }
    }

    #[test]
    fn the_same_size_is_a_copy() {
        assert_eq!(whole(&noise(5, 4), [5, 4]), noise(5, 4));
    }
}
