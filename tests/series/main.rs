//! The long series of `./dev chaos`: hundreds of kills of real processes, and the table that docs/guarantees.md has.

mod cycle;
mod edges;
mod link;
mod load;
mod moves;
mod native;
mod sites;
mod soak;
mod usage;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use causeway_bus::First;
use causeway_pipelines::Pipeline;
use clap::Parser;
use futures::StreamExt as _;
use harness::{
    Became, Corruption, Cut, Flood, Hub, Judged, Oracle, Power, PowerRun, Running, StageProcess, StandIns, Tools,
    at_work, copy_photos, drained_within, faces_up, flood, hub, matrix, may_skip, mutations_caught, power,
    stand_ins_at, without_faults,
};
use serde_json::{Value, json};

use crate::cycle::{cycles, hurried};
use crate::edges::{Edges, edges};
use crate::link::{Lossy, Outage, flaps, lossy, outage};
use crate::load::{Load, load};
use crate::moves::{Moves, moves};
use crate::native::{Way, beside_native};
use crate::sites::{Sites, bytes};
use crate::soak::{Soak, soak};

/// A row of the table.
struct Row {
    name: &'static str,
    told: Value,
}

/// Longest that one run of `causeway chaos` may take.
const PATIENCE: Duration = Duration::from_mins(40);

/// The long series of faults: about two hours.
#[derive(Debug, Parser)]
struct Args {
    /// How much of it: 0.1 is a tenth of every count
    #[arg(long, default_value_t = 1.0)]
    share: f64,
    /// These parts alone
    #[arg(long, value_enum, value_delimiter = ',')]
    part: Vec<Part>,
    /// The table of edge and cloud in place of all that, or its parts: keys, edges, native, cuts, moves, link
    #[arg(long)]
    sites: bool,
    /// What the damage to stores is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Say of each damaged store what was said of it
    #[arg(long)]
    verbose: bool,
    /// Print one JSON object and nothing else
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// How long it takes until what a killed replica held has its outcomes
    Recoveries,
    /// Over a thousand faults that meet, on stages of nothing
    Kills,
    /// All sorts of faults with the real models
    Models,
    /// Each server of a hub of three killed, and the leader
    Hub,
    /// Broken messages and pictures among good ones
    Flood,
    /// The power cut again and again
    Power,
    /// Whether the oracle can fail
    Oracle,
    /// Files of the store that a disk has changed, cut or lost
    Corruption,
    /// Ten minutes of full load, and ten with a slow last stage: what comes twice, and what grows
    Load,
    /// A relay over a link that loses packets and is cut: how much comes through, and how soon it goes on; only where it is asked for
    Link,
    /// Each stage moved there and back twenty times, half of them with somebody killed; only where it is asked for
    Moves,
    /// Of --sites: what each key opens, and what crosses of a photo
    Keys,
    /// Of --sites: up to a hundred edges at one hub
    Edges,
    /// Of --sites: a relay beside NATS's own stream sources
    Native,
    /// Of --sites: twenty cuts a minute, the edge killed whole in a cut, moves right after one
    Cuts,
    /// Two hours of the real models at 80 % load, a fault every 30 s: what is wrong, and what grows; only where it is asked for
    Soak,
}

impl Args {
    fn times(&self, whole: u32) -> String {
        format!("--count={}", (f64::from(whole) * self.share).ceil())
    }
}

async fn chaos(tools: &Tools, home: &Path, arguments: &[&str]) -> Value {
    let all: Vec<&str> = ["chaos"].iter().chain(arguments).chain(&["--json", "--settle=120"]).copied().collect();
    let finished = Running::start(tools, home, &all).finish_within(PATIENCE).await;
    // A line each, as the last one may say why it went no further.
    let end: Vec<&str> = finished.stderr.lines().rev().take(3).collect();
    assert!(!finished.stdout.is_empty(), "{end:?}");
    finished.json()
}

/// Stages of nothing: the count. Faults meet, since none waits for the recovery from another.
async fn many(tools: &Tools, args: &Args) -> Vec<Row> {
    let home = tempfile::tempdir().expect("a folder");
    let file = stand_ins_at(home.path(), 120);
    let up = Running::start_in(tools, home.path(), &["up", &file], &at_work(100_000_000));
    up.about().await;
    let mut rows = Vec::new();
    let every = ["--every=0.2", "--overlap", "--seed=1"];
    let sorts = [
        ("SIGKILL of each stage, 200 times", "--faults=stage", 1000),
        ("SIGKILL of nats-server", "--faults=server", 100),
        ("SIGKILL of all stages", "--faults=all", 50),
        ("SIGSTOP of each stage for 3 s", "--faults=pause", 50),
        ("SIGSTOP of nats-server for 3 s", "--faults=pause-server", 10),
    ];
    for (name, sort, whole) in sorts {
        let count = args.times(whole);
        eprintln!("{name} …");
        let told = chaos(tools, home.path(), &[&[&file, sort, count.as_str()], &every[..]].concat()).await;
        rows.push(Row { name, told });
    }
    up.stop().await.ok();
    rows
}

/// What a killed replica held has its outcomes: with another replica, and after a restart.
async fn recoveries(tools: &Tools, args: &Args, warm: bool) -> Row {
    let home = tempfile::tempdir().expect("a folder");
    let file = stand_ins_at(home.path(), 100);
    let script = at_work(100_000_000);
    let up = Running::start_in(tools, home.path(), &["up", &file], &script);
    let about = up.about().await;
    let nats = about["nats"].as_str().expect("an address");
    let stages = ["preprocess", "extract", "classify", "cluster"];
    let second = |stage: &&str| StageProcess::start(tools, &file, stage, nats, &script);
    let _second: Vec<StageProcess> = if warm { stages.iter().map(second).collect() } else { Vec::new() };
    let count = args.times(80);
    eprintln!("recoveries{} …", if warm { " with a second replica" } else { "" });
    let stages = stages.map(|stage| format!("--stage={stage}"));
    let mut arguments = vec![&file, "--faults=stage", &count, "--every=2.5", "--seed=2"];
    arguments.extend(stages.iter().map(String::as_str));
    let told = chaos(tools, home.path(), &arguments).await;
    up.stop().await.ok();
    Row { name: if warm { "recovery with a second replica" } else { "recovery after a restart" }, told }
}

/// The real models, judged by the oracle too.
async fn real(tools: &Tools, args: &Args) -> (Row, Vec<String>) {
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(tools, input.path(), (200.0 * args.share).ceil() as usize);
    let oracle: Oracle = without_faults(tools, input.path(), photos).await;
    let (pipeline, arguments): (Pipeline, _) = faces_up(input.path(), 6);
    let up = Running::start(tools, home.path(), &arguments.each_ref().map(String::as_str));
    let bus = up.bus(&pipeline.name).await;
    let count = args.times(50);
    eprintln!("the real models …");
    let sorts = "--faults=stage,all,server,pause,pause-server";
    let told = chaos(tools, home.path(), &[sorts, &count, "--every=1", "--seed=3"]).await;
    drained_within(PATIENCE, &bus, &pipeline, photos).await;
    let faults = oracle.faults(&bus, &pipeline).await;
    up.stop().await.ok();
    (Row { name: "all of these with the real models", told }, faults)
}

/// What is run, in words.
fn source(run: PowerRun) -> String {
    format!("{}, `keep.sync` = {:?}", if run.is_camera { "a camera" } else { "a folder" }, run.sync)
}

/// What the series found.
#[derive(Default)]
struct Found {
    rows: Vec<Row>,
    /// What the oracle says of the real models.
    faults: Vec<String>,
    /// How many of the five sabotages it finds.
    caught: Option<usize>,
    flood: Option<Flood>,
    hub: Option<Hub>,
    power: Vec<(PowerRun, Power)>,
    corruption: Option<Vec<Judged>>,
    loads: Vec<Load>,
    lossy: Option<Lossy>,
    outages: Vec<Outage>,
    moves: Vec<Moves>,
    soak: Option<Soak>,
}

/// Damaged stores, two at a time.
async fn corruption(tools: &Tools, args: &Args) -> Vec<Judged> {
    use harness::Stage::{Drained, Folder, Killed, Stopped};
    let corruption = Corruption::new(tools, &[Drained, Stopped, Killed, Folder]).await;
    let cases = corruption.cases((200.0 * args.share).ceil() as usize, args.seed);
    let all = cases.len();
    let judged = futures::stream::iter(cases).map(|case| corruption.judge(case)).buffered(2);
    let told = |(at, judged): (usize, Judged)| {
        eprintln!("{}/{all} {:?}: {}", at + 1, judged.became, judged.case);
        if matches!(judged.became, Became::Silent | Became::Stuck) || args.verbose {
            eprintln!("{:#}", judged.to_json());
        }
        judged
    };
    judged.enumerate().map(told).collect().await
}

/// The table of edge and cloud, or some of it.
async fn of_sites(args: &Args) -> ExitCode {
    let (tools, stand_ins) = (Tools::find(), StandIns::link(&Tools::find()));
    let is_asked = |part: Part| args.part.is_empty() || args.part.contains(&part);
    let times = |whole: f64| (whole * args.share).ceil() as u32;
    let (mut of_photo, mut of_keys, mut edges, mut ways, mut moved) = (None, None, Vec::new(), None, Vec::new());
    let (mut short, mut killed, mut after, mut lossy_link, mut cuts) = (None, None, None, None, Vec::new());
    if is_asked(Part::Keys) {
        eprintln!("what crosses of a photo, and keys …");
        of_photo = Some(bytes(&tools).await);
        of_keys = Some(matrix(&tools).await);
    }
    if is_asked(Part::Edges) {
        edges = many_edges().await;
    }
    if is_asked(Part::Native) {
        ways = native(&tools, args).await;
    }
    if is_asked(Part::Cuts) {
        eprintln!("short cuts …");
        short = flaps(&tools, times(100.0)).await;
        eprintln!("power cuts in cuts …");
        killed = cycles(&stand_ins, times(10.0)).await;
        eprintln!("moves right after cuts …");
        after = hurried(&stand_ins, times(20.0)).await;
    }
    if is_asked(Part::Moves) {
        moved = moves(&stand_ins, times(20.0)).await;
    }
    if is_asked(Part::Link) {
        eprintln!("a link …");
        lossy_link = lossy(&tools, args.share).await;
        if lossy_link.is_none() {
            may_skip("a link needs network namespaces and ping: run as root, with iproute2, iptables and iputils-ping");
        }
        cuts = outages(&tools, args).await;
    }
    let sites = Sites {
        outages: &cuts,
        flaps: short.as_ref(),
        cycles: killed.as_ref(),
        hurried: after.as_ref(),
        lossy: lossy_link.as_ref(),
        native: ways.as_ref(),
        edges: &edges,
        moves: &moved,
        matrix: of_keys.as_ref(),
        bytes: of_photo.as_ref(),
    };
    if args.json {
        println!("{}", sites.to_json());
    } else {
        sites.print();
    }
    if sites.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// How it grows with the number of edges.
async fn many_edges() -> Vec<Edges> {
    let mut found = Vec::new();
    for count in [1, 10, 30, 100] {
        eprintln!("{count} edges …");
        found.push(edges(count).await);
    }
    found
}

/// A relay beside a source across a leaf node, in a cut of so long.
async fn native(tools: &Tools, args: &Args) -> Option<(Duration, [Way; 2])> {
    eprintln!("a relay beside a source across a leaf node …");
    let lasts = Duration::from_mins(2).mul_f64(args.share.max(0.1));
    Some((lasts, beside_native(tools, lasts).await?))
}

/// A link that is cut for longer than any window, in three ways.
async fn outages(tools: &Tools, args: &Args) -> Vec<Outage> {
    let lasts = Duration::from_mins(10).mul_f64(args.share);
    let mut outages = Vec::new();
    for (how, first) in [(Cut::Drop, First::Oldest), (Cut::Reset, First::Oldest), (Cut::Drop, First::Newest)] {
        eprintln!("a link that is cut …");
        outages.extend(outage(tools, how, first, lasts).await);
    }
    outages
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    let is_of_sites = |part: &Part| matches!(part, Part::Keys | Part::Edges | Part::Native | Part::Cuts);
    if args.sites || args.part.iter().any(is_of_sites) {
        return of_sites(&args).await;
    }
    let stand_ins_of = StandIns::link(&Tools::find());
    let tools = stand_ins_of.tools();
    let is_asked = |part: Part| args.part.is_empty() || args.part.contains(&part);
    let mut found = Found::default();
    if is_asked(Part::Recoveries) {
        found.rows.push(recoveries(tools, &args, false).await);
        found.rows.push(recoveries(tools, &args, true).await);
    }
    if is_asked(Part::Kills) {
        found.rows.extend(many(tools, &args).await);
    }
    if is_asked(Part::Models) {
        let (row, faults) = real(&Tools::find(), &args).await;
        found.rows.push(row);
        found.faults = faults;
    }
    if is_asked(Part::Hub) {
        eprintln!("a hub of three servers …");
        found.hub = Some(hub(&Tools::find(), (20.0 * args.share).ceil() as usize).await);
    }
    if is_asked(Part::Flood) {
        eprintln!("broken messages …");
        let share = |whole: f64| (whole * args.share).ceil() as usize;
        found.flood = Some(flood(&Tools::find(), share(10_000.0), share(2000.0), 5).await);
    }
    if is_asked(Part::Power) {
        let cuts = (100.0 * args.share).ceil() as usize;
        for (sync, is_camera) in [("always", true), ("2m", false), ("1s", true)] {
            let run = PowerRun { cuts, sync, is_camera, seed: 6 };
            eprintln!("power cuts of {} …", source(run));
            if let Some(power) = power(&Tools::find(), run).await {
                found.power.push((run, power));
            } else {
                may_skip("a disk whose power is cut needs a file system of its own: run as root");
            }
        }
    }
    if is_asked(Part::Oracle) {
        eprintln!("sabotages …");
        found.caught = Some(mutations_caught().await);
    }
    if is_asked(Part::Corruption) {
        eprintln!("damaged stores …");
        found.corruption = Some(corruption(&Tools::find(), &args).await);
    }
    if is_asked(Part::Load) {
        for (name, slow) in [("full load", 0), ("a last stage that takes 20 ms a message", 20)] {
            eprintln!("{name} …");
            let runs = Duration::from_mins(10).mul_f64(args.share);
            found.loads.push(load(tools, name, slow, runs).await);
        }
    }
    if args.part.contains(&Part::Link) {
        eprintln!("a link …");
        found.lossy = lossy(&Tools::find(), args.share).await;
        if found.lossy.is_none() {
            may_skip("a link needs network namespaces and ping: run as root, with iproute2, iptables and iputils-ping");
        }
        found.outages = outages(&Tools::find(), &args).await;
    }
    if args.part.contains(&Part::Moves) {
        found.moves = moves(&stand_ins_of, (20.0 * args.share).ceil() as u32).await;
    }
    if args.part.contains(&Part::Soak) {
        eprintln!("soak …");
        found.soak = Some(soak(&Tools::find(), Duration::from_hours(2).mul_f64(args.share), args.seed).await);
    }
    if args.json {
        println!("{}", found.to_json());
    } else {
        found.print();
    }
    if found.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Found {
    fn sum(&self, key: &str) -> u64 {
        let of_hub = self.hub.as_ref().map_or(0, |hub| match key {
            "kills" => hub.kills,
            "missing" => hub.missing,
            _ => hub.doubled,
        });
        let of_power = self.power.iter().map(|(_, power)| match key {
            "kills" => 0,
            "missing" => power.missing,
            _ => power.doubled,
        });
        self.rows.iter().filter_map(|row| row.told[key].as_u64()).sum::<u64>()
            + (of_hub + of_power.sum::<usize>()) as u64
    }

    fn worst(&self, key: &str) -> Option<f64> {
        self.rows.iter().filter_map(|row| row.told[key].as_f64()).max_by(f64::total_cmp)
    }

    fn is_well(&self) -> bool {
        let of_each =
            self.rows.iter().filter_map(|row| row.told["faults"].as_object()).flat_map(|faults| faults.values());
        let never = of_each.filter_map(|fault| fault["not_recovered"].as_u64()).sum::<u64>();
        let is_kept = self
            .power
            .iter()
            .all(|(run, power)| (run.may_lose() || power.lost == 0 && power.stopped.is_empty()) && power.unnamed == 0);
        let is_dry = self.flood.as_ref().is_none_or(|flood| flood.letters == flood.expected && flood.crashed == 0);
        let is_whole = (self.sum("missing"), self.sum("doubled"), never) == (0, 0, 0)
            && self.hub.as_ref().is_none_or(|hub| hub.captured.0 == hub.captured.1);
        is_whole
            && is_dry
            && is_kept
            && self.corruption.iter().flatten().all(Judged::is_well)
            && self.loads.iter().all(|load| load.redelivered == 0)
            && self.outages.iter().all(Outage::is_well)
            && self.moves.iter().all(Moves::is_well)
            && self.soak.as_ref().is_none_or(Soak::is_well)
            && self.faults.is_empty()
            && self.caught.is_none_or(|caught| caught == 5)
    }

    fn to_json(&self) -> Value {
        json!({
            "kills": self.sum("kills"),
            "missing": self.sum("missing"),
            "doubled": self.sum("doubled"),
            "worst_recovery_warm_s": self.worst("worst_recovery_warm_s"),
            "worst_recovery_restart_s": self.worst("worst_recovery_restart_s"),
            "oracle_mutations_caught": self.caught,
            "power": self.power.iter().map(|(run, power)| power_to_json(*run, power)).collect::<Vec<_>>(),
            "corruption": self.corruption.as_ref().map(|judged| judged.iter().map(Judged::to_json).collect::<Vec<_>>()),
            "load": self.loads.iter().map(Load::to_json).collect::<Vec<_>>(),
            "lossy_link": self.lossy.as_ref().map(Lossy::to_json),
            "outages": self.outages.iter().map(Outage::to_json).collect::<Vec<_>>(),
            "moves": self.moves.iter().map(Moves::to_json).collect::<Vec<_>>(),
            "soak": self.soak.as_ref().map(Soak::to_json),
        })
    }

    fn print(&self) {
        println!("| what | faults | captured | missing | doubled | warm: median, worst | restart: median, worst |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for Row { name, told } in &self.rows {
            let of_each = told["faults"].as_object().expect("faults");
            let times: u64 = of_each.values().filter_map(|fault| fault["times"].as_u64()).sum();
            let count = |key: &str| told[key].as_u64().unwrap_or_default();
            let (captured, missing, doubled) = (count("captured"), count("missing"), count("doubled"));
            println!("| {name} | {times} | {captured} | {missing} | {doubled} | | |");
            for (fault, said) in of_each {
                let seconds = |key: &str| match (said[key]["median"].as_f64(), said[key]["worst"].as_f64()) {
                    (Some(median), Some(worst)) => format!("{median:.2}, {worst:.2} s"),
                    _ => String::new(),
                };
                println!("| · {fault} | {} | | | | {} | {} |", said["times"], seconds("warm_s"), seconds("restart_s"));
            }
        }
        if let Some(Hub { kills, captured: (captured, _), missing, doubled }) = &self.hub {
            println!(
                "| a server of a hub of three, or its leader | {kills} | {captured} | {missing} | {doubled} | | |"
            );
        }
        if !self.faults.is_empty() {
            println!("\nthe oracle on the real models: {}", self.faults.join("; "));
        }
        if let Some(Flood { corrupt, malformed, expected, letters, crashed, good: (alone, among) }) = &self.flood {
            println!(
                "\n{corrupt} corrupt messages and {malformed} malformed pictures: {letters} dead letters of {expected}, {crashed} crashes"
            );
            println!("good photos a second: {alone:.2} alone, {among:.2} among them, {:.3} of it", among / alone);
        }
        for (run, power) in &self.power {
            let Power { cuts, captured, lost, oldest_s, unnamed, again, asked, missing, doubled, .. } = power;
            println!(
                "\n{}: power cut {cuts} times, {captured} captured before, {lost} lost (the oldest {oldest_s:.1} s before its cut; {unnamed} not \
                 after the last of its start), {again} sent again (at {asked} starts before the fold went on), {missing} missing, {doubled} doubled",
                source(*run)
            );
            for said in &power.stopped {
                println!("it stopped: {}", said.lines().last().unwrap_or_default());
            }
        }
        if let Some(judged) = &self.corruption {
            print_corruption(judged);
        }
        self.loads.iter().for_each(Load::print);
        self.lossy.iter().for_each(Lossy::print);
        if !self.outages.is_empty() {
            link::print_head();
            self.outages.iter().for_each(Outage::print);
        }
        self.moves.iter().for_each(Moves::print);
        self.soak.iter().for_each(Soak::print);
        if let Some(caught) = self.caught {
            println!("\nsabotages of the contract that the oracle found: {caught} of 5");
        }
    }
}

fn power_to_json(run: PowerRun, power: &Power) -> Value {
    json!({
        "source": source(run),
        "cuts": power.cuts,
        "captured": power.captured,
        "lost": power.lost,
        "oldest_lost_s": power.oldest_s,
        "missing": power.missing,
        "doubled": power.doubled,
        "stopped": power.stopped.len(),
    })
}

/// What became of damaged files, by what they hold.
fn print_corruption(judged: &[Judged]) {
    use Became::{Healed, NoEffect, Repaired, Silent, Stuck, Told};
    println!("\n| damaged file | cases | no effect | healed | repaired | told | silent | stuck |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let mut rows: BTreeMap<_, Vec<Became>> = BTreeMap::new();
    for Judged { case, became, .. } in judged {
        rows.entry(Some((case.sort, case.role()))).or_default().push(*became);
        rows.entry(None).or_default().push(*became);
    }
    let all = rows.remove(&None);
    let rows = rows.into_iter().filter_map(|(of, became)| Some((of?, became)));
    let named = rows.map(|((sort, role), became)| (format!("{} of {role}", sort.name()), became));
    for (name, became) in named.chain(all.map(|all| ("all".into(), all))) {
        let counts = [NoEffect, Healed, Repaired, Told, Silent, Stuck]
            .map(|sort| became.iter().filter(|&&became| became == sort).count().to_string());
        println!("| {name} | {} | {} |", became.len(), counts.join(" | "));
    }
}
