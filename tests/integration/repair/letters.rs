//! Dead letters: shown, sent again, given up.

use std::collections::BTreeSet;

use causeway_bus::{Bus, Outgoing, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, Feature, Message as _, header};
use harness::{
    Running, Site, Stored, Tools, Verdict, copy_photos, dead_letters, eventually, faces, kill, verdict, workspace,
};

use super::{FEATURES, command, decision_of, feature, is_idle, outcomes, set_aside};

async fn site(tools: &Tools) -> Site {
    let input = tempfile::tempdir().expect("a folder");
    Site::start(tools, &faces(input.path(), |_| "")).await
}

#[tokio::test]
async fn a_retry_reaches_the_stage_that_failed_and_no_other() {
    let tools = Tools::find();
    let site = site(&tools).await;
    let _stages = ["classify", "cluster"].map(|stage| site.stage(stage, &[]));
    let failed = set_aside(&site.bus, "classify", "a.jpg").await;
    let shown = command(&tools, &site, &["dlq", "show", &failed.id.to_string()]).await.ok().stdout;
    assert!(shown.contains("a.jpg  sface-2021dec-128 [128]"), "{shown}");

    let retried =
        command(&tools, &site, &["dlq", "retry", &failed.id.to_string(), "--wait", "60", "--json"]).await.ok();
    assert_eq!((&retried.json()["answered"], &retried.json()["unanswered"]), (&1.into(), &0.into()), "{retried:?}");
    assert_eq!(outcomes(&site.bus, "classify").await.into_iter().collect::<Vec<_>>(), [(decision_of(&failed), 1)]);
    assert!(dead_letters(&site.bus, &site.pipeline).await.is_empty(), "its letter goes with its answer");
    // The other taker of the link acks it unread: it had its answer the first time.
    for stage in ["classify", "cluster"] {
        eventually("an idle link", async || is_idle(&site.bus, &site.pipeline, stage).await).await;
    }
    assert!(outcomes(&site.bus, "cluster").await.is_empty(), "cluster was not asked");
    let none = command(&tools, &site, &["dlq", "retry", "--all"]).await.ok();
    assert!(none.stderr.contains("no dead letters of this sort"), "{}", none.stderr);
}

#[tokio::test]
async fn what_fails_again_is_one_letter_again() {
    let tools = Tools::find();
    let site = site(&tools).await;
    let _stages = ["classify", "cluster"].map(|stage| site.stage(stage, &[]));
    let (meta, _) = feature("a.jpg");
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    let malformed = Outgoing { subject: FEATURES.into(), headers, body: "no feature".into(), if_absent: false };
    site.bus.publish(&malformed).await.expect("it is stored");
    let both = eventually("a letter of each", async || {
        let letters = dead_letters(&site.bus, &site.pipeline).await;
        (letters.len() == 2).then_some(letters)
    })
    .await;
    assert!(both.iter().all(|(meta, _)| meta.generation == 0));

    let arguments = ["dlq", "retry", &meta.id.to_string(), "--stage", "classify", "--wait", "60", "--json"];
    for again in 1..=2 {
        let retried = command(&tools, &site, &arguments).await;
        assert_eq!(retried.code, Some(1), "{retried:?}");
        assert_eq!(retried.json()["again"][0]["stage"], "classify", "{retried:?}");
        let letters = dead_letters(&site.bus, &site.pipeline).await;
        let of = |stage: &str| letters.iter().find(|(_, letter)| letter.stage == stage).expect("its letter");
        assert_eq!(letters.len(), 2, "the newer letter takes the place of the older");
        assert_eq!((of("classify").0.generation, of("cluster").0.generation), (again, 0));
        assert_eq!((of("classify").0.id, &of("classify").1.body[..]), (meta.id, &b"no feature"[..]));
    }
}

#[tokio::test]
async fn a_retry_that_is_killed_leaves_a_letter_or_an_answer_of_each() {
    const LETTERS: usize = 300;
    let tools = Tools::find();
    let site = site(&tools).await;
    let mut failed = Vec::new();
    for number in 0..LETTERS {
        failed.push(set_aside(&site.bus, "classify", &number.to_string()).await);
    }
    let (file, nats) = (site.pipeline.file.display().to_string(), site.server.address());
    let home = tempfile::tempdir().expect("a folder");
    let link = names::stream("faces", "extract");
    // Killed at two moments, while nobody answers: every letter is there, whether it was sent or not.
    for killed_at in [1, 40] {
        let before = site.bus.stream_state(&link).await.expect("a state").expect("a link").last_sequence;
        let arguments = ["dlq", "retry", "--all", "--pipeline", &file, "--nats", &nats];
        let retry = Running::start(&tools, home.path(), &arguments);
        eventually("some are sent", async || {
            let state = site.bus.stream_state(&link).await.ok()??;
            (state.last_sequence >= before + killed_at).then_some(())
        })
        .await;
        kill(retry.pid());
        drop(retry);
        assert_eq!(dead_letters(&site.bus, &site.pipeline).await.len(), LETTERS);
    }
    // Some were sent twice, most not at all.
    let _stages = ["classify", "cluster"].map(|stage| site.stage(stage, &[]));
    eventually("an idle link", async || is_idle(&site.bus, &site.pipeline, "classify").await).await;
    assert_one_of_each(&site, &failed).await;
    command(&tools, &site, &["dlq", "retry", "--all", "--wait", "60"]).await.ok();
    assert!(dead_letters(&site.bus, &site.pipeline).await.is_empty());
    assert_one_of_each(&site, &failed).await;
}

/// Each has its decision once, or its letter, and never both.
async fn assert_one_of_each(site: &Site, failed: &[causeway_schemas::Meta]) {
    let decisions = outcomes(&site.bus, "classify").await;
    let letters = dead_letters(&site.bus, &site.pipeline).await;
    let letters: BTreeSet<_> = letters.iter().map(|(meta, _)| meta.id).collect();
    assert!(decisions.values().all(|&count| count == 1), "{decisions:?}");
    for one in failed {
        let answered = decisions.contains_key(&decision_of(one));
        assert_ne!(answered, letters.contains(&one.id), "{}: answered {answered}", one.id);
    }
    assert_eq!(decisions.len() + letters.len(), failed.len());
}

#[tokio::test]
async fn mended_photos_end_as_if_nothing_had_been_wrong() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 1);
    let golden = run(&tools, &tempfile::tempdir().expect("a folder"), input.path(), &[]).await;
    std::fs::write(input.path().join("notes.jpg"), "dear diary").expect("it is written");

    let home = tempfile::tempdir().expect("a folder");
    // Every photo is too large for this setting.
    let broken = run(&tools, &home, input.path(), &["--set", "preprocess.max_pixels=1000"]).await;
    assert_eq!(broken.dead.len(), photos + 1, "{:?}", broken.dead);
    let dlq = async |arguments: &[&str]| {
        let all = [&["dlq"], arguments, &["--json"]].concat();
        Running::start(&tools, home.path(), &all).finish().await
    };
    let listed = async |arguments: &[&str]| {
        let listed = dlq(&[&["ls"], arguments].concat()).await.ok().json();
        listed["dead_letters"].as_array().expect("a list").len()
    };
    assert_eq!(listed(&["--stage", "preprocess", "--since", "1h"]).await, photos);
    assert_eq!((listed(&["--until", "1h"]).await, listed(&["--reason", "not-an-image"]).await), (0, 1));

    // Nothing runs: what is sent waits for the next `up`. What was never a message cannot be sent, and is named.
    let retried = dlq(&["retry", "--all"]).await;
    assert_eq!(retried.code, Some(1), "{retried:?}");
    let json = retried.json();
    assert_eq!(json["sent"].as_array().expect("a list").len(), photos, "{json}");
    let why = json["refused"][0]["why"].as_str().expect("why");
    assert!(why.contains("capture could not read it") && json["refused"][0]["item"] == "notes.jpg", "{json}");
    let dropped = dlq(&["drop", "--reason", "not-an-image"]).await.ok().json();
    assert_eq!(dropped["dropped"][0]["item"], "notes.jpg", "{dropped}");
    let refused = dlq(&["drop", "--all"]).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("add --yes"), "{refused:?}");

    let mended = run(&tools, &home, input.path(), &[]).await;
    mended.assert_exactly_once();
    assert_eq!(mended.decisions, golden.decisions);
    assert_eq!(mended.clusters.len(), golden.clusters.len());
    assert!(mended.dead.is_empty(), "{:?}", mended.dead);
    // What was given up is accounted for as such, and not captured again.
    let mut empties = golden.empties.clone();
    empties.insert("notes.jpg".into(), "dropped".into());
    assert_eq!(mended.empties, empties);
}

async fn run(tools: &Tools, home: &tempfile::TempDir, input: &std::path::Path, more: &[&str]) -> Verdict {
    let input = input.to_str().expect("a path");
    let up = [&["up", "pipelines/faces.toml", "--input", input, "--until-drained", "--json"], more].concat();
    Running::start(tools, home.path(), &up).finish().await.ok();
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let stored = Stored::open(home.path(), &pipeline).await;
    let verdict = verdict(&stored.bus, &pipeline).await;
    stored.close().await;
    verdict
}

#[tokio::test]
async fn nothing_is_done_to_all_by_accident() {
    let tools = Tools::find();
    let site = site(&tools).await;
    let failed = set_aside(&site.bus, "classify", "a.jpg").await;
    let refused = async |arguments: &[&str], word: &str| {
        let finished = command(&tools, &site, arguments).await;
        assert!(finished.code == Some(1) && finished.stderr.contains(word), "{arguments:?}: {finished:?}");
    };
    refused(&["dlq", "retry", "--dry-run"], "cannot tell which dead letters to retry").await;
    refused(&["dlq", "drop", "--yes"], "cannot tell which dead letters to drop").await;
    refused(&["dlq", "drop", "0000"], "begins with `0000`").await;
    refused(&["dlq", "ls", "--since", "1h", "--until", "2h"], "ends before it begins").await;
    refused(&["dlq", "retry", "--stage", "clasify"], "clasify").await;
    let wrong = command(&tools, &site, &["dlq", "ls", "--since", "yesterday"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("is no age like"), "{wrong:?}");
    let would = command(&tools, &site, &["dlq", "retry", "--all", "--dry-run"]).await.ok();
    assert!(would.stdout.contains("would be sent"), "{would:?}");
    let link = site.bus.stream_state(&names::stream("faces", "extract")).await.expect("a state").expect("a link");
    assert_eq!(link.last_sequence, 0, "nothing was sent");

    // A stranger's letter is listed, cannot be sent, and can be dropped.
    let strange = Outgoing {
        subject: "faces.dead.edge.stranger.hello".into(),
        headers: vec![(header::KIND, Feature::kind())],
        body: "hello".into(),
        if_absent: false,
    };
    site.bus.publish(&strange).await.expect("it is stored");
    refused(&["dlq", "retry", "--reason", "unreadable"], "no stage wrote it").await;
    command(&tools, &site, &["dlq", "drop", "--reason", "unreadable"]).await.ok();
    command(&tools, &site, &["dlq", "drop", &failed.id.to_string()]).await.ok();
    assert_eq!(letters_left(&site.bus).await, 0);
    let ledger = causeway_stage::read_ledger(&site.bus, &site.pipeline).await.expect("a ledger");
    // Given up for classify; cluster was never asked.
    assert!(!ledger.is_complete(failed.root));
    set_aside(&site.bus, "cluster", "a.jpg").await;
    command(&tools, &site, &["dlq", "drop", "--stage", "cluster"]).await.ok();
    let ledger = causeway_stage::read_ledger(&site.bus, &site.pipeline).await.expect("a ledger");
    assert!(ledger.is_complete(failed.root), "given up for both");
}

async fn letters_left(bus: &Bus) -> u64 {
    bus.stream_state(&names::stream("faces", names::DEAD)).await.expect("a state").expect("a stream").messages
}
