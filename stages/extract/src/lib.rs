//! The stage `extract`: the only crate that knows how a face becomes a vector.
//!
//! The model is `SFace` (<https://github.com/opencv/opencv_zoo/tree/main/models/face_recognition_sface>, Apache-2.0). It
//! takes `data` f32 `[1, 3, 112, 112]`, red green blue, 0..255 (it normalises by itself), and gives `fc1` f32 `[1, 128]`.

use anyhow::Context as _;
use causeway_inference::{Port, RunError, Session};
use causeway_pipelines::ExtractOptions;
use causeway_schemas::{Crop, Dtype, Feature};
use causeway_stage::{Answer, Context, Failure, Stage};
use ndarray::{Array4, ArrayView3};

/// Width and height of an aligned face, px.
const SIDE: u32 = 112;

/// Channels of a pixel.
const CHANNELS: usize = 3;

/// Numbers in a feature.
const LEN: u32 = 128;

/// Takes aligned faces, gives for each an L2-normalised vector of 128 numbers.
///
/// Faces are run one at a time: on a CPU a batch is no faster for each face, and takes memory for all of them.
pub struct Extract {
    session: Session,
    space: String,
    input: Array4<f32>,
}

impl Stage for Extract {
    const NAME: &'static str = "extract";
    type Options = ExtractOptions;
    type Input = Crop;
    type Output = Feature;

    fn new(options: ExtractOptions, ctx: &Context) -> anyhow::Result<Self> {
        let manifest = ctx.model(&options.model)?;
        let space = manifest.space.clone().with_context(|| {
            format!(
                "cannot use the model `{}` here: its manifest names no embedding space (`space = …`)",
                manifest.name
            )
        })?;
        let input = Port { name: "data", shape: &[Some(1), Some(CHANNELS as u32), Some(SIDE), Some(SIDE)] };
        let output = Port { name: "fc1", shape: &[Some(1), Some(LEN)] };
        let session = Session::open(&manifest, ctx.threads())?.expecting(input, &[output])?;
        let side = SIDE as usize;
        Ok(Self { session, space, input: Array4::zeros([1, CHANNELS, side, side]) })
    }

    fn process(&mut self, batch: Vec<Crop>) -> Vec<Result<Answer<Feature>, Failure>> {
        batch.into_iter().map(|crop| self.extract(crop)).collect()
    }
}

impl Extract {
    fn extract(&mut self, crop: Crop) -> Result<Answer<Feature>, Failure> {
        let pixels = pixels(&crop)?;
        for (value, &pixel) in self.input.iter_mut().zip(pixels.permuted_axes([2, 0, 1])) {
            *value = f32::from(pixel);
        }
        let outputs = self.session.run(&self.input).map_err(|error| failure(&error))?;
        let raw = outputs.view("fc1").map_err(|error| failure(&error))?;
        let vector = normalised(raw.iter().copied())
            .ok_or_else(|| Failure::unfit("cannot make a feature: the model gave no direction for this face"))?;
        drop(outputs);
        let feature = Feature {
            capture: crop.capture,
            region: crop.region,
            dtype: Dtype::F32,
            shape: vec![vector.len() as u32],
            data: Feature::encode_f32(&vector),
            space: self.space.clone(),
            model: self.session.model().clone(),
        };
        Ok(Answer::Messages(vec![feature]))
    }
}

/// The pixels of a crop as (row, column, channel), if it is what the model takes.
fn pixels(crop: &Crop) -> Result<ArrayView3<'_, u8>, Failure> {
    let reject = |why: String| Failure::unfit(format!("cannot make a feature: {why}"));
    let (width, height) = (crop.width, crop.height);
    if (width, height) != (SIDE, SIDE) {
        return Err(reject(format!("the crop has {width} × {height} px, the model takes {SIDE} × {SIDE}")));
    }
    let side = SIDE as usize;
    // `from_shape` would take a longer slice.
    let whole = crop.pixels.len() == side * side * CHANNELS;
    let view = ArrayView3::from_shape([side, side, CHANNELS], &crop.pixels).ok().filter(|_| whole);
    view.ok_or_else(|| {
        let bytes = crop.pixels.len();
        reject(format!("the crop has {bytes} bytes, not {SIDE} × {SIDE} × {CHANNELS}"))
    })
}

/// The vector of length 1 in the same direction; `None` when it has none.
fn normalised(numbers: impl Iterator<Item = f32>) -> Option<Vec<f32>> {
    let mut vector: Vec<f32> = numbers.collect();
    let length = vector.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
    for number in &mut vector {
        *number = (f64::from(*number) / length) as f32;
    }
    (length > 0.0 && length.is_finite()).then_some(vector)
}

fn failure(error: &RunError) -> Failure {
    let detail = error.to_string();
    if error.is_passing() { Failure::Retry(detail) } else { Failure::Reject { reason: "model-failed", detail } }
}

#[cfg(test)]
mod tests {
    use causeway_schemas::{Capture, Region};

    use super::*;

    fn crop(width: u32, height: u32, bytes: usize) -> Crop {
        let capture = Capture { source: "s".into(), item: "i".into(), epoch: 0, sequence: 0, captured_at: 0 };
        let region =
            Region { x: 0.0, y: 0.0, w: 1.0, h: 1.0, score: 1.0, sharpness: 0.0, landmarks: vec![], frame: [1, 1] };
        Crop { capture, region, width, height, pixels: vec![0; bytes] }
    }

    #[test]
    fn a_crop_of_another_size_is_rejected() {
        for (width, height, bytes, why) in [
            (96, 112, 96 * 112 * 3, "the crop has 96 × 112 px"),
            (112, 112, 7, "the crop has 7 bytes"),
            (112, 112, 112 * 112 * 3 + 1, "the crop has 37633 bytes"),
        ] {
            let Err(Failure::Reject { detail: text, .. }) = pixels(&crop(width, height, bytes)) else {
                panic!("{why} was taken")
            };
            assert!(text.contains(why), "{text}");
        }
        assert!(pixels(&crop(112, 112, 112 * 112 * 3)).is_ok());
    }

    #[test]
    fn a_vector_is_brought_to_length_one() {
        assert_eq!(normalised([3.0, 4.0].into_iter()).unwrap(), [0.6, 0.8]);
    }

    #[test]
    fn no_direction_is_no_feature() {
        assert!(normalised([0.0, 0.0].into_iter()).is_none());
        assert!(normalised([f32::NAN, 1.0].into_iter()).is_none());
        assert!(normalised([f32::INFINITY, 1.0].into_iter()).is_none());
    }
}
