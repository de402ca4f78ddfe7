//! `causeway demo`: the face pipeline on the demo's photos, from the gallery to the report.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};

use crate::cli::{PipelineArgs, PlaceArgs, load};
use crate::people::{enrol_folder, read_people};
use crate::report;
use crate::results::{Numbers, Results};
use crate::session::{Session, Where};
use crate::summary::Summary;
use crate::terminal::{count, one_line, print_line};
use crate::up::{self, RunOptions, RunStats};

/// Longest name that is shown, characters.
const MAX_LINE: usize = 200;

/// The arguments of `demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// The demo's photos: `enrol/NAME/*` are who is known, `input/*` goes through the pipeline
    #[arg(long, env = "CAUSEWAY_PHOTOS", value_name = "DIR", default_value = ".tools/photos")]
    photos: PathBuf,
    /// Forget the results of earlier runs and run every photo anew
    #[arg(long)]
    again: bool,
    /// Print one JSON object as the last line of stdout, the talk on stderr
    #[arg(long)]
    json: bool,
}

pub(crate) async fn demo(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let (enrol, input) = (args.photos.join("enrol"), args.photos.join("input"));
    if !input.is_dir() {
        bail!(
            "cannot find the demo's photos in {}: `./dev demo` fetches them; or name a folder with --photos",
            args.photos.display()
        );
    }
    let mut set = args.pipeline.set.clone();
    set.push(up::input_override(&args.pipeline.file(), &input)?);
    let pipeline = load(&args.pipeline.file(), &set)?;
    let place = &args.place;
    let mut session = Session::open(pipeline, &place.home, &place.models, &Where::of(place)).await?;
    let options =
        RunOptions { overrides: set, until_drained: true, quiet: false, again: args.again, ..RunOptions::default() };
    let result = run(&mut session, &enrol, &options, args.json).await;
    session.close().await;
    result.map(|()| ExitCode::SUCCESS)
}

async fn run(session: &mut Session, enrol: &Path, options: &RunOptions, json: bool) -> anyhow::Result<()> {
    enrol_new(session, enrol).await?;
    session.say_readers();
    let stats = up::run(session, options).await?;
    let results = Results::read_all(&session.seen()).await?;
    let report = report::write(session, &results, &stats.crossed()).await?;
    let sources = session.pipeline.stages.iter().filter(|stage| stage.is_source());
    let skipped: u64 = sources.map(|source| stats.total(&source.name, |beat| beat.skipped)).sum();
    if json && skipped > 0 {
        eprintln!("{} skipped: they already had an outcome (--again runs them anew)", count(skipped as usize, "photo"));
    }
    if json { print_json(&results, &stats, &report) } else { print(&results, session, &stats, &report) }
}

fn print(results: &Results, session: &Session, stats: &RunStats, report: &Path) -> anyhow::Result<()> {
    Summary::new(results, &session.pipeline, stats, Some(report)).print(false)
}

fn print_json(results: &Results, stats: &RunStats, report: &Path) -> anyhow::Result<()> {
    let Numbers { photos, faces, people, clusters, dead_letters, .. } = results.numbers();
    let report = report.to_str().context("cannot print the report's path: it is not UTF-8")?;
    let mut object = serde_json::json!({
        "photos": photos,
        "faces": faces,
        "people": people,
        "clusters": clusters,
        "dead_letters": dead_letters,
        "report": report,
    });
    let crossed = stats.crossed();
    if !crossed.is_empty() {
        object["crossed"] = serde_json::to_value(crossed)?;
    }
    Ok(print_line(object)?)
}

/// Enrols the people of a folder of folders who are not in the gallery yet.
async fn enrol_new(session: &Session, folder: &Path) -> anyhow::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let known: HashSet<String> = read_people(&session.bus).await?.into_iter().map(|person| person.name).collect();
    for (name, photos) in people(folder)? {
        if known.contains(&name) {
            continue;
        }
        let shown = one_line(&name, MAX_LINE);
        for (photo, verdict) in enrol_folder(&session.bus, &session.pipeline, &session.models, &name, &photos).await? {
            eprintln!("  {shown}: {}: {verdict}", one_line(&photo, MAX_LINE));
        }
    }
    Ok(())
}

/// The folders in `folder`, by name.
fn people(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let cannot_read = || format!("cannot read the folder {}", folder.display());
    let mut people = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot_read)? {
        let path = entry.with_context(cannot_read)?.path();
        if let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| path.is_dir()) {
            people.push((name.to_owned(), path.clone()));
        }
    }
    people.sort();
    Ok(people)
}
