use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::fault::did_you_mean;
use crate::recipe::{InputSpec, LabelsSpec, OutputSpec, named};

/// Longest manifest that is read, bytes.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;

/// Most models that an error lists.
const MAX_LISTED: usize = 20;

/// What a model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Finds regions.
    Detect,
    /// Gives a vector for a crop.
    Embed,
    /// Gives a number for each label.
    Classify,
}

/// A model's manifest: `NAME.toml` in the folder of models.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Its name: what a pipeline file says.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The ONNX file; relative to the manifest as written, whole once loaded.
    pub file: PathBuf,
    /// SHA-256 of the ONNX file, lower-case hex. A file with another one is refused before it is parsed.
    pub sha256: String,
    /// What it is for.
    pub task: Task,
    /// Its embedding space, where it embeds.
    #[serde(default)]
    pub space: Option<String>,
    /// Its licence, as its authors name it.
    pub licence: String,
    /// Where it came from and what was done to it.
    pub source: String,
    /// How a picture becomes its input, where it embeds or classifies.
    #[serde(default)]
    pub input: Option<InputSpec>,
    /// Which of its outputs is the answer, where it embeds or classifies.
    #[serde(default)]
    pub output: Option<OutputSpec>,
    /// What the numbers of the answer are called, where it classifies.
    #[serde(default)]
    pub labels: Option<LabelsSpec>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// No such file.
    #[error("cannot find the model `{name}`: {path} does not exist{known}")]
    Missing {
        /// The model asked for.
        name: String,
        /// Where it was looked for.
        path: PathBuf,
        /// What is there instead, as the end of the sentence.
        known: String,
    },
    /// Not readable.
    #[error("cannot read {path}")]
    Read {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not what a manifest is.
    #[error("cannot use {path}: {why}")]
    Wrong {
        /// The manifest.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl Manifest {
    /// Reads and checks `NAME.toml` in `models`.
    pub fn load(models: &Path, name: &str) -> Result<Self, ManifestError> {
        let path = models.join(format!("{name}.toml"));
        let wrong = |why: String| ManifestError::Wrong { path: path.clone(), why };
        if !is_model_name(name) {
            return Err(wrong(format!("`{name}` is no name of a model")));
        }
        let text = match read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ManifestError::Missing { name: name.into(), known: known(models, name), path });
            }
            Err(source) => return Err(ManifestError::Read { path, source }),
        };
        let mut manifest = Self::of_text(name, &text).map_err(wrong)?;
        manifest.file = models.join(&manifest.file);
        if let Some(labels) = &mut manifest.labels {
            labels.file = models.join(&labels.file);
        }
        Ok(manifest)
    }

    /// What `load` makes of this text, its paths as they are written; or why it cannot. For `tests/fuzz`.
    #[doc(hidden)]
    pub fn of_text(name: &str, text: &str) -> Result<Self, String> {
        let manifest: Self = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        manifest.check(name)?;
        Ok(manifest)
    }

    /// How a picture becomes its input.
    pub fn input(&self) -> Result<&InputSpec, ManifestError> {
        self.input.as_ref().ok_or_else(|| self.lacks("[input]", "how a picture becomes its input"))
    }

    /// Which of its outputs is the answer.
    pub fn output(&self) -> Result<&OutputSpec, ManifestError> {
        self.output.as_ref().ok_or_else(|| self.lacks("[output]", "which of its outputs is the answer"))
    }

    /// The space of the tensor `tensor` of this model, and of its answer where it has none of its own: what a feature says of
    /// itself. Tensors of different spaces are never compared, nor is one put into another's place.
    pub fn space_of(&self, tensor: &str) -> String {
        let is_answer = self.output.as_ref().is_some_and(|output| output.name == tensor);
        match &self.space {
            Some(space) if is_answer => space.clone(),
            _ => format!("{}-{}/{tensor}", self.name, self.version),
        }
    }

    /// The labels, one for each number of the answer, out of a file whose hash is the manifest's.
    pub fn labels(&self) -> Result<Vec<String>, ManifestError> {
        self.labels.as_ref().ok_or_else(|| self.lacks("[labels]", "what its numbers are called"))?.read()
    }

    /// The labels, if they are as many as the answer has numbers; `None` is a number that the model does not fix.
    pub fn fit_labels(&self, numbers: Option<u32>) -> Result<Vec<String>, ManifestError> {
        let labels = self.labels()?;
        let file = self.labels.as_ref().map(|labels| labels.file.clone()).unwrap_or_default();
        match numbers {
            Some(numbers) if numbers as usize != labels.len() => {
                let (name, count) = (&self.name, labels.len());
                Err(ManifestError::Wrong {
                    path: file,
                    why: format!("it has {count} labels, and the model `{name}` gives {numbers} numbers"),
                })
            }
            _ => Ok(labels),
        }
    }

    fn lacks(&self, table: &str, says: &str) -> ManifestError {
        let why = format!("it has no table `{table}`, which says {says}");
        ManifestError::Wrong { path: self.file.with_file_name(format!("{}.toml", self.name)), why }
    }

    fn check(&self, name: &str) -> Result<(), String> {
        if self.name != name {
            return Err(format!("its name is `{}`, its file's `{name}`", self.name));
        }
        if self.version.trim().is_empty() {
            return Err("`version` is empty".into());
        }
        pinned("file", &self.file, "sha256", &self.sha256)?;
        if let Some(input) = &self.input {
            input.check()?;
        }
        if let Some(output) = &self.output {
            named("output.name", &output.name)?;
        }
        if let Some(labels) = &self.labels {
            pinned("labels.file", &labels.file, "labels.sha256", &labels.sha256)?;
        }
        if self.task == Task::Classify {
            let (input, output, labels) = (self.input.is_none(), self.output.is_none(), self.labels.is_none());
            let tables = [("input", input), ("output", output), ("labels", labels)];
            if let Some((table, _)) = tables.iter().find(|(_, missing)| *missing) {
                return Err(format!(
                    "the table `[{table}]` is missing: a model that classifies says what it sees (`[input]`), which output \
                     is its answer (`[output]`) and what the numbers are called (`[labels]`)"
                ));
            }
        }
        if self.task == Task::Embed && self.space.as_deref().is_none_or(|space| space.trim().is_empty()) {
            return Err("`space` is missing: a model that embeds names its embedding space".into());
        }
        Ok(())
    }
}

/// The same as `is_model_name`, for editors.
pub(crate) const MODEL_NAMES: &str = "^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}$";

/// A file within the folder of the manifest, with its hash.
fn pinned(file_key: &str, file: &Path, sha256_key: &str, sha256: &str) -> Result<(), String> {
    if sha256.len() != 64 || !sha256.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(format!("`{sha256_key}` is not 64 digits of lower-case hex"));
    }
    let plain = file.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || file.as_os_str().is_empty() {
        let file = file.display();
        return Err(format!("`{file_key}` is `{file}`: it must be a path within the folder of the manifest"));
    }
    Ok(())
}

/// Whether a pipeline may name a model so: it becomes the name of a file.
pub(crate) fn is_model_name(name: &str) -> bool {
    /// What a file's name may have, less `.toml`.
    const LONGEST: usize = 128;
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=LONGEST).contains(&name.len()) && !name.starts_with('.') && name.chars().all(good)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_MANIFEST_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_MANIFEST_BYTES {
        let why = format!("it has more than {MAX_MANIFEST_BYTES} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

/// What is there instead, as the end of a sentence.
fn known(models: &Path, name: &str) -> String {
    let Ok(entries) = std::fs::read_dir(models) else {
        return format!(", nor does the folder of models {}", models.display());
    };
    let files = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = files.filter_map(|file| file.strip_suffix(".toml").map(Into::into)).collect();
    names.sort();
    if names.is_empty() {
        return format!("; no model is in {}", models.display());
    }
    let hint = did_you_mean(name, names.iter().map(String::as_str)).map_or(String::new(), |hint| format!("; {hint}"));
    let more = names.len().saturating_sub(MAX_LISTED);
    names.truncate(MAX_LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{hint}; models there: {}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
name = "sface"
version = "2021dec"
file = "sface.onnx"
sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
task = "embed"
space = "sface-128"
licence = "Apache-2.0"
source = "OpenCV Zoo"
"#;

    const CLASSIFIER: &str = r#"
name = "sface"
version = "1"
file = "c.onnx"
sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
task = "classify"
licence = "MIT"
source = "here"
[input]
name = "x"
size = [48, 32]
resize = 64
[output]
name = "y"
[labels]
file = "c.txt"
sha256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
licence = "MIT"
source = "here"
"#;

    fn load(name: &str, text: &str) -> Result<Manifest, ManifestError> {
        let models = tempfile::tempdir().unwrap();
        std::fs::write(models.path().join("sface.toml"), text).unwrap();
        let loaded = Manifest::load(models.path(), name);
        if let Ok(manifest) = &loaded {
            assert_eq!(manifest.file, models.path().join("sface.onnx"));
        }
        loaded
    }

    #[test]
    fn a_good_one_loads() {
        let manifest = load("sface", GOOD).unwrap();
        assert_eq!((manifest.task, manifest.space.as_deref()), (Task::Embed, Some("sface-128")));
    }

    #[test]
    fn a_wrong_one_says_why() {
        let cases = [
            ("name = \"sface\"", "name = \"other\"", "its name is `other`"),
            ("2021dec", " ", "`version` is empty"),
            ("0123456789abcdef0", "0123456789ABCDEF0", "`sha256`"),
            ("0123456789abcdef0", "0", "`sha256`"),
            ("sface.onnx", "../sface.onnx", "within the folder"),
            ("sface.onnx", "/etc/passwd", "within the folder"),
            ("sface.onnx", "", "within the folder"),
            ("space = \"sface-128\"", "", "`space` is missing"),
            ("licence", "license", "unknown field `license`"),
            ("\"embed\"", "\"dream\"", "unknown variant `dream`"),
            ("version", "[", "TOML parse error"),
        ];
        for (from, to, why) in cases {
            let error = load("sface", &GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("sface.toml"), "{to}: {error}");
        }
    }

    #[test]
    fn a_classifier_says_what_it_sees_and_what_it_answers() {
        let models = tempfile::tempdir().unwrap();
        std::fs::write(models.path().join("sface.toml"), CLASSIFIER).unwrap();
        let manifest = Manifest::load(models.path(), "sface").unwrap();
        let input = manifest.input().unwrap();
        assert_eq!((input.shape(), input.colour, input.divide_by), ([1, 3, 32, 48], crate::Colour::Rgb, 255.0));
        assert_eq!(manifest.space_of("y"), "sface-1/y");
        let error = manifest.labels().unwrap_err().to_string();
        assert!(error.contains("c.txt"), "{error}");
        std::fs::write(models.path().join("c.txt"), "red\n").unwrap();
        let error = manifest.labels().unwrap_err().to_string();
        assert!(error.contains("c.txt: its SHA-256 is "), "{error}");
    }

    #[test]
    fn a_wrong_classifier_says_why() {
        let cases = [
            ("[input]", "[input_]", "unknown field `input_`"),
            ("[48, 32]", "[0, 32]", "`input.size` is 0"),
            ("[48, 32]", "[65, 32]", "65 × 32 px cannot be cut"),
            ("[48, 32]", "[48]", "invalid length 1"),
            ("resize = 64", "std = [1, 1, 0]", "`input.std` is [1.0, 1.0, 0.0]"),
            ("resize = 64", "mean = [nan, 1, 0]", "`input.mean`"),
            ("resize = 64", "divide_by = 0", "`input.divide_by`"),
            ("resize = 64", "layout = \"hwc\"", "unknown variant `hwc`"),
            ("name = \"y\"", "name = \"\"", "`output.name` is empty"),
            ("[output]\nname = \"y\"\n", "", "the table `[output]` is missing"),
            ("\"c.txt\"", "\"../c.txt\"", "`labels.file` is `../c.txt`"),
        ];
        for (from, to, why) in cases {
            assert!(CLASSIFIER.contains(from), "{from}");
            let error = load("sface", &CLASSIFIER.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("sface.toml"), "{to}: {error}");
        }
    }

    #[test]
    fn a_missing_one_lists_those_that_are_there() {
        let error = load("sfaec", GOOD).unwrap_err();
        assert!(matches!(error, ManifestError::Missing { .. }));
        let error = error.to_string();
        assert!(error.ends_with("does not exist; did you mean `sface`?; models there: sface"), "{error}");
        let error = Manifest::load(Path::new("/nowhere"), "sface").unwrap_err().to_string();
        assert!(error.contains("nor does the folder of models /nowhere"), "{error}");
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["../sface", "a/b", "", ".hidden", "/etc/passwd", "a\0b"] {
            assert!(matches!(load(name, GOOD), Err(ManifestError::Wrong { .. })), "{name}");
        }
    }
}
