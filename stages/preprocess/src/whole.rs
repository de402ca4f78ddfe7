use anyhow::Context as _;
use causeway_imaging::{Fitted, decode, fit, sharpness};
use causeway_pipelines::Manifest;
use causeway_schemas::{Crop, Frame, Region};
use causeway_stage::{Answer, Failure};

use crate::unreadable;

/// The whole picture as a model wants to see it: scaled and cut from the centre, one crop of RGB, 8 bits a colour.
pub struct Whole {
    size: [u32; 2],
    resize: Option<u32>,
    max_pixels: u64,
}

impl Whole {
    pub(crate) fn new(manifest: &Manifest, max_pixels: u64) -> anyhow::Result<Self> {
        let input = manifest.input().with_context(|| {
            format!("cannot use the model `{}` here: it is no detector, and does not say what it sees", manifest.name)
        })?;
        Ok(Self { size: input.size, resize: input.resize, max_pixels })
    }

    pub(crate) fn crop(&self, frame: &Frame) -> Result<Answer<Crop>, Failure> {
        let picture = decode(&frame.image, self.max_pixels).map_err(|error| unreadable(&error))?;
        let Fitted { picture: seen, part: [x, y, w, h] } = fit(&picture, self.resize, self.size);
        let frame_size = [picture.width(), picture.height()];
        let sharpness = sharpness(&seen);
        let region = Region { x, y, w, h, score: 1.0, sharpness, landmarks: Vec::new(), frame: frame_size };
        let (width, height) = (seen.width(), seen.height());
        let capture = frame.capture.clone();
        Ok(Answer::Messages(vec![Crop { capture, region, width, height, pixels: seen.into_pixels() }]))
    }
}
