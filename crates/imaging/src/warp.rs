use crate::Picture;
use crate::picture::CHANNELS;

/// A 2 × 3 matrix that takes a point `(x, y, 1)` of the source to a point of the result, px.
pub type Affine = [[f64; 3]; 2];

/// Places are whole numbers of 1/1024 px while they are computed: `AB_SCALE` in modules/imgproc/src/imgwarp.cpp.
const PLACE: f64 = 1024.0;

/// Between two pixels lie this many places that are told apart: `INTER_TAB_SIZE`.
const STEPS: i64 = 32;

/// What `matrix` shows of the picture in a window of `width × height` px: `cv2.warpAffine` with `INTER_LINEAR` and
/// `BORDER_CONSTANT`, in the same fixed-point arithmetic and so the same to the last bit. Outside the picture it is black.
/// `None` when the matrix cannot be inverted.
pub fn warp(picture: &Picture, matrix: &Affine, width: u32, height: u32) -> Option<Picture> {
    let [[a, b, c], [d, e, f]] = invert(matrix)?;
    // A cast saturates, as OpenCV's does: far away is outside, wherever.
    let place = |at: f64| i64::from((at * PLACE).round_ties_even() as i32);
    let steps = |at: i64| (at + 16) >> 5;
    let columns: Vec<[i64; 2]> = (0..width).map(f64::from).map(|x| [place(a * x), place(d * x)]).collect();
    let mut warped = Picture::black(width, height);
    for (y, row) in (0..height).map(f64::from).zip(warped.rows_mut()) {
        let start = [place(b * y + c), place(e * y + f)];
        let (pixels, _) = row.as_chunks_mut::<CHANNELS>();
        for (pixel, column) in pixels.iter_mut().zip(&columns) {
            *pixel = sample(picture, steps(start[0] + column[0]), steps(start[1] + column[1]));
        }
    }
    Some(warped)
}

fn invert(&[[a, b, c], [d, e, f]]: &Affine) -> Option<Affine> {
    let determinant = a * e - b * d;
    let inverse = [
        [e / determinant, -b / determinant, (b * f - c * e) / determinant],
        [-d / determinant, a / determinant, (c * d - a * f) / determinant],
    ];
    inverse.iter().flatten().all(|number| number.is_finite()).then_some(inverse)
}

/// The picture at (x, y), in steps of 1/32 px: between the four pixels around it.
fn sample(picture: &Picture, x: i64, y: i64) -> [u8; CHANNELS] {
    let (left, top) = (x.div_euclid(STEPS), y.div_euclid(STEPS));
    if left < -1 || top < -1 || left >= i64::from(picture.width()) || top >= i64::from(picture.height()) {
        return [0; CHANNELS];
    }
    let (right_part, lower_part) = (x.rem_euclid(STEPS) as u32, y.rem_euclid(STEPS) as u32);
    let (left_part, upper_part) = (STEPS as u32 - right_part, STEPS as u32 - lower_part);
    let corners = [
        (left, top, left_part * upper_part),
        (left + 1, top, right_part * upper_part),
        (left, top + 1, left_part * lower_part),
        (left + 1, top + 1, right_part * lower_part),
    ];
    // The weights are out of 1024; half of that rounds.
    let mut sum = [512; CHANNELS];
    for (x, y, weight) in corners {
        if let Some(pixel) = pixel(picture, x, y) {
            for (sum, &value) in sum.iter_mut().zip(pixel) {
                *sum += weight * u32::from(value);
            }
        }
    }
    sum.map(|sum| (sum >> 10) as u8)
}

fn pixel(picture: &Picture, x: i64, y: i64) -> Option<&[u8]> {
    let inside = (0..i64::from(picture.width())).contains(&x) && (0..i64::from(picture.height())).contains(&y);
    inside.then(|| &picture.row(y as usize)[x as usize * CHANNELS..][..CHANNELS])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp() -> Picture {
        let pixels = (0..4_u8).flat_map(|y| (0..4_u8).flat_map(move |x| [x * 40, y * 40, 100])).collect();
        Picture::new(4, 4, pixels).unwrap()
    }

    #[test]
    fn unchanged_by_the_identity() {
        assert_eq!(warp(&ramp(), &[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 4, 4).unwrap(), ramp());
    }

    #[test]
    fn half_a_pixel_is_the_mean_of_two() {
        let moved = warp(&ramp(), &[[1.0, 0.0, -0.5], [0.0, 1.0, 0.0]], 4, 4).unwrap();
        assert_eq!(moved.row(1)[..3], [20, 40, 100]);
        // The last column lies half outside, where it is black.
        assert_eq!(moved.row(1)[9..], [60, 20, 50]);
    }

    #[test]
    fn outside_is_black() {
        let moved = warp(&ramp(), &[[1.0, 0.0, 100.0], [0.0, 1.0, 0.0]], 4, 4).unwrap();
        assert!(moved.pixels().iter().all(|&value| value == 0));
    }

    #[test]
    fn no_picture_through_a_matrix_without_inverse() {
        assert!(warp(&ramp(), &[[0.0; 3]; 2], 4, 4).is_none());
        assert!(warp(&ramp(), &[[f64::NAN; 3]; 2], 4, 4).is_none());
    }
}
