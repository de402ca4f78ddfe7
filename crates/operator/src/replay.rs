//! `causeway replay`: stored inputs through the stages once more, in a run of its own that meets no live result.

mod diff;
mod inputs;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use causeway_bus::{BucketWish, Bus, names};
use causeway_pipelines::{Pipeline, StageSpec};
use serde_json::json;

use crate::cli::{Connection, PipelineArgs, PlaceArgs, connect};
use crate::reached::connect_hub;
use crate::results::Results;
use crate::session::{Session, Where};
use crate::terminal::{bytes, count, print, print_line};
use crate::up::{self, RunOptions};
use crate::when::{Span, when};
use crate::{generation, layout};
use inputs::{Input, Wanted};

/// What `--help` says.
pub(crate) const LONG: &str = "\
Run what was captured through the stages once more, as they are now, and see what they would answer: after a new model, another \
threshold, more people enrolled. The run has streams, tables and results of its own on the same server, under the name \
PIPELINE-replay-RUN, and gets the people that are enrolled now; live results are only read. What it made is removed at its end, \
unless it is kept.

Inputs are the copies that the capture stream keeps (`keep.captured`); --from and --to are the times at which they were stored. Of a \
pipeline with several sites all stages run where the items were captured, and who is enrolled is read at the hub.";

/// The arguments of `replay`.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  causeway replay --from 2h --diff\n  causeway replay --from 2026-11-27T08:00:00Z --to 2026-11-27T09:00:00Z --set classify.threshold=0.5 --diff\n  causeway replay --id 4hv7a0g5 --stage preprocess --keep\n  causeway replay --remove g7"
)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// What was captured since then: an age like 2h, or a time like 2026-11-27T08:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = when)]
    from: Option<u64>,
    /// What was captured before then
    #[arg(long, value_name = "WHEN", value_parser = when)]
    to: Option<u64>,
    /// What was captured under this id, or one that begins so
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<String>,
    /// Go as far as this stage; by default to the end
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// List what is answered otherwise than in the stored results
    #[arg(long)]
    diff: bool,
    /// Leave the run's streams and logs for a look, and say what they are called
    #[arg(long)]
    keep: bool,
    /// Remove a run that was left
    #[arg(long, value_name = "RUN", conflicts_with_all = ["from", "to", "ids", "stage", "diff", "keep"])]
    remove: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// An isolated run.
struct Replay<'a> {
    args: &'a ReplayArgs,
    /// Its name: `g7`.
    name: String,
    /// The live pipeline, as far as it is run.
    live: Pipeline,
    /// The same under the run's name.
    pipeline: Pipeline,
    home: PathBuf,
}

/// What came of a run.
struct Outcome {
    inputs: Vec<Input>,
    interrupted: bool,
    results: Results,
    changes: Option<diff::Changes>,
}

pub(crate) async fn replay(args: ReplayArgs) -> anyhow::Result<ExitCode> {
    let pipeline = where_captured(args.pipeline.load_at(&args.place)?, &args.place)?;
    let span = Span { from: args.from, to: args.to };
    if let Some(run) = &args.remove {
        let connection = connect(&pipeline, &args.place).await?;
        let removed = async {
            let replay = Replay::new(&args, &pipeline, run.clone())?;
            check_left(&connection.bus, &pipeline, &replay).await?;
            remove(&connection, &replay).await
        }
        .await;
        connection.close().await;
        return removed.map(|()| ExitCode::SUCCESS);
    }
    if span == Span::default() && args.ids.is_empty() {
        bail!("cannot tell what to replay: say --from, --to or --id");
    }
    span.check("--from", "--to")?;
    let connection = connect(&pipeline, &args.place).await?;
    let ran = run(&connection, &pipeline, &args, span).await;
    connection.close().await;
    ran
}

/// A pipeline as it is seen from where its items were captured: that is where their copies are, and all their outcomes.
fn where_captured(pipeline: Pipeline, place: &PlaceArgs) -> anyhow::Result<Pipeline> {
    if pipeline.captures() {
        return Ok(pipeline);
    }
    let sources = pipeline.stages.iter().filter(|stage| stage.is_source());
    let sites: BTreeSet<&String> = sources.flat_map(|stage| &stage.sites).collect();
    match sites.iter().next().copied() {
        Some(only) if sites.len() == 1 && place.site.is_none() && place.nats.is_none() => {
            let only = only.clone();
            Ok(pipeline.at(&only)?)
        }
        _ => {
            let sites: Vec<&str> = sites.into_iter().map(String::as_str).collect();
            bail!(
                "cannot replay what was captured at {}: nothing is; say --site, with one of {}",
                pipeline.here,
                sites.join(", ")
            )
        }
    }
}

async fn run(connection: &Connection, pipeline: &Pipeline, args: &ReplayArgs, span: Span) -> anyhow::Result<ExitCode> {
    let wanted = Wanted { span, ids: &args.ids };
    let inputs = inputs::find(&connection.bus, pipeline, &wanted).await?;
    if inputs.is_empty() {
        bail!("nothing to replay: no item whose copy is kept was captured in that time");
    }
    let generation = generation::next(&connection.bus).await?;
    let replay = Replay::new(args, pipeline, format!("g{generation}"))?;
    let outcome = replay.go(connection, inputs, generation).await;
    if args.keep {
        eprintln!(
            "left as {}, its logs in {}; `causeway replay --remove {}` removes it",
            replay.pipeline.name,
            replay.home.join("logs").display(),
            replay.name
        );
    } else {
        remove(connection, &replay).await?;
    }
    let outcome = outcome?;
    if args.json {
        print_line(replay.to_json(&outcome))?;
    } else {
        Replay::print(&outcome)?;
    }
    if outcome.interrupted {
        eprintln!("interrupted: not everything was replayed");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

impl<'a> Replay<'a> {
    fn new(args: &'a ReplayArgs, pipeline: &Pipeline, name: String) -> anyhow::Result<Self> {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            bail!("`{name}` is no name of a run: it has letters and digits, like g7");
        }
        let live = match &args.stage {
            None => pipeline.clone(),
            Some(stage) => {
                let Some(spec) = pipeline.stage(stage) else {
                    let names: Vec<_> = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
                    bail!("cannot find [stage.{stage}] in {}: it has {}", pipeline.file.display(), names.join(", "));
                };
                if spec.is_source() {
                    bail!("cannot replay as far as {stage}: it is a source, whose items are what is replayed");
                }
                pipeline.clone().up_to(stage)
            }
        };
        let home = args.place.home.join("replay").join(&name);
        Ok(Self { args, pipeline: live.clone().of_run(&name), live, home, name })
    }

    /// Fills the run's capture stream, runs its stages until they are drained, and reads what they answered.
    async fn go(&self, connection: &Connection, inputs: Vec<Input>, generation: u32) -> anyhow::Result<Outcome> {
        let mut pipeline = self.pipeline.clone();
        // All of it at once, with the room that the broker takes beside each.
        let size: u64 = inputs.iter().map(|input| input.size + inputs::BESIDE).sum();
        pipeline.keep_captured.bytes = pipeline.keep_captured.bytes.max(2 * size);
        let place = &self.args.place;
        let agent = place.credentials_for(&self.live).file;
        let there = Where { site: None, nats: Some(&connection.address), credentials: agent.as_deref() };
        let mut session = Session::open(pipeline, &self.home, &place.models, &there).await?;
        let ran = self.run_stages(&mut session, connection, &inputs, generation).await;
        let ran = match ran {
            Ok(interrupted) => {
                let results = Results::read(&session.bus, &self.pipeline).await?;
                let live = Results::read(&connection.bus, &self.live).await?;
                let changes = self.args.diff.then(|| diff::Changes::between(&self.live, &inputs, &live, &results));
                Ok(Outcome { inputs, interrupted, results, changes })
            }
            Err(error) => Err(error),
        };
        session.close().await;
        ran
    }

    async fn run_stages(
        &self,
        session: &mut Session,
        connection: &Connection,
        inputs: &[Input],
        generation: u32,
    ) -> anyhow::Result<bool> {
        self.copy_people(connection, &session.bus).await?;
        for input in inputs {
            inputs::send(&connection.bus, &session.bus, input, &self.name, generation).await?;
        }
        if !self.args.json {
            let size = inputs.iter().map(|input| input.size).sum();
            eprintln!("{} ({}) replayed as {}", count(inputs.len(), "item"), bytes(size), self.pipeline.name);
        }
        let options = RunOptions {
            overrides: self.args.pipeline.set.clone(),
            until_drained: true,
            quiet: self.args.json,
            replay: Some(self.name.clone()),
            ..RunOptions::default()
        };
        Ok(up::run(session, &options).await?.interrupted)
    }

    /// The people that are enrolled now: at the hub, where there are several sites.
    async fn copy_people(&self, connection: &Connection, run: &Bus) -> anyhow::Result<()> {
        let is_read = |stage: &StageSpec| stage.tables().contains(&names::PEOPLE);
        if !self.live.stages.iter().any(is_read) {
            return Ok(());
        }
        if self.live.hub().name == self.live.here {
            return copy_table(&connection.bus, run, names::PEOPLE).await;
        }
        let hub = connect_hub(&self.live, &self.args.place).await;
        let hub = hub.with_context(|| format!("cannot read who is enrolled at {}", self.live.hub().name))?;
        let copied = copy_table(&hub.bus, run, names::PEOPLE).await;
        hub.close().await;
        copied
    }

    fn print(outcome: &Outcome) -> anyhow::Result<()> {
        let numbers = outcome.results.numbers();
        print_line(format_args!(
            "{} replayed: {}, {} without a result, {}",
            count(outcome.inputs.len(), "item"),
            count(numbers.faces, "decision"),
            numbers.empties,
            count(numbers.dead_letters, "dead letter")
        ))?;
        if let Some(changes) = &outcome.changes {
            print(changes.page())?;
        }
        Ok(())
    }

    fn to_json(&self, outcome: &Outcome) -> serde_json::Value {
        let mut object = json!({
            "run": self.name,
            "pipeline": self.pipeline.name,
            "items": outcome.inputs.len(),
            "interrupted": outcome.interrupted,
            "results": outcome.results.numbers(),
        });
        if let Some(changes) = &outcome.changes {
            object["diff"] = changes.to_json();
        }
        object
    }
}

async fn copy_table(from: &Bus, to: &Bus, table: &str) -> anyhow::Result<()> {
    // There is none before the live pipeline was applied: nobody is known then.
    for entry in from.table_entries(table).await.unwrap_or_default() {
        to.table_put(table, &entry.key, entry.value).await?;
    }
    Ok(())
}

/// An error that names the runs that were left, where this one was not.
async fn check_left(bus: &Bus, pipeline: &Pipeline, replay: &Replay<'_>) -> anyhow::Result<()> {
    let begin = pipeline.clone().of_run("").name;
    let names = bus.stream_names().await?;
    let runs = names.iter().filter_map(|name| {
        let name = name.trim_start_matches("KV_").trim_start_matches("OBJ_");
        name.strip_prefix(&begin)?.split_once('_').map(|(run, _)| run)
    });
    let runs: BTreeSet<&str> = runs.collect();
    if runs.contains(replay.name.as_str()) || replay.home.is_dir() {
        return Ok(());
    }
    let left = if runs.is_empty() { "none is left".into() } else { Vec::from_iter(runs).join(", ") };
    bail!("cannot find the run `{}` of {}; left are: {left}", replay.name, pipeline.name)
}

/// Removes all that a run made: streams, tables, bodies, its folder.
async fn remove(connection: &Connection, replay: &Replay<'_>) -> anyhow::Result<()> {
    let credentials = replay.args.place.credentials_for(&replay.live);
    let bus = Bus::connect(&connection.address, &credentials, &replay.pipeline.name, "causeway replay").await?;
    let (streams, buckets) = (layout::streams(&replay.pipeline), layout::buckets(&replay.pipeline));
    for wish in streams {
        bus.delete_stream(&wish.name).await?;
    }
    for BucketWish::Table { name, .. } | BucketWish::Bodies { name, .. } in buckets {
        bus.delete_bucket(&name).await?;
    }
    bus.close().await;
    match std::fs::remove_dir_all(&replay.home) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", replay.home.display()))
        }
        _ => Ok(()),
    }
}
