use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

use crate::Picture;

/// A picture as a PNG: pixel for pixel.
pub fn png(picture: &Picture) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (width, height) = (picture.width(), picture.height());
    let written = PngEncoder::new(&mut bytes).write_image(picture.pixels(), width, height, ExtendedColorType::Rgb8);
    written.expect("memory takes any PNG of a picture that there is");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back() {
        let pixels: Vec<u8> = (0..5 * 3 * 3).collect();
        let picture = Picture::new(5, 3, pixels.clone()).unwrap();
        assert_eq!(crate::decode(&png(&picture), 100).unwrap().pixels(), pixels);
    }
}
