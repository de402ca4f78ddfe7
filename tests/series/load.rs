//! A pipeline at the most that it can do, minute after minute, without any fault: nothing comes twice that need not, and nothing grows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_stand_in::script::{BYTES, CAMERA, ITEMS, SLOW};
use harness::{Running, Tools, stand_in_pipeline};
use serde_json::{Value, json};

use crate::usage::{slope, sum, usage};

/// How often processes and streams are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Streams are as full as they get, and processes as large, after this part of the time.
const SETTLED: f64 = 0.4;
/// Most that a link holds, bytes.
const LINK: u64 = 4 << 20;

/// What became of a run.
pub(crate) struct Load {
    /// In words.
    pub(crate) name: &'static str,
    /// Captured messages, a second, of the second half.
    pub(crate) captured: f64,
    /// Messages that the last stage handled, likewise.
    pub(crate) handled: f64,
    /// All that were captured.
    pub(crate) all: u64,
    /// Deliveries that were not the first, of all stages.
    pub(crate) redelivered: u64,
    /// The most that a link held, bytes.
    pub(crate) link: u64,
    /// RSS, MB: once settled, at the end, and the slope between, MB an hour; by process.
    pub(crate) memory: BTreeMap<String, (f64, f64, f64)>,
    /// Open files once settled and at the end, by process.
    pub(crate) files: BTreeMap<String, (usize, usize)>,
}

/// One look.
struct Sample {
    at: f64,
    /// MB and open files, by process.
    processes: BTreeMap<String, (f64, usize)>,
    captured: u64,
    handled: f64,
}

/// Runs stages of nothing for so long, of which the last may be `slow` by so many ms a message.
pub(crate) async fn load(tools: &Tools, name: &'static str, slow: u64, runs: Duration) -> Load {
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("faces.toml");
    let more = |stage: &str| match stage {
        "pipeline" => {
            "[keep]\ncaptured = { bytes = \"16MiB\" }\noutcomes = { bytes = \"2MiB\" }\nchanges = \"16MiB\"".into()
        }
        "capture" | "preprocess" | "extract" => format!("link_bytes = \"{}MiB\"", LINK >> 20),
        _ => String::new(),
    };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let script = [
        (ITEMS, "1000000000".to_owned()),
        (BYTES, "2000".into()),
        (CAMERA, "1".into()),
        (SLOW, format!("classify={slow},cluster={slow}")),
    ];
    let up = Running::start_in(tools, home.path(), &["up", file.to_str().expect("a path")], &script);
    let bus = up.bus("faces").await;
    let mut pids = vec![("up".to_owned(), up.pid())];
    for stage in ["capture", "preprocess", "extract", "classify", "cluster"] {
        pids.push((stage.into(), up.stage_pid(stage, None).await));
    }
    let server = up.about().await["server"]["pid"].as_u64();
    pids.extend(server.and_then(|pid| Some(("nats-server".to_owned(), u32::try_from(pid).ok()?))));
    let began = Instant::now();
    let (mut samples, mut link) = (Vec::new(), 0);
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    while began.elapsed() < runs {
        ticks.tick().await;
        for stage in ["preprocess", "extract"] {
            let state = bus.stream_state(&format!("faces_{stage}")).await.ok().flatten();
            link = link.max(state.map_or(0, |state| state.bytes));
        }
        let captured = bus.stream_state("faces_capture").await.ok().flatten().map_or(0, |state| state.last_sequence);
        let handled = sum(home.path(), "causeway_stage_messages_total", Some("cluster")).await;
        let processes = pids.iter().map(|(name, pid)| (name.clone(), usage(*pid).unwrap_or_default())).collect();
        samples.push(Sample { at: began.elapsed().as_secs_f64(), processes, captured, handled });
    }
    let redelivered = sum(home.path(), "causeway_stage_redelivered_total", None).await as u64;
    up.stop().await.ok();
    let settled: Vec<&Sample> = samples.iter().filter(|sample| sample.at > SETTLED * runs.as_secs_f64()).collect();
    let (first, last) = (settled.first().expect("samples"), settled.last().expect("samples"));
    let seconds = last.at - first.at;
    let memory = first.processes.iter().map(|(name, (begin, _))| {
        let line: Vec<(f64, f64)> =
            settled.iter().map(|sample| (sample.at / 3600.0, sample.processes[name].0)).collect();
        (name.clone(), (*begin, last.processes[name].0, slope(&line)))
    });
    Load {
        name,
        captured: (last.captured - first.captured) as f64 / seconds,
        handled: (last.handled - first.handled) / seconds,
        all: last.captured,
        redelivered,
        link,
        memory: memory.collect(),
        files: first
            .processes
            .iter()
            .map(|(name, (_, begin))| (name.clone(), (*begin, last.processes[name].1)))
            .collect(),
    }
}

impl Load {
    pub(crate) fn to_json(&self) -> Value {
        let process = |(name, (begin, end, slope)): (&String, &(f64, f64, f64))| {
            let (files, files_at_end) = self.files[name];
            let told = json!({
                "rss_mb": begin, "rss_at_end_mb": end, "rss_mb_per_h": slope, "files": files, "files_at_end": files_at_end,
            });
            (name.clone(), told)
        };
        json!({
            "name": self.name,
            "captured": self.all,
            "captured_per_s": self.captured,
            "handled_per_s": self.handled,
            "redelivered": self.redelivered,
            "fullest_link_bytes": self.link,
            "link_limit_bytes": LINK,
            "processes": self.memory.iter().map(process).collect::<serde_json::Map<_, _>>(),
        })
    }

    pub(crate) fn print(&self) {
        let Self { name, captured, handled, all, redelivered, link, memory, files } = self;
        println!(
            "\n{name}: {all} captured, {captured:.0} a second, {handled:.0} a second handled by the last stage; {redelivered} deliveries that \
             were not the first; the fullest link held {:.1} MB of {:.1}",
            *link as f64 / 1e6,
            LINK as f64 / 1e6
        );
        println!("\n| process | RSS settled, MB | at the end | slope, MB an hour | open files | at the end |");
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        for (name, (begin, end, slope)) in memory {
            println!("| {name} | {begin:.1} | {end:.1} | {slope:+.1} | {} | {} |", files[name].0, files[name].1);
        }
    }
}
