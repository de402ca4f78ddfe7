//! A clock that jumps, as after a dead battery or a wrong time server: by weeks and by an hour, forward and back, while everything works.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, Decision, decode_body};
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use futures::StreamExt as _;
use harness::{Running, StandIns, Tools, debian_program, eventually, kill, stand_in_pipeline, verdict};

/// Longer than anything is kept, so that all of it looks old.
const WEEKS: i64 = 40 * 86_400;
const HOUR: i64 = 3600;

/// What gives a process another clock: libfaketime, told by a file that may change while the process runs. A nats-server is linked
/// without a C library and keeps the machine's.
fn environment(told: &Path) -> Option<Vec<(&'static str, String)>> {
    let faketime = debian_program("faketime", "faketime")?;
    let output = Command::new(faketime).args(["-m", "-f", "+0", "env"]).output().expect("faketime can be run");
    let output = String::from_utf8_lossy(&output.stdout).into_owned();
    let library = output.lines().find_map(|line| line.strip_prefix("LD_PRELOAD=")).expect("a library").to_owned();
    Some(vec![
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", told.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".into()),
        // What runs off is measured by a clock that never jumps.
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ])
}

fn jump(told: &Path, seconds: i64) {
    let next = told.with_extension("next");
    std::fs::write(&next, format!("{seconds:+}\n")).expect("it is written");
    std::fs::rename(next, told).expect("it is there");
}

/// How far the clocks of those who captured went, s.
async fn range(bus: &Bus) -> u64 {
    let mut at = BTreeSet::new();
    let mut records = bus.scan(&names::stream("faces", "classify"), 1, false).await.expect("decisions");
    while let Some(record) = records.next().await {
        let decision: Decision = decode_body(&record.expect("one").body, Codec::Json).expect("a decision");
        at.insert(decision.capture.captured_at / 1_000_000_000);
    }
    at.last().zip(at.first()).map_or(0, |(last, first)| last - first)
}

#[tokio::test]
async fn a_clock_that_jumps_costs_nothing() {
    const MESSAGES: u64 = 600;
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    let told = home.path().join("clock");
    jump(&told, 0);
    let Some(mut script) = environment(&told) else { return };
    script.extend([(ITEMS, MESSAGES.to_string()), (BYTES, "500".into()), (CAMERA, "1".into())]);
    let file = home.path().join("faces.toml");
    let more = |stage: &str| if stage == "capture" { "rate = 100".into() } else { String::new() };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let file = file.to_str().expect("a path");
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", file], &script);
    let bus = up.bus("faces").await;
    let captured = async |more: u64| {
        let state = async || bus.stream_state("faces_capture").await.ok()?;
        let before = state().await.map_or(0, |state| state.last_sequence);
        let wanted = (before + more).min(MESSAGES);
        eventually("more of them", async || state().await?.last_sequence.checked_sub(wanted)).await;
    };
    for (number, seconds) in [WEEKS, 0, HOUR, -HOUR, -WEEKS, 0].into_iter().enumerate() {
        captured(60).await;
        jump(&told, seconds);
        // A process that begins at another time than the others.
        if number % 2 == 0 {
            kill(up.stage_pid(["preprocess", "cluster", "extract"][number / 2], None).await);
        }
    }
    for stage in ["classify", "cluster"] {
        let stream = names::stream("faces", stage);
        eventually("all outcomes", async || bus.stream_state(&stream).await.ok()??.messages.checked_sub(MESSAGES))
            .await;
    }
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!((verdict.decisions.len() as u64, verdict.assigned.len() as u64), (MESSAGES, MESSAGES));
    // By a clock that is weeks ahead the copies of all before are old: those that are complete were purged, and no other.
    assert!(!verdict.captured.is_empty() && (verdict.captured.len() as u64) < MESSAGES, "{}", verdict.captured.len());
    assert!(range(&bus).await >= WEEKS as u64, "the clock was another one");
    let status = Running::start(stand_ins.tools(), home.path(), &["status", file, "--json"]);
    let status = status.finish_within(Duration::from_secs(30)).await.ok().json();
    assert_eq!(status["drift"].as_array().map(Vec::len), Some(0), "{status}");
    up.stop().await.ok();
}
