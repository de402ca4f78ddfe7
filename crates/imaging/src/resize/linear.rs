//! `INTER_LINEAR`: each pixel of the result lies between the centres of four pixels of the source. In `OpenCV`'s fixed-point
//! arithmetic (modules/imgproc/src/resize.cpp, `HResizeLinear` and `VResizeLinear`): where a detector's scores are nearly
//! equal, the last bit of a pixel decides.

use super::NarrowRows;
use crate::Picture;
use crate::picture::CHANNELS;

/// Weights are whole numbers out of this: `INTER_RESIZE_COEF_SCALE`.
const ONE: f32 = 2048.0;

pub(super) fn scale(picture: &Picture, width: u32, height: u32) -> Picture {
    let columns = taps(picture.width() as usize, width as usize);
    let lines = taps(picture.height() as usize, height as usize);
    let mut scaled = Picture::black(width, height);
    let mut narrow = NarrowRows::new(picture, scaled.stride(), |source, row| scale_row(source, &columns, row));
    for (row, line) in scaled.rows_mut().zip(&lines) {
        let [upper, lower] = narrow.rows(line.at);
        for ((pixel, &upper), &lower) in row.iter_mut().zip(upper).zip(lower) {
            let [upper, lower] = [(line.weights[0] * (upper >> 4)) >> 16, (line.weights[1] * (lower >> 4)) >> 16];
            *pixel = ((upper + lower + 2) >> 2).clamp(0, 255) as u8;
        }
    }
    scaled
}

/// The two places of the source that one place of the result lies between, and their weights.
struct Taps {
    at: [usize; 2],
    weights: [i32; 2],
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let last = from - 1;
    let tap = |place: usize| {
        let at = (((place as f64 + 0.5) * scale - 0.5) as f32).clamp(0.0, last as f32);
        let first = (at as usize).min(last);
        let part = at - first as f32;
        let weights = [1.0 - part, part].map(|weight| (weight * ONE).round_ties_even() as i32);
        Taps { at: [first, (first + 1).min(last)], weights }
    };
    (0..to).map(tap).collect()
}

fn scale_row(source: &[u8], columns: &[Taps], scaled: &mut [i32]) {
    let (pixels, _) = source.as_chunks::<CHANNELS>();
    let (scaled, _) = scaled.as_chunks_mut::<CHANNELS>();
    for (scaled, &Taps { at: [left, right], weights }) in scaled.iter_mut().zip(columns) {
        let (left, right) = (pixels[left], pixels[right]);
        for (channel, scaled) in scaled.iter_mut().enumerate() {
            *scaled = i32::from(left[channel]) * weights[0] + i32::from(right[channel]) * weights[1];
        }
    }
}
