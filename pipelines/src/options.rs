//! The keys that each stage understands beside those of every stage. A stage's `Options` is one of these.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use bytesize::ByteSize;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::manifest::is_model_name;

/// `uses = "capture"`: pictures out of a folder.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaptureOptions {
    /// A folder (read with its subfolders) or a glob; relative to the pipeline file. `causeway up --input` sets it.
    #[serde(default)]
    pub input: Option<PathBuf>,
    /// At most this many pictures a second; as fast as the link takes them when absent.
    #[serde(default)]
    pub rate: Option<f64>,
    /// Begin anew at the end, for ever: a simulated camera.
    #[serde(default)]
    pub repeat: bool,
    /// A picture with more pixels is a dead letter; read from its header before anything is decoded.
    #[serde(default = "default_max_pixels")]
    pub max_pixels: u64,
    /// A longer file is a dead letter; not read further than this.
    #[serde(default = "default_max_bytes")]
    pub max_bytes: ByteSize,
}

fn default_max_pixels() -> u64 {
    50_000_000
}

fn default_max_bytes() -> ByteSize {
    ByteSize::mib(32)
}

/// `uses = "preprocess"`: find faces, align them, keep the good ones; or the whole picture as a model wants to see it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessOptions {
    /// A detector, a model with `task = "detect"`: each face becomes a crop. Or a model that looks at whole pictures: the
    /// picture becomes one crop as the `[input]` of its manifest says, and no other key but `max_pixels` counts. Has to be
    /// stated.
    #[serde(default)]
    pub model: String,
    /// The picture's longest side is scaled to this many px before detection; a multiple of 32. Faces of 10 px and more of
    /// that are found. A second look at half the size finds those that fill the picture, so 640 serves close-ups too; 320
    /// takes a third of the time and misses small faces in groups.
    #[serde(default = "default_input_size")]
    pub input_size: u32,
    /// A detection with a lower score is no face.
    #[serde(default = "default_min_score")]
    pub min_score: f32,
    /// Pictures with more pixels are refused before they are decoded.
    #[serde(default = "default_max_pixels")]
    pub max_pixels: u64,
    /// Which faces are good enough to be recognised.
    #[serde(default)]
    pub gate: Gate,
}

/// The quality gate: a face below any of these is left out, and counted.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Detector score, 0..1.
    pub min_score: f32,
    /// The shorter side of the face's box in the picture, px.
    pub min_size: f32,
    /// Variance of the Laplacian of the aligned face; lower is more blurred.
    pub min_sharpness: f32,
    /// How far a head may be turned: how far the nose is from the middle of the eyes, along the line through them, as a part
    /// of the eyes' distance. 0 looks into the camera, about 1 is a full profile.
    pub max_turn: f32,
}

impl Default for Gate {
    /// Measured with `YuNet` at 640 px. The 100 people that lfw10x10 is of have a score of at least 0.909, 75 px, a sharpness
    /// of 32 and a turn of 0.59 at most, so that all pass with room. What the gate leaves out: blurred passers-by (score below
    /// 0.80 or sharpness 2 to 17; blurred strangers are as like each other as 0.56), faces under 24 px, which are mostly made
    /// up when enlarged to 112, and full profiles (turn 1.15 at a score of 0.87, which frontal faces at 320 px have too: a
    /// score alone does not tell them).
    fn default() -> Self {
        Self { min_score: 0.8, min_size: 24.0, min_sharpness: 20.0, max_turn: 0.9 }
    }
}

fn default_input_size() -> u32 {
    640
}

fn default_min_score() -> f32 {
    0.7
}

/// `uses = "extract"`: one feature a crop, a vector or a tensor.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtractOptions {
    /// A model with `task = "embed"`, whose answer is a vector of length 1; or with `task = "classify"`. Has to be stated.
    #[serde(default)]
    pub model: String,
    /// The tensor of the model that becomes the feature: the model is run up to it, and the rest of the model in a `classify`
    /// that names the same model. By default the model's answer.
    #[serde(default)]
    pub output: Option<String>,
}

/// `uses = "classify"`: the nearest person of the gallery, or the labels of a model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassifyOptions {
    /// A model with `task = "classify"`, the one whose tensor is taken: the rest of it is run and its labels are the answer.
    /// Without it, the gallery is.
    #[serde(default)]
    pub model: Option<String>,
    /// With a model: the tensor that comes in. By default what the stage before gives.
    #[serde(default)]
    pub input: Option<String>,
    /// With a model: how many labels a decision lists, the best first.
    #[serde(default = "default_top_k")]
    pub top_k: usize,
    /// Unknown below this cosine, or with a model below this probability. `SFace`: 0.40 (`OpenCV`'s model card says 0.363; 0.40
    /// had fewer false links).
    #[serde(default = "default_threshold")]
    pub threshold: f32,
    /// Unknown when the next other person is nearer than this behind the nearest.
    #[serde(default = "default_margin")]
    pub margin: f32,
}

fn default_top_k() -> usize {
    5
}

fn default_threshold() -> f32 {
    0.40
}

fn default_margin() -> f32 {
    0.05
}

/// `uses = "cluster"`: faces that belong together.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterOptions {
    /// A face joins the nearest cluster from this mean cosine on; two clusters merge from it on. Where few pairs tell, more
    /// is asked for: 0.05/√pairs, so 0.45 instead of 0.40 between two single faces.
    #[serde(default = "default_threshold")]
    pub threshold: f32,
}

/// Options that know which of their values make sense.
pub(crate) trait Checked: DeserializeOwned {
    /// Every value that does not.
    fn check(&self) -> Vec<Senseless>;
}

/// A value that makes no sense.
pub(crate) struct Senseless {
    /// Its key; a nested one with dots.
    pub(crate) key: &'static str,
    /// Why.
    pub(crate) message: String,
    /// Whether the key is not there at all.
    pub(crate) absent: bool,
}

impl Checked for CaptureOptions {
    fn check(&self) -> Vec<Senseless> {
        let rate = self.rate.and_then(|rate| above_zero("rate", rate));
        // A header can claim 2³² × 2³² pixels; 2 GiB of RGB is more than any stage may hold.
        let pixels = within("max_pixels", self.max_pixels, 1..=MOST_PIXELS);
        let bytes = within("max_bytes", self.max_bytes.0, 1..=MOST_FILE_BYTES);
        [rate, pixels, bytes].into_iter().flatten().collect()
    }
}

impl Checked for PreprocessOptions {
    fn check(&self) -> Vec<Senseless> {
        let size = (!self.input_size.is_multiple_of(32) || !INPUT_SIZES.contains(&self.input_size)).then(|| {
            let (least, most) = (INPUT_SIZES.start(), INPUT_SIZES.end());
            Senseless::new(
                "input_size",
                &format!("is {}: it must be a multiple of 32 within {least}..={most}", self.input_size),
            )
        });
        [
            model(&self.model, "detect"),
            size,
            within("min_score", self.min_score, 0.0..=1.0),
            within("max_pixels", self.max_pixels, 1..=MOST_PIXELS),
            within("gate.min_score", self.gate.min_score, 0.0..=1.0),
            not_negative("gate.min_size", self.gate.min_size),
            not_negative("gate.min_sharpness", self.gate.min_sharpness),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Checked for ExtractOptions {
    fn check(&self) -> Vec<Senseless> {
        model(&self.model, "embed").into_iter().chain(tensor("output", self.output.as_deref())).collect()
    }
}

impl Checked for ClassifyOptions {
    fn check(&self) -> Vec<Senseless> {
        [
            self.model.as_deref().and_then(|name| model(name, "classify")),
            tensor("input", self.input.as_deref()),
            within("top_k", self.top_k, LABELS),
            within("threshold", self.threshold, COSINES),
            not_negative("margin", self.margin),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl Checked for ClusterOptions {
    fn check(&self) -> Vec<Senseless> {
        within("threshold", self.threshold, COSINES).into_iter().collect()
    }
}

/// What a cosine can be.
const COSINES: RangeInclusive<f32> = -1.0..=1.0;

/// Labels that a decision may list: it stays a short message.
const LABELS: RangeInclusive<usize> = 1..=100;

/// Longest side of a detector's input, px: below it sees no face, above it takes seconds.
const INPUT_SIZES: RangeInclusive<u32> = 64..=1920;

/// Most pixels of a picture that a pipeline may allow: 2 GiB of RGB.
const MOST_PIXELS: u64 = (2 << 30) / 3;

/// Longest picture file that a pipeline may allow, bytes: the longest body of a `frame.v1`.
const MOST_FILE_BYTES: u64 = 64 << 20;

impl Senseless {
    fn new(key: &'static str, why: &str) -> Self {
        Self { key, message: format!("`{key}` {why}"), absent: false }
    }
}

/// Also refuses what is no number.
fn within<T: PartialOrd + Display + Copy>(key: &'static str, value: T, range: RangeInclusive<T>) -> Option<Senseless> {
    let (least, most) = (range.start(), range.end());
    (!range.contains(&value)).then(|| Senseless::new(key, &format!("is {value}: it must be within {least}..={most}")))
}

fn above_zero(key: &'static str, value: f64) -> Option<Senseless> {
    let good = value.is_finite() && value > 0.0;
    (!good).then(|| Senseless::new(key, &format!("is {value}: it must be more than 0")))
}

fn not_negative(key: &'static str, value: f32) -> Option<Senseless> {
    let good = value.is_finite() && value >= 0.0;
    (!good).then(|| Senseless::new(key, &format!("is {value}: it must be 0 or more")))
}

fn model(name: &str, task: &str) -> Option<Senseless> {
    match name {
        "" => Some(Senseless {
            absent: true,
            ..Senseless::new("model", &format!("is missing: name a model that can {task}"))
        }),
        name if !is_model_name(name) => {
            Some(Senseless::new("model", &format!("is `{name}`: a name has only letters, digits, `-`, `_` and `.`")))
        }
        _ => None,
    }
}

fn tensor(key: &'static str, name: Option<&str>) -> Option<Senseless> {
    name.is_some_and(|name| name.trim().is_empty()).then(|| Senseless::new(key, "is empty: name a tensor of the model"))
}
