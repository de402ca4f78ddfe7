mod area;
mod linear;

use crate::Picture;

/// Scales to `width × height` as `OpenCV` does: by area where it shrinks (`INTER_AREA`: nothing aliases), bilinear where it
/// grows (`INTER_LINEAR`).
///
/// Both place a pixel's centre at +0.5 and repeat the border. Values differ from `cv2.resize` by 1 at most, and seldom.
///
/// # Panics
/// When `width` or `height` is 0.
pub fn resize(picture: &Picture, width: u32, height: u32) -> Picture {
    assert!(width > 0 && height > 0, "a picture has pixels");
    if (width, height) == (picture.width(), picture.height()) {
        return picture.clone();
    }
    if width <= picture.width() && height <= picture.height() {
        area::shrink(picture, width, height)
    } else {
        linear::scale(picture, width, height)
    }
}

/// Rows of the source, already scaled to the width of the result. The last two are kept: neighbouring rows of the result
/// share them.
struct NarrowRows<'a, T, F> {
    picture: &'a Picture,
    narrow: F,
    kept: [(Option<usize>, Vec<T>); 2],
}

impl<'a, T: Copy + Default, F: Fn(&[u8], &mut [T])> NarrowRows<'a, T, F> {
    /// `narrow` scales one row of the source to a row of `len` values.
    fn new(picture: &'a Picture, len: usize, narrow: F) -> Self {
        let empty = || (None, vec![T::default(); len]);
        Self { picture, narrow, kept: [empty(), empty()] }
    }

    /// Makes sure that the row at `y` is there.
    fn fill(&mut self, y: usize) {
        let (at, row) = &mut self.kept[y % 2];
        if *at != Some(y) {
            *at = Some(y);
            (self.narrow)(self.picture.row(y), row);
        }
    }

    /// Two rows that follow each other, or the same one twice.
    fn rows(&mut self, [first, second]: [usize; 2]) -> [&[T]; 2] {
        self.fill(first);
        self.fill(second);
        [first, second].map(|y| &*self.kept[y % 2].1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::CHANNELS;

    fn grey(width: u32, height: u32, values: &[u8]) -> Picture {
        Picture::new(width, height, values.iter().flat_map(|&v| [v; CHANNELS]).collect()).unwrap()
    }

    fn values(picture: &Picture) -> Vec<u8> {
        picture.pixels().iter().copied().step_by(CHANNELS).collect()
    }

    /// `cv2.resize(np.uint8([[0, 100, 200]]), (6, 1), interpolation=cv2.INTER_LINEAR)`.
    #[test]
    fn grows_bilinearly() {
        let resized = resize(&grey(3, 1, &[0, 100, 200]), 6, 1);
        assert_eq!(values(&resized), [0, 25, 75, 125, 175, 200]);
    }

    /// `cv2.resize(np.uint8([[0, 90, 180, 30, 60]]), (2, 1), interpolation=cv2.INTER_AREA)`.
    #[test]
    fn shrinks_by_area() {
        let resized = resize(&grey(5, 1, &[0, 90, 180, 30, 60]), 2, 1);
        assert_eq!(values(&resized), [72, 72]);
    }

    #[test]
    fn rows_and_columns_scale_alike() {
        let wide = resize(&grey(5, 1, &[0, 90, 180, 31, 60]), 3, 1);
        let high = resize(&grey(1, 5, &[0, 90, 180, 31, 60]), 1, 3);
        assert_eq!(values(&wide), values(&high));
    }

    #[test]
    fn one_pixel_fills_any_size() {
        let resized = resize(&grey(1, 1, &[7]), 4, 3);
        assert_eq!(values(&resized), [7; 12]);
    }

    #[test]
    fn the_same_size_is_a_copy() {
        let picture = grey(2, 2, &[1, 2, 3, 4]);
        assert_eq!(resize(&picture, 2, 2), picture);
    }
}
