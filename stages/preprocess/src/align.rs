//! Turns a face upright and to one size, so that eyes, nose and mouth lie where the embedding model expects them.

use causeway_imaging::{Affine, Picture, warp};

/// Width and height of an aligned face, px.
pub const ALIGNED: u32 = 112;

/// Where the five landmarks of an aligned face lie, px: right eye, left eye, nose, right and left corner of the mouth, the
/// subject's own. `ArcFace`'s template for 112 × 112 (Deng et al., <https://arxiv.org/abs/1801.07698>), as in `OpenCV`'s
/// `FaceRecognizerSF` (`modules/objdetect/src/face_recognize.cpp`).
const TEMPLATE: [[f64; 2]; 5] =
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]];

/// The aligned face with these landmarks; `None` when they lie in one point.
pub(crate) fn align(picture: &Picture, landmarks: &[[f32; 2]; 5]) -> Option<Picture> {
    let landmarks = landmarks.map(|point| point.map(f64::from));
    warp(picture, &similarity(&landmarks, &TEMPLATE)?, ALIGNED, ALIGNED)
}

/// The rotation, scale and shift that take `from` nearest to `to` in the least-squares sense: S. Umeyama, "Least-squares
/// estimation of transformation parameters between two point patterns", IEEE TPAMI 13(4), 1991.
///
/// In two dimensions, where no reflection is allowed, his singular value decomposition comes down to one division of complex
/// numbers: with both sets centred, rotation and scale are Σ conj(from)·to / Σ |from|².
fn similarity(from: &[[f64; 2]; 5], to: &[[f64; 2]; 5]) -> Option<Affine> {
    let ([from_x, from_y], [to_x, to_y]) = (mean(from), mean(to));
    let (mut real, mut imaginary, mut spread) = (0.0, 0.0, 0.0);
    for (&[x, y], &[u, v]) in from.iter().zip(to) {
        let (x, y, u, v) = (x - from_x, y - from_y, u - to_x, v - to_y);
        real += x * u + y * v;
        imaginary += x * v - y * u;
        spread += x * x + y * y;
    }
    let (a, b) = (real / spread, imaginary / spread);
    let matrix = [[a, -b, to_x - a * from_x + b * from_y], [b, a, to_y - b * from_x - a * from_y]];
    matrix.iter().flatten().all(|number| number.is_finite()).then_some(matrix)
}

fn mean(points: &[[f64; 2]; 5]) -> [f64; 2] {
    [0, 1].map(|axis| points.iter().map(|point| point[axis]).sum::<f64>() / points.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_near(found: &Affine, wanted: &Affine, tolerance: f64) {
        for (found, wanted) in found.as_flattened().iter().zip(wanted.as_flattened()) {
            assert!((found - wanted).abs() < tolerance, "{found} is not {wanted}");
        }
    }

    #[test]
    fn a_turned_scaled_and_shifted_set_is_brought_back() {
        let (sine, cosine) = 0.4_f64.sin_cos();
        let turned =
            TEMPLATE.map(|[x, y]| [2.0 * (cosine * x - sine * y) + 30.0, 2.0 * (sine * x + cosine * y) - 10.0]);
        let back = similarity(&turned, &TEMPLATE).unwrap();
        let (a, b) = (cosine / 2.0, sine / 2.0);
        assert_near(&back, &[[a, b, -a * 30.0 + b * 10.0], [-b, a, b * 30.0 + a * 10.0]], 1e-9);
    }

    /// Against the decomposition as written by Umeyama, `umeyama` in `numpy`.
    #[test]
    fn the_short_way_is_umeyamas() {
        let from = [[30.0, 40.0], [80.0, 35.0], [60.0, 70.0], [35.0, 95.0], [77.0, 99.0]];
        let wanted = [[0.684_827_08, -0.008_388_55, 17.970_656_30], [0.008_388_55, 0.684_827_08, 24.996_390_80]];
        assert_near(&similarity(&from, &TEMPLATE).unwrap(), &wanted, 1e-5);
    }

    #[test]
    fn one_point_five_times_is_no_face() {
        assert!(similarity(&[[5.0, 5.0]; 5], &TEMPLATE).is_none());
        assert!(similarity(&[[f64::NAN; 2]; 5], &TEMPLATE).is_none());
    }
}
