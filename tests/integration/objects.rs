//! `pipelines/objects.toml`: one model cut in two, and what comes out is what the whole model says in Python.
//!
//! `tests/golden/objects.json` has the answers of ONNX Runtime and Pillow (`tests/golden/make_objects.py`) on 240 views of 20
//! photographs, which the set-up makes.

use std::collections::BTreeMap;
use std::path::Path;

use causeway_bus::Outgoing;
use causeway_pipelines::{Override, Pipeline};
use causeway_schemas::{
    Capture, Codec, Decision, Dtype, Feature, Id, Message as _, Meta, ModelRef, Region, decode, encode, header,
};
use futures::StreamExt as _;
use harness::{Running, Site, Stored, Tools, dead_letters, eventually, workspace};
use image::ImageReader;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// Most that the probability of a label may be beside the golden one. Pixels are Pillow's to the last bit; what is left is the
/// order in which another processor adds.
const TOLERANCE: f32 = 0.001;

/// The best labels of a picture with their probabilities.
type Top = Vec<(String, f32)>;

/// Runs the pipeline over `input` to its end; gives the decisions by picture, and the summary.
async fn decisions(tools: &Tools, input: &Path, set: &[&str]) -> (BTreeMap<String, Decision>, Value) {
    let home = tempfile::tempdir().expect("a folder");
    let mut up = vec!["up", "pipelines/objects.toml", "--input", input.to_str().expect("a path")];
    up.extend(["--until-drained", "--json"]);
    up.extend(set.iter().flat_map(|&set| ["--set", set]));
    let summary = Running::start(tools, home.path(), &up).finish().await.ok().json();
    let overrides: Vec<Override> = set.iter().map(|set| set.parse().expect("an override")).collect();
    let pipeline = Pipeline::load_with(workspace().join("pipelines/objects.toml"), &overrides).expect("the pipeline");
    let stored = Stored::open(home.path(), &pipeline).await;
    let letters = dead_letters(&stored.bus, &pipeline).await;
    assert!(letters.is_empty(), "{letters:?}");
    let mut found = BTreeMap::new();
    let mut records = stored.bus.scan("objects_classify", 1, false).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        assert_eq!(record.headers.kind(), Some("decision.v2"));
        let decision: Decision =
            decode(record.headers.kind(), record.headers.codec(), &record.body).expect("a decision");
        let item = decision.capture.item.clone();
        assert!(found.insert(item.clone(), decision).is_none(), "two decisions of {item}");
    }
    stored.close().await;
    (found, summary)
}

fn golden(tools: &Tools) -> BTreeMap<String, Top> {
    let text = std::fs::read_to_string(workspace().join("tests/golden/objects.json")).expect("the golden answers");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let labels = std::fs::read_to_string(tools.models().join("imagenet.labels.txt")).expect("the labels");
    let labels: Vec<&str> = labels.lines().collect();
    let all = all["pictures"].as_object().expect("pictures");
    for (name, picture) in all {
        let made = ImageReader::open(tools.views().join(name)).expect("the picture").decode().expect("a picture");
        let digest = Sha256::digest(made.into_rgb8().as_raw());
        let hash = digest.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
        assert_eq!(picture["pixels"], hash.as_str(), "the set-up made another {name} than the golden answer is of");
    }
    let top = |picture: &Value| {
        let ranked = picture["top"].as_array().expect("a list").iter();
        ranked
            .map(|one| {
                let place = one[0].as_u64().expect("a place") as usize;
                (labels[place].to_owned(), one[1].as_f64().expect("a probability") as f32)
            })
            .collect()
    };
    all.iter().map(|(name, picture)| (name.clone(), top(picture))).collect()
}

/// Wherever the model is cut, and where it is not.
#[tokio::test]
async fn the_answers_are_the_whole_models_in_python() {
    let tools = Tools::find();
    let golden = golden(&tools);
    assert!(golden.len() >= 200, "{} pictures", golden.len());
    for cut in ["features.10.out", "pool", "logits"] {
        let (found, summary) = decisions(&tools, &tools.views(), &[&format!("extract.output={cut}")]).await;
        assert_eq!(found.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>(), "{cut}");
        let mut apart = 0.0_f32;
        for (picture, wanted) in &golden {
            let decision = &found[picture];
            assert_eq!(decision.top.len(), 5, "{picture}");
            let (first, score) = &wanted[0];
            assert_eq!(decision.nearest.as_ref(), Some(first), "{cut}, {picture}: {:?}", decision.top);
            assert_eq!(decision.top[0].label, *first);
            // What the two lists have in common: the fifth of one may be the sixth of the other.
            for one in &decision.top {
                if let Some((_, wanted)) = wanted.iter().find(|(label, _)| *label == one.label) {
                    apart = apart.max((one.score - wanted).abs());
                }
            }
            let is_sure = *score >= 0.25 && score - wanted[1].1 >= 0.05;
            let is_near = (score - 0.25).abs() < TOLERANCE || (score - wanted[1].1 - 0.05).abs() < TOLERANCE;
            assert!(is_near || decision.label.is_some() == is_sure, "{cut}, {picture}: {:?}", decision.top);
        }
        println!("{cut}: {} pictures, the first label the same, probabilities within {apart:.1e}", golden.len());
        assert!(apart < TOLERANCE, "{cut}: a probability is {apart} beside Python's");
        let labelled: u64 = summary["labels"].as_object().expect("labels").values().filter_map(Value::as_u64).sum();
        let unknown = summary["unknown"].as_u64().expect("a number");
        assert_eq!((summary["decisions"].as_u64(), labelled + unknown), (Some(240), 240), "{summary}");
    }
}

/// Features of another model, of another version of it, of another tensor, and of another shape: each a dead letter that says
/// so. The good one beside them has its decision.
#[tokio::test]
async fn features_of_another_model_are_set_aside() {
    let tools = Tools::find();
    let text = std::fs::read_to_string(workspace().join("pipelines/objects.toml")).expect("the pipeline");
    let text = text.replace("output = \"features.10.out\"", "output = \"pool\"");
    let site = Site::start(&tools, &text).await;
    let _classify = site.stage("classify", &[]);
    let manifest = causeway_pipelines::Manifest::load(&tools.models(), "mobilenet_v2").expect("the manifest");
    let right = Feature {
        capture: Capture { source: "test".into(), item: "right".into(), epoch: 0, sequence: 0, captured_at: 1 },
        region: Region { x: 0.0, y: 0.0, w: 1.0, h: 1.0, score: 1.0, sharpness: 0.0, landmarks: vec![], frame: [1, 1] },
        dtype: Dtype::F32,
        shape: vec![1280],
        data: Feature::encode_f32(&[0.5; 1280]),
        space: manifest.space_of("pool"),
        model: ModelRef {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: manifest.sha256.clone(),
        },
    };
    let other_model = Feature { space: "sface-2021dec-128".into(), ..right.clone() };
    let other_file = Feature { model: ModelRef { sha256: "00".into(), ..right.model.clone() }, ..right.clone() };
    let other_tensor = Feature { space: manifest.space_of("features.10.out"), ..right.clone() };
    let short = Feature { data: vec![0; 8], ..right.clone() };
    let other_shape = Feature { shape: vec![640], data: Feature::encode_f32(&[0.5; 640]), ..right.clone() };
    let wrong = [
        ("other-model", other_model, "it is of the space `sface-2021dec-128`, this stage takes `mobilenet_v2-"),
        ("other-file", other_file, "with the SHA-256 00, the rest here is of `mobilenet_v2`"),
        ("other-tensor", other_tensor, "/features.10.out`, this stage takes `mobilenet_v2-imagenet1k-v1/pool`"),
        ("short", short, "shape [1280] with 8 bytes is no tensor of f32"),
        ("other-shape", other_shape, "cannot run the model `mobilenet_v2` on this input"),
    ];
    for (name, feature, _) in &wrong {
        publish(&site, name, feature).await;
    }
    publish(&site, "right", &right).await;
    let letters = eventually("a dead letter each", async || {
        let letters = dead_letters(&site.bus, &site.pipeline).await;
        (letters.len() == wrong.len()).then_some(letters)
    })
    .await;
    for (name, _, why) in &wrong {
        let ends = format!(".{name}");
        let (_, letter) = letters.iter().find(|(_, letter)| letter.subject.ends_with(&ends)).expect("its letter");
        assert!(letter.detail.contains(why) && letter.detail.starts_with("cannot "), "{name}: {}", letter.detail);
        assert_eq!((letter.stage.as_str(), letter.attempts), ("classify", 1), "{name}");
    }
    eventually("the decision of the right one", async || {
        let state = site.bus.stream_state("objects_classify").await.ok()??;
        (state.messages == 1).then_some(())
    })
    .await;
}

async fn publish(site: &Site, name: &str, feature: &Feature) {
    let id = Id::captured("test", name);
    let meta = Meta::captured(id, "extract", Feature::kind(), 0);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    let (subject, body) = (format!("objects.feature.edge.{name}"), encode(feature, Codec::Bincode).into());
    site.bus.publish(&Outgoing { subject, headers, body, if_absent: false }).await.expect("it is stored");
}
