use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_pipelines::{StageSpec, TestInput};
use causeway_schemas::{Capture, Crop, Feature, Frame, Id, Message as _};
use causeway_stage::OnceMessage;
use serde_json::{Map, Value, json};

/// Embedding space of a test's vectors, where none is said.
pub(super) const SPACE: &str = "test";

/// Longest file of messages, bytes.
const MAX_FILE: u64 = 256 << 20;

/// The messages that a stage is given.
pub(super) fn of(stage: &StageSpec, inputs: &[TestInput]) -> anyhow::Result<Vec<OnceMessage>> {
    let noun = stage.takes.with_context(|| format!("[stage.{}] takes no message", stage.name))?;
    let mut messages = Vec::new();
    for input in inputs {
        let place = messages.len();
        match input {
            TestInput::Picture(path) => messages.push(picture(path, place)?),
            TestInput::Message(message) => messages.push(written(noun, message.clone(), place)?),
            TestInput::File(path) => {
                let cannot = || format!("cannot use {} as an input", path.display());
                match serde_json::from_slice(&read(path, MAX_FILE).with_context(cannot)?).with_context(cannot)? {
                    Value::Object(message) => messages.push(written(noun, message, place).with_context(cannot)?),
                    Value::Array(many) => {
                        for one in many {
                            let Value::Object(message) = one else { bail!("{}: a message is an object", cannot()) };
                            messages.push(written(noun, message, messages.len()).with_context(cannot)?);
                        }
                    }
                    _ => bail!("{}: it has neither a message nor a list of them", cannot()),
                }
            }
        }
    }
    Ok(messages)
}

/// A picture as `capture` gives it.
fn picture(path: &Path, place: usize) -> anyhow::Result<OnceMessage> {
    let cannot = || format!("cannot use {} as an input", path.display());
    let image = read(path, Frame::MAX_BYTES as u64).with_context(cannot)?;
    let item = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let capture = capture(&item, place);
    let id = id(&item, place);
    Ok(OnceMessage { id, kind: Frame::kind(), message: serde_json::to_value(Frame { capture, image })? })
}

/// A message as it is written, or as `causeway tap --json` prints it; what is left out is filled in.
fn written(noun: &str, mut message: Map<String, Value>, place: usize) -> anyhow::Result<OnceMessage> {
    let mut kind = match noun {
        Frame::NOUN => Frame::kind(),
        Crop::NOUN => Crop::kind(),
        Feature::NOUN => Feature::kind(),
        other => format!("{other}.v1"),
    };
    let mut id = id("message", place);
    if let Some(Value::Object(inner)) = message.get("message").cloned() {
        if let Some(written) = message.get("kind").and_then(Value::as_str) {
            kind = written.into();
        }
        if let Some(written) = message.get("id").and_then(Value::as_str) {
            id = written.parse()?;
        }
        message = inner;
    }
    let mut whole = json!({ "capture": capture(&format!("message {}", place + 1), place) });
    if noun != Frame::NOUN {
        whole["region"] = json!({
            "x": 0.0, "y": 0.0, "w": 1.0, "h": 1.0, "score": 1.0, "sharpness": 1000.0, "landmarks": [], "frame": [1, 1],
        });
    }
    if noun == Feature::NOUN {
        whole["space"] = SPACE.into();
        whole["model"] = json!({ "name": "test", "version": "0", "sha256": "0".repeat(64) });
        if let Some(vector) = message.remove("vector") {
            let numbers: Vec<f32> = serde_json::from_value(vector).context("`vector` is a list of numbers")?;
            whole["dtype"] = "F32".into();
            whole["shape"] = json!([numbers.len()]);
            whole["data"] = STANDARD.encode(Feature::encode_f32(&numbers)).into();
        }
    }
    lay_over(&mut whole, message);
    Ok(OnceMessage { id, kind, message: whole })
}

/// What is written takes the place of what was filled in.
fn lay_over(whole: &mut Value, written: Map<String, Value>) {
    for (key, value) in written {
        match (whole.get_mut(&key), value) {
            (Some(there @ Value::Object(_)), Value::Object(inner)) => lay_over(there, inner),
            (_, value) => whole[key] = value,
        }
    }
}

fn capture(item: &str, place: usize) -> Capture {
    Capture { source: "test".into(), item: item.into(), epoch: 0, sequence: place as u64, captured_at: 0 }
}

fn id(item: &str, place: usize) -> Id {
    Id::captured("test", &format!("{item} {place}"))
}

fn read(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        bail!("it has more than {most} bytes");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_in() {
        let object = |value: Value| value.as_object().cloned().unwrap();
        let message =
            written(Feature::NOUN, object(json!({ "vector": [3.0, 4.0], "region": { "w": 50.0 } })), 0).unwrap();
        let feature: Feature = serde_json::from_value(message.message).unwrap();
        assert_eq!((feature.vector().unwrap(), feature.space.as_str()), (vec![3.0, 4.0], "test"));
        assert!((feature.region.w - 50.0).abs() < 1e-6 && (feature.region.h - 1.0).abs() < 1e-6);
        let tapped = json!({ "id": Id::captured("s", "i"), "kind": "feature.v9", "message": { "space": "x" } });
        let message = written(Feature::NOUN, object(tapped), 3).unwrap();
        assert_eq!((message.kind.as_str(), message.id), ("feature.v9", Id::captured("s", "i")));
        assert_eq!(message.message["space"], "x");
    }
}
