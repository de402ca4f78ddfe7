//! The wire does not change: what each kind was written as is in `golden/`, and is written and read the same today.
//!
//! A changed kind is a new version with golden bytes of its own. `CAUSEWAY_BLESS=1 cargo test -p causeway-schemas` writes the
//! files that are missing; it never replaces one.

use std::path::Path;

use causeway_schemas::{
    Assignment, Capture, Codec, Crop, DeadLetter, Decision, DecisionV1, Dtype, Empty, Feature, Frame, Id, Message,
    ModelRef, Person, Ranked, Receipt, Region, decode, decode_body, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn capture() -> Capture {
    Capture {
        source: "door".into(),
        item: "2026/a photo.jpg".into(),
        epoch: 3,
        sequence: 1 << 40,
        captured_at: 1_764_000_000_123_456_789,
    }
}

fn region() -> Region {
    Region {
        x: 10.5,
        y: -2.25,
        w: 80.0,
        h: 100.0,
        score: 0.9375,
        sharpness: 123.5,
        landmarks: vec![[1.0, 2.0], [3.5, 4.0]],
        frame: [1920, 1080],
    }
}

fn model() -> ModelRef {
    ModelRef { name: "sface".into(), version: "2021dec".into(), sha256: "c131aba3".into() }
}

fn id(item: &str) -> Id {
    Id::captured("door", item)
}

fn golden(name: &str, bytes: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if !path.exists() && std::env::var_os("CAUSEWAY_BLESS").is_some() {
        std::fs::write(&path, bytes).unwrap();
    }
    let written = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert!(written == bytes, "{name} is not written as it was: make a new version of the kind");
}

fn holds<M: Message + PartialEq + std::fmt::Debug>(message: &M) {
    for (codec, end) in [(Codec::Bincode, "bin"), (Codec::Json, "json")] {
        let bytes = encode(message, codec);
        golden(&format!("{}.{end}", M::kind()), &bytes);
        assert_eq!(decode::<M>(Some(&M::kind()), codec, &bytes).unwrap(), *message);
    }
}

fn holds_json<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let bytes = encode(value, Codec::Json);
    golden(name, &bytes);
    assert_eq!(decode_body::<T>(&bytes, Codec::Json).unwrap(), *value);
}

#[test]
fn every_kind_is_written_as_it_was() {
    holds(&Frame { capture: capture(), image: vec![0, 1, 254, 255] });
    holds(&Crop { capture: capture(), region: region(), width: 1, height: 2, pixels: vec![1, 2, 3, 4, 5, 6] });
    holds(&Feature {
        capture: capture(),
        region: region(),
        dtype: Dtype::F32,
        shape: vec![2],
        data: Feature::encode_f32(&[0.6, -0.8]),
        space: "sface-2021dec-128".into(),
        model: model(),
    });
    holds(&Decision {
        capture: capture(),
        region: region(),
        label: Some("tabby cat".into()),
        score: 0.75,
        margin: 0.5,
        nearest: Some("tabby cat".into()),
        model: model(),
        gallery: 0,
        route: "classify".into(),
        top: vec![Ranked { label: "tabby cat".into(), score: 0.75 }, Ranked { label: "lynx".into(), score: 0.25 }],
    });
    holds(&Assignment { capture: capture(), region: region(), cluster: id("a"), score: 0.5, merged: vec![id("b")] });
    holds(&Empty {
        capture: capture(),
        stage: "preprocess".into(),
        reason: "no-face".into(),
        detail: "no detection reaches 0.7".into(),
    });
    holds_json(
        "dead.v1.json",
        &DeadLetter {
            stage: "preprocess".into(),
            reason: "rejected".into(),
            detail: "corrupt".into(),
            attempts: 1,
            models: vec![model()],
            at: 1,
            subject: "faces.frame.edge.door".into(),
            headers: vec![("Causeway-Kind".into(), "frame.v1".into())],
            body: vec![0xff, 0xd8],
        },
    );
    let receipt = Receipt { stage: "classify".into(), site: "cloud".into(), reason: "rejected".into(), at: 1 };
    holds_json("receipt.v1.json", &receipt);
    holds_json(
        "person.json",
        &Person {
            name: "Ada Lovelace".into(),
            space: "sface-2021dec-128".into(),
            vectors: vec![vec![0.5, 0.25]],
            photos: vec!["a.jpg".into()],
            enrolled_at: 1,
        },
    );
}

/// What a program of the version before wrote is read: as it was written, and without what it did not have.
#[test]
fn the_version_before_is_still_read() {
    let before = DecisionV1 {
        capture: capture(),
        region: region(),
        label: Some("Ada Lovelace".into()),
        score: 0.75,
        margin: 0.5,
        nearest: Some("Ada Lovelace".into()),
        model: model(),
        gallery: 7,
        route: "classify".into(),
    };
    for (codec, end) in [(Codec::Bincode, "bin"), (Codec::Json, "json")] {
        golden(&format!("decision.v1.{end}"), &encode(&before, codec));
        let read = decode::<Decision>(Some("decision.v1"), codec, &encode(&before, codec)).unwrap();
        assert_eq!(read, before.clone().into());
        assert!(read.top.is_empty());
    }
    let bytes = encode(&before, Codec::Bincode);
    let error = decode::<Decision>(Some("decision.v2"), Codec::Bincode, &bytes).unwrap_err();
    assert_eq!(error.reason(), "malformed", "{error}");
    let error = decode::<Decision>(Some("decision.v0"), Codec::Bincode, &bytes).unwrap_err();
    assert_eq!(error.reason(), "unknown-kind", "{error}");
}
