//! `causeway replay` answers what is stored once more, and touches nothing of it.

use std::collections::BTreeMap;
use std::path::Path;

use causeway_bus::Bus;
use causeway_pipelines::Pipeline;
use harness::{Running, Stored, Tools, copy_photos, eventually, workspace};
use serde_json::Value;

const STREAMS: [&str; 8] = [
    "faces_capture",
    "faces_preprocess",
    "faces_extract",
    "faces_classify",
    "faces_cluster",
    "faces_cluster_log",
    "faces_empty",
    "faces_dead",
];

/// How far each stream of the live pipeline is.
async fn live(bus: &Bus) -> BTreeMap<&'static str, (u64, u64)> {
    let mut states = BTreeMap::new();
    for stream in STREAMS {
        let state = bus.stream_state(stream).await.expect("a state").expect("a stream");
        states.insert(stream, (state.messages, state.last_sequence));
    }
    states
}

async fn replay(tools: &Tools, home: &Path, arguments: &[&str]) -> Value {
    let all = [&["replay", "pipelines/faces.toml", "--json"], arguments].concat();
    Running::start(tools, home, &all).finish().await.ok().json()
}

#[tokio::test]
async fn a_replay_answers_the_same_and_says_what_a_setting_changes() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 1);
    let person = format!("Barack Obama={}", tools.photos().join("enrol/Barack Obama").display());
    Running::start(&tools, home.path(), &["enrol", &person]).finish().await.ok();
    let input = input.path().to_str().expect("a path");
    let up = ["up", "pipelines/faces.toml", "--input", input];
    let summary = Running::start(&tools, home.path(), &[&up[..], &["--until-drained", "--json"]].concat());
    let summary = summary.finish().await.ok().json();
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let stored = Stored::open(home.path(), &pipeline).await;
    let before = live(&stored.bus).await;
    stored.close().await;

    // Where nothing runs.
    let same = replay(&tools, home.path(), &["--from", "1h", "--diff"]).await;
    assert_eq!((&same["items"], &same["diff"]["changed"]), (&photos.into(), &0.into()), "{same}");
    assert_eq!(same["results"]["faces"], summary["faces"], "{same}");
    let answers =
        2 * same["results"]["faces"].as_u64().expect("faces") + same["results"]["empties"].as_u64().expect("empties");
    assert_eq!((&same["diff"]["equal"], &same["diff"]["compared"]), (&answers.into(), &photos.into()), "{same}");

    // Beside a pipeline that runs.
    let running = Running::start(&tools, home.path(), &up);
    let bus = running.bus("faces").await;
    let other = replay(&tools, home.path(), &["--from", "1h", "--diff", "--set", "classify.threshold=0.99"]).await;
    let changes = other["diff"]["changes"].as_array().expect("a list");
    let labels = changes.iter().filter(|change| change["what"] == "label").count();
    assert!(labels > 0 && labels == changes.len(), "{other}");
    assert!(
        changes.iter().all(|change| change["live"].as_str().expect("a text").starts_with("Barack Obama")),
        "{other}"
    );

    let root = changes_root(&bus).await;
    let one = replay(&tools, home.path(), &["--id", &root, "--stage", "preprocess", "--diff", "--keep"]).await;
    assert_eq!((&one["items"], &one["diff"]["changed"]), (&1.into(), &0.into()), "{one}");
    let run = one["run"].as_str().expect("a name");
    let left = format!("faces-replay-{run}_preprocess");
    assert!(bus.stream_state(&left).await.expect("a state").is_some_and(|state| state.messages > 0), "it is kept");
    let remove = ["replay", "pipelines/faces.toml", "--remove", run];
    Running::start(&tools, home.path(), &remove).finish().await.ok();
    assert!(bus.stream_state(&left).await.expect("a state").is_none(), "it is removed");
    assert!(!home.path().join("replay").join(run).exists());

    assert_eq!(live(&bus).await, before, "live streams are as they were");
    assert_eq!(bus.stream_names().await.expect("names").iter().filter(|name| name.contains("replay")).count(), 0);
    running.stop().await.ok();
}

/// The captured id of some decision.
async fn changes_root(bus: &Bus) -> String {
    eventually("a decision", async || {
        let record = bus.message_at("faces_classify", 1).await.ok()??;
        Some(record.headers.meta().ok()?.root.to_string())
    })
    .await
}

#[tokio::test]
async fn a_replay_of_nothing_says_so() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let refused = async |arguments: &[&str], code: i32, word: &str| {
        let all = [&["replay", "pipelines/faces.toml"], arguments].concat();
        let finished = Running::start(&tools, home.path(), &all).finish().await;
        assert!(finished.code == Some(code) && finished.stderr.contains(word), "{arguments:?}: {finished:?}");
    };
    refused(&["--diff"], 1, "cannot tell what to replay").await;
    refused(&["--from", "1h"], 1, "nothing runs here, and no results are stored").await;
    refused(&["--from", "1h", "--to", "2h"], 1, "ends before it begins").await;
    refused(&["--id", "x", "--from", "soon"], 2, "is no age like").await;
}
