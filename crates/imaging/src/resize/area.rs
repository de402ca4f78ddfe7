//! `INTER_AREA`: each pixel of the result is the mean of the rectangle of the source that it covers.

use crate::Picture;
use crate::picture::CHANNELS;

pub(super) fn shrink(picture: &Picture, width: u32, height: u32) -> Picture {
    let columns = taps(picture.width() as usize, width as usize);
    let lines = taps(picture.height() as usize, height as usize);
    let mut shrunk = Picture::black(width, height);
    // First down, a whole row at a time, as the processor likes it; then across, where only the rows of the result are left.
    let mut sums = vec![0.0_f32; picture.stride()];
    for (row, line) in shrunk.rows_mut().zip(&lines) {
        sums.fill(0.0);
        for (y, &weight) in (line.first..).zip(&line.weights) {
            for (sum, &value) in sums.iter_mut().zip(picture.row(y)) {
                *sum += weight * f32::from(value);
            }
        }
        shrink_row(&sums, &columns, row);
    }
    shrunk
}

/// Which places of the source make one place of the result: from `first` on, with these weights, whose sum is 1.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

fn taps(from: usize, to: usize) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let tap = |place: usize| {
        let (start, end) = (place as f64 * scale, ((place + 1) as f64 * scale).min(from as f64));
        let first = start as usize;
        let last = (end.ceil() as usize).min(from);
        let covered = |x: usize| (end.min((x + 1) as f64) - start.max(x as f64)).max(0.0);
        Taps { first, weights: (first..last).map(|x| (covered(x) / (end - start)) as f32).collect() }
    };
    (0..to).map(tap).collect()
}

fn shrink_row(source: &[f32], columns: &[Taps], shrunk: &mut [u8]) {
    let (pixels, _) = source.as_chunks::<CHANNELS>();
    let (shrunk, _) = shrunk.as_chunks_mut::<CHANNELS>();
    for (shrunk, column) in shrunk.iter_mut().zip(columns) {
        let [mut red, mut green, mut blue] = [0.0; CHANNELS];
        for (&[r, g, b], &weight) in pixels[column.first..].iter().zip(&column.weights) {
            red += weight * r;
            green += weight * g;
            blue += weight * b;
        }
        *shrunk = [red, green, blue].map(|sum| (sum + 0.5) as u8);
    }
}
