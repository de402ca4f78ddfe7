use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Capture, Frame, Id, decode, header};
use causeway_stage::now_ns;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS, SLOW};
use futures::StreamExt as _;

use crate::running::PATIENCE;
use crate::{
    Disk, Running, StandIns, Tools, drained, eventually, left_running, signal, stand_in_pipeline, stopped, verdict,
};

/// What became of a run whose machine lost power again and again.
#[derive(Debug, Default)]
pub struct Power {
    /// How often.
    pub cuts: usize,
    /// Said to be stored before any cut.
    pub captured: usize,
    /// Of these, no more there after it.
    pub lost: usize,
    /// The oldest of what one cut took had been stored so long before it, seconds.
    pub oldest_s: f64,
    /// Of those lost, the ones that are not simply after the last of their start that is there.
    pub unnamed: usize,
    /// Starts that stopped and asked for `causeway reconcile`, after which the next got to work.
    pub asked: usize,
    /// Starts that did not get to work otherwise, with what they said.
    pub stopped: Vec<String>,
    /// Sent again by `causeway reconcile`.
    pub again: usize,
    /// At the end: without all outcomes, and not named as lost by `causeway reconcile`.
    pub missing: usize,
    /// Outcomes that are there twice.
    pub doubled: usize,
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct PowerRun {
    /// How often the power is cut.
    pub cuts: usize,
    /// `keep.sync`.
    pub sync: &'static str,
    /// Whether the source is a camera; else it can be read again.
    pub is_camera: bool,
    /// When each cut comes.
    pub seed: u64,
}

impl PowerRun {
    /// Whether a cut may take something for good.
    pub fn may_lose(&self) -> bool {
        self.is_camera && self.sync != "always"
    }
}

/// Messages a second of a camera, and how many a folder has.
const RATE: u64 = 25;
const FOLDER: u64 = 3000;
/// How long a start works before it is cut off, seconds: from and to.
const WORKS: (f64, f64) = (0.1, 3.0);

/// Runs stages of nothing whose store is on a disk of its own, and cuts its power again and again, each time with every process
/// killed; after each start it is reconciled as its user would. `None`, where one may not mount.
///
/// # Panics
/// When something does not come to its end.
pub async fn power(tools: &Tools, run: PowerRun) -> Option<Power> {
    let stand_ins = StandIns::link(tools);
    let home = tempfile::tempdir().expect("a folder");
    let disk = Disk::mount(&home.path().join("disk"), &home.path().join("edge"), 4096)?;
    let file = home.path().join("faces.toml");
    let more = |stage: &str| match (stage, run) {
        ("pipeline", PowerRun { sync, .. }) => {
            let keep = "captured = { bytes = \"512MiB\" }\noutcomes = { bytes = \"128MiB\" }\nchanges = \"64KiB\"";
            format!("[keep]\n{keep}\nsync = {sync:?}")
        }
        ("capture", PowerRun { is_camera: true, .. }) => format!("rate = {RATE}"),
        ("capture" | "preprocess" | "extract", _) => "link_bytes = \"64MiB\"".into(),
        _ => String::new(),
    };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let (items, camera) = if run.is_camera { (100_000_000, "1") } else { (FOLDER, "0") };
    let script =
        [(ITEMS, items.to_string()), (BYTES, "500".into()), (CAMERA, camera.into()), (SLOW, "extract=1".into())];
    let file = file.to_str().expect("a path");
    let mut power = Power::default();
    let mut random = fastrand::Rng::with_seed(run.seed);
    let mut known = BTreeMap::new();
    let (mut cut_at, mut is_asked) = (0, false);
    let reconcile = async |more: &[&str]| {
        let arguments = [&["reconcile", file, "--json"], more].concat();
        let told = Running::start(stand_ins.tools(), home.path(), &arguments).finish().await.json();
        let ids = |key: &str| {
            let list = told[key].as_array().expect("a list");
            list.iter().map(|one| one["id"].as_str().and_then(|id| id.parse().ok()).expect("an id")).collect()
        };
        (ids("again"), ids("lost"))
    };
    loop {
        let mut up = Running::start_in(stand_ins.tools(), home.path(), &["up", file], &script);
        let Some((bus, there)) = at_work(&mut up).await else {
            let said = up.finish().await.stderr;
            // The changelog has lost more than the outcomes that tell of it.
            if said.contains("let `causeway reconcile` run again") && !is_asked {
                (power.asked, is_asked) = (power.asked + 1, true);
                let (again, _): (BTreeSet<Id>, BTreeSet<Id>) = reconcile(&[]).await;
                power.again += again.len();
                continue;
            }
            power.stopped.push(said);
            power.captured = known.len() + power.lost;
            return Some(power);
        };
        is_asked = false;
        if run.is_camera {
            power.judge(&mut known, &there, cut_at);
        }
        let (again, _): (BTreeSet<Id>, BTreeSet<Id>) = reconcile(&[]).await;
        power.again += again.len();
        if power.cuts == run.cuts {
            let capture = async || up.stage_pid("capture", None).await;
            let state = if run.is_camera { stopped(PATIENCE, &bus, capture().await).await } else { FOLDER as usize };
            drained(&bus, &pipeline, state).await;
            let (again, named) = reconcile(&["--wait=60"]).await;
            power.again += again.len();
            let verdict = verdict(&bus, &pipeline).await;
            power.captured = known.len() + power.lost;
            power.lost += known.keys().filter(|&id| !verdict.captured.contains(id)).count();
            (power.missing, power.doubled) = (verdict.open.difference(&named).count(), verdict.doubled.len());
            up.stop().await.ok();
            return Some(power);
        }
        tokio::time::sleep(Duration::from_secs_f64(WORKS.0 + random.f64() * (WORKS.1 - WORKS.0))).await;
        known.extend(captured(&bus).await);
        disk.cut();
        cut_at = now_ns();
        power.cuts += 1;
        signal(up.pid(), "KILL");
        drop(up);
        eventually("the end of all that ran", async || left_running(home.path()).is_empty().then_some(())).await;
        disk.on().await;
    }
}

impl Power {
    /// Takes out of what was known before the last cut what is not there any more.
    fn judge(&mut self, known: &mut Captures, there: &Captures, cut_at: u64) {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for capture in there.values() {
            let last = last.entry(capture.epoch).or_default();
            *last = capture.sequence.max(*last);
        }
        for (_, capture) in known.extract_if(.., |id, _| !there.contains_key(id)) {
            self.lost += 1;
            self.unnamed += usize::from(last.get(&capture.epoch).is_some_and(|&last| capture.sequence < last));
            self.oldest_s = self.oldest_s.max(cut_at.saturating_sub(capture.captured_at) as f64 / 1e9);
        }
    }
}

/// Captured ids, with where and when each was.
type Captures = BTreeMap<Id, Capture>;

/// What the capture stream holds.
async fn captured(bus: &Bus) -> Captures {
    let mut captures = BTreeMap::new();
    let mut records = bus.scan(&names::stream("faces", "capture"), 1, false).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let frame: Frame = decode(record.headers.kind(), record.headers.codec(), &record.body).expect("a frame");
        captures.insert(record.headers.id(header::ID).expect("an id"), frame.capture);
    }
    captures
}

/// Waits until something new has its outcomes; gives what was captured at first. `None`: it ended instead.
async fn at_work(up: &mut Running) -> Option<(Bus, Captures)> {
    eventually("a server", async || (!up.is_running() || up.about_now().is_some()).then_some(())).await;
    if !up.is_running() {
        return None;
    }
    let bus = up.bus("faces").await;
    let before = captured(&bus).await;
    let outcomes = async || {
        let count = async |stream| Some(bus.stream_state(stream).await.ok()??.messages);
        Some((count("faces_classify").await?, count("faces_cluster").await?))
    };
    let first = eventually("the outcomes' streams", outcomes).await;
    eventually("new outcomes", async || {
        if !up.is_running() {
            return Some(false);
        }
        outcomes().await.filter(|now| now.0 > first.0 && now.1 > first.1).map(|_| true)
    })
    .await
    .then_some((bus, before))
}
