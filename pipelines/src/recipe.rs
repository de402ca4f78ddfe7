//! How a picture becomes a model's input, and what its output means: the tables `[input]`, `[output]` and `[labels]` of a
//! manifest.

use std::path::PathBuf;

use serde::Deserialize;

/// Longest side of a model's input, px: a crop of it has to fit into one message.
const MAX_SIDE: u32 = 2048;

/// Colours of a pixel.
const CHANNELS: usize = 3;

/// `[input]`: a picture is scaled, cut from its centre, and each pixel's colour becomes `(value / divide_by - mean) / std`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// The name of the model's one input: f32, a batch of one.
    pub name: String,
    /// Width and height of what the model sees, px.
    pub size: [u32; 2],
    /// The picture's shorter side is scaled to this many px, then `size` is cut from the centre. Without it, the picture is
    /// scaled as far as `size` needs.
    #[serde(default)]
    pub resize: Option<u32>,
    /// The order of the colours in the tensor, and in `mean` and `std`.
    #[serde(default)]
    pub colour: Colour,
    /// The order of the tensor's axes.
    #[serde(default)]
    pub layout: Layout,
    /// What a colour of 0..255 is divided by first: 255 gives 0..1, 1 leaves it as it is.
    #[serde(default = "default_divide_by")]
    pub divide_by: f32,
    /// Subtracted next, one number a colour.
    #[serde(default)]
    pub mean: [f32; CHANNELS],
    /// Divided by last, one number a colour.
    #[serde(default = "default_std")]
    pub std: [f32; CHANNELS],
}

/// The order of colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colour {
    /// Red, green, blue.
    #[default]
    Rgb,
    /// Blue, green, red.
    Bgr,
}

/// The order of a tensor's axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// Batch, colour, row, column.
    #[default]
    Nchw,
    /// Batch, row, column, colour.
    Nhwc,
}

/// `[output]`: which of the model's outputs is the answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Its name: f32, one number a label, or the vector of an embedding model.
    pub name: String,
    /// Whether the numbers still have to be made probabilities by softmax. `false`: they are probabilities.
    #[serde(default)]
    pub softmax: bool,
}

/// `[labels]`: what the numbers of the output are called.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelsSpec {
    /// A text file with one label a line, in the order of the output; relative to the manifest as written, whole once loaded.
    pub file: PathBuf,
    /// SHA-256 of the file, lower-case hex.
    pub sha256: String,
    /// Its licence.
    pub licence: String,
    /// Where it came from and what was done to it.
    pub source: String,
}

fn default_divide_by() -> f32 {
    255.0
}

fn default_std() -> [f32; CHANNELS] {
    [1.0; CHANNELS]
}

impl InputSpec {
    pub(crate) fn check(&self) -> Result<(), String> {
        let side = |key: &str, px: u32| match px {
            1..=MAX_SIDE => Ok(()),
            _ => Err(format!("`input.{key}` is {px}: it must be within 1..={MAX_SIDE} px")),
        };
        named("input.name", &self.name)?;
        self.size.iter().try_for_each(|&px| side("size", px))?;
        if let Some(resize) = self.resize {
            side("resize", resize)?;
            if self.size.iter().any(|&px| px > resize) {
                let [width, height] = self.size;
                return Err(format!(
                    "`input.resize` is {resize}: {width} × {height} px cannot be cut from a picture whose shorter side is \
                     {resize} px"
                ));
            }
        }
        let finite = |key: &str, numbers: &[f32], zero_too: bool| {
            let good = numbers.iter().all(|number| number.is_finite() && (zero_too || *number != 0.0));
            if good { Ok(()) } else { Err(format!("`input.{key}` is {numbers:?}: pixels cannot be brought to that")) }
        };
        finite("divide_by", &[self.divide_by], false)?;
        finite("mean", &self.mean, true)?;
        finite("std", &self.std, false)
    }

    /// The shape of the tensor, batch of one.
    pub fn shape(&self) -> [u32; 4] {
        let [width, height] = self.size;
        match self.layout {
            Layout::Nchw => [1, CHANNELS as u32, height, width],
            Layout::Nhwc => [1, height, width, CHANNELS as u32],
        }
    }
}

pub(crate) fn named(key: &str, name: &str) -> Result<(), String> {
    if name.trim().is_empty() { Err(format!("`{key}` is empty")) } else { Ok(()) }
}
