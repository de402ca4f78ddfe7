use causeway_pipelines::{Colour, InputSpec, Layout};
use causeway_schemas::Crop;
use causeway_stage::Failure;
use ndarray::Array4;

/// Colours of a pixel.
const CHANNELS: usize = 3;

/// How the pixels of a crop become a model's input, f32, a batch of one. It is filled anew for each crop.
pub(crate) struct Tensor {
    size: [u32; 2],
    layout: Layout,
    /// The number for each of the 256 values of a colour; by place in the tensor.
    numbers: [[f32; 256]; CHANNELS],
    /// Which colour of a pixel, red green blue, stands at a place in the tensor.
    colours: [usize; CHANNELS],
    array: Array4<f32>,
}

impl Tensor {
    pub(crate) fn new(spec: &InputSpec) -> Self {
        let number = |place: usize, value: usize| (value as f32 / spec.divide_by - spec.mean[place]) / spec.std[place];
        Self {
            size: spec.size,
            layout: spec.layout,
            numbers: std::array::from_fn(|place| std::array::from_fn(|value| number(place, value))),
            colours: match spec.colour {
                Colour::Rgb => [0, 1, 2],
                Colour::Bgr => [2, 1, 0],
            },
            array: Array4::zeros(spec.shape().map(|size| size as usize)),
        }
    }

    /// The crop as the model takes it.
    pub(crate) fn of(&mut self, crop: &Crop) -> Result<&Array4<f32>, Failure> {
        let reject = |why: String| Failure::unfit(format!("cannot make a feature: {why}"));
        let ([width, height], found) = (self.size, [crop.width, crop.height]);
        if found != self.size {
            let [wide, high] = found;
            return Err(reject(format!("the crop has {wide} × {high} px, the model takes {width} × {height}")));
        }
        if crop.pixels.len() != width as usize * height as usize * CHANNELS {
            let bytes = crop.pixels.len();
            return Err(reject(format!("the crop has {bytes} bytes, not {width} × {height} × {CHANNELS}")));
        }
        let (pixels, _) = crop.pixels.as_chunks::<CHANNELS>();
        let tensor = self.array.as_slice_mut().expect("a new array is in standard layout");
        match self.layout {
            Layout::Nchw => {
                let planes = tensor.chunks_exact_mut(pixels.len()).zip(&self.numbers).zip(self.colours);
                for ((plane, numbers), colour) in planes {
                    for (number, pixel) in plane.iter_mut().zip(pixels) {
                        *number = numbers[usize::from(pixel[colour])];
                    }
                }
            }
            Layout::Nhwc => {
                for (at, pixel) in tensor.chunks_exact_mut(CHANNELS).zip(pixels) {
                    for (place, number) in at.iter_mut().enumerate() {
                        *number = self.numbers[place][usize::from(pixel[self.colours[place]])];
                    }
                }
            }
        }
        Ok(&self.array)
    }
}

#[cfg(test)]
mod tests {
    use causeway_schemas::{Capture, Region};

    use super::*;

    fn spec() -> InputSpec {
        InputSpec {
            name: "x".into(),
            size: [2, 1],
            resize: None,
            colour: Colour::Rgb,
            layout: Layout::Nchw,
            divide_by: 1.0,
            mean: [0.0; 3],
            std: [1.0; 3],
        }
    }

    fn crop(width: u32, height: u32, pixels: Vec<u8>) -> Crop {
        let capture = Capture { source: "s".into(), item: "i".into(), epoch: 0, sequence: 0, captured_at: 0 };
        let region =
            Region { x: 0.0, y: 0.0, w: 1.0, h: 1.0, score: 1.0, sharpness: 0.0, landmarks: vec![], frame: [1, 1] };
        Crop { capture, region, width, height, pixels }
    }

    fn made(spec: &InputSpec) -> (Vec<usize>, Vec<f32>) {
        let mut tensor = Tensor::new(spec);
        let array = tensor.of(&crop(2, 1, vec![10, 20, 30, 11, 21, 31])).unwrap();
        (array.shape().to_vec(), array.iter().copied().collect())
    }

    #[test]
    fn axes_and_colours_are_in_the_order_of_the_model() {
        assert_eq!(made(&spec()), (vec![1, 3, 1, 2], vec![10.0, 11.0, 20.0, 21.0, 30.0, 31.0]));
        let nhwc = InputSpec { layout: Layout::Nhwc, ..spec() };
        assert_eq!(made(&nhwc), (vec![1, 1, 2, 3], vec![10.0, 20.0, 30.0, 11.0, 21.0, 31.0]));
        let bgr = InputSpec { colour: Colour::Bgr, ..spec() };
        assert_eq!(made(&bgr).1, [30.0, 31.0, 20.0, 21.0, 10.0, 11.0]);
        let both = InputSpec { colour: Colour::Bgr, layout: Layout::Nhwc, ..spec() };
        assert_eq!(made(&both).1, [30.0, 20.0, 10.0, 31.0, 21.0, 11.0]);
    }

    #[test]
    fn numbers_are_brought_to_the_range_of_the_model() {
        let spec = InputSpec { divide_by: 10.0, mean: [1.0, 2.0, 3.0], std: [0.5, 1.0, 2.0], ..spec() };
        let wanted = [0.0, 0.2, 0.0, 0.1, 0.0, 0.05];
        for (found, wanted) in made(&spec).1.iter().zip(wanted) {
            assert!((found - wanted).abs() < 1e-6, "{found} is not {wanted}");
        }
        // Mean and deviation are in the order of the tensor's colours.
        let bgr = InputSpec { colour: Colour::Bgr, mean: [30.0, 20.0, 10.0], ..self::spec() };
        assert_eq!(made(&bgr).1, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    }

    #[test]
    fn a_crop_of_another_size_is_rejected() {
        let mut tensor = Tensor::new(&spec());
        for (width, height, bytes, why) in [
            (1, 1, 3, "the crop has 1 × 1 px, the model takes 2 × 1"),
            (2, 1, 5, "the crop has 5 bytes"),
            (2, 1, 7, "the crop has 7 bytes, not 2 × 1 × 3"),
        ] {
            let Err(Failure::Reject { detail: text, .. }) = tensor.of(&crop(width, height, vec![0; bytes])) else {
                panic!("{why} was taken")
            };
            assert!(text.contains(why), "{text}");
        }
    }
}
