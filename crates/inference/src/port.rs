use std::fmt;

use ort::value::{Outlet, TensorElementType, ValueType};

/// An input or output of a model, as a stage needs it: 32-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port<'a> {
    /// Its name in the model.
    pub name: &'a str,
    /// Its shape; `None` is a size that is left open here. Where the model leaves a size open, any number fits.
    pub shape: &'a [Option<u32>],
}

impl Port<'_> {
    /// Whether the model's port is this one. Sizes that both name must agree; of an input, a size that is open here must be
    /// open in the model too.
    pub(crate) fn fits(&self, outlet: &Outlet, is_input: bool) -> bool {
        let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = outlet.dtype() else { return false };
        outlet.name() == self.name
            && shape.len() == self.shape.len()
            && shape.iter().zip(self.shape).all(|(&model, &wanted)| match wanted {
                Some(wanted) => model < 0 || model == i64::from(wanted),
                None => model < 0 || !is_input,
            })
    }
}

impl fmt::Display for Port<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes = self.shape.iter().map(|size| size.map_or("any".into(), |size| size.to_string()));
        write!(f, "`{}` f32 [{}]", self.name, sizes.collect::<Vec<String>>().join(", "))
    }
}

/// The shape of a port of 32-bit floats; a size that the model leaves open is `None`.
pub(crate) fn float_shape(outlet: &Outlet) -> Option<Vec<Option<u32>>> {
    let ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } = outlet.dtype() else { return None };
    Some(shape.iter().map(|&size| u32::try_from(size).ok()).collect())
}

/// A model's port for a person: `` `input` f32 [N, 3, H, W] ``.
pub(crate) fn shown(outlet: &Outlet) -> String {
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return format!("`{}` {}", outlet.name(), outlet.dtype());
    };
    let sizes = shape.iter().zip(dimension_symbols.iter()).map(|(&size, symbol)| match size {
        0.. => size.to_string(),
        _ if symbol.is_empty() => "any".into(),
        _ => symbol.clone(),
    });
    let ty = if matches!(ty, TensorElementType::Float32) { "f32".into() } else { ty.to_string() };
    format!("`{}` {ty} [{}]", outlet.name(), sizes.collect::<Vec<String>>().join(", "))
}
