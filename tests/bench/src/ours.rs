//! The pipeline as anybody runs it: `causeway up`, five processes, every hop durable, on a nats-server of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use causeway_bus::server::{Server, Start};
use causeway_bus::{Bus, Credentials, names};
use causeway_cluster::Change;
use causeway_pipelines::Pipeline;
use causeway_schemas::{Assignment, Capture, Codec, Decision, Empty, Person, decode_body, encode};
use futures::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

use crate::in_process::{Answers, Face};
use crate::machine::{Usage, usages};
use crate::place::Place;
use crate::rounds::Round;

/// One run.
#[derive(Debug, Clone)]
pub(crate) struct Run<'a> {
    /// The folder of the programs: the real stages, or stand-ins.
    pub(crate) bin: &'a Path,
    /// The pipeline file.
    pub(crate) pipeline: &'a Path,
    /// `--set` for this run.
    pub(crate) set: Vec<String>,
    /// Variables that stages are given.
    pub(crate) env: Vec<(&'static str, String)>,
    /// Who is enrolled.
    pub(crate) people: &'a [Person],
    /// How many items are captured.
    pub(crate) items: usize,
    /// How many outcomes there will be: decisions, assignments and empties together.
    pub(crate) outcomes: u64,
    /// How many items a second are captured; as fast as it goes when absent.
    pub(crate) rate: Option<f64>,
}

/// What a run gave.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    pub(crate) round: Round,
    /// For each item the time from when it was due until its last outcome was stored, ms, in the order of capture.
    pub(crate) latencies_ms: Vec<f64>,
    /// What it answered; only of a run that asked for it.
    pub(crate) answers: Answers,
}

/// Longest time that a run may take beyond what its rate asks for.
const PATIENCE: Duration = Duration::from_mins(3);
/// How often it is looked whether all outcomes are there, and what the processes use: three small requests.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// An `up` that runs, with its server.
struct Up {
    server: Server,
    bus: Bus,
    child: Child,
    home: PathBuf,
    pipeline: Pipeline,
    /// What each process used when it was last seen; the source ends before the others.
    used: BTreeMap<String, Usage>,
}

impl Up {
    async fn start(place: &Place, dir: &Path, run: &Run<'_>) -> anyhow::Result<Self> {
        let pipeline = Pipeline::load(run.pipeline)?;
        let server = Server::start("edge", dir, Start::default()).await?;
        let bus = Bus::connect(&server.address(), &Credentials::default(), &pipeline.name, "bench").await?;
        let program = run.bin.join("causeway");
        let applied = Command::new(&program)
            .arg("apply")
            .arg(run.pipeline)
            .args(["--nats", &server.address()])
            .stdout(Stdio::null())
            .status();
        ensure!(applied.await?.success(), "cannot make the streams");
        for person in run.people {
            bus.table_put(names::PEOPLE, &names::token(&person.name), encode(person, Codec::Json).into()).await?;
        }
        let home = dir.join("home");
        let log = std::fs::File::create(dir.join("up.log"))?;
        let mut command = Command::new(&program);
        command.arg("up").arg(run.pipeline).args(["--nats", &server.address()]).arg("--home").arg(&home);
        command.arg("--models").arg(&place.models);
        let rate = run.rate.map(|rate| format!("capture.rate={rate:.3}"));
        for set in run.set.iter().cloned().chain(rate) {
            command.args(["--set", &set]);
        }
        command.envs(run.env.iter().cloned()).stdout(Stdio::null()).stderr(log).stdin(Stdio::null()).kill_on_drop(true);
        causeway_bus::server::die_with_parent(command.as_std_mut());
        let child = command.spawn()?;
        Ok(Self { server, bus, child, home, pipeline, used: BTreeMap::new() })
    }

    fn finals(&self) -> Vec<String> {
        let mut streams = causeway_stage::outcome_streams(&self.pipeline);
        streams.retain(|stream| !stream.ends_with(names::DEAD));
        streams
    }

    /// Waits until there are so many outcomes.
    async fn wait_for(&mut self, outcomes: u64, patience: Duration) -> anyhow::Result<()> {
        let (streams, deadline) = (self.finals(), Instant::now() + patience);
        loop {
            let mut count = 0;
            for stream in &streams {
                count += self.bus.stream_state(stream).await?.map_or(0, |state| state.messages);
            }
            self.look();
            if count >= outcomes {
                return Ok(());
            }
            let ended = self.child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(self.home.with_file_name("up.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("there are {count} of {outcomes} outcomes, and no more come; `causeway up` said {last:?}");
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Looks at what every process of the run that is there uses, by the name of its stage.
    fn look(&mut self) {
        for (name, now) in usages(&self.processes().unwrap_or_default()) {
            if now.rss_mb > 0.0 {
                self.used.insert(name, now);
            }
        }
    }

    fn processes(&self) -> anyhow::Result<Vec<(String, u32)>> {
        let about: serde_json::Value = serde_json::from_slice(&std::fs::read(self.home.join("up.json"))?)?;
        let mut processes = vec![("broker".to_owned(), self.server.pid().unwrap_or_default())];
        processes.push(("causeway up".to_owned(), self.child.id().unwrap_or_default()));
        for stage in about["stages"].as_array().into_iter().flatten() {
            let pid = stage[1]["pid"].as_u64().unwrap_or_default();
            processes.push((stage[0].as_str().unwrap_or_default().to_owned(), u32::try_from(pid)?));
        }
        Ok(processes)
    }

    /// Reads every outcome of a stream with the time at which it was stored.
    async fn read<T: DeserializeOwned>(&self, stage: &str) -> anyhow::Result<Vec<(T, String, u64)>> {
        let mut all = Vec::new();
        let mut records = self.bus.scan(&names::stream(&self.pipeline.name, stage), 1, false).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            let part = record.headers.meta()?.part.to_string();
            let outcome = decode_body(&record.body, Codec::Json).map_err(|why| anyhow::anyhow!(why))?;
            all.push((outcome, part, record.stored_at));
        }
        Ok(all)
    }
}

/// Runs it once.
pub(crate) async fn run(place: &Place, run: &Run<'_>, want_answers: bool) -> anyhow::Result<Ran> {
    let dir = place.fresh()?;
    let mut up = Up::start(place, dir.path(), run).await?;
    let patience = PATIENCE + run.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(run.items as f64 / rate));
    up.wait_for(run.outcomes, patience).await?;
    let used = std::mem::take(&mut up.used);
    // Killed, not stopped: its report of the run is not measured. Its stages end with it.
    up.child.kill().await?;
    let mut times = Times::default();
    let decisions: Vec<(Decision, String, u64)> = up.read("classify").await?;
    for (decision, _, stored_at) in &decisions {
        times.add(&decision.capture, *stored_at);
    }
    for (assignment, _, stored_at) in up.read::<Assignment>("cluster").await? {
        times.add(&assignment.capture, stored_at);
    }
    let empties: Vec<(Empty, String, u64)> = up.read(names::EMPTY).await?;
    for (empty, _, stored_at) in &empties {
        times.add(&empty.capture, *stored_at);
    }
    let answers = if want_answers { answers(&up, decisions, empties).await? } else { Answers::new() };
    up.bus.close().await;
    up.server.stop().await;
    ensure!(times.0.len() == run.items, "{} items have outcomes, {} were captured", times.0.len(), run.items);
    let round = Round { per_s: run.items as f64 / times.took_s(), usages: used, items: run.items };
    Ok(Ran { round, latencies_ms: times.latencies_ms(run.rate), answers })
}

/// When each item was captured and when its last outcome was stored, Unix ns, by its place in the order of capture.
#[derive(Debug, Default)]
struct Times(BTreeMap<u64, (u64, u64)>);

impl Times {
    fn add(&mut self, capture: &Capture, stored_at: u64) {
        let (_, last) = self.0.entry(capture.sequence).or_insert((capture.captured_at, 0));
        *last = stored_at.max(*last);
    }

    /// From the first capture to the last outcome.
    fn took_s(&self) -> f64 {
        let first = self.0.values().map(|&(captured, _)| captured).min().unwrap_or_default();
        let last = self.0.values().map(|&(_, stored)| stored).max().unwrap_or_default();
        last.saturating_sub(first) as f64 / 1e9
    }

    /// From when each was due: a source that falls behind its rate makes latencies longer, not fewer.
    fn latencies_ms(&self, rate: Option<f64>) -> Vec<f64> {
        let Some((&first, &(began, _))) = self.0.first_key_value() else { return Vec::new() };
        let latency = |(&sequence, &(captured, stored)): (&u64, &(u64, u64))| {
            let due = rate.map(|rate| began + ((sequence - first) as f64 / rate * 1e9) as u64);
            stored.saturating_sub(due.unwrap_or(captured)) as f64 / 1e6
        };
        self.0.iter().map(latency).collect()
    }
}

/// What it answered of each photo: labels from the decisions, vectors from the changelog of the clusters.
async fn answers(
    up: &Up,
    decisions: Vec<(Decision, String, u64)>,
    empties: Vec<(Empty, String, u64)>,
) -> anyhow::Result<Answers> {
    let mut vectors = BTreeMap::new();
    let changelog = names::changelog(&up.pipeline.name, "cluster");
    let mut records = up.bus.scan(&changelog, 1, false).await?;
    while let Some(record) = records.next().await {
        let change: Change =
            decode_body(&record?.body, Codec::Bincode).map_err(|why| anyhow::anyhow!("changelog: {why}"))?;
        // A face is told by the photo and the left edge of its box.
        vectors.insert((change.capture.item, change.region.x.to_bits()), change.vector);
    }
    let mut answers = Answers::new();
    let mut sorted = decisions;
    sorted.sort_by(|a, b| a.1.cmp(&b.1));
    for (decision, _, _) in sorted {
        let key = (decision.capture.item.clone(), decision.region.x.to_bits());
        let vector = vectors.remove(&key).context("a face has a decision and no change of clusters")?;
        let face = Face { label: decision.label, score: decision.score, vector };
        answers.entry(decision.capture.item).or_default().push(face);
    }
    for (empty, _, _) in empties {
        answers.entry(empty.capture.item).or_default();
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_falls_behind_makes_latencies_longer() {
        let mut times = Times::default();
        let capture = |sequence, captured_at| Capture {
            source: String::new(),
            item: String::new(),
            epoch: 0,
            sequence,
            captured_at,
        };
        times.add(&capture(0, 1_000_000_000), 1_010_000_000);
        // Due after 100 ms, captured after 150.
        times.add(&capture(1, 1_150_000_000), 1_160_000_000);
        let us = |rate| times.latencies_ms(rate).iter().map(|ms| (1e3 * ms).round() as u64).collect::<Vec<_>>();
        assert_eq!(us(Some(10.0)), [10_000, 60_000]);
        assert_eq!(us(None), [10_000, 10_000]);
    }
}
