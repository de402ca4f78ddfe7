use crate::Picture;
use crate::picture::CHANNELS;

/// How sharp a picture is: the variance of its Laplacian on 8-bit grey, as
/// `cv2.Laplacian(cv2.cvtColor(rgb, COLOR_RGB2GRAY), CV_64F).var()` gives it. Higher is sharper; a blurred face of 112 × 112
/// px has less than 20.
pub fn sharpness(picture: &Picture) -> f32 {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let grey = grey(picture);
    let row = |y: usize| &grey[y * width..][..width];
    let (mut sum, mut squares) = (0_i64, 0_i64);
    for y in 0..height {
        let (above, middle, below) = (row(before(y, height)), row(y), row(after(y, height)));
        for x in 0..width {
            let around = above[x] + below[x] + middle[before(x, width)] + middle[after(x, width)];
            let laplacian = i64::from(around - 4 * middle[x]);
            sum += laplacian;
            squares += laplacian * laplacian;
        }
    }
    let count = (width * height) as f64;
    let mean = sum as f64 / count;
    (squares as f64 / count - mean * mean) as f32
}

/// 8-bit grey values. Weights of ITU-R BT.601 in 14 bits, as in `OpenCV`.
fn grey(picture: &Picture) -> Vec<i32> {
    let (pixels, _) = picture.pixels().as_chunks::<CHANNELS>();
    let grey = |&[r, g, b]: &[u8; CHANNELS]| {
        (i32::from(r) * 4899 + i32::from(g) * 9617 + i32::from(b) * 1868 + (1 << 13)) >> 14
    };
    pixels.iter().map(grey).collect()
}

/// The place before, mirrored at the border without repeating it (`BORDER_REFLECT_101`).
fn before(at: usize, len: usize) -> usize {
    if at > 0 { at - 1 } else { 1.min(len - 1) }
}

/// The place after, mirrored likewise.
fn after(at: usize, len: usize) -> usize {
    if at + 1 < len { at + 1 } else { len.saturating_sub(2) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_picture_has_none() {
        assert!(sharpness(&Picture::new(5, 4, vec![90; 60]).unwrap()).abs() < 1e-6);
        assert!(sharpness(&Picture::new(1, 1, vec![90; 3]).unwrap()).abs() < 1e-6);
    }

    /// `cv2.Laplacian(np.uint8([[0, 0, 0], [0, 90, 0], [0, 0, 0]]), cv2.CV_64F).var()` is 27200.
    #[test]
    fn a_dot_is_sharp() {
        let mut pixels = vec![0; 27];
        pixels[12..15].fill(90);
        let measured = sharpness(&Picture::new(3, 3, pixels).unwrap());
        assert!((measured - 27_200.0).abs() < 1.0, "{measured}");
    }
}
