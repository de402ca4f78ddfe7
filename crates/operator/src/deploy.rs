//! `causeway deploy`: the files that run a pipeline where something else than `up` supervises.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, bail};
use causeway_pipelines::CaptureOptions;
use clap::Subcommand;

use crate::session::absolute;

mod compose;
mod nats;
mod site;
mod systemd;

use compose::{Compose, Input};
use nats::NatsArgs;
use site::{Deployed, KEYS, SiteArgs};
use systemd::SystemdArgs;

/// The arguments of `deploy`.
#[derive(Debug, clap::Args)]
pub(crate) struct DeployArgs {
    #[command(subcommand)]
    to: To,
}

#[derive(Debug, Subcommand)]
enum To {
    /// Write a compose file: every stage of a site a container, for Docker or Podman on one machine
    Compose(ComposeArgs),
    /// Write systemd units: every stage of a site a service of a machine
    Systemd(SystemdArgs),
    /// Write the configuration of a site's NATS server, with an account for each who has a key
    Nats(NatsArgs),
}

const COMPOSE_EXAMPLES: &str = "\
Examples:
  ./dev images                                  builds the images, once
  causeway deploy compose pipelines/faces.toml --out faces --input ~/Pictures
  docker compose -f faces/compose.yaml up -d    (or podman-compose)
  docker compose -f faces/compose.yaml run --rm agent status
  causeway deploy compose pipelines/camera.toml --out door --input 'rtsp://ada:${CAMERA_PASSWORD}@10.0.0.5/1'
  CAMERA_PASSWORD=… docker compose -f door/compose.yaml up -d

Of several sites each has a folder, for its machine:
  causeway keys faces.toml --out keys
  causeway deploy compose faces.toml --site cloud --out cloud
  causeway deploy compose faces.toml --site edge --out edge --input ~/Pictures

Writes compose.yaml, nats-server.conf, a copy of the pipeline file and the keys of who runs there into DIR, and
over them when it is run again; a file there that it did not write, it leaves alone and says so. The broker and the
probes are reached on the containers' own network alone; the broker of a site that others dial at the port of its
`address` too, with a key and by TLS alone, and --publish opens it to this machine.";

/// The arguments of `deploy compose`.
#[derive(Debug, clap::Args)]
#[command(after_help = COMPOSE_EXAMPLES)]
struct ComposeArgs {
    #[command(flatten)]
    site: SiteArgs,
    /// The folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What its capture stage reads: a folder, glob or file, mounted read-only; a camera's URL or device
    #[arg(long, value_name = "INPUT")]
    input: Option<PathBuf>,
    /// What names of images begin with: PREFIX/extract:TAG
    #[arg(long, value_name = "PREFIX", default_value = "localhost/causeway")]
    images: String,
    /// The images' tag
    #[arg(long, value_name = "TAG", default_value = env!("CARGO_PKG_VERSION"))]
    tag: String,
    /// Another image of nats-server, 2.12 or newer [default: PREFIX/nats-server:TAG]
    #[arg(long, value_name = "IMAGE")]
    nats_image: Option<String>,
    /// Mount this folder of models over those in the images
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// Run N containers of a stage; they share its work (of a fold, one works and the others stand by)
    #[arg(long = "replicas", value_name = "STAGE=N")]
    replicas: Vec<Replicas>,
    /// Open the broker to programs on this machine, on 127.0.0.1:PORT
    #[arg(long, value_name = "PORT")]
    publish: Option<u16>,
}

/// How many containers of a stage.
#[derive(Debug, Clone)]
struct Replicas {
    stage: String,
    count: u16,
}

impl FromStr for Replicas {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not STAGE=N with N of 1 or more");
        let (stage, count) = text.split_once('=').ok_or_else(wrong)?;
        let count = count.parse().ok().filter(|&count| count > 0).ok_or_else(wrong)?;
        Ok(Self { stage: stage.into(), count })
    }
}

pub(crate) fn deploy(args: DeployArgs) -> anyhow::Result<ExitCode> {
    match args.to {
        To::Compose(args) => compose(&args),
        To::Systemd(args) => systemd::run(&args),
        To::Nats(args) => {
            let files = nats::write(&args)?;
            eprintln!("written to {}; next, in that folder on the site's machine:", args.out.display());
            for file in files {
                eprintln!("  nats-server -c {file}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn compose(args: &ComposeArgs) -> anyhow::Result<ExitCode> {
    let mut deployed = args.site.deployed()?;
    let text = text_of(&deployed)?;
    let inputs = inputs(&deployed, args.input.as_deref())?;
    let replicas = replicas(&deployed, &args.replicas)?;
    // What is written is the same wherever the command was run.
    deployed.pipeline.file = deployed.pipeline.file.file_name().map(PathBuf::from).unwrap_or_default();
    let compose = Compose {
        site: &deployed,
        set: &args.site.pipeline.set,
        inputs: &inputs,
        images: args.images.trim_end_matches('/'),
        tag: &args.tag,
        nats_image: args.nats_image.as_deref(),
        models: args.models.as_deref().map(absolute).transpose()?,
        replicas,
        publish: args.publish,
    };
    let file = args.out.join("compose.yaml");
    let is_ours = file.exists();
    let (keys, (user, group)) = (args.out.join(KEYS), compose::USER);
    let copies = deployed.copies(&keys, is_ours)?;
    write(&args.out, compose::MARK, &compose.files(&text)?)?;
    let is_given = copies.write(Some(compose::USER))?;
    eprintln!("written to {}; next{}:", args.out.display(), of_site(&deployed));
    // A copy to another machine belongs to whoever copied it.
    if deployed.keys.is_some() && (!is_given || deployed.pipeline.is_split()) {
        let keys = keys.display();
        eprintln!(
            "  sudo chown -R {user}:{group} {keys} && sudo chmod -R u=rwX,g=rX,o= {keys}      (the containers' user reads them; with \
             rootless Podman: podman unshare chown …)"
        );
    }
    eprintln!(
        "  docker compose -f {} up -d      (or podman-compose; the images are built by ./dev images)",
        file.display()
    );
    Ok(ExitCode::SUCCESS)
}

/// Where the next step is, for a person.
fn of_site(deployed: &Deployed) -> String {
    let pipeline = &deployed.pipeline;
    if pipeline.is_split() { format!(", on the machine of {}", pipeline.here) } else { String::new() }
}

/// The pipeline file as it is.
fn text_of(deployed: &Deployed) -> anyhow::Result<String> {
    let file = &deployed.pipeline.file;
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// What each source reads that runs at the site: `--input`, where there is one source, else what its table says.
fn inputs(deployed: &Deployed, given: Option<&Path>) -> anyhow::Result<Vec<(String, Input)>> {
    let pipeline = &deployed.pipeline;
    let sources: Vec<_> = deployed.stages().filter(|stage| stage.uses == "capture").collect();
    if given.is_some() && sources.len() != 1 {
        bail!(
            "cannot tell which source --input is for: {} has {} of them{}; use --set STAGE.input=DIR",
            pipeline.file.display(),
            sources.len(),
            if pipeline.is_split() { format!(" at {}", pipeline.here) } else { String::new() }
        );
    }
    let base = pipeline.file.parent().unwrap_or(Path::new(""));
    let mut inputs = Vec::new();
    for source in sources {
        let options = source.options::<CaptureOptions>().map_err(anyhow::Error::msg)?;
        let (written, within) = match (given, &options.input) {
            // What is given is meant from where the command is run.
            (Some(given), _) => (given, Path::new("")),
            (None, Some(written)) => (Path::new(written), base),
            (None, None) => bail!(
                "cannot deploy [stage.{}] without an input: set `input` in its table or pass --input",
                source.name
            ),
        };
        let password = options.password_file.as_deref().map(|file| base.join(file));
        if pipeline.is_split() {
            // The folder is for another machine.
            let is_path = matches!(causeway_pipelines::Input::of(written), Ok(causeway_pipelines::Input::Path(_)));
            let named = is_path.then_some(written).into_iter().chain(options.password_file.as_deref());
            if let Some(path) = named.into_iter().find(|path| path.is_relative()) {
                bail!(
                    "cannot deploy [stage.{}]: {} is relative; name where it is on the machine of {}, from the root on",
                    source.name,
                    path.display(),
                    pipeline.here
                );
            }
        }
        let input = Input::of(written, within, password.as_deref());
        inputs.push((source.name.clone(), input.with_context(|| format!("cannot deploy [stage.{}]", source.name))?));
    }
    Ok(inputs)
}

fn replicas(deployed: &Deployed, given: &[Replicas]) -> anyhow::Result<Vec<(String, u16)>> {
    for Replicas { stage, .. } in given {
        let Some(spec) = deployed.stages().find(|spec| spec.name == *stage) else {
            let names: Vec<_> = deployed.stages().map(|stage| stage.name.as_str()).collect();
            bail!("cannot run replicas of `{stage}`: what is deployed has {}", names.join(", "));
        };
        if spec.is_source() {
            bail!(
                "cannot run replicas of [stage.{stage}]: it is a source, and each replica would read all of its input"
            );
        }
    }
    Ok(given.iter().map(|replicas| (replicas.stage.clone(), replicas.count)).collect())
}

/// Writes files into `dir`, all or none: what is there and was not written by this command stays.
fn write(dir: &Path, mark: &str, files: &[(String, String)]) -> anyhow::Result<()> {
    for (name, _) in files {
        let path = dir.join(name);
        match std::fs::read(&path) {
            Ok(there) if there.starts_with(mark.as_bytes()) => {}
            Ok(_) => bail!(
                "cannot write {}: it is there, and not written by `causeway deploy`; move it away, or choose another --out",
                path.display()
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
    }
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    for (name, text) in files {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_wrote_is_written_over_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("new");
        let ours = |text: &str| format!("{} {text}\n", compose::MARK);
        write(&out, compose::MARK, &[("compose.yaml".into(), ours("one"))]).unwrap();
        write(&out, compose::MARK, &[("compose.yaml".into(), ours("two"))]).unwrap();
        assert_eq!(std::fs::read_to_string(out.join("compose.yaml")).unwrap(), ours("two"));

        std::fs::write(out.join("nats-server.conf"), "mine").unwrap();
        let files = [("compose.yaml".into(), ours("three")), ("nats-server.conf".into(), ours("three"))];
        let error = write(&out, compose::MARK, &files).unwrap_err().to_string();
        assert!(error.contains("nats-server.conf: it is there"), "{error}");
        assert_eq!(std::fs::read_to_string(out.join("nats-server.conf")).unwrap(), "mine");
        assert_eq!(std::fs::read_to_string(out.join("compose.yaml")).unwrap(), ours("two"), "all or none");
    }

    #[test]
    fn replicas_are_read() {
        let replicas: Replicas = "extract=3".parse().unwrap();
        assert_eq!((replicas.stage.as_str(), replicas.count), ("extract", 3));
        for wrong in ["extract", "extract=", "extract=0", "extract=-1", "extract=x"] {
            assert!(wrong.parse::<Replicas>().unwrap_err().contains(wrong));
        }
    }
}
