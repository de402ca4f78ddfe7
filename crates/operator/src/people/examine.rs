use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use causeway_extract::Extract;
use causeway_imaging::probe;
use causeway_pipelines::{ExtractOptions, Manifest, Pipeline, PreprocessOptions, StageSpec};
use causeway_preprocess::{Preprocess, largest_centred};
use causeway_schemas::{Capture, Crop, Frame, Person};
use causeway_stage::{Answer, Context, Failure, Stage};

use crate::people::gallery::photo_entry;
use crate::people::{PhotoVerdict, verdict::Taken};

/// Longest photo that is read, bytes: what cameras make, with room.
const MAX_PHOTO: u64 = 32 << 20;

/// A file that may show the person.
#[derive(Debug, Clone)]
pub(crate) struct Photo {
    /// Its file name.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// What a photo gave.
#[derive(Debug)]
pub(crate) enum Examined {
    /// A face, and its vector.
    Face {
        /// How the gallery names the photo.
        entry: String,
        taken: Taken,
        vector: Vec<f32>,
    },
    /// Nothing for the gallery.
    Nothing(PhotoVerdict),
}

/// Makes vectors of photos exactly as the pipeline does: by its own stages, options and models. These are loaded when the first
/// photo needs them.
pub(crate) struct Examiner {
    preprocess: StageSpec,
    extract: StageSpec,
    pipeline_dir: PathBuf,
    models: PathBuf,
    space: String,
    max_pixels: u64,
    stages: Option<(Preprocess, Extract)>,
}

impl Examiner {
    /// By the stages that lead to the first `classify` of the pipeline that has a gallery.
    pub(crate) fn new(pipeline: &Pipeline, models: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot enrol for the pipeline {}", pipeline.name);
        let classify = pipeline.stages.iter().find(|stage| stage.uses == "classify" && stage.model().is_none());
        let classify = classify.with_context(|| {
            format!("{}: none of its stages uses `classify` with a gallery, which is without a `model`", cannot())
        })?;
        let before = |stage: &StageSpec, uses: &str| {
            let mut takes_from = stage.from.iter().filter_map(|from| pipeline.stage(from));
            let found = takes_from.find(|from| from.uses == uses).cloned();
            found
                .with_context(|| format!("{}: [stage.{}] takes from no stage that uses `{uses}`", cannot(), stage.name))
        };
        let extract = before(classify, Extract::NAME)?;
        let preprocess = before(&extract, Preprocess::NAME)?;
        let model =
            extract.model().with_context(|| format!("{}: [stage.{}] names no model", cannot(), extract.name))?;
        let manifest = Manifest::load(models, model)?;
        let answer = || manifest.output().map(|output| output.name.clone());
        let tensor = options::<ExtractOptions>(&extract)?.output.map_or_else(answer, Ok)?;
        let space = manifest.space_of(&tensor);
        let max_pixels = options::<PreprocessOptions>(&preprocess)?.max_pixels;
        let pipeline_dir = pipeline.file.parent().unwrap_or(Path::new(".")).into();
        Ok(Self { preprocess, extract, pipeline_dir, models: models.into(), space, max_pixels, stages: None })
    }

    /// The embedding space of its vectors.
    pub(crate) fn space(&self) -> &str {
        &self.space
    }

    /// Looks for the face of a photo, unless `known` was enrolled from it before. Slow: not for an async thread.
    pub(crate) fn examine(&mut self, photo: &Photo, known: Option<&Person>) -> anyhow::Result<Examined> {
        let not_an_image = |why: String| Ok(Examined::Nothing(PhotoVerdict::NotAnImage(why)));
        let bytes = match read(&photo.path) {
            Ok(bytes) => bytes,
            Err(why) => return not_an_image(why),
        };
        if let Err(error) = probe(&bytes, self.max_pixels) {
            return not_an_image(error.to_string());
        }
        let entry = photo_entry(&photo.name, &bytes);
        if known.is_some_and(|known| known.space == self.space && known.photos.contains(&entry)) {
            return Ok(Examined::Nothing(PhotoVerdict::Known));
        }
        let (preprocess, extract) = self.stages()?;
        let capture =
            Capture { source: "enrol".into(), item: photo.name.clone(), epoch: 0, sequence: 0, captured_at: 0 };
        let crops = match only(preprocess.process(vec![Frame { capture, image: bytes }])) {
            Ok(Answer::Messages(crops)) => crops,
            Ok(Answer::Nothing { reason: "no-face", detail }) => {
                return Ok(Examined::Nothing(PhotoVerdict::NoFace(detail)));
            }
            Ok(Answer::Nothing { detail, .. }) => return Ok(Examined::Nothing(PhotoVerdict::TooPoor(detail))),
            Err(Failure::Reject { detail, .. }) => return not_an_image(detail),
            Err(error @ Failure::Retry(_)) => return Err(error.into()),
        };
        let regions: Vec<_> = crops.iter().map(|crop| crop.region.clone()).collect();
        let Some(place) = largest_centred(&regions) else {
            return Ok(Examined::Nothing(PhotoVerdict::NoFace("none is left".into())));
        };
        let taken = Taken { region: regions[place].clone(), faces: regions.len() };
        Ok(match vector(extract, crops.into_iter().nth(place)) {
            Ok(vector) => Examined::Face { entry, taken, vector },
            Err(error) => Examined::Nothing(PhotoVerdict::Failed(format!("{error:#}"))),
        })
    }

    fn stages(&mut self) -> anyhow::Result<&mut (Preprocess, Extract)> {
        if self.stages.is_none() {
            // No other model runs in this process.
            let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            let context = |spec: &StageSpec| Context::new(spec, &self.pipeline_dir, &self.models, threads);
            let preprocess = Preprocess::new(options(&self.preprocess)?, &context(&self.preprocess))?;
            let extract = Extract::new(options(&self.extract)?, &context(&self.extract))?;
            self.stages = Some((preprocess, extract));
        }
        self.stages.as_mut().context("the stages were just built")
    }
}

fn options<O: serde::de::DeserializeOwned>(stage: &StageSpec) -> anyhow::Result<O> {
    stage.options().map_err(|why| anyhow!("cannot use the options of {why}"))
}

/// The one answer to one input.
fn only<T>(answers: Vec<Result<Answer<T>, Failure>>) -> Result<Answer<T>, Failure> {
    answers.into_iter().next().unwrap_or_else(|| Err(Failure::unfit("the stage gave no answer")))
}

fn vector(extract: &mut Extract, crop: Option<Crop>) -> anyhow::Result<Vec<f32>> {
    let Answer::Messages(features) = only(extract.process(crop.into_iter().collect()))? else {
        bail!("the model gave nothing");
    };
    let feature = features.first().context("the model gave nothing")?;
    feature.vector().context("the model gave no vector")
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| format!("cannot read the file: {error}"))?;
    file.take(MAX_PHOTO + 1).read_to_end(&mut bytes).map_err(|error| format!("cannot read the file: {error}"))?;
    if bytes.len() as u64 > MAX_PHOTO {
        return Err(format!("the file has more than {} MiB", MAX_PHOTO >> 20));
    }
    Ok(bytes)
}

/// The files of a folder in the order of their names, hidden ones left out; or the one file.
pub(crate) fn photos_in(path: &Path) -> anyhow::Result<Vec<Photo>> {
    let photo = |path: PathBuf| Photo { name: path.file_name().unwrap_or_default().to_string_lossy().into(), path };
    if path.is_file() {
        return Ok(vec![photo(path.into())]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("cannot read the photos in {}", path.display()))?;
    let (mut photos, mut folders) = (Vec::new(), 0);
    for entry in entries {
        let photo = photo(entry.with_context(|| format!("cannot read the photos in {}", path.display()))?.path());
        if photo.name.starts_with('.') {
            continue;
        }
        match photo.path.metadata() {
            Ok(metadata) if metadata.is_dir() => folders += 1,
            Ok(metadata) if !metadata.is_file() => {}
            // What is not there, a dangling link, is taken: reading it says so.
            _ => photos.push(photo),
        }
    }
    if photos.is_empty() && folders > 0 {
        bail!("cannot enrol from {}: it has folders only; give each person's own, NAME=DIR NAME=DIR …", path.display());
    }
    if photos.is_empty() {
        bail!("cannot enrol from {}: no file is in it", path.display());
    }
    photos.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(photos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_files_is_refused() {
        let error = photos_in(Path::new("/proc/self/task")).unwrap_err().to_string();
        assert!(error.contains("it has folders only"), "{error}");
        assert!(photos_in(Path::new("/no/such")).unwrap_err().to_string().contains("/no/such"));
    }
}
