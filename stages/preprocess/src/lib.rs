//! The stage `preprocess`: the only crate that knows how faces are found and turned upright. Where a model looks at whole
//! pictures, it scales and cuts them as that model's manifest says.

mod align;
mod centred;
mod detector;
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod whole;

use anyhow::ensure;
use causeway_imaging::{ImageError, Picture, decode, decode_at_least, sharpness};
use causeway_inference::RunError;
use causeway_pipelines::{Gate, Manifest, PreprocessOptions, Task};
use causeway_schemas::{Crop, Frame, Region};
use causeway_stage::{Answer, Context, Failure, Stage};

pub use align::ALIGNED;
pub use centred::largest_centred;

use detector::{Detector, Face};
use whole::Whole;

/// Takes pictures, gives what the next model looks at: faces where its own model is a detector, else the whole picture.
pub enum Preprocess {
    /// Faces.
    Faces(Box<Faces>),
    /// The whole picture.
    Whole(Whole),
}

/// One aligned face for each that is good enough: 112 × 112 px RGB, the largest first.
pub struct Faces {
    detector: Detector,
    min_score: f32,
    max_pixels: u64,
    gate: Gate,
}

impl Stage for Preprocess {
    const NAME: &'static str = "preprocess";
    type Options = PreprocessOptions;
    type Input = Frame;
    type Output = Crop;

    fn new(options: PreprocessOptions, ctx: &Context) -> anyhow::Result<Self> {
        let manifest = ctx.model(&options.model)?;
        match manifest.task {
            Task::Detect => Ok(Self::Faces(Box::new(Faces::new(options, &manifest, ctx.threads())?))),
            Task::Embed | Task::Classify => Ok(Self::Whole(Whole::new(&manifest, options.max_pixels)?)),
        }
    }

    fn process(&mut self, batch: Vec<Frame>) -> Vec<Result<Answer<Crop>, Failure>> {
        match self {
            Self::Faces(faces) => batch.iter().map(|frame| faces.crop_faces(frame)).collect(),
            Self::Whole(whole) => batch.iter().map(|frame| whole.crop(frame)).collect(),
        }
    }
}

impl Faces {
    fn new(options: PreprocessOptions, manifest: &Manifest, threads: usize) -> anyhow::Result<Self> {
        let size = options.input_size;
        ensure!(
            (32..=4096).contains(&size) && size.is_multiple_of(32),
            "cannot use input_size = {size}: it has to be a multiple of 32 from 32 to 4096"
        );
        let detector = Detector::open(manifest, threads, size)?;
        Ok(Self { detector, min_score: options.min_score, max_pixels: options.max_pixels, gate: options.gate })
    }

    fn crop_faces(&mut self, frame: &Frame) -> Result<Answer<Crop>, Failure> {
        // The detector looks at `input_size` px: a picture several times as large is decoded smaller, and whole only when there
        // is a face to take out of it. Most frames of a camera have none.
        let least = self.detector.input_size();
        let (seen, [width, height]) =
            decode_at_least(&frame.image, self.max_pixels, least).map_err(|error| unreadable(&error))?;
        let faces = self.detector.detect(&seen, self.min_score).map_err(|error| failure(&error))?;
        if faces.is_empty() {
            return Ok(Answer::Nothing { reason: "no-face", detail: no_face(width, height, self.min_score) });
        }
        let by = width as f32 / seen.width() as f32;
        let (picture, faces) = if seen.width() == width {
            (seen, faces)
        } else {
            let whole = decode(&frame.image, self.max_pixels).map_err(|error| unreadable(&error))?;
            (whole, faces.into_iter().map(|face| face.scaled(by)).collect())
        };
        let (mut crops, mut below) = (Vec::new(), Vec::new());
        for (face, aligned) in largest_first(faces).iter().filter_map(|face| Some((face, align(&picture, face)?))) {
            let region = region(face, &picture, sharpness(&aligned));
            match gate::below(&self.gate, &region) {
                Some(why) => below.push(why),
                None => crops.push((region, aligned)),
            }
        }
        if crops.is_empty() {
            return Ok(Answer::Nothing { reason: "below-quality", detail: none_good_enough(&below) });
        }
        let crop = |(region, aligned): (Region, Picture)| Crop {
            capture: frame.capture.clone(),
            region,
            width: aligned.width(),
            height: aligned.height(),
            pixels: aligned.into_pixels(),
        };
        Ok(Answer::Messages(crops.into_iter().map(crop).collect()))
    }
}

fn align(picture: &Picture, face: &Face) -> Option<Picture> {
    align::align(picture, &face.landmarks)
}

/// By area; of equal ones the better detected first, which is how they came.
fn largest_first(mut faces: Vec<Face>) -> Vec<Face> {
    faces.sort_by(|a, b| b.area().total_cmp(&a.area()));
    faces
}

fn region(face: &Face, picture: &Picture, sharpness: f32) -> Region {
    let [x, y, w, h] = face.bounds;
    let frame = [picture.width(), picture.height()];
    Region { x, y, w, h, score: face.score, sharpness, landmarks: face.landmarks.to_vec(), frame }
}

fn no_face(width: u32, height: u32, min_score: f32) -> String {
    format!("no face with a score of {min_score} or more in {width} × {height} px")
}

/// Reasons that are written out; a crowd would fill a page.
const MAX_REASONS: usize = 8;

fn none_good_enough(below: &[String]) -> String {
    let count = below.len();
    let faces = if count == 1 { "1 face" } else { &format!("{count} faces") };
    let more = if count > MAX_REASONS { "; …" } else { "" };
    format!("{faces}, none good enough: {}{more}", below[..count.min(MAX_REASONS)].join("; "))
}

fn unreadable(error: &ImageError) -> Failure {
    Failure::Reject { reason: error.reason(), detail: error.to_string() }
}

fn failure(error: &RunError) -> Failure {
    let detail = error.to_string();
    if error.is_passing() { Failure::Retry(detail) } else { Failure::Reject { reason: "model-failed", detail } }
}
