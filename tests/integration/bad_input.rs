//! Whatever comes in ends as a decision, an `empty` with its reason, or a dead letter with stage, reason and the original
//! bytes; nothing crashes, nothing is lost, nothing is retried for ever, and the good ones are as they would be alone.

mod files;
mod strange;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use causeway_bus::{Bus, Outgoing, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, DeadLetter, Decision, Id, Meta, decode_body, header};
use causeway_stage::read_ledger;
use futures::StreamExt as _;
use harness::{
    Running, Site, Stored, Tools, Verdict, causeway, copy_photos, dead_letters, eventually, verdict, workspace,
};
use serde_json::Value;

use files::{bad_file, write_bad_files};
use strange::{Strange, crops, features, frames, newer};

/// A name or `None`, and the score, by photo and face.
type Decisions = BTreeMap<(String, String), (Option<String>, f32)>;

#[tokio::test]
async fn bad_files_end_with_a_reason_and_the_good_ones_as_ever() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    copy_photos(&tools, input.path(), 1);
    let (golden, _) = run(&tools, input.path()).await;
    let bad = write_bad_files(&tools, input.path());
    let (verdict, home) = run(&tools, input.path()).await;

    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len(), golden.captured.len() + 6, "what is a picture by its header");
    assert_eq!(verdict.dead.len(), bad.len());
    for (face, expected) in &golden.decisions {
        assert_eq!(verdict.decisions.get(face), Some(expected), "{face:?}");
    }
    for (photo, expected) in &golden.empties {
        assert_eq!(verdict.empties.get(photo), Some(expected), "{photo}");
    }
    let label = |photo: &str| {
        let mut faces = verdict.decisions.iter().filter(|((item, _), _)| item == photo);
        let (_, (label, score)) = faces.next().unwrap_or_else(|| panic!("{photo} has a face"));
        assert!(faces.next().is_none(), "one face in {photo}");
        (label.clone().expect("somebody known"), *score)
    };
    let (upright, upright_score) = label("upright.jpg");
    let (rotated, rotated_score) = label("rotated.jpg");
    assert_eq!(upright, "Barack Obama");
    assert_eq!(rotated, upright);
    assert!((rotated_score - upright_score).abs() < 0.05, "{rotated_score} is not {upright_score}");
    assert_eq!(label("deep.png").0, upright);
    for photo in ["cmyk.jpg", "animated.webp", "0-cat.png"] {
        assert_eq!(verdict.empties.get(photo).map(String::as_str), Some("no-face"), "{photo}");
    }
    dead_letters_give_back(&tools, home.path(), &bad).await;
}

/// Runs the face pipeline over `input`, with one person known, to its end; gives what was stored, and where.
async fn run(tools: &Tools, input: &Path) -> (Verdict, tempfile::TempDir) {
    let home = tempfile::tempdir().expect("a folder");
    let person = format!("Barack Obama={}", tools.photos().join("enrol/Barack Obama").display());
    Running::start(tools, home.path(), &["enrol", &person]).finish().await.ok();
    let input = input.to_str().expect("a path");
    let up = ["up", "pipelines/faces.toml", "--input", input, "--until-drained", "--json"];
    let summary = Running::start(tools, home.path(), &up).finish().await.ok().json();
    for stage in summary["stages"].as_array().expect("stages") {
        assert_eq!(stage["restarts"], 0, "{stage}");
        let log = home.path().join(format!("logs/{}.log", stage["stage"].as_str().expect("a name")));
        assert!(!std::fs::read_to_string(log).expect("a log").contains("panicked"), "{stage}");
    }
    let pipeline = faces();
    let stored = Stored::open(home.path(), &pipeline).await;
    let verdict = verdict(&stored.bus, &pipeline).await;
    stored.close().await;
    (verdict, home)
}

fn faces() -> Pipeline {
    Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline")
}

/// `dlq ls` lists each of `bad` with its stage and reason, and `dlq show` gives back the file as it was.
async fn dead_letters_give_back(tools: &Tools, home: &Path, bad: &BTreeMap<&str, (&str, &str)>) {
    let listed = Running::start(tools, home, &["dlq", "ls", "--json"]).finish().await.ok().json();
    let listed = listed["dead_letters"].as_array().expect("dead letters").clone();
    let text = |letter: &Value, key: &str| letter[key].as_str().expect("a text").to_owned();
    let found: BTreeMap<_, _> =
        listed.iter().map(|letter| (text(letter, "item"), (text(letter, "stage"), text(letter, "reason")))).collect();
    let expected = bad.iter().map(|(&item, &(stage, reason))| (item.to_owned(), (stage.into(), reason.into())));
    assert_eq!(found, expected.collect());
    let body = home.join("body");
    for letter in &listed {
        let show = ["dlq", "show", &text(letter, "id"), "--json", "--body", body.to_str().expect("a path")];
        Running::start(tools, home, &show).finish().await.ok();
        let item = text(letter, "item");
        let original = bad_file(tools, &item);
        assert!(std::fs::read(&body).expect("a body") == original, "{item} comes back as it was");
    }
}

#[tokio::test]
async fn strange_messages_are_set_aside_and_good_traffic_goes_on() {
    let tools = Tools::find();
    let text = std::fs::read_to_string(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let site = Site::start(&tools, &text).await;
    let bus = &site.bus;
    let stages = ["preprocess", "extract", "classify", "cluster"].map(|stage| site.stage(stage, &[]));

    let strange: Vec<_> = frames().into_iter().chain(crops()).chain(features()).collect();
    for one in &strange {
        bus.publish(&one.message).await.unwrap_or_else(|error| panic!("{}: {error}", one.name));
    }
    let newer = newer();
    bus.publish(&newer).await.expect("it is stored");
    let photos = tools.photos().join("input");
    let input = format!("capture.input={}", photos.display());
    assert_eq!(site.stage("capture", &["--set", &input]).ended().await, Some(0));

    let expected: BTreeSet<(&str, &str)> =
        strange.iter().flat_map(|one| one.takers.iter().map(|&taker| (one.message.subject.as_str(), taker))).collect();
    let letters = eventually("a dead letter for each", async || {
        let letters = dead_letters(bus, &site.pipeline).await;
        (letters.len() >= expected.len()).then_some(letters)
    })
    .await;
    let found: BTreeSet<(&str, &str)> =
        letters.iter().map(|(_, letter)| (letter.subject.as_str(), letter.stage.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(letters.len(), expected.len());
    for one in &strange {
        for (meta, letter) in letters.iter().filter(|(_, letter)| letter.subject == one.message.subject) {
            assert_is_of(one, meta, letter);
        }
    }
    assert_good_traffic(bus, &site.pipeline, photos.read_dir().expect("photos").count()).await;
    assert_nothing_again(bus, &site.pipeline).await;
    assert_newer_waits(&tools, &site, &newer).await;
    assert_dlq_lists(&tools, &site, &letters).await;
    for stage in &stages {
        // The most memory it ever had: a forged length claims nothing.
        let status = std::fs::read_to_string(format!("/proc/{}/status", stage.pid())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak: u64 = peak.expect("a peak").parse().expect("a number");
        assert!(peak < 700_000, "{peak} kB");
    }
    for stage in stages {
        assert_eq!(stage.stop().await, Some(0));
    }
}

/// The letter says why, and holds what came.
fn assert_is_of(one: &Strange, meta: &Meta, letter: &DeadLetter) {
    let name = one.name;
    assert_eq!(letter.reason, one.reason, "{name}: {}", letter.detail);
    assert!(!letter.detail.is_empty(), "{name}");
    assert!(letter.body == one.message.body, "{name}: its body is the original's");
    let id = one.message.headers.iter().find(|(name, _)| *name == header::ID);
    if let Some(id) = id.and_then(|(_, id)| id.parse::<Id>().ok()) {
        assert_eq!(meta.id, id, "{name}");
    }
    for (header, value) in &one.message.headers {
        assert!(letter.headers.iter().any(|(found, is)| found == header && is == value), "{name}: {header}: {value}");
    }
}

/// Every photo of the demo has its outcomes.
async fn assert_good_traffic(bus: &Bus, pipeline: &Pipeline, photos: usize) {
    eventually("the outcomes of the good ones", async || {
        let ledger = read_ledger(bus, pipeline).await.ok()?;
        let mut records = bus.scan(&names::stream(&pipeline.name, "capture"), 1, true).await.ok()?;
        let mut complete = 0;
        while let Some(record) = records.next().await {
            let record = record.ok()?;
            let id = record.headers.id(header::ID);
            if record.subject.ends_with(".edge.capture") && id.is_some_and(|id| ledger.is_complete(id)) {
                complete += 1;
            }
        }
        (complete == photos).then_some(())
    })
    .await;
    let decisions = decisions(bus, pipeline).await;
    assert!(decisions.len() > photos / 2, "{decisions:?}");
}

async fn decisions(bus: &Bus, pipeline: &Pipeline) -> Decisions {
    let mut decisions = BTreeMap::new();
    let mut records = bus.scan(&names::stream(&pipeline.name, "classify"), 1, false).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let part = record.headers.meta().expect("an outcome has our headers").part.to_string();
        let decision: Decision = decode_body(&record.body, Codec::Json).expect("a decision");
        decisions.insert((decision.capture.item, part), (decision.label, decision.score));
    }
    decisions
}

/// On no link anything is waiting or worked on, but for the one message that needs a newer reader.
async fn assert_nothing_again(bus: &Bus, pipeline: &Pipeline) {
    eventually("rest", async || {
        for stage in pipeline.stages.iter().filter(|stage| !stage.is_source()) {
            let state = bus.durable_state(&names::stream(&pipeline.name, &stage.from[0]), &stage.name).await.ok()??;
            let held = u64::from(stage.name == "preprocess");
            if state.pending > 0 || state.unacked != held {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// It is neither lost nor dead, and `status` says what it waits for.
async fn assert_newer_waits(tools: &Tools, site: &Site, newer: &Outgoing) {
    let kept = site.bus.scan(&names::stream(&site.pipeline.name, "capture"), 1, false).await.expect("a stream");
    let kept = kept.filter_map(async |record| record.ok().filter(|record| record.subject == newer.subject));
    assert_eq!(kept.map(|record| record.body).collect::<Vec<_>>().await, std::slice::from_ref(&newer.body));
    let address = site.server.address();
    eventually("the newer version shown as waiting", async || {
        let status = causeway(tools, &["status", "--json", "--nats", &address]).await.ok().json();
        let stage = status["stages"].as_array()?.iter().find(|stage| stage["name"] == "preprocess")?.clone();
        let state = stage["state"].as_str()?;
        (state.starts_with("waiting: ") && state.contains("frame.v2")).then_some(())
    })
    .await;
}

async fn assert_dlq_lists(tools: &Tools, site: &Site, letters: &[(Meta, DeadLetter)]) {
    let address = site.server.address();
    let listed = causeway(tools, &["dlq", "ls", "--json", "--nats", &address]).await.ok().json();
    let listed = listed["dead_letters"].as_array().expect("dead letters").clone();
    assert_eq!(listed.len(), letters.len());
    let folder = tempfile::tempdir().expect("a folder");
    let body = folder.path().join("body");
    let body_path = body.to_str().expect("a path");
    for subject in ["faces.frame.edge.random", "faces.crop.edge.too-long", "faces.feature.edge.garbage"] {
        let (meta, letter) = letters.iter().find(|(_, letter)| letter.subject == subject).expect("a dead letter");
        let id = meta.id.to_string();
        let show = ["dlq", "show", &id, "--stage", &letter.stage, "--json", "--body", body_path, "--nats", &address];
        let shown = causeway(tools, &show).await.ok().json();
        assert_eq!(shown["reason"], letter.reason.as_str(), "{subject}");
        assert!(std::fs::read(&body).expect("a body") == letter.body, "{subject}: its body is the original's");
    }
}

/// Thousands of messages that nobody can read, and of pictures that are none.
#[tokio::test]
#[ignore = "some minutes"]
async fn a_flood_of_broken_messages_is_set_aside_and_ends_nobody() {
    let flood = harness::flood(&Tools::find(), 2000, 400, 5).await;
    assert_eq!((flood.letters, flood.crashed), (flood.expected, 0), "{flood:?}");
}
