//! The peers: Python workers, a process a stage, on Redis lists or on JetStream with nats-py.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use causeway_bus::server::{Server, Start};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::in_process::{Answers, Face};
use crate::machine::usages;
use crate::place::Place;
use crate::rounds::Round;

/// Which peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    /// LPUSH and BRPOP; a redis-server that keeps nothing on disk.
    Redis,
    /// nats-py: this many publishes wait for their ack at once.
    Nats {
        /// 1: each publish waits for its ack before the next.
        window: usize,
    },
}

/// What the scripts are told.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Spec {
    /// `faces` or `plumbing`.
    pub(crate) workload: &'static str,
    pub(crate) photos: PathBuf,
    pub(crate) models: PathBuf,
    /// The gallery as JSON.
    pub(crate) people: PathBuf,
    pub(crate) items: usize,
    pub(crate) bytes: usize,
    /// How many outcomes there will be.
    pub(crate) outcomes: u64,
    /// Processes of the stage `extract`: as many as our workers.
    #[serde(skip)]
    pub(crate) extracts: usize,
}

#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    spec: &'a Spec,
    port: u16,
    window: usize,
}

/// An outcome as the scripts give it.
#[derive(Debug, Clone, Deserialize)]
struct Outcome {
    stage: String,
    item: String,
    #[serde(default)]
    part: Option<String>,
    captured_at: u64,
    done_at: u64,
    #[serde(default)]
    label: Option<String>,
    #[serde(default)]
    score: f32,
    #[serde(default)]
    vector: Vec<f32>,
}

/// How long a server or a worker may take to be ready.
const START: Duration = Duration::from_mins(1);
/// How long a run may take.
const PATIENCE: Duration = Duration::from_mins(4);
/// Why the peers cannot run, if they cannot.
pub(crate) fn missing(place: &Place) -> Option<String> {
    if place.python.is_none() {
        return Some("no .tools/bench: run ./dev bench".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join("redis-server").is_file());
    (!found).then(|| "no redis-server: apt-get install redis-server".into())
}

/// The server of a peer.
enum Servant {
    Redis(Child, u16),
    Nats(Server),
}

impl Servant {
    async fn start(peer: Peer, dir: &Path) -> anyhow::Result<Self> {
        if matches!(peer, Peer::Nats { .. }) {
            return Ok(Self::Nats(Server::start("peer", dir, Start::default()).await?));
        }
        // Free now; should another take it first, redis-server ends and says so.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.arg("--dir").arg(dir).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        causeway_bus::server::die_with_parent(command.as_std_mut());
        let mut child = command.spawn().context("cannot run redis-server: apt-get install redis-server")?;
        let deadline = Instant::now() + START;
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("redis-server ended with {status}");
            }
            ensure!(Instant::now() < deadline, "redis-server does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Self::Redis(child, port))
    }

    fn port(&self) -> u16 {
        match self {
            Self::Redis(_, port) => *port,
            Self::Nats(server) => server.port(),
        }
    }

    fn pid(&self) -> u32 {
        match self {
            Self::Redis(child, _) => child.id(),
            Self::Nats(server) => server.pid(),
        }
        .unwrap_or_default()
    }
}

/// A script of the peers on one file that tells it all.
struct Script<'a> {
    place: &'a Place,
    name: &'static str,
    told: PathBuf,
}

impl Script<'_> {
    fn command(&self, stage: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.place.python.as_ref().context("no Python for the peers")?);
        command.arg("-B").arg(self.place.peers.join(self.name)).arg(stage).arg(&self.told);
        // One thread a process, as our workers have.
        command.env("OMP_NUM_THREADS", "1").env("OPENBLAS_NUM_THREADS", "1");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).kill_on_drop(true);
        causeway_bus::server::die_with_parent(command.as_std_mut());
        Ok(command)
    }

    async fn to_its_end(&self, stage: &str) -> anyhow::Result<Vec<u8>> {
        let output = tokio::time::timeout(PATIENCE, self.command(stage)?.output()).await;
        let output = output.with_context(|| format!("{} {stage} does not end", self.name))??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{} {stage} ended with {}: {said}", self.name, output.status);
        Ok(output.stdout)
    }

    /// Starts a worker and waits until it says that it is ready.
    async fn worker(&self, stage: &str) -> anyhow::Result<Child> {
        let mut child = self.command(stage)?.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        let line = tokio::time::timeout(START, lines.next_line()).await??;
        ensure!(line.as_deref() == Some("ready"), "{} {stage} said {line:?} instead of `ready`", self.name);
        Ok(child)
    }
}

/// Runs a peer once.
pub(crate) async fn run(place: &Place, peer: Peer, spec: &Spec) -> anyhow::Result<(Round, Answers)> {
    let dir = place.fresh()?;
    let servant = Servant::start(peer, dir.path()).await?;
    let window = if let Peer::Nats { window } = peer { window } else { 1 };
    let told = dir.path().join("spec.json");
    std::fs::write(&told, serde_json::to_vec(&Told { spec, port: servant.port(), window })?)?;
    let name = if peer == Peer::Redis { "redis_lists.py" } else { "jetstream.py" };
    let script = Script { place, name, told };
    if peer != Peer::Redis {
        script.to_its_end("setup").await?;
    }
    let mut workers = Vec::new();
    for stage in ["preprocess", "extract", "classify", "cluster"] {
        let count = if stage == "extract" { spec.extracts } else { 1 };
        for _ in 0..count {
            workers.push((stage.to_owned(), script.worker(stage).await?));
        }
    }
    let (captured, collected) = tokio::join!(script.to_its_end("capture"), script.to_its_end("collect"));
    captured?;
    let mut processes: Vec<(String, u32)> =
        workers.iter().map(|(stage, child)| (stage.clone(), child.id().unwrap_or_default())).collect();
    processes.push(("server".into(), servant.pid()));
    let used = usages(&processes);
    let outcomes: Vec<Outcome> = serde_json::from_slice(&collected?).context("cannot read the outcomes of a peer")?;
    for (_, mut child) in workers {
        child.kill().await?;
    }
    match servant {
        Servant::Redis(mut child, _) => child.kill().await?,
        Servant::Nats(server) => server.stop().await,
    }
    let first = outcomes.iter().map(|outcome| outcome.captured_at).min().context("no outcome")?;
    let last = outcomes.iter().map(|outcome| outcome.done_at).max().context("no outcome")?;
    let took_s = last.saturating_sub(first) as f64 / 1e9;
    let round = Round { per_s: spec.items as f64 / took_s, usages: used, items: spec.items };
    Ok((round, answers(outcomes)))
}

fn answers(outcomes: Vec<Outcome>) -> Answers {
    let mut faces: BTreeMap<(String, String), Face> = BTreeMap::new();
    let mut answers = Answers::new();
    for outcome in outcomes {
        answers.entry(outcome.item.clone()).or_default();
        let Some(part) = outcome.part else { continue };
        let face = faces.entry((outcome.item, part)).or_insert(Face { label: None, score: 0.0, vector: Vec::new() });
        if outcome.stage == "classify" {
            (face.label, face.score) = (outcome.label, outcome.score);
        } else {
            face.vector = outcome.vector;
        }
    }
    for ((item, _), face) in faces {
        answers.entry(item).or_default().push(face);
    }
    answers
}
