//! The stage `extract`: the only crate that knows how a crop becomes a model's input, and its answer a feature.
//!
//! What the model takes and which of its tensors is the answer, its manifest says: `SFace`
//! (<https://github.com/opencv/opencv_zoo/tree/main/models/face_recognition_sface>) takes an aligned face and gives 128
//! numbers, a classifier takes a whole picture and is run up to a tensor, the rest of it in `classify`.

#[doc(hidden)]
pub mod fuzz;
mod tensor;

use anyhow::ensure;
use causeway_inference::{Cut, Port, RunError, Session};
use causeway_pipelines::{ExtractOptions, Manifest, Task};
use causeway_schemas::{Crop, Dtype, Feature, Message as _};
use causeway_stage::{Answer, Context, Failure, Stage};

use tensor::Tensor;

/// Takes crops, gives for each a tensor of the model: a vector of length 1 where the model embeds.
///
/// Crops are run one at a time: on a CPU a batch is no faster for each, and takes memory for all of them.
pub struct Extract {
    session: Session,
    input: Tensor,
    /// The tensor that becomes the feature.
    output: String,
    space: String,
    /// Whether it is the vector of an embedding model, which is compared by its direction alone.
    is_embedding: bool,
}

impl Stage for Extract {
    const NAME: &'static str = "extract";
    type Options = ExtractOptions;
    type Input = Crop;
    type Output = Feature;

    fn new(options: ExtractOptions, ctx: &Context) -> anyhow::Result<Self> {
        let manifest = ctx.model(&options.model)?;
        ensure!(
            manifest.task != Task::Detect,
            "cannot use the model `{}` here: it is a detector; this stage needs one that embeds or classifies",
            manifest.name
        );
        let (input, answer) = (manifest.input()?, &manifest.output()?.name);
        let output = options.output.as_ref().unwrap_or(answer);
        let is_answer = output == answer;
        let cut = Cut { from: None, to: Some(output).filter(|_| !is_answer).map(String::as_str) };
        let shape = input.shape().map(Some);
        let port = Port { name: &input.name, shape: &shape };
        let session = Session::open_part(&manifest, ctx.threads(), cut)?.expecting(port, &[])?;
        fits_a_message(&session, &manifest, output)?;
        if is_answer && manifest.task == Task::Classify {
            // `classify` then has no part of the model to compare them with.
            let numbers = session.output_shape(output).and_then(|shape| shape.last().copied().flatten());
            manifest.fit_labels(numbers)?;
        }
        Ok(Self {
            input: Tensor::new(input),
            space: manifest.space_of(output),
            is_embedding: manifest.task == Task::Embed && is_answer,
            output: output.clone(),
            session,
        })
    }

    fn process(&mut self, batch: Vec<Crop>) -> Vec<Result<Answer<Feature>, Failure>> {
        batch.into_iter().map(|crop| self.extract(crop)).collect()
    }
}

impl Extract {
    fn extract(&mut self, crop: Crop) -> Result<Answer<Feature>, Failure> {
        let outputs = self.session.run(self.input.of(&crop)?).map_err(|error| failure(&error))?;
        let tensor = outputs.view(&self.output).map_err(|error| failure(&error))?;
        // The first size is the batch, of one.
        let shape: Vec<u32> = match tensor.shape() {
            [1, sizes @ ..] => sizes.iter().map(|&size| size as u32).collect(),
            other => return Err(Failure::unfit(format!("cannot make a feature: {other:?} is no batch of one"))),
        };
        let numbers = if self.is_embedding {
            normalised(tensor.iter().copied())
                .ok_or_else(|| Failure::unfit("cannot make a feature: the model gave no direction for this crop"))?
        } else {
            tensor.iter().copied().collect()
        };
        drop(outputs);
        let feature = Feature {
            capture: crop.capture,
            region: crop.region,
            dtype: Dtype::F32,
            shape,
            data: Feature::encode_f32(&numbers),
            space: self.space.clone(),
            model: self.session.model().clone(),
        };
        Ok(Answer::Messages(vec![feature]))
    }
}

/// The tensor has to be there, of 32-bit floats, and no larger than a message may be.
fn fits_a_message(session: &Session, manifest: &Manifest, output: &str) -> anyhow::Result<()> {
    let name = &manifest.name;
    let Some(shape) = session.output_shape(output) else {
        anyhow::bail!(
            "cannot use the tensor `{output}` of the model `{name}`: this stage needs an f32 tensor; the model gives {}",
            session.outputs_shown()
        );
    };
    let bytes = shape.iter().flatten().fold(4_u64, |bytes, &size| bytes.saturating_mul(u64::from(size)));
    let most = Feature::MAX_BYTES as u64;
    ensure!(
        bytes < most,
        "cannot use the tensor `{output}` of the model `{name}`: its {bytes} bytes are more than a feature may have, {most}"
    );
    Ok(())
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
    use super::*;

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
