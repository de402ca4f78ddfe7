//! An ONNX file that is cut: two names of tensors, each with its length in a byte before it, then the file. An empty name is none.

use causeway_inference::Cut;

use crate::taken::Taken;

pub(crate) fn run(bytes: &[u8]) {
    let mut taken = Taken(bytes);
    let (from, to) = (taken.text(), taken.text());
    let cut = |name: &str| Some(name).filter(|name| !name.is_empty()).map(str::to_owned);
    let (from, to) = (cut(&from), cut(&to));
    let file = taken.0.to_vec();
    let cut = Cut { from: from.as_deref(), to: to.as_deref() };
    if let Ok(part) = cut.of(file.into()) {
        Cut::default().of(part.into()).expect("a part of a model is a model");
    }
}
