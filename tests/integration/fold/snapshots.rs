//! The state comes back from a snapshot and the changes since, when the older changes are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use super::publish_strange;
use causeway_bus::{Outgoing, StreamState, names};
use causeway_cluster::Cluster;
use causeway_schemas::{Assignment, Codec, Feature, Id, Message as _, Meta, decode_body, encode, header};
use causeway_stage::{Fold as _, Heartbeat};
use futures::StreamExt as _;
use harness::{Running, Site, Tools, causeway, eventually, faces, within};

/// Whose faces come: so many that a state is as long as some tens of changes.
const PEOPLE: usize = 24;

/// The face number `number`: of a person, and a little different each time.
fn face(number: usize) -> Feature {
    let vector = |seed: usize| {
        let mut chance = fastrand::Rng::with_seed(seed as u64);
        std::iter::repeat_with(move || chance.f32() - 0.5)
    };
    let person = vector(number * 7 % PEOPLE);
    let vector: Vec<f32> = person.zip(vector(1000 + number)).take(128).map(|(x, noise)| x + 0.6 * noise).collect();
    harness::face("capture", &number.to_string(), &vector)
}

fn id(number: usize) -> Id {
    Id::captured("capture", &number.to_string())
}

async fn publish(site: &Site, numbers: std::ops::Range<usize>, generation: u32) {
    for number in numbers {
        let meta = Meta::captured(id(number), "extract", Feature::kind(), generation);
        let mut headers = meta.to_headers();
        headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
        let body = encode(&face(number), Codec::Bincode).into();
        let one = Outgoing { subject: "faces.feature.edge.capture".into(), headers, body, if_absent: false };
        site.bus.publish(&one).await.expect("it is stored");
    }
}

/// What the stage has to say, as one says that never stops.
fn golden(faces: usize) -> BTreeMap<Id, Assignment> {
    let mut fold = Cluster::with_threshold(0.4);
    let answer = |number| {
        let change = fold.decide(id(number), &face(number)).expect("a change");
        fold.apply(&change);
        (id(number), fold.output(&change))
    };
    (0..faces).map(answer).collect()
}

/// What it says, by the input.
async fn said(site: &Site) -> BTreeMap<Id, Assignment> {
    let mut said = BTreeMap::new();
    let mut records = site.bus.scan(&names::stream("faces", "cluster"), 1, false).await.expect("outcomes");
    while let Some(record) = records.next().await {
        let record = record.expect("an outcome");
        let input = record.headers.meta().expect("headers").parent.expect("an input");
        let before = said.insert(input, decode_body(&record.body, record.headers.codec()).expect("an assignment"));
        assert_eq!(before, None, "{input} has two outcomes");
    }
    said
}

async fn assert_as_golden(site: &Site, faces: usize) {
    eventually("all outcomes", async || {
        (state(site, "faces_cluster").await.messages >= faces as u64 && is_idle(site).await).then_some(())
    })
    .await;
    let (said, golden) = (said(site).await, golden(faces));
    assert_eq!(said.len(), golden.len());
    for (input, assignment) in golden {
        assert_eq!(said[&input], assignment, "{input}");
    }
}

async fn is_idle(site: &Site) -> bool {
    let durable = site.bus.durable_state("faces_extract", "cluster").await.expect("a state").expect("a durable");
    durable.pending + durable.unacked == 0
}

async fn state(site: &Site, stream: &str) -> StreamState {
    site.bus.stream_state(stream).await.expect("a state").expect("a stream")
}

#[tokio::test]
async fn the_state_comes_back_from_a_snapshot_and_the_changes_since() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    // What is stored is on disk for good at once, as far as the agent knows.
    let small = |stage: &str| if stage == "pipeline" { "[keep]\nchanges = \"64KiB\"\nsync = \"always\"" } else { "" };
    let site = Site::start(&tools, &faces(input.path(), small)).await;
    let file = site.pipeline.file.display().to_string();
    let _agent = Running::start(&tools, home.path(), &["agent", &file, "--nats", &site.server.address()]);
    let stage = site.stage("cluster", &[]);
    publish(&site, 0..10, 0).await;
    assert_as_golden(&site, 10).await;
    // It stands by from here on, while what it knows is purged.
    let standby = site.stage("cluster", &[]);
    eventually("a standby", async || {
        let beats = site.bus.table_entries(names::REPLICAS).await.ok()?;
        let beats = beats.iter().filter_map(|entry| serde_json::from_slice::<Heartbeat>(&entry.value).ok());
        beats.filter(Heartbeat::is_up).any(|beat| beat.pid == standby.pid()).then_some(())
    })
    .await;
    publish(&site, 10..400, 0).await;
    assert_as_golden(&site, 400).await;
    let clusters: std::collections::BTreeSet<Id> = golden(400).values().map(|said| said.cluster).collect();
    assert!(clusters.len() < 100, "faces belong together: {clusters:?}");
    let changelog = eventually("older changes are purged", async || {
        Some(state(&site, "faces_cluster_log").await).filter(|state| state.first_sequence > 200)
    })
    .await;
    assert!(changelog.bytes < 4 * (64 << 10), "it is bounded: {changelog:?}");
    assert!(site.bus.snapshots("cluster").await.expect("snapshots").len() <= 3);
    stage.kill().await;
    publish(&site, 400..450, 0).await;
    assert_as_golden(&site, 450).await;
    standby.kill().await;

    // What a stranger put at the end of the changelog is passed over.
    publish_strange(&site).await;
    let stage = site.stage("cluster", &[]);
    publish(&site, 450..500, 0).await;
    assert_as_golden(&site, 500).await;
    stage.kill().await;

    // The newest does not read: another program's bytes, then one of which a part is gone.
    let last = state(&site, "faces_cluster_log").await.last_sequence;
    let damaged = site.bus.snapshots("cluster").await.expect("snapshots").remove(0);
    site.bus.delete_message("faces_cluster_state", damaged.at + 1).await.expect("it is removed");
    assert!(!site.bus.snapshots("cluster").await.expect("snapshots").contains(&damaged), "it is not whole");
    site.bus.store_snapshot("cluster", last, None, "no snapshot of ours").await.expect("it is stored");
    let stage = site.stage("cluster", &[]);
    publish(&site, 500..550, 0).await;
    assert_as_golden(&site, 550).await;

    // What comes again has its outcome; what the changelog has is known, and not changed twice.
    let last = state(&site, "faces_cluster_log").await.last_sequence;
    publish(&site, 500..550, 1).await;
    assert_as_golden(&site, 550).await;
    assert_eq!(state(&site, "faces_cluster_log").await.last_sequence, last);
    assert_eq!(stage.stop().await, Some(0));

    // No snapshot at all: nobody knows what the purged changes were.
    site.bus.purge("faces_cluster_state").await.expect("it is emptied");
    let stopped = site.finish_stage("cluster", &[]).await;
    let why = "has no snapshot that reads of what was before; changes 1 to";
    assert!(stopped.code != Some(0) && stopped.stderr.contains(why), "{stopped:?}");
}

/// The changelog lost its end, and with it what the newest snapshots are of: they are not taken for snapshots of what comes instead.
#[tokio::test]
async fn a_snapshot_of_what_was_lost_is_none() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let append = async |last: u64, what: &'static str| site.bus.append("cluster", last, vec![what.into()]).await;
    append(0, "first").await.expect("room");
    append(1, "second").await.expect("room");
    site.bus.store_snapshot("cluster", 1, None, "of the first").await.expect("room");
    site.bus.store_snapshot("cluster", 2, Some(&"second".into()), "of the second").await.expect("room");
    let snapshots = async || -> Vec<u64> {
        site.bus.snapshots("cluster").await.expect("snapshots").iter().map(|snapshot| snapshot.sequence).collect()
    };
    let another = site.bus.store_snapshot("cluster", 2, Some(&"another".into()), "of a change that is not there").await;
    assert!(matches!(another, Err(causeway_bus::PublishError::Fenced { .. })), "{another:?}");
    assert_eq!(snapshots().await, [2, 1]);
    site.bus.delete_message("faces_cluster_log", 2).await.expect("it is removed");
    assert_eq!(snapshots().await, [1]);
    // As `up --again` does: all before is forgotten, and the changelog begins behind it.
    site.bus.store_snapshot("cluster", 2, None, "").await.expect("room");
    assert_eq!(snapshots().await, [1], "what was before is still there");
    site.bus.purge("faces_cluster_log").await.expect("it is emptied");
    assert_eq!(snapshots().await, [2]);
    append(2, "third").await.expect("room");
    assert_eq!(snapshots().await, [2]);
    let base = site.bus.snapshots("cluster").await.expect("snapshots").remove(0);
    assert_eq!(site.bus.snapshot_bytes("cluster", &base).await.expect("it reads"), Some(Vec::new()));
}

/// The broker came back with less than it had while the stage was at work.
#[tokio::test]
async fn a_writer_at_work_notices_that_the_changelog_was_set_back() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let mut stage = site.stage("cluster", &[]);
    publish(&site, 0..20, 0).await;
    assert_as_golden(&site, 20).await;
    site.bus.delete_stream("faces_cluster_log").await.expect("it is removed");
    let file = site.pipeline.file.display().to_string();
    causeway(&tools, &["apply", &file, "--nats", &site.server.address()]).await.ok();
    // New or known: it does not go on from a state that the changelog does not have.
    publish(&site, 19..21, 1).await;
    let code = within(Duration::from_secs(30), "its end", async || stage.ended().await).await;
    assert_eq!(code, i32::from(causeway_stage::EXIT_UNFIT));
    let said = site.finish_stage("cluster", &[]).await.stderr;
    assert!(said.contains("its outcomes tell of 20 that it knows nothing of"), "{said}");
    assert_eq!(state(&site, "faces_cluster").await.messages, 20, "nothing else was told");
}
