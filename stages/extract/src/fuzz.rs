//! What private code of this crate makes of foreign messages, for `tests/fuzz`; no part of the interface.

use causeway_pipelines::InputSpec;
use causeway_schemas::Crop;

use crate::tensor::Tensor;

/// The shape and the numbers that a model is given of a crop; `None` where it is rejected.
pub fn tensor(spec: &InputSpec, crop: &Crop) -> Option<(Vec<usize>, Vec<f32>)> {
    let mut tensor = Tensor::new(spec);
    let array = tensor.of(crop).ok()?;
    Some((array.shape().to_vec(), array.iter().copied().collect()))
}
