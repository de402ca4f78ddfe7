//! `causeway init`: a commented first pipeline. Its templates are the pipelines of the repository, which its tests run.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use causeway_pipelines::{Pipeline, json_schema};
use clap::ValueEnum;

use crate::terminal::print_line;

/// The schema beside a pipeline outside a checkout, for editors.
const SCHEMA: &str = "pipeline.schema.json";

/// The schema in a checkout, from its folder of pipelines.
const CHECKOUT_SCHEMA: &str = "../schemas/pipeline.schema.json";

const EXAMPLES: &str = "\
Examples:
  causeway init                          faces.toml here
  causeway init door.toml --kind faces   the pipeline `door`

Never overwrites a pipeline. Beside it stands pipeline.schema.json, by which editors that know TOML schemas complete \
and explain its keys.";

/// The arguments of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InitArgs {
    /// The file to write [default: KIND.toml]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// What it is to do
    #[arg(long, value_enum, default_value_t = Kind::Faces)]
    kind: Kind,
}

/// What a first pipeline does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// Names and clusters for the faces in photos
    Faces,
    /// Names for the faces that a camera sees, by all that was seen of them
    Camera,
    /// What is in the pictures, by a classifier
    Objects,
}

impl Kind {
    /// Its name, its template's and its pipeline's.
    fn name(self) -> &'static str {
        match self {
            Self::Faces => "faces",
            Self::Camera => "camera",
            Self::Objects => "objects",
        }
    }

    fn template(self) -> &'static str {
        match self {
            Self::Faces => include_str!("../../../pipelines/faces.toml"),
            Self::Camera => include_str!("../../../pipelines/camera.toml"),
            Self::Objects => include_str!("../../../pipelines/objects.toml"),
        }
    }
}

pub(crate) fn init(args: &InitArgs) -> anyhow::Result<ExitCode> {
    let kind = args.kind;
    let file = args.file.clone().unwrap_or_else(|| format!("{}.toml", kind.name()).into());
    let dir = file.parent().unwrap_or(Path::new(""));
    let in_checkout = dir.join(CHECKOUT_SCHEMA).is_file();
    let schema = if in_checkout { CHECKOUT_SCHEMA.to_owned() } else { format!("./{SCHEMA}") };
    let text = filled_in(kind, &file, &schema);
    write_new(&file, &text)?;
    // What is written here is right, or `init` is wrong.
    Pipeline::load(&file)?;
    print_line(format_args!("written: {}, the pipeline `{}`", file.display(), pipeline_name(kind, &file)))?;
    if !in_checkout {
        let schema = dir.join(SCHEMA);
        if write_schema(&schema)? {
            print_line(format_args!("written: {}, by which editors complete and explain its keys", schema.display()))?;
        }
    }
    let shown = shown(&file);
    let up = match kind {
        Kind::Camera => format!("causeway up {shown} --input rtsp://…            run it on a camera"),
        Kind::Faces | Kind::Objects => {
            format!("causeway up {shown} --input DIR --until-drained   run it on a folder of pictures")
        }
    };
    print_line(format_args!(
        "\nNext:\n  {up}\n  causeway validate {shown} --connect               check it, its models and its server\n  causeway graph {shown}                            draw it"
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// The template, with the names of this file in place of its own.
fn filled_in(kind: Kind, file: &Path, schema: &str) -> String {
    let (own, name) = (kind.name(), pipeline_name(kind, file));
    let body = kind.template().lines().filter(|line| !line.starts_with("#:schema "));
    let body: String = body.flat_map(|line| [line, "\n"]).collect();
    let body = body
        .replace(&format!("pipelines/{own}.toml"), &shown(file))
        .replace(&format!("pipeline = \"{own}\""), &format!("pipeline = \"{name}\""))
        .replace(&format!("{own}.decision"), &format!("{name}.decision"));
    format!("#:schema {schema}\n{body}")
}

/// A path as an argument of a shell.
fn shown(file: &Path) -> String {
    let text = file.display().to_string();
    let is_plain = text.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// A pipeline is called like its file, as far as it may be: a-z, 0-9 and `-`.
fn pipeline_name(kind: Kind, file: &Path) -> String {
    /// Longest name of a pipeline, characters.
    const LONGEST: usize = 48;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().to_lowercase();
    let token = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let name: String = stem.chars().map(token).take(LONGEST).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { kind.name().into() } else { name.into() }
}

fn write_new(file: &Path, text: &str) -> anyhow::Result<()> {
    let mut out = match OpenOptions::new().write(true).create_new(true).open(file) {
        Ok(out) => out,
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("cannot write {}: it exists already; name another file, or remove it first", file.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", file.display())),
    };
    out.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", file.display()))
}

/// Writes the schema where there is none, or an older one of ours. Gives whether it did.
fn write_schema(file: &Path) -> anyhow::Result<bool> {
    let schema = json_schema();
    if let Ok(there) = std::fs::read(file) {
        let there: serde_json::Value = serde_json::from_slice(&there).unwrap_or_default();
        if there["title"] != schema["title"] {
            eprintln!("{} is left as it is: it is not ours", file.display());
            return Ok(false);
        }
    }
    std::fs::write(file, format!("{schema:#}\n")).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_a_pipeline_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        for kind in Kind::value_variants() {
            for file in ["door.toml", "My door_2.toml", "__.toml", "ü"] {
                let file = dir.path().join(format!("{}-{file}", kind.name()));
                let text = filled_in(*kind, &file, "./x.json");
                std::fs::write(&file, &text).unwrap();
                let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(pipeline.name, pipeline_name(*kind, &file));
                assert!(text.starts_with("#:schema ./x.json\n# "), "{text}");
                assert!(!text.contains("pipelines/"), "no path of the repository is left: {text}");
            }
        }
    }

    #[test]
    fn a_name_is_made_of_the_file() {
        let name = |file: &str| pipeline_name(Kind::Faces, Path::new(file));
        assert_eq!(name("a/Front door.toml"), "front-door");
        assert_eq!(name("__.toml"), "faces");
        assert_eq!(shown(Path::new("it's here.toml")), r"'it'\''s here.toml'");
    }
}
