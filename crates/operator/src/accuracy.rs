//! `causeway accuracy`: how right a face pipeline is, measured on a folder of named people.
//!
//! The photos go through the whole pipeline, stages as processes over their own server, in a folder of their own that is
//! removed afterwards. What the pipeline stored is measured: the vectors and the clusters as they came about, online.

mod answers;
mod figures;
mod folder;
mod metrics;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use causeway_cluster::Cluster;
use causeway_pipelines::{CaptureOptions, ClassifyOptions, Pipeline, StageSpec};
use causeway_stage::Fold as _;

use crate::cli::{PipelineFlags, PlaceArgs, load};
use crate::session::{Session, Where};
use crate::terminal::print;
use crate::up::{self, RunOptions};
use answers::Answers;
use figures::Figures;
use folder::{Labelled, shuffled};

/// The folder of folders of labelled photos.
const FACES: &str = "CAUSEWAY_FACES";
/// The set in it that is measured when nobody says which.
const DEFAULT_SET: &str = "lfw10x10";

const EXAMPLES: &str = "\
Examples:
  causeway accuracy photos                        photos/Ada/*.jpg, photos/Bob/*.jpg, …
  causeway accuracy photos --shuffle 1            in another order: clusters must not depend on it
  causeway accuracy photos --set preprocess.input_size=320

In a photo that shows several faces the largest nearest the centre is the named one; the others are left out.
Results of other runs are neither used nor touched: the server and its store live as long as the measurement.";

/// The arguments of `accuracy`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AccuracyArgs {
    /// A folder of named people: DIR/NAME/*.jpg [default: `lfw10x10` in `$CAUSEWAY_FACES`]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    pipeline: PipelineFlags,
    #[command(flatten)]
    place: PlaceArgs,
    /// Feed the photos in an order that this number decides, instead of by their names
    #[arg(long, value_name = "SEED")]
    shuffle: Option<u64>,
    /// Print one JSON object as the last line of stdout, the tables on stderr
    #[arg(long)]
    json: bool,
}

pub(crate) async fn accuracy(args: AccuracyArgs) -> anyhow::Result<ExitCode> {
    let labelled = Labelled::read(&args.dir()?)?;
    if labelled.left_out > 0 {
        eprintln!(
            "{} in it left out: no picture in a folder of a person, DIR/NAME/*.jpg (png, webp)",
            labelled.left_out
        );
    }
    let order = match args.shuffle {
        Some(seed) => shuffled(labelled.photos.len(), seed),
        None => (0..labelled.photos.len()).collect(),
    };
    let own = own_folder(&args.place)?;
    let photos = own.path().join("photos");
    labelled.link_into(&photos, &order)?;
    let mut set = args.pipeline.set.clone();
    set.push(up::input_override(&args.pipeline.pipeline, &photos)?);
    let pipeline = load(&args.pipeline.pipeline, &set)?;
    if let Some(site) = pipeline.sites.iter().find(|site| site.address.is_some()) {
        bail!(
            "cannot measure with the server of [site.{}]: results would be mixed; use a file without its address",
            site.name
        );
    }
    let plan = Plan::of(&pipeline)?;
    let options = RunOptions { overrides: set, until_drained: true, quiet: args.json, ..RunOptions::default() };
    let (answers, took) = run(pipeline, &plan, &args.place.models, own.path(), &options, &labelled).await?;
    let figures = Figures::new(&labelled, &answers, plan.threshold, took);
    if args.json {
        eprint!("{}", figures.text());
        print(serde_json::to_string(&figures.object())? + "\n")?;
    } else {
        print(figures.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl AccuracyArgs {
    fn dir(&self) -> anyhow::Result<PathBuf> {
        if let Some(dir) = &self.dir {
            return Ok(dir.clone());
        }
        let faces = std::env::var_os(FACES).filter(|faces| !faces.is_empty()).map(PathBuf::from);
        let Some(faces) = faces else {
            bail!("cannot measure without photos: give a folder of named people, DIR/NAME/*.jpg, or set {FACES}");
        };
        Ok(faces.join(DEFAULT_SET))
    }
}

/// A new folder within the home, for nobody else's eyes; it is removed when it is dropped.
fn own_folder(place: &PlaceArgs) -> anyhow::Result<tempfile::TempDir> {
    if place.nats.is_some() {
        eprintln!("the server of --nats is not used: accuracy starts its own, so that results are not mixed");
    }
    let home = &place.home;
    let made =
        std::fs::create_dir_all(home).and_then(|()| tempfile::Builder::new().prefix("accuracy-").tempdir_in(home));
    made.with_context(|| format!("cannot make a folder in {}", home.display()))
}

/// Which stages of the pipeline say what.
struct Plan {
    /// The stage that clusters.
    fold: String,
    /// The cosine from which the pipeline takes two faces for the same person.
    threshold: Option<f32>,
}

impl Plan {
    fn of(pipeline: &Pipeline) -> anyhow::Result<Self> {
        let file = pipeline.file.display();
        let mut folds = pipeline.stages.iter().filter(|stage| stage.uses == Cluster::NAME);
        let (Some(fold), None) = (folds.next(), folds.next()) else {
            bail!(
                "cannot measure {file}: exactly one stage has to use `{}`, its changelog has the features",
                Cluster::NAME
            );
        };
        for source in pipeline.stages.iter().filter(|stage| stage.is_source()) {
            if source.options::<CaptureOptions>().is_ok_and(|options| options.repeat) {
                let name = &source.name;
                bail!("cannot measure {file}: [stage.{name}] repeats for ever; add --set {name}.repeat=false");
            }
        }
        let classify = pipeline.stages.iter().find(|stage| stage.uses == "classify");
        let options = classify.map(StageSpec::options::<ClassifyOptions>).transpose().map_err(|why| anyhow!(why))?;
        Ok(Self { fold: fold.name.clone(), threshold: options.map(|options| options.threshold) })
    }
}

/// Runs the pipeline in `home` until it is drained; gives what it stored, and the time from start to drained.
async fn run(
    pipeline: Pipeline,
    plan: &Plan,
    models: &Path,
    home: &Path,
    options: &RunOptions,
    labelled: &Labelled,
) -> anyhow::Result<(Answers, Duration)> {
    let own = Where { site: None, nats: None, credentials: None };
    let mut session = Session::open(pipeline, home, models, &own).await?;
    let result = async {
        let stats = up::run(&mut session, options).await?;
        let answers = Answers::read(&session.seen(), &plan.fold, labelled).await?;
        Ok((answers, stats.took))
    }
    .await;
    session.close().await;
    result
}
