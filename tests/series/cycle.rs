//! A pipeline at two sites with a link between them that is cut: the box at the edge loses its power meanwhile, all its processes and its
//! server; a stage is moved as soon as the link is whole again.

use std::path::PathBuf;
use std::time::Duration;

use causeway_bus::Bus;
use causeway_pipelines::Pipeline;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use harness::{Across, Cut, End, Quality, Running, StandIns, Tools, stand_in_sites, verdict, within};
use serde_json::{Value, json};

const LINK: Quality = Quality { delay: Duration::from_millis(10), loss: 0.0, rate: None };
/// What the source has: sixty a second.
const ALL: u64 = 6000;
/// The last cut is longer than any broker remembers what it has.
const LONG: Duration = Duration::from_secs(40);
/// How much is captured before the power goes, and before the link heals.
const MORE: u64 = 60;
const PATIENCE: Duration = Duration::from_mins(5);

/// What became of it.
pub(crate) struct Cycles {
    times: u32,
    captured: usize,
    missing: usize,
    doubled: usize,
}

/// A pipeline of stand-ins at both ends of a link.
struct Split {
    across: Across,
    tools: Tools,
    home: tempfile::TempDir,
    file: PathBuf,
    /// Connections of the test to both ends.
    buses: [Bus; 2],
    /// What runs at either end.
    up: [Option<Running>; 2],
}

const CAPTURES: &str = "cycled_capture";
const DECISIONS: &str = "cycled_classify";

async fn at(bus: &Bus, stream: &str) -> Option<u64> {
    Some(bus.stream_state(stream).await.ok()??.last_sequence)
}

/// Comes when a stream is further than that.
async fn comes(bus: &Bus, stream: &str, than: u64) {
    within(PATIENCE, "more of it", async || at(bus, stream).await.filter(|&last| last > than)).await;
}

impl Split {
    async fn start(stand_ins: &StandIns, items: u64) -> Option<Self> {
        let across = Across::start(stand_ins.tools(), LINK).await?;
        let home = tempfile::tempdir().expect("a folder");
        let file = home.path().join("cycled.toml");
        std::fs::write(&file, stand_in_sites("cycled")).expect("it is written");
        let mut tools = stand_ins.tools().clone();
        let script = [(ITEMS, items.to_string()), (BYTES, "500".into()), (CAMERA, "0".into())];
        tools.env.extend(script.map(|(name, value)| (name.into(), value)));
        let buses = [across.bus(End::Edge, "cycled").await, across.bus(End::Cloud, "cycled").await];
        let mut split = Self { across, tools, home, file, buses, up: [None, None] };
        split.bring_up(End::Cloud);
        split.bring_up(End::Edge);
        comes(&split.buses[1], DECISIONS, 20).await;
        Some(split)
    }

    fn run(&self, end: End, arguments: &[&str]) -> Running {
        let home = self.home.path().join(site(end));
        self.across.causeway(&self.tools, end, &home, arguments)
    }

    fn bring_up(&mut self, end: End) {
        let site = format!("--site={}", site(end));
        self.up[end as usize] = Some(self.run(end, &["up", self.file.to_str().expect("a path"), &site]));
    }

    async fn stop(self) {
        for up in self.up.into_iter().flatten() {
            up.stop().await.ok();
        }
    }
}

fn site(end: End) -> &'static str {
    if end == End::Edge { "edge" } else { "cloud" }
}

/// What moves were like that began as soon as a cut was over.
pub(crate) struct Hurried {
    moves: u32,
    doubled: u64,
    /// How long they took, ms, shortest first.
    took: Vec<u64>,
}

/// Moves a stage there and back, each time right after a cut by dropped packets that lasted some seconds; before every other one both servers are
/// killed.
pub(crate) async fn hurried(stand_ins: &StandIns, moves: u32) -> Option<Hurried> {
    let mut split = Split::start(stand_ins, 10_000_000).await?;
    let file = split.file.to_str().expect("a path").to_owned();
    let mut hurried = Hurried { moves, doubled: 0, took: Vec::new() };
    let mut chance = fastrand::Rng::with_seed(7);
    for number in 0..moves {
        let cloud = split.buses[1].clone();
        if number % 2 == 1 {
            for end in [End::Edge, End::Cloud] {
                split.across.kill_server(end).await;
                split.across.start_server(end).await;
                let before = within(PATIENCE, "the cloud", async || at(&cloud, DECISIONS).await).await;
                comes(&cloud, DECISIONS, before).await;
            }
        }
        let lasts = Duration::from_millis(chance.u64(500..14_000));
        split.across.link.cut(Cut::Drop);
        tokio::time::sleep(lasts).await;
        let before = at(&cloud, DECISIONS).await.expect("the cloud");
        split.across.link.heal();
        comes(&cloud, DECISIONS, before).await;
        let to = if number % 2 == 0 { "cloud" } else { "edge" };
        let moves = ["move", "extract", "--to", to, "--pipeline", &file, "--json", "--site", "cloud"];
        let told = split.run(End::Cloud, &moves).finish_within(PATIENCE).await.ok().json();
        hurried.doubled += told["doubled"].as_u64().unwrap_or_default();
        let took = told["took_ms"].as_u64().expect("a time");
        eprintln!("cut for {lasts:?}, moved in {took} ms");
        hurried.took.push(took);
    }
    hurried.took.sort_unstable();
    split.stop().await;
    Some(hurried)
}

impl Hurried {
    pub(crate) fn is_well(&self) -> bool {
        self.doubled == 0
    }

    pub(crate) fn to_json(&self) -> Value {
        let Self { moves, doubled, took } = self;
        json!({ "moves": moves, "doubled": doubled, "took_ms": took })
    }

    pub(crate) fn print(&self) {
        let Self { moves, doubled, took } = self;
        let (median, worst) = (took.get(took.len() / 2), took.last());
        println!(
            "\n{moves} moves right after a cut of up to 14 s: {doubled} doubled; took {} ms, {} at worst",
            median.copied().unwrap_or_default(),
            worst.copied().unwrap_or_default()
        );
    }
}

/// So many times.
pub(crate) async fn cycles(stand_ins: &StandIns, cycles: u32) -> Option<Cycles> {
    let mut split = Split::start(stand_ins, ALL).await?;
    let [edge, cloud] = split.buses.clone();
    let mut done = 0;
    while done < cycles && at(&edge, CAPTURES).await.expect("the edge") + 3 * MORE < ALL {
        split.across.link.cut(Cut::Drop);
        let captured = at(&edge, CAPTURES).await.expect("the edge");
        comes(&edge, CAPTURES, captured + MORE).await;
        split.across.kill_server(End::Edge).await;
        // Its stages end with it.
        drop(split.up[End::Edge as usize].take());
        split.across.start_server(End::Edge).await;
        split.bring_up(End::Edge);
        let captured = at(&edge, CAPTURES).await.expect("the edge");
        comes(&edge, CAPTURES, captured + MORE.min(ALL - captured - 1)).await;
        let decided = at(&cloud, DECISIONS).await.expect("the cloud");
        split.across.link.heal();
        comes(&cloud, DECISIONS, decided).await;
        done += 1;
    }
    split.across.link.cut(Cut::Drop);
    tokio::time::sleep(LONG).await;
    split.across.link.heal();
    let pipeline = Pipeline::load(&split.file).unwrap_or_else(|error| panic!("{error}")).at("edge").expect("a site");
    let seen = within(PATIENCE, "all outcomes", async || {
        let seen = verdict(&edge, &pipeline).await;
        (seen.open.is_empty() && seen.captured.len() as u64 >= ALL).then_some(seen)
    })
    .await;
    split.stop().await;
    let (captured, decided) = (seen.captured.len(), seen.decisions.len());
    Some(Cycles { times: done, captured, missing: captured.saturating_sub(decided), doubled: seen.doubled.len() })
}

impl Cycles {
    pub(crate) fn is_well(&self) -> bool {
        (self.missing, self.doubled) == (0, 0)
    }

    pub(crate) fn to_json(&self) -> Value {
        let Self { times, captured, missing, doubled } = self;
        json!({ "times": times, "captured": captured, "missing": missing, "doubled": doubled })
    }

    pub(crate) fn print(&self) {
        let Self { times, captured, missing, doubled } = self;
        println!(
            "\nthe edge killed whole in {times} cuts, and one cut of {LONG:?}: {captured} captured, {missing} missing, {doubled} there twice"
        );
    }
}
