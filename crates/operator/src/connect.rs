//! `causeway validate --connect`: whether what a pipeline needs is there, without changing anything.

use std::path::PathBuf;

use causeway_bus::{Bus, Compared, OLDEST_SERVER, Retention, ServerFacts, StreamWish};
use causeway_pipelines::{Manifest, Pipeline, StageSpec};
use causeway_stage::OnceAnswer;
use serde::Serialize;
use serde_json::Value;

use crate::cli::PlaceArgs;
use crate::layout;
use crate::once::Programs;
use crate::placement::placed;
use crate::session::absolute;
use crate::terminal::{Paint, bytes, count, print_line};

/// A server that takes shorter messages than this would send nearly every feature by way of the object store, bytes.
const LEAST_PAYLOAD: usize = 64 << 10;

/// What NATS advises for pictures, bytes: its ceiling.
const GOOD_PAYLOAD: usize = 8 << 20;

/// How it stands with one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// As it should be.
    Ok,
    /// Worth knowing; it will work.
    Note,
    /// It will not work.
    Wrong,
}

/// One thing that a pipeline needs.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    /// What it is: `server`, `stream faces_capture`, `model yunet`, `source capture`.
    about: String,
    pub(crate) state: State,
    said: String,
    /// What may mend it.
    help: Option<String>,
}

impl Finding {
    fn new(about: impl Into<String>, state: State, said: impl Into<String>) -> Self {
        Self { about: about.into(), state, said: said.into(), help: None }
    }

    fn help(self, help: impl Into<String>) -> Self {
        Self { help: Some(help.into()), ..self }
    }

    /// For a person.
    pub(crate) fn print(&self) -> std::io::Result<()> {
        let word = match self.state {
            State::Ok => Paint::Green.on("ok   "),
            State::Note => Paint::Yellow.on("note "),
            State::Wrong => Paint::Red.on("wrong"),
        };
        print_line(format_args!("    {word} {}: {}", self.about, self.said))?;
        self.help.iter().try_for_each(|help| print_line(format_args!("          → {help}")))
    }
}

/// Looks at everything: all findings at once, in the order server, streams, models, sources.
pub(crate) async fn look(pipeline: &Pipeline, place: &PlaceArgs, set: &[String]) -> anyhow::Result<Vec<Finding>> {
    let programs = Programs { file: absolute(&pipeline.file)?, set: set.to_vec(), models: absolute(&place.models)? };
    let mut findings = server(pipeline, place).await;
    for stage in &pipeline.stages {
        if let Some(model) = stage.model() {
            findings.push(self::model(stage, model, &place.models, &programs).await);
        }
    }
    for stage in pipeline.stages.iter().filter(|stage| stage.is_source()) {
        findings.push(source(stage, &programs).await);
    }
    Ok(findings)
}

async fn server(pipeline: &Pipeline, place: &PlaceArgs) -> Vec<Finding> {
    let Some(address) = place.address(pipeline) else {
        return vec![own_server(causeway_bus::server::find())];
    };
    let credentials = place.credentials_for(pipeline);
    let bus = match Bus::connect(&address, &credentials, &pipeline.name, "causeway validate").await {
        Ok(bus) => bus,
        Err(error) => {
            let help = "is it running, and is the address right? without --nats, `up` starts a server of its own";
            return vec![Finding::new("server", State::Wrong, error.to_string()).help(help)];
        }
    };
    let mut findings = match bus.facts().await {
        Ok(facts) => of_server(&facts),
        Err(error) => vec![Finding::new("server", State::Wrong, error.to_string())],
    };
    match placed(&bus, pipeline).await {
        Ok(pipeline) => findings.extend(streams(&bus, &pipeline).await),
        Err(error) => findings.push(Finding::new("placement", State::Wrong, format!("{error:#}"))),
    }
    bus.close().await;
    findings
}

fn own_server(program: Option<PathBuf>) -> Finding {
    match program {
        Some(program) => {
            let said = format!("none is named; `up` starts its own, {}", program.display());
            Finding::new("server", State::Ok, said)
        }
        None => Finding::new("server", State::Wrong, "none is named, and there is no nats-server to start")
            .help("run `./dev build`, set CAUSEWAY_NATS_SERVER, or name a server with --nats"),
    }
}

fn of_server(facts: &ServerFacts) -> Vec<Finding> {
    let payload = bytes(facts.max_payload as u64);
    let said = format!("nats-server {}, JetStream on, messages up to {payload}", facts.version);
    let mut findings = vec![Finding::new("server", State::Ok, said)];
    if !facts.is_new_enough {
        let (major, minor) = OLDEST_SERVER;
        let said =
            format!("nats-server {} has no pinned consumers: {major}.{minor} is the oldest that does", facts.version);
        findings.push(Finding::new("server", State::Wrong, said).help("run a newer nats-server"));
    }
    if facts.max_payload < GOOD_PAYLOAD {
        let state = if facts.max_payload < LEAST_PAYLOAD { State::Wrong } else { State::Note };
        let said = format!("messages up to {payload}: longer ones take the slower way through the object store");
        findings.push(Finding::new("server", state, said).help("set max_payload: 8MB in the server's configuration"));
    }
    findings
}

/// Streams as they are beside those wanted.
async fn streams(bus: &Bus, pipeline: &Pipeline) -> Vec<Finding> {
    let apply = format!("`causeway apply {}` changes it, as `up` does at its start", pipeline.file.display());
    let (mut findings, mut same, mut missing) = (Vec::new(), 0, Vec::new());
    for wish in layout::streams(pipeline) {
        let about = format!("stream {}", wish.name);
        let compared = bus.compare_stream(&wish).await;
        match compared {
            Ok(Compared::Same) => same += 1,
            Ok(Compared::Missing) => missing.push(wish),
            Ok(Compared::Differs(points)) => {
                findings.push(Finding::new(about, State::Note, points.join("; ")).help(&apply));
            }
            Ok(Compared::Unfit(points)) => {
                let help = "a server does not change that: read what is in it, remove the stream, and apply again";
                findings.push(Finding::new(about, State::Wrong, points.join("; ")).help(help));
            }
            Ok(Compared::Taken { subject, by }) => {
                let said = format!("the stream {by} has the subject {subject}: the server would refuse a second");
                let help = format!("give the pipeline another name than `{}`, or remove {by}", pipeline.name);
                findings.push(Finding::new(about, State::Wrong, said).help(help));
            }
            Err(error) => findings.push(Finding::new(about, State::Wrong, error.to_string())),
        }
    }
    let total = same + missing.len();
    let said = match missing.len() {
        0 => format!("{} as wanted", count(same, "stream")),
        missing => format!("{same} of {total} there as wanted, {missing} to be made by `up` or `causeway apply`"),
    };
    findings.insert(0, Finding::new("streams", State::Ok, said));
    findings.extend(room(bus, pipeline, &missing).await);
    findings
}

/// Whether the account may still make what is missing.
async fn room(bus: &Bus, pipeline: &Pipeline, missing: &[StreamWish]) -> Vec<Finding> {
    let Ok(facts) = bus.facts().await else { return Vec::new() };
    let wanted: u64 = missing.iter().map(|wish| bound(wish.retention)).sum();
    let mut findings = Vec::new();
    if let Some(free) = facts.free_storage.filter(|&free| free < wanted) {
        let said =
            format!("the streams to be made may hold {}, the account has room for {}", bytes(wanted), bytes(free));
        let help = "lower `keep` and `link_bytes` in the pipeline, or raise the account's storage";
        findings.push(Finding::new("storage", State::Wrong, said).help(help));
    }
    // A bucket is a stream too.
    let streams = if missing.is_empty() { 0 } else { missing.len() + layout::buckets(pipeline).len() };
    if let Some(free) = facts.free_streams.filter(|&free| free < streams as u64) {
        let said = format!("{streams} streams and buckets are to be made, the account may make {free} more");
        findings.push(Finding::new("streams", State::Wrong, said).help("raise the account's limit of streams"));
    }
    findings
}

fn bound(retention: Retention) -> u64 {
    match retention {
        Retention::Link { bytes }
        | Retention::Capture { bytes }
        | Retention::Outcome { bytes, .. }
        | Retention::Newest { bytes, .. } => bytes,
        Retention::Changelog => 0,
    }
}

/// A model: its manifest, its file's hash, and whether the stage that names it can open it.
async fn model(stage: &StageSpec, model: &str, models: &std::path::Path, programs: &Programs) -> Finding {
    let about = format!("model {model}");
    let manifest = match Manifest::load(models, model) {
        Ok(manifest) => manifest,
        Err(error) => {
            let help = "put the model and its manifest there, or name the folder with --models";
            return Finding::new(about, State::Wrong, error.to_string()).help(help);
        }
    };
    match programs.open(stage).await {
        Ok(_) => {
            let said = format!("version {}, hash right, opened by [stage.{}]", manifest.version, stage.name);
            Finding::new(about, State::Ok, said)
        }
        Err(error) => Finding::new(about, State::Wrong, format!("{error:#}")),
    }
}

/// A source: whether it opens, and what it says that it will read (`Source::about`).
async fn source(stage: &StageSpec, programs: &Programs) -> Finding {
    let about = format!("source {}", stage.name);
    // `up --input` says it for each run.
    let is_open = stage.options::<Value>().is_ok_and(|options| options.get("input").is_none());
    match programs.open(stage).await {
        Ok(answered) => {
            let said = answered.answers.into_iter().find_map(|answer| match answer {
                OnceAnswer::Opens(what) => Some(what),
                _ => None,
            });
            let warned = answered.said.first().cloned();
            let state = if warned.is_some() { State::Note } else { State::Ok };
            Finding::new(
                about,
                state,
                [said.unwrap_or_else(|| "opens".into())].into_iter().chain(warned).collect::<Vec<_>>().join("; "),
            )
        }
        Err(_) if is_open => Finding::new(about, State::Note, "the file names no input")
            .help(format!("`up --input DIR` names it for a run, --set {}.input=DIR here", stage.name)),
        Err(error) => Finding::new(about, State::Wrong, format!("{error:#}")),
    }
}
