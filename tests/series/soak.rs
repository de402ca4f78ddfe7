//! The real pipeline for hours at four fifths of what it can do, with a fault every half minute: nothing is missing, nothing there twice,
//! values as without faults; and what processes take, to see what grows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_bus::names;
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, Decision, decode_body};
use futures::StreamExt as _;
use harness::{Running, Tools, copy_photos, eventually, faces, verdict, without_faults_at};
use serde_json::{Value, json};

use crate::usage::{slope, sum, usage};

/// How often processes are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long it is measured what the pipeline can do, and how long it runs before.
const MEASURE: (Duration, Duration) = (Duration::from_mins(4), Duration::from_secs(30));
/// The part of it that is asked for.
const LOAD: f64 = 0.8;
/// Mean pause before a fault, seconds.
const FAULT_EVERY: f64 = 30.0;
/// Which sorts of faults, in turn.
const FAULTS: &str = "stage,pause,server,stage,pause-server,all";
/// A process is as large as it will be after this long; one that was killed begins anew.
const GROWN: Duration = Duration::from_mins(2);
/// Subjects that are named.
const NAMED: usize = 20;
/// Scores may differ by this from those of a run without faults.
const SAME_SCORE: f32 = 1e-4;

/// What became of a run.
pub(crate) struct Soak {
    /// Pictures a second that the pipeline can do, and that were asked for.
    pub(crate) rate: (f64, f64),
    /// How long.
    pub(crate) took: Duration,
    /// Pictures that were captured.
    pub(crate) captured: u64,
    /// What `causeway chaos` says.
    pub(crate) told: Value,
    /// Outcomes that a reader met twice: of items that were captured once, and of the pictures of the folder, which `capture` shows again at
    /// each start, and which are run again where their outcomes are gone by then.
    pub(crate) doubled: (Vec<String>, usize),
    /// Captured items whose copy went before they were complete.
    pub(crate) given_up: f64,
    /// Decisions that are kept, and how many of them are not those without faults.
    pub(crate) values: (usize, usize),
    /// Kept outcomes that are there twice.
    pub(crate) twice: usize,
    pub(crate) processes: BTreeMap<String, Process>,
}

/// What a process took, all of its name together.
pub(crate) struct Process {
    samples: usize,
    /// RSS at first and at last, MB.
    memory: (f64, f64),
    /// MB an hour.
    slope: f64,
    /// Open files: fewest and most.
    files: (usize, usize),
}

/// The text of the pipeline: a camera that shows a folder again and again, and bounds that are reached within minutes.
fn pipeline(input: &std::path::Path, rate: Option<f64>) -> String {
    let keep = "[keep]\ncaptured = { bytes = \"512MiB\" }\noutcomes = { bytes = \"8MiB\" }\nchanges = \"1MiB\"\nsync = \"10s\"";
    let camera = format!("repeat = true\n{}", rate.map_or(String::new(), |rate| format!("rate = {rate:.1}")));
    let camera: &'static str = camera.leak();
    faces(input, |stage| match stage {
        "pipeline" => keep,
        "capture" => camera,
        "preprocess" | "extract" => "link_bytes = \"16MiB\"",
        _ => "",
    })
}

/// Pictures a second when there is no end of them, and with the faults that the soak has: they cost about a fifth of what it can do without, so
/// that four fifths of that would be all it can do.
async fn capacity(tools: &Tools, input: &std::path::Path, seed: &str) -> f64 {
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("faces.toml");
    std::fs::write(&file, pipeline(input, None)).expect("it is written");
    let file = file.to_str().expect("a path");
    let up = Running::start(tools, home.path(), &["up", file]);
    let bus = up.bus("faces").await;
    tokio::time::sleep(MEASURE.1).await;
    let every = format!("--every={FAULT_EVERY}");
    let arguments = ["chaos", file, "--faults", FAULTS, "--count=1000", &every, seed, "--settle=120", "--json"];
    let chaos = Running::start(tools, home.path(), &arguments);
    // The metrics of a stage begin anew with it; what a durable has acked does not.
    let handled = async || {
        let state = bus.durable_state("faces_capture", "preprocess").await.ok().flatten();
        state.map(|state| (state.ack_floor, Instant::now()))
    };
    let before = eventually("the durable", handled).await;
    tokio::time::sleep(MEASURE.0).await;
    let after = eventually("the durable", handled).await;
    drop(chaos);
    up.stop().await.ok();
    (after.0 - before.0) as f64 / (after.1 - before.1).as_secs_f64()
}

/// Runs it for so long.
pub(crate) async fn soak(tools: &Tools, runs: Duration, seed: u64) -> Soak {
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(tools, input.path(), 1);
    let golden = without_faults_at(tools, input.path(), photos).await;
    let seed = format!("--seed={seed}");
    let most = capacity(tools, input.path(), &seed).await;
    let rate = LOAD * most;
    eprintln!("{most:.1} pictures a second are the most, with faults; {rate:.1} are asked for");
    let file = home.path().join("faces.toml");
    std::fs::write(&file, pipeline(input.path(), Some(rate))).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let file = file.to_str().expect("a path");
    let up = Running::start(tools, home.path(), &["up", file]);
    let bus = up.bus("faces").await;
    let began = Instant::now();
    let count = format!("--count={}", (runs.as_secs_f64() / FAULT_EVERY).ceil());
    let every = format!("--every={FAULT_EVERY}");
    // Recoveries take their time too.
    let lasts = format!("--for={}", runs.as_secs_f64());
    let arguments = ["chaos", file, "--faults", FAULTS, &count, &every, &lasts, &seed, "--settle=120", "--json"];
    let chaos = Running::start(tools, home.path(), &arguments);
    let mut chaos = Box::pin(chaos.finish_within(runs * 2 + Duration::from_mins(20)));
    let mut samples: BTreeMap<String, Vec<(f64, f64, usize)>> = BTreeMap::new();
    let mut since: BTreeMap<u32, Instant> = BTreeMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    let finished = loop {
        tokio::select! {
            finished = &mut chaos => break finished,
            _ = ticks.tick() => {}
        }
        let about = up.about().await;
        let mut pids = vec![("up".to_owned(), Some(u64::from(up.pid())))];
        pids.push(("nats-server".into(), about["server"]["pid"].as_u64()));
        let stages = about["stages"].as_array().into_iter().flatten();
        pids.extend(stages.filter_map(|stage| Some((stage[0].as_str()?.to_owned(), stage[1]["pid"].as_u64()))));
        for (name, pid) in pids {
            let Some(pid) = pid.and_then(|pid| u32::try_from(pid).ok()) else { continue };
            let Some((memory, files)) = usage(pid) else { continue };
            if since.entry(pid).or_insert_with(Instant::now).elapsed() > GROWN {
                samples.entry(name).or_default().push((began.elapsed().as_secs_f64() / 3600.0, memory, files));
            }
        }
    };
    assert!(!finished.stdout.is_empty(), "{}", finished.stderr);
    let told = finished.json();
    let given_up = sum(home.path(), "causeway_repair_copies_removed", None).await;
    let doubled = told["doubled_subjects"].as_array().into_iter().flatten();
    let doubled = doubled.map(|subject| subject.as_str().expect("a subject").to_owned());
    let (again, doubled): (Vec<_>, Vec<_>) = doubled.partition(|subject| golden.subjects.contains(subject));
    let took = began.elapsed();
    let captured = bus.stream_state("faces_capture").await.ok().flatten().map_or(0, |state| state.last_sequence);
    let seen = verdict(&bus, &pipeline).await;
    let mut values = (0, 0);
    let mut records = bus.scan(&names::stream("faces", "classify"), 1, false).await.expect("decisions");
    while let Some(record) = records.next().await {
        let record = record.expect("a decision");
        let meta = record.headers.meta().expect("headers");
        let decision: Decision = decode_body(&record.body, Codec::Json).expect("a decision");
        let face = (decision.capture.item.clone(), meta.part.to_string());
        let is_same = golden
            .decisions
            .get(&face)
            .is_some_and(|(label, score)| *label == decision.label && (score - decision.score).abs() <= SAME_SCORE);
        values = (values.0 + 1, values.1 + usize::from(!is_same));
    }
    up.stop().await.ok();
    // Of a photo and its part there is one outcome a round.
    let twice = seen.doubled.iter().filter(|what| what.starts_with("faces.")).count();
    Soak {
        rate: (most, rate),
        took,
        captured,
        told,
        doubled: (doubled, again.len()),
        given_up,
        values,
        twice,
        processes: samples.into_iter().map(|(name, samples)| (name, Process::of(&samples))).collect(),
    }
}

impl Process {
    fn of(samples: &[(f64, f64, usize)]) -> Self {
        let line: Vec<(f64, f64)> = samples.iter().map(|&(at, memory, _)| (at, memory)).collect();
        // The mean of a tenth at each end: one sample is noise.
        let tenth = line.len().div_ceil(10);
        let mean = |part: &[(f64, f64)]| part.iter().map(|(_, memory)| memory).sum::<f64>() / part.len() as f64;
        let files = samples.iter().map(|&(_, _, files)| files);
        Self {
            samples: samples.len(),
            memory: (mean(&line[..tenth]), mean(&line[line.len() - tenth..])),
            slope: slope(&line),
            files: (files.clone().min().unwrap_or(0), files.max().unwrap_or(0)),
        }
    }
}

impl Soak {
    /// Copies that went early are told and not judged: where it falls behind for long the camera is not stopped for the sake of repair.
    pub(crate) fn is_well(&self) -> bool {
        self.told["missing"] == 0
            && self.doubled.0.is_empty()
            && self.values.0 > 0
            && self.values.1 == 0
            && self.twice == 0
    }

    /// How many faults there were.
    fn faults(&self) -> u64 {
        let of_each = self.told["faults"].as_object().into_iter().flatten();
        of_each.filter_map(|(_, of)| of["times"].as_u64()).sum()
    }

    pub(crate) fn to_json(&self) -> Value {
        let process = |(name, process): (&String, &Process)| {
            let Process { samples, memory: (begin, end), slope, files: (fewest, most) } = process;
            let told = json!({
                "samples": samples, "rss_mb": begin, "rss_at_end_mb": end, "rss_mb_per_h": slope, "files_fewest": fewest, "files_most": most,
            });
            (name.clone(), told)
        };
        json!({
            "minutes": self.took.as_secs_f64() / 60.0,
            "capacity_per_s": self.rate.0,
            "rate_per_s": self.rate.1,
            "captured": self.captured,
            "faults": self.faults(),
            "missing": self.told["missing"],
            "doubled": self.doubled.0.len(),
            "doubled_subjects": self.doubled.0,
            "run_again_after_they_were_gone": self.doubled.1,
            "worst_recovery_restart_s": self.told["worst_recovery_restart_s"],
            "kept_decisions": self.values.0,
            "not_golden": self.values.1,
            "outcomes_there_twice": self.twice,
            "copies_removed_too_early": self.given_up,
            "processes": self.processes.iter().map(process).collect::<serde_json::Map<_, _>>(),
        })
    }

    pub(crate) fn print(&self) {
        let Self {
            rate: (most, rate),
            took,
            captured,
            told,
            doubled: (doubled, again),
            given_up,
            values,
            twice,
            processes,
        } = self;
        println!(
            "\nsoak of {:.0} min at {rate:.1} of {most:.1} pictures a second: {captured} captured, {} faults, {} missing, {} doubled; worst \
             recovery {} s",
            took.as_secs_f64() / 60.0,
            self.faults(),
            told["missing"],
            doubled.len(),
            told["worst_recovery_restart_s"],
        );
        println!(
            "of {} decisions that are kept {} are not those without faults; {} outcomes there twice; {given_up} copies removed too early",
            values.0, values.1, twice
        );
        println!(
            "{again} outcomes of the folder's own pictures, run again by a later start once their outcomes were gone"
        );
        for subject in doubled.iter().take(NAMED) {
            println!("doubled: {subject}");
        }
        println!(
            "\n| process | samples | RSS at first, MB | at last | slope, MB an hour | open files, fewest | most |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
        for (name, Process { samples, memory: (begin, end), slope, files: (fewest, most) }) in processes {
            println!("| {name} | {samples} | {begin:.1} | {end:.1} | {slope:+.2} | {fewest} | {most} |");
        }
    }
}
