//! Results are for other programs: one that knows NATS reads them, and what it needs to know stands in a document.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use causeway_stand_in::script::{BYTES, ITEMS};
use harness::{Running, StandIns, Tools, causeway, may_skip, stand_in_pipeline, workspace};
use serde_json::Value;
use tokio::process::Command;

#[tokio::test]
async fn a_program_that_knows_nats_reads_results_as_the_document_says() {
    let Some(python) = python() else { return };
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("faces.toml");
    let more = |stage: &str| if stage == "capture" { "rate = 20".into() } else { String::new() };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let file = file.to_str().expect("a path");
    let document = causeway(stand_ins.tools(), &["asyncapi", file]).await.ok().stdout;
    let document: Value = serde_json::from_str(&document).expect("a document");
    let script = [(ITEMS, "2000".to_owned()), (BYTES, "500".into())];
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", file], &script);
    let about = up.about().await;
    let nats = about["nats"].as_str().expect("an address");
    for (channel, kind) in [("decision", "decision.v2"), ("assignment", "assignment.v1")] {
        let address = document["channels"][channel]["address"].as_str().expect("an address");
        // Its begin up to what is different in each.
        let subject = address.split('{').next().expect("a begin").to_owned() + ">";
        let read = read(&python, &[nats, &subject, "3"]).await;
        assert_eq!(read.len(), 3);
        for one in &read {
            as_told(one, &document, channel, kind);
        }
    }
    up.stop().await.ok();
}

#[tokio::test]
async fn with_a_readers_key_it_reads_results_and_those_that_are_kept() {
    let Some(python) = python() else { return };
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    let (path, keys) = (home.path().join("faces.toml"), home.path().join("keys"));
    let more = |stage: &str| match stage {
        "capture" => "rate = 20".into(),
        "pipeline" => "[site.edge]\ncredentials = \"keys/edge\"".into(),
        _ => String::new(),
    };
    std::fs::write(&path, stand_in_pipeline(more)).expect("it is written");
    let (file, out) = (path.to_str().expect("a path"), keys.to_str().expect("a path"));
    let makes = ["keys", file, "--out", out, "--site", "edge", "--reader", "dashboard"];
    causeway(stand_ins.tools(), &["keys", file, "--out", out]).await.ok();
    causeway(stand_ins.tools(), &makes).await.ok();
    let script = [(ITEMS, "2000".to_owned()), (BYTES, "500".into())];
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", file], &script);
    let about = up.about().await;
    let (nats, key) = (about["nats"].as_str().expect("an address"), keys.join("edge/dashboard.nk"));
    let key = key.to_str().expect("a path");
    let read = read(&python, &[nats, "faces.decision.>", "3", key, "faces_classify"]).await;
    let subjects = read.iter().map(|one| one["subject"].as_str().expect("a subject"));
    assert!(subjects.clone().all(|subject| subject.starts_with("faces.decision.edge.")), "{read:?}");
    let kept: Vec<&str> = read.iter().filter_map(|one| one["headers"]["Nats-Sequence"].as_str()).collect();
    assert_eq!(
        (read.len(), &kept[kept.len() - 3..]),
        (6, &["1", "2", "3"][..]),
        "three that came, three that are kept"
    );
    up.stop().await.ok();
}

/// One with nats-py.
fn python() -> Option<PathBuf> {
    let python = workspace().join(".tools/bench/bin/python");
    if !python.is_file() {
        may_skip("there is no Python with nats-py here: `./dev bench --quick` brings it");
    }
    python.is_file().then_some(python)
}

/// What the stranger reads.
async fn read(python: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut reader = Command::new(python);
    reader.arg(workspace().join("tests/stranger.py")).args(arguments);
    reader.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = reader.output().await.expect("it can be run");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("an object")).collect()
}

/// A message is what the document says of its channel.
fn as_told(one: &Value, document: &Value, channel: &str, kind: &str) {
    let headers = &one["headers"];
    let subject: Vec<&str> = one["subject"].as_str().expect("a subject").split('.').collect();
    let address = document["channels"][channel]["address"].as_str().expect("an address");
    for (token, told) in subject.iter().zip(address.split('.')) {
        assert!(told.starts_with('{') || told == *token, "{subject:?} is not {address}");
    }
    assert_eq!(subject.len(), address.split('.').count());
    assert_eq!(headers["ce-specversion"], "1.0", "{headers}");
    assert_eq!(headers["ce-type"], format!("causeway.{kind}").as_str(), "{headers}");
    assert_eq!(headers["ce-source"], format!("/faces/{}/{}", subject[2], subject[3]).as_str(), "{headers}");
    assert_eq!(headers["ce-id"], subject[4], "the id is the last token: {headers}");
    assert_eq!(headers["ce-id"], headers["Causeway-Id"], "{headers}");
    assert_eq!(headers["Content-Type"], "application/json", "{headers}");
    assert!(headers["ce-time"].as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')), "{headers}");
    let message = &document["components"]["messages"][channel];
    let properties = message["headers"]["properties"].as_object().expect("headers");
    assert!(properties.keys().all(|name| !headers[name].is_null()), "{headers}");
    let payload = message["payload"]["properties"].as_object().expect("what it holds");
    let data = one["data"].as_object().expect("an object");
    assert_eq!(payload.keys().collect::<Vec<_>>(), data.keys().collect::<Vec<_>>(), "{data:?}");
}
