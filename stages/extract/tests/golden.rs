//! From the photo to the vector: features are `OpenCV`'s, `tests/golden/faces.json`, made by `tests/golden/make.py`.

use std::path::{Path, PathBuf};
use std::{env, fs};

use causeway_extract::Extract;
use causeway_pipelines::{ExtractOptions, Gate, Pipeline, PreprocessOptions};
use causeway_preprocess::{Preprocess, largest_centred};
use causeway_schemas::{Capture, Feature, Frame, Region};
use causeway_stage::{Answer, Context, Stage};
use serde_json::Value;

/// Least cosine between our feature and `OpenCV`'s.
const MIN_COSINE: f32 = 0.9999;

/// Same person from this cosine on: the threshold of the pipeline.
const THRESHOLD: f32 = 0.40;

#[test]
fn the_demo_photos_features_are_opencvs() {
    let photos = env::var_os("CAUSEWAY_PHOTOS").map_or_else(|| workspace().join(".tools/photos"), PathBuf::from);
    assert!(photos.is_dir(), "cannot find the demo's photos: {} is no folder; run ./dev", photos.display());
    let mut stages = Stages::open();
    let (mut least, mut count) = (1.0_f32, 0);
    for (name, wanted) in golden("demo/") {
        let found = stages.features(&photos.join(&name));
        let wanted = wanted.as_array().unwrap();
        assert_eq!(found.len(), wanted.len(), "faces in {name}");
        for (found, wanted) in found.iter().zip(wanted) {
            let likeness = likeness(&name, found, wanted);
            assert!(likeness >= MIN_COSINE, "{name}: cosine {likeness} to OpenCV's feature");
            least = least.min(likeness);
            count += 1;
        }
    }
    println!("demo: {count} faces, cosine at least {least:.6}");
    assert!(count >= 11, "only {count} faces were compared");
}

#[test]
fn the_labelled_features_are_opencvs_and_tell_people_apart() {
    let Some(faces) = labelled_faces() else { return };
    let mut stages = Stages::open();
    let mut likenesses = Vec::new();
    let mut people: Vec<(String, Vec<f32>)> = Vec::new();
    for (name, wanted) in golden("lfw10x10/") {
        let found = stages.features(&faces.join(&name));
        let regions: Vec<Region> = found.iter().map(|feature| feature.region.clone()).collect();
        let main = &found[largest_centred(&regions).unwrap_or_else(|| panic!("no face in {name}"))];
        likenesses.push(likeness(&name, main, &wanted[0]));
        let person = name.split('/').next().unwrap().to_owned();
        people.push((person, main.vector().unwrap()));
    }
    let pairs = people.iter().enumerate().flat_map(|(place, a)| people[..place].iter().map(move |b| (a, b)));
    let (mut same, mut other) = (1.0_f32, -1.0_f32);
    for (a, b) in pairs {
        let cosine = dot(&a.1, &b.1);
        if a.0 == b.0 { same = same.min(cosine) } else { other = other.max(cosine) }
    }
    let least = likenesses.iter().copied().fold(1.0, f32::min);
    println!("lfw10x10: cosine at least {least:.6}; one person at least {same:.4}, two at most {other:.4}");
    assert_eq!(people.len(), 100);
    assert!(least >= MIN_COSINE, "a feature has only cosine {least} to OpenCV's");
    assert!(same >= THRESHOLD, "two photos of one person have cosine {same}");
    assert!(other < THRESHOLD, "photos of two people have cosine {other}");
}

/// The cosine to `OpenCV`'s feature.
fn likeness(name: &str, found: &Feature, wanted: &Value) -> f32 {
    let vector = found.vector().expect("a feature is a vector");
    assert_eq!((vector.len(), found.space.as_str()), (128, "sface-2021dec-128"));
    assert!((dot(&vector, &vector) - 1.0).abs() < 1e-5, "{name}: the feature is not of length 1");
    let wanted: Vec<f32> = numbers(&wanted["feature"]);
    dot(&vector, &wanted) / dot(&wanted, &wanted).sqrt()
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

/// Both stages as the demo runs them, with the gate open.
struct Stages {
    preprocess: Preprocess,
    extract: Extract,
}

impl Stages {
    fn open() -> Self {
        let root = workspace();
        let models = env::var_os("CAUSEWAY_MODELS").map_or_else(|| root.join(".tools/models"), PathBuf::from);
        assert!(models.is_dir(), "cannot find the models: {} is no folder; run ./dev", models.display());
        let pipeline = Pipeline::load(root.join("pipelines/faces.toml")).unwrap();
        let context = |stage: &str| Context::new(pipeline.stage(stage).unwrap(), &root.join("pipelines"), &models, 1);
        let gate = Gate { min_score: 0.0, min_size: 0.0, min_sharpness: 0.0, max_turn: f32::INFINITY };
        let options =
            PreprocessOptions { model: "yunet".into(), input_size: 640, min_score: 0.7, max_pixels: 50_000_000, gate };
        Self {
            preprocess: Preprocess::new(options, &context("preprocess")).unwrap_or_else(|error| panic!("{error:#}")),
            extract: Extract::new(ExtractOptions { model: "sface".into(), output: None }, &context("extract"))
                .unwrap_or_else(|error| panic!("{error:#}")),
        }
    }

    /// The features of a photo; none where it shows no face.
    fn features(&mut self, photo: &Path) -> Vec<Feature> {
        let image = fs::read(photo).unwrap_or_else(|error| panic!("cannot read {}: {error}", photo.display()));
        let capture = Capture { source: "golden".into(), item: "x".into(), epoch: 0, sequence: 0, captured_at: 0 };
        let crops = match self.preprocess.process(vec![Frame { capture, image }]).remove(0) {
            Ok(Answer::Messages(crops)) => crops,
            Ok(Answer::Nothing { .. }) => return Vec::new(),
            Err(failure) => panic!("{}: {failure}", photo.display()),
        };
        let answers = self.extract.process(crops).into_iter();
        answers
            .flat_map(|answer| match answer {
                Ok(Answer::Messages(features)) => features,
                other => panic!("{}: {other:?}", photo.display()),
            })
            .collect()
    }
}

/// The golden photos below a prefix, by their path in its folder.
fn golden(prefix: &str) -> Vec<(String, Value)> {
    let text = fs::read_to_string(workspace().join("tests/golden/faces.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    let photos = all["photos"].as_object().unwrap();
    photos.iter().filter_map(|(name, faces)| Some((name.strip_prefix(prefix)?.into(), faces.clone()))).collect()
}

/// The folder lfw10x10, which is not part of the set-up.
fn labelled_faces() -> Option<PathBuf> {
    let folder = env::var_os("CAUSEWAY_FACES").map_or_else(|| workspace().join("../shared/faces"), PathBuf::from);
    let found = [folder.join("lfw10x10"), folder.clone()].into_iter().find(|folder| folder.join("Tony_Blair").is_dir());
    if found.is_none() {
        eprintln!("skipped: {} does not hold lfw10x10; CAUSEWAY_FACES names its folder", folder.display());
    }
    found
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}
