use schemars::{JsonSchema, schema_for};
use serde::{Deserialize, Serialize};

use crate::{Codec, Id, Message, decode_body};

/// Where a message began: the same in every message that comes of one captured item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Capture {
    /// The name of the source, as in the pipeline file.
    pub source: String,
    /// What was captured: a path relative to the folder, or a camera's frame.
    pub item: String,
    /// The run of the source: raised at each start of a camera; 0 for a folder.
    pub epoch: u64,
    /// Place within (source, epoch), from 0. Order is (source, epoch, sequence), never a clock.
    pub sequence: u64,
    /// The capturing machine's clock, Unix time in ns.
    pub captured_at: u64,
}

/// A part of a frame, in pixels of the upright frame (after EXIF rotation), origin top left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Region {
    /// Left edge, px.
    pub x: f32,
    /// Top edge, px.
    pub y: f32,
    /// Width, px.
    pub w: f32,
    /// Height, px.
    pub h: f32,
    /// The detector's score, 0..1; 1 for a whole image.
    pub score: f32,
    /// How sharp the crop is: the variance of its Laplacian on 8-bit grey; higher is sharper.
    pub sharpness: f32,
    /// Facial landmarks `[x, y]` px: right eye, left eye, nose, right and left corner of the mouth (the subject's own
    /// right and left); empty for what has none.
    pub landmarks: Vec<[f32; 2]>,
    /// Width and height of the upright frame, px.
    pub frame: [u32; 2],
}

impl Region {
    fn is_finite(&self) -> bool {
        let Self { x, y, w, h, score, sharpness, landmarks, frame: _ } = self;
        [x, y, w, h, score, sharpness].into_iter().chain(landmarks.as_flattened()).all(|number| number.is_finite())
    }
}

/// Which model answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct ModelRef {
    /// Name, as in its manifest.
    pub name: String,
    /// Version, as in its manifest.
    pub version: String,
    /// SHA-256 of the ONNX file, lower-case hex.
    pub sha256: String,
}

/// `frame.v1`: one encoded image as it was captured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Frame {
    /// Where it began.
    pub capture: Capture,
    /// The encoded image: JPEG, PNG or WebP.
    #[serde(with = "crate::blob")]
    #[schemars(with = "String")]
    pub image: Vec<u8>,
}

/// `crop.v1`: the region a model looks at, upright and of the size the model wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Crop {
    /// Where it began.
    pub capture: Capture,
    /// Which part of the frame it is.
    pub region: Region,
    /// Width of `pixels`, px.
    pub width: u32,
    /// Height of `pixels`, px.
    pub height: u32,
    /// RGB, 8 bits a channel, row by row from the top left: `width × height × 3` bytes.
    #[serde(with = "crate::blob")]
    #[schemars(with = "String")]
    pub pixels: Vec<u8>,
}

/// What one number of a tensor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Dtype {
    /// 32-bit IEEE 754, little endian.
    F32,
}

/// `feature.v1`: what a model made of a crop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Feature {
    /// Where it began.
    pub capture: Capture,
    /// Which part of the frame it describes.
    pub region: Region,
    /// The type of the numbers in `data`.
    pub dtype: Dtype,
    /// The shape of the tensor; `[n]` for a vector.
    pub shape: Vec<u32>,
    /// The numbers, row-major, little endian.
    #[serde(with = "crate::blob")]
    #[schemars(with = "String")]
    pub data: Vec<u8>,
    /// The embedding space: vectors of different spaces are never compared.
    pub space: String,
    /// The model that made it.
    pub model: ModelRef,
}

impl Feature {
    /// `data` out of a vector of numbers.
    pub fn encode_f32(vector: &[f32]) -> Vec<u8> {
        vector.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// The numbers of a one-dimensional f32 feature; `None` when shape, dtype and data do not agree.
    pub fn vector(&self) -> Option<Vec<f32>> {
        if self.shape.len() == 1 { self.numbers() } else { None }
    }

    /// The numbers of an f32 feature of any shape, row-major; `None` when shape, dtype and data do not agree.
    pub fn numbers(&self) -> Option<Vec<f32>> {
        let Dtype::F32 = self.dtype;
        let len = self.shape.iter().try_fold(4_usize, |len, &size| len.checked_mul(size as usize))?;
        if self.data.len() != len {
            return None;
        }
        let numbers = self.data.as_chunks::<4>().0;
        Some(numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    /// The numbers as a vector of length 1 (L2), or why there is none: it is no vector, or it has no direction.
    pub fn unit_vector(&self) -> Result<Vec<f32>, String> {
        let vector = self
            .vector()
            .ok_or_else(|| format!("shape {:?} with {} bytes is no vector of f32", self.shape, self.data.len()))?;
        let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        if !length.is_finite() || length == 0.0 {
            return Err(format!("{} numbers of length {length} have no direction", vector.len()));
        }
        Ok(vector.iter().map(|&x| (f64::from(x) / length) as f32).collect())
    }
}

/// `decision.v2`: who or what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Decision {
    /// Where it began.
    pub capture: Capture,
    /// Which part of the frame it is about.
    pub region: Region,
    /// The name; `None` is "unknown".
    pub label: Option<String>,
    /// By a gallery: likeness to the nearest known one, a cosine, -1..1; 0 when nothing is known. By a model: the probability
    /// of its first label, 0..1.
    pub score: f32,
    /// How far the nearest is ahead of the next other one; equal to `score` when there is no other.
    pub margin: f32,
    /// The nearest known one or the model's first label, also where it was not near or sure enough.
    pub nearest: Option<String>,
    /// The model whose feature was judged.
    pub model: ModelRef,
    /// The revision of the gallery that was judged by; 0 where a model judged.
    pub gallery: u64,
    /// Which way the answer came about; "classify" unless a fallback answered.
    pub route: String,
    /// The best labels, the best first: as many as the stage gives (`top_k`) by a model, none by a gallery.
    pub top: Vec<Ranked>,
}

/// A label and how sure it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ranked {
    /// The label.
    pub label: String,
    /// Its probability, 0..1.
    pub score: f32,
}

/// `decision.v1`: without `top`. It is read as a [`Decision`], never written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecisionV1 {
    /// As in [`Decision`].
    pub capture: Capture,
    /// As in [`Decision`].
    pub region: Region,
    /// As in [`Decision`].
    pub label: Option<String>,
    /// As in [`Decision`].
    pub score: f32,
    /// As in [`Decision`].
    pub margin: f32,
    /// As in [`Decision`].
    pub nearest: Option<String>,
    /// As in [`Decision`].
    pub model: ModelRef,
    /// As in [`Decision`].
    pub gallery: u64,
    /// As in [`Decision`].
    pub route: String,
}

impl From<DecisionV1> for Decision {
    fn from(before: DecisionV1) -> Self {
        let DecisionV1 { capture, region, label, score, margin, nearest, model, gallery, route } = before;
        Self { capture, region, label, score, margin, nearest, model, gallery, route, top: Vec::new() }
    }
}

/// `assignment.v1`: which cluster a face belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Assignment {
    /// Where it began.
    pub capture: Capture,
    /// Which part of the frame it is about.
    pub region: Region,
    /// The cluster: the id of its first member.
    #[schemars(with = "String")]
    pub cluster: Id,
    /// Mean cosine to the cluster's members before this one; 1 for the first of a cluster.
    pub score: f32,
    /// Clusters that this face joined to `cluster`: they are no more, their members are its members.
    #[schemars(with = "Vec<String>")]
    pub merged: Vec<Id>,
}

/// `empty.v1`: an input that rightly gave nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {
    /// Where it began.
    pub capture: Capture,
    /// The stage that gave nothing.
    pub stage: String,
    /// A short fixed name of the reason: `no-face`, `below-quality`.
    pub reason: String,
    /// The reason with its figures, for a person.
    pub detail: String,
}

/// `dead.v1`: a message that a stage can never handle, whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeadLetter {
    /// The stage that set it aside.
    pub stage: String,
    /// A short fixed name of the reason: `malformed`, `unknown-kind`, `rejected`, `panicked`.
    pub reason: String,
    /// The reason for a person.
    pub detail: String,
    /// How often it was delivered.
    pub attempts: u64,
    /// The models that the stage had loaded.
    pub models: Vec<ModelRef>,
    /// When it was set aside, Unix time in ns.
    pub at: u64,
    /// The subject it came on.
    pub subject: String,
    /// Its headers as they came.
    pub headers: Vec<(String, String)>,
    /// Its body as it came.
    #[serde(with = "crate::blob")]
    #[schemars(with = "String")]
    pub body: Vec<u8>,
}

/// `receipt.v1`: says at other sites that a message was set aside. The letter itself stays where its stage is: there may be pixels in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Receipt {
    /// The stage that set it aside.
    pub stage: String,
    /// The site where its letter lies.
    pub site: String,
    /// A short fixed name of the reason, as the letter has it.
    pub reason: String,
    /// When it was set aside, Unix time in ns.
    pub at: u64,
}

/// Longest body of an encoded image, bytes: what a camera or a telephone makes, with room.
const MAX_IMAGE: usize = 64 << 20;

/// Longest body of a crop or tensor, bytes: 2048 × 2048 RGB.
const MAX_TENSOR: usize = 16 << 20;

/// Longest body of a result, bytes.
const MAX_RESULT: usize = 1 << 20;

macro_rules! message {
    ($type:ty, $noun:literal, $max:expr $(, $finite:expr)?) => {
        impl Message for $type {
            const NOUN: &'static str = $noun;
            const VERSION: u16 = 1;
            const MAX_BYTES: usize = $max;

            fn capture(&self) -> &Capture {
                &self.capture
            }

            $(fn is_finite(&self) -> bool {
                $finite(self)
            })?
        }
    };
}

message!(Frame, "frame", MAX_IMAGE);
message!(Crop, "crop", MAX_TENSOR, |crop: &Self| crop.region.is_finite());
message!(Feature, "feature", MAX_TENSOR, |feature: &Self| feature.region.is_finite());
message!(Assignment, "assignment", MAX_RESULT, |one: &Self| one.region.is_finite() && one.score.is_finite());
message!(Empty, "empty", MAX_RESULT);

impl Message for Decision {
    const NOUN: &'static str = "decision";
    const VERSION: u16 = 2;
    const MAX_BYTES: usize = MAX_RESULT;

    fn capture(&self) -> &Capture {
        &self.capture
    }

    fn is_finite(&self) -> bool {
        let scores = [self.score, self.margin].into_iter().chain(self.top.iter().map(|ranked| ranked.score));
        self.region.is_finite() && scores.into_iter().all(f32::is_finite)
    }

    fn of_version_before(body: &[u8], codec: Codec) -> Option<Result<Self, String>> {
        Some(decode_body::<DecisionV1>(body, codec).map(Self::from))
    }
}

impl DeadLetter {
    /// The noun in its kind and its subject.
    pub const NOUN: &'static str = "dead";
    /// Its kind as written in `Causeway-Kind`.
    pub const KIND: &'static str = "dead.v1";
}

impl Receipt {
    /// The noun in its kind and its subject.
    pub const NOUN: &'static str = "receipt";
    /// Its kind as written in `Causeway-Kind`.
    pub const KIND: &'static str = "receipt.v1";
}

/// The JSON Schema of a message as it is written in JSON, by its noun; `None` where there is no such message.
pub fn json_schema(noun: &str) -> Option<serde_json::Value> {
    let schema = match noun {
        Frame::NOUN => schema_for!(Frame),
        Crop::NOUN => schema_for!(Crop),
        Feature::NOUN => schema_for!(Feature),
        Decision::NOUN => schema_for!(Decision),
        Assignment::NOUN => schema_for!(Assignment),
        Empty::NOUN => schema_for!(Empty),
        DeadLetter::NOUN => schema_for!(DeadLetter),
        Receipt::NOUN => schema_for!(Receipt),
        _ => return None,
    };
    Some(schema.into())
}

/// One person of the gallery: the value of a key in the table `people`, written as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Person {
    /// The name, as it is shown.
    pub name: String,
    /// The embedding space of `vectors`.
    pub space: String,
    /// One L2-normalised vector a photo.
    pub vectors: Vec<Vec<f32>>,
    /// The photos that `vectors` came from, in the same order; names only, the photos are not kept.
    pub photos: Vec<String>,
    /// When the person was enrolled, Unix time in ns.
    pub enrolled_at: u64,
}
