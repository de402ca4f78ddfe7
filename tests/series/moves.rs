//! Stages that go there and back under load, again and again, half of the times with somebody killed on the way.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use causeway_bus::names;
use causeway_pipelines::Pipeline;
use harness::{Running, StandIns, at_work, eventually, kill, signal, stand_in_pipeline, verdict, within};
use serde_json::{Value, json};

/// Messages a second.
const RATE: u32 = 60;
/// How long one move may take.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long into a move somebody is killed.
const INTO_IT: Duration = Duration::from_millis(400);

/// Sites, and which stages go from where to where.
struct Plan {
    name: &'static str,
    sites: &'static str,
    at: [&'static str; 5],
    moves: &'static [(&'static str, &'static str, &'static str)],
}

const PLANS: [Plan; 2] = [
    Plan {
        name: "edge and cloud",
        sites: "[site.edge]\n[site.cloud]\nhub = true",
        at: ["edge", "edge", "edge", "cloud", "cloud"],
        moves: &[
            ("preprocess", "cloud", "edge"),
            ("extract", "cloud", "edge"),
            ("classify", "edge", "cloud"),
            ("cluster", "edge", "cloud"),
        ],
    },
    Plan {
        name: "cloud-a and cloud-b",
        sites: "[site.edge]\n[site.cloud-a]\nhub = true\n[site.cloud-b]",
        at: ["edge", "edge", "edge", "cloud-a", "cloud-a"],
        moves: &[("classify", "cloud-b", "cloud-a"), ("cluster", "cloud-b", "cloud-a")],
    },
];

/// What one way of one stage was like.
#[derive(Debug, Default)]
struct Told {
    moves: u64,
    killed: u64,
    lost: u64,
    doubled: u64,
    /// Longest time between two messages of the stage, ms: where nobody was killed, and where somebody was.
    gaps: [Vec<u64>; 2],
    /// From the command to the end of the move, ms.
    took: Vec<u64>,
}

/// What all moves between some sites were like.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    name: &'static str,
    /// By stage and where it went.
    told: BTreeMap<(String, String), Told>,
    captured: usize,
    /// Captured items without all their outcomes at the end, and outcomes that were there twice.
    open: usize,
    doubled: usize,
}

/// Moves each stage there and back `times` times each way.
pub(crate) async fn moves(stand_ins: &StandIns, times: u32) -> Vec<Moves> {
    let mut all = Vec::new();
    for plan in &PLANS {
        eprintln!("moves between {} …", plan.name);
        all.push(run(stand_ins, plan, times).await);
    }
    all
}

async fn run(stand_ins: &StandIns, plan: &Plan, times: u32) -> Moves {
    let home = tempfile::tempdir().expect("a folder");
    let file = write(home.path(), plan);
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", &file], &at_work(100_000_000));
    let edge = up.bus_at("edge", "faces").await;
    let captures = names::stream("faces", "capture");
    let comes = async || edge.stream_state(&captures).await.ok()?.filter(|state| state.messages > 20);
    eventually("something to be captured", comes).await;
    let mut moves = Moves { name: plan.name, ..Moves::default() };
    let mut harm = 0_usize;
    for number in 0..times {
        for &(stage, there, back) in plan.moves {
            for to in [there, back] {
                // With each round everybody is harmed otherwise.
                harm += 1;
                let killed = (number % 2 == 1).then_some(harm + number as usize / 2);
                let said = one(stand_ins, &up, home.path(), &file, (stage, to), killed).await;
                let told = moves.told.entry((stage.into(), to.into())).or_default();
                told.add(&said, killed.is_some());
            }
        }
    }
    // No more comes: what was captured has its outcomes.
    signal(up.stage_pid("capture", None).await, "STOP");
    let pipeline =
        Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}")).at("edge").expect("one of its sites");
    let seen = within(PATIENCE, "all outcomes", async || {
        let seen = verdict(&edge, &pipeline).await;
        seen.open.is_empty().then_some(seen)
    });
    let seen = seen.await;
    (moves.captured, moves.open, moves.doubled) = (seen.decisions.len(), seen.open.len(), seen.doubled.len());
    signal(up.stage_pid("capture", None).await, "CONT");
    up.stop().await.ok();
    moves
}

/// One move; with a number somebody is killed on the way, each time somebody else.
async fn one(
    stand_ins: &StandIns,
    up: &Running,
    home: &Path,
    file: &str,
    (stage, to): (&str, &str),
    killed: Option<usize>,
) -> Value {
    let arguments = ["move", stage, "--to", to, "--pipeline", file, "--json"];
    let mut command = Running::start(stand_ins.tools(), home, &arguments);
    if let Some(number) = killed {
        tokio::time::sleep(INTO_IT).await;
        match number % 4 {
            0 if command.is_running() => {
                kill(command.pid());
                // The move goes on; given again, the command watches on.
                command = Running::start(stand_ins.tools(), home, &arguments);
            }
            1 => harm(up, "relay"),
            2 => harm(up, stage),
            _ => kill_servers(up).await,
        }
    }
    let finished = command.finish_within(PATIENCE).await;
    assert!(!finished.stdout.is_empty(), "{stage} to {to}: {finished:?}");
    finished.json()
}

/// Kills every process of a stage, where it is and where it will be.
fn harm(up: &Running, stage: &str) {
    let Some(about) = up.about_now() else { return };
    let stages = about["stages"].as_array().cloned().unwrap_or_default();
    for process in stages {
        let is_its = process[0].as_str().is_some_and(|name| name.split('@').next() == Some(stage));
        if let Some(pid) = process[1]["pid"].as_u64().filter(|_| is_its) {
            kill(u32::try_from(pid).expect("a pid"));
        }
    }
}

async fn kill_servers(up: &Running) {
    let about = up.about().await;
    for site in about["sites"].as_array().expect("sites") {
        let site = site["name"].as_str().expect("a name");
        kill(up.server_pid(site, None).await);
    }
}

fn write(home: &Path, plan: &Plan) -> String {
    let [capture, preprocess, extract, classify, cluster] = plan.at;
    let more = |stage: &str| match stage {
        "pipeline" => format!("[keep]\nchanges = \"256KiB\"\n{}", plan.sites),
        "capture" => format!("site = {capture:?}\nrate = {RATE}"),
        "preprocess" => format!("site = {preprocess:?}"),
        "extract" => format!("site = {extract:?}"),
        "classify" => format!("site = {classify:?}"),
        _ => format!("site = {cluster:?}"),
    };
    let file = home.join("faces.toml");
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    file.to_str().expect("a path").to_owned()
}

impl Told {
    fn add(&mut self, said: &Value, killed: bool) {
        self.moves += 1;
        self.killed += u64::from(killed);
        self.lost += said["lost"].as_u64().unwrap_or(0);
        self.doubled += said["doubled"].as_u64().unwrap_or(0);
        self.gaps[usize::from(killed)].extend(said["longest_gap_ms"].as_u64());
        self.took.extend(said["took_ms"].as_u64());
    }
}

fn median(of: &[u64]) -> u64 {
    let mut sorted = of.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

impl Moves {
    pub(crate) fn is_well(&self) -> bool {
        let told = || self.told.values();
        (self.open, self.doubled) == (0, 0) && told().all(|told| (told.lost, told.doubled) == (0, 0))
    }

    /// Messages that a move lost.
    pub(crate) fn lost(&self) -> u64 {
        self.told.values().map(|told| told.lost).sum()
    }

    /// Messages that are there twice.
    pub(crate) fn doubled(&self) -> u64 {
        self.told.values().map(|told| told.doubled).sum::<u64>() + self.doubled as u64
    }

    /// The longest time without a message of a stage, ms.
    pub(crate) fn worst_gap_ms(&self) -> Option<u64> {
        self.told.values().flat_map(|told| &told.gaps).flatten().copied().max()
    }

    pub(crate) fn to_json(&self) -> Value {
        let told = self.told.iter().map(|((stage, to), told)| {
            let Told { moves, killed, lost, doubled, gaps, took } = told;
            json!({
                "stage": stage, "to": to, "moves": moves, "killed": killed, "lost": lost, "doubled": doubled,
                "gap_ms": { "median": median(&gaps[0]), "worst": gaps[0].iter().max() },
                "gap_killed_ms": { "median": median(&gaps[1]), "worst": gaps[1].iter().max() },
                "took_ms": { "median": median(took), "worst": took.iter().max() },
            })
        });
        let told: Vec<Value> = told.collect();
        json!({ "between": self.name, "moves": told, "captured": self.captured, "open": self.open, "doubled": self.doubled })
    }

    pub(crate) fn print(&self) {
        println!("\nmoves between {}, {RATE} messages a second", self.name);
        println!(
            "| stage | to | moves | with a kill | lost | doubled | gap: median, worst | with a kill | took: median, worst |"
        );
        println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        for ((stage, to), told) in &self.told {
            let Told { moves, killed, lost, doubled, gaps, took } = told;
            let of = |all: &[u64]| format!("{}, {} ms", median(all), all.iter().max().unwrap_or(&0));
            let (calm, harmed, took) = (of(&gaps[0]), of(&gaps[1]), of(took));
            println!("| {stage} | {to} | {moves} | {killed} | {lost} | {doubled} | {calm} | {harmed} | {took} |");
        }
        let Self { captured, open, doubled, .. } = self;
        println!("at the end: {captured} decisions, {open} items without all outcomes, {doubled} outcomes twice");
    }
}
