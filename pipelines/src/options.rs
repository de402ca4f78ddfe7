//! The keys that each stage understands beside those of every stage. A stage's `Options` is one of these.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::Input;
use crate::manifest::{MODEL_NAMES, is_model_name};
use crate::schema::Size;

/// `uses = "capture"`: pictures out of a folder, frames of a video or a camera.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CaptureOptions {
    /// A folder (read with its subfolders), a glob or a file, relative to the pipeline file; the URL of a camera, in which
    /// `${NAME}` stands for an environment variable; a device; `-` for standard input. `causeway up --input` sets it.
    #[serde(default)]
    pub input: Option<PathBuf>,
    /// At most this many pictures a second; as fast as the link takes them when absent. Not for what is live: see `fps`.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub rate: Option<f64>,
    /// Begin anew at the end, for ever: a simulated camera.
    #[serde(default)]
    pub repeat: bool,
    /// A picture with more pixels is a dead letter; read from its header before anything is decoded.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1, max = MOST_PIXELS))]
    pub max_pixels: u64,
    /// A longer file is a dead letter; not read further than this.
    #[serde(default = "default_max_bytes")]
    #[schemars(with = "Size")]
    pub max_bytes: ByteSize,
    /// Of a video: at most this many frames a second of its own time; all of them when absent.
    #[serde(default)]
    #[schemars(range(min = *FPS.start(), max = *FPS.end()))]
    pub fps: Option<f64>,
    /// Of a video: only frames that differ from the one before by more than this, 0..1 (`ffmpeg`'s scene score); about 0.02 is
    /// somebody walking by, 0.4 a cut. The first frame always comes. Looks at the frames that `fps` leaves.
    #[serde(default)]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub scene: Option<f64>,
    /// Of a video: how well its frames are kept, as JPEG of this quality, 1..100.
    #[serde(default = "default_quality")]
    #[schemars(range(min = 1, max = 100))]
    pub quality: u8,
    /// How an RTSP camera sends.
    #[serde(default)]
    pub transport: Transport,
    /// What happens to a frame when the link is full and `buffer` too; absent, a live stream keeps the latest and everything
    /// else waits.
    #[serde(default)]
    pub on_full: Option<OnFull>,
    /// Frames of a video that wait in memory for the link.
    #[serde(default = "default_buffer")]
    #[schemars(range(min = 1, max = MOST_BUFFER))]
    pub buffer: usize,
    /// A video that gives no frame for this long is opened anew, ms.
    #[serde(default = "default_stall_ms")]
    #[schemars(range(min = *STALL_MS.start(), max = *STALL_MS.end()))]
    pub stall_ms: u64,
    /// A file with the password of the user that the URL names, so that it stands in no pipeline file; relative to the
    /// pipeline file.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self {
            input: None,
            rate: None,
            repeat: false,
            max_pixels: default_max_pixels(),
            max_bytes: default_max_bytes(),
            fps: None,
            scene: None,
            quality: default_quality(),
            transport: Transport::default(),
            on_full: None,
            buffer: default_buffer(),
            stall_ms: default_stall_ms(),
            password_file: None,
        }
    }
}

/// How an RTSP camera sends its packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Inside the RTSP connection: gets through firewalls, nothing is lost on the way.
    #[default]
    Tcp,
    /// On ports of their own: less delay, and packets may be lost.
    Udp,
}

/// What happens to a frame when there is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The video waits.
    Block,
    /// The frame that comes is dropped.
    DropNewest,
    /// The oldest frame that waits is dropped for the one that comes.
    KeepLatest,
}

/// Looks like the original at a sixth of the bytes of 100.
fn default_quality() -> u8 {
    90
}

/// Half a second of a camera: enough for a broker that restarts at `fps = 5`, and old news are few.
fn default_buffer() -> usize {
    16
}

/// Longer than cameras take from one key frame to the next, shorter than a person waits before looking what is wrong.
fn default_stall_ms() -> u64 {
    15_000
}

fn default_max_pixels() -> u64 {
    50_000_000
}

fn default_max_bytes() -> ByteSize {
    ByteSize::mib(32)
}

/// `uses = "preprocess"`: find faces, align them, keep the good ones; or the whole picture as a model wants to see it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreprocessOptions {
    /// A detector, a model with `task = "detect"`: each face becomes a crop. Or a model that looks at whole pictures: the
    /// picture becomes one crop as the `[input]` of its manifest says, and no other key but `max_pixels` counts. Has to be
    /// stated.
    #[serde(default)]
    #[schemars(regex(pattern = MODEL_NAMES))]
    pub model: String,
    /// The picture's longest side is scaled to this many px before detection; a multiple of 32. Faces of 10 px and more of
    /// that are found. A second look at half the size finds those that fill the picture, so 640 serves close-ups too; 320
    /// takes a third of the time and misses small faces in groups.
    #[serde(default = "default_input_size")]
    #[schemars(range(min = *INPUT_SIZES.start(), max = *INPUT_SIZES.end()), extend("multipleOf" = INPUT_SIZE_STEP))]
    pub input_size: u32,
    /// A detection with a lower score is no face.
    #[serde(default = "default_min_score")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_score: f32,
    /// Pictures with more pixels are refused before they are decoded.
    #[serde(default = "default_max_pixels")]
    #[schemars(range(min = 1, max = MOST_PIXELS))]
    pub max_pixels: u64,
    /// Which faces are good enough to be recognised.
    #[serde(default)]
    pub gate: Gate,
}

/// The quality gate: a face below any of these is left out, and counted.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gate {
    /// Detector score, 0..1.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_score: f32,
    /// The shorter side of the face's box in the picture, px.
    #[schemars(range(min = 0.0))]
    pub min_size: f32,
    /// Variance of the Laplacian of the aligned face; lower is more blurred.
    #[schemars(range(min = 0.0))]
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
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtractOptions {
    /// A model with `task = "embed"`, whose answer is a vector of length 1; or with `task = "classify"`. Has to be stated.
    #[serde(default)]
    #[schemars(regex(pattern = MODEL_NAMES))]
    pub model: String,
    /// The tensor of the model that becomes the feature: the model is run up to it, and the rest of the model in a `classify`
    /// that names the same model. By default the model's answer.
    #[serde(default)]
    pub output: Option<String>,
}

/// `uses = "classify"`: the nearest person of the gallery, or the labels of a model.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassifyOptions {
    /// A model with `task = "classify"`, the one whose tensor is taken: the rest of it is run and its labels are the answer.
    /// Without it, the gallery is.
    #[serde(default)]
    #[schemars(regex(pattern = MODEL_NAMES))]
    pub model: Option<String>,
    /// With a model: the tensor that comes in. By default what the stage before gives.
    #[serde(default)]
    pub input: Option<String>,
    /// With a model: how many labels a decision lists, the best first.
    #[serde(default = "default_top_k")]
    #[schemars(range(min = *LABELS.start(), max = *LABELS.end()))]
    pub top_k: usize,
    /// Unknown below this cosine, or with a model below this probability. `SFace`: 0.40 (`OpenCV`'s model card says 0.363; 0.40
    /// had fewer false links).
    #[serde(default = "default_threshold")]
    #[schemars(range(min = *COSINES.start(), max = *COSINES.end()))]
    pub threshold: f32,
    /// Unknown when the next other person is nearer than this behind the nearest.
    #[serde(default = "default_margin")]
    #[schemars(range(min = 0.0))]
    pub margin: f32,
    /// Name a face of a stream by all its appearances of the last moments; absent, each by itself, as photos are.
    #[serde(default)]
    pub vote: Option<VoteOptions>,
}

/// How the appearances of one face in a stream vote on its name. `vote = {}` is all of the defaults.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VoteOptions {
    /// How long an appearance has a say, ms.
    #[schemars(range(min = *VOTE_WINDOW_MS.start(), max = *VOTE_WINDOW_MS.end()))]
    pub window_ms: u64,
    /// Two appearances are of one face from this cosine on.
    #[schemars(range(min = *COSINES.start(), max = *COSINES.end()))]
    pub likeness: f32,
    /// So are two within 0.3 s whose boxes overlap so far, as intersection over union.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub overlap: f32,
    /// Appearances that must bear a name; fewer are unknown.
    #[schemars(range(min = 1, max = 100))]
    pub min: usize,
}

impl Default for VoteOptions {
    /// Somebody who walks by a door. From frame to frame a face is alike by 0.6 and more with `SFace`, strangers by up to 0.42
    /// (0.56 when both are blurred).
    fn default() -> Self {
        Self { window_ms: 2000, likeness: 0.5, overlap: 0.4, min: 1 }
    }
}

fn default_top_k() -> usize {
    5
}

fn default_threshold() -> f32 {
    0.40
}

fn default_max_clusters() -> usize {
    100_000
}

fn default_margin() -> f32 {
    0.05
}

/// `uses = "cluster"`: faces that belong together.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterOptions {
    /// A face joins the nearest cluster from this mean cosine on; two clusters merge from it on. Where few pairs tell, more
    /// is asked for: 0.05/√pairs, so 0.45 instead of 0.40 between two single faces.
    #[serde(default = "default_threshold")]
    #[schemars(range(min = *COSINES.start(), max = *COSINES.end()))]
    pub threshold: f32,
    /// Clusters that are known at once; beyond them those go that no face has joined for the longest time. Each takes a KB of memory
    /// for 128 numbers a face, and a tenth of a µs of every face.
    #[serde(default = "default_max_clusters")]
    #[schemars(range(min = *CLUSTERS.start(), max = *CLUSTERS.end()))]
    pub max_clusters: usize,
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
        let fps = self.fps.and_then(|fps| within("fps", fps, FPS));
        let scene = self.scene.and_then(|scene| within("scene", scene, 0.0..=1.0));
        let quality = within("quality", self.quality, 1..=100);
        let buffer = within("buffer", self.buffer, 1..=MOST_BUFFER);
        let stall = within("stall_ms", self.stall_ms, STALL_MS);
        let input = self.input.as_deref().and_then(|input| Input::of(input).err());
        let input = input.map(|why| Senseless { key: "input", message: why.to_string(), absent: false });
        [rate, pixels, bytes, fps, scene, quality, buffer, stall, input].into_iter().flatten().collect()
    }
}

impl Checked for PreprocessOptions {
    fn check(&self) -> Vec<Senseless> {
        let size =
            (!self.input_size.is_multiple_of(INPUT_SIZE_STEP) || !INPUT_SIZES.contains(&self.input_size)).then(|| {
                let (least, most) = (INPUT_SIZES.start(), INPUT_SIZES.end());
                Senseless::new(
                    "input_size",
                    &format!(
                        "is {}: it must be a multiple of {INPUT_SIZE_STEP} within {least}..={most}",
                        self.input_size
                    ),
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
        let vote = self.vote.map(|vote| {
            [
                within("vote.window_ms", vote.window_ms, VOTE_WINDOW_MS),
                within("vote.likeness", vote.likeness, COSINES),
                within("vote.overlap", vote.overlap, 0.0..=1.0),
                within("vote.min", vote.min, 1..=100),
                self.model.is_some().then(|| {
                    Senseless::new(
                        "vote",
                        "is for people: the labels of a model are of one picture each, leave one of them out",
                    )
                }),
            ]
        });
        [
            self.model.as_deref().and_then(|name| model(name, "classify")),
            tensor("input", self.input.as_deref()),
            within("top_k", self.top_k, LABELS),
            within("threshold", self.threshold, COSINES),
            not_negative("margin", self.margin),
        ]
        .into_iter()
        .chain(vote.into_iter().flatten())
        .flatten()
        .collect()
    }
}

impl Checked for ClusterOptions {
    fn check(&self) -> Vec<Senseless> {
        let clusters = within("max_clusters", self.max_clusters, CLUSTERS);
        within("threshold", self.threshold, COSINES).into_iter().chain(clusters).collect()
    }
}

/// Clusters that may be known at once: a GB of memory at 128 numbers a face, and 0.1 s of every face.
const CLUSTERS: RangeInclusive<usize> = 100..=1_000_000;

/// Frames a second: from one an hour to what high-speed cameras make.
const FPS: RangeInclusive<f64> = 0.000_27..=1000.0;

/// Most frames that may wait in memory.
const MOST_BUFFER: usize = 4096;

/// How long a video may be still before it is opened anew, ms: a stream needs a second to begin with.
const STALL_MS: RangeInclusive<u64> = 1_000..=3_600_000;

/// How long appearances may be remembered, ms: an hour.
const VOTE_WINDOW_MS: RangeInclusive<u64> = 1..=3_600_000;

/// What a cosine can be.
const COSINES: RangeInclusive<f32> = -1.0..=1.0;

/// Labels that a decision may list: it stays a short message.
const LABELS: RangeInclusive<usize> = 1..=100;

/// Longest side of a detector's input, px: below it sees no face, above it takes seconds.
const INPUT_SIZES: RangeInclusive<u32> = 64..=1920;

/// What the detector's strides divide, px.
const INPUT_SIZE_STEP: u32 = 32;

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
