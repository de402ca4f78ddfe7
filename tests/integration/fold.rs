//! One writer: a standby takes over, and a writer that slept is refused by the server, not by luck.

mod snapshots;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use causeway_bus::names;
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, Id};
use futures::StreamExt as _;
use harness::{Running, Site, Tools, Verdict, copy_photos, drained, eventually, faces, signal, verdict};

/// No change of ours.
const STRANGE: &[u8] = b"not a change";

/// Puts into the changelog what is no change of ours.
async fn publish_strange(site: &Site) {
    let subject = names::changelog_subject("faces", "cluster");
    let strange = causeway_bus::Outgoing { subject, headers: Vec::new(), body: STRANGE.into(), if_absent: false };
    site.bus.publish(&strange).await.expect("anyone may publish");
}

/// Every face is in the changelog exactly once.
async fn assert_changes_once(site: &Site, faces: usize) {
    let mut ids = std::collections::BTreeSet::new();
    let mut records = site.bus.scan(&names::changelog("faces", "cluster"), 1, false).await.expect("a changelog");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        if record.headers.kind() != Some(causeway_bus::CHANGE) {
            assert_eq!(&record.body[..], STRANGE, "only what a stranger put there is none of ours");
            continue;
        }
        let change: causeway_cluster::Change =
            causeway_schemas::decode_body(&record.body, Codec::Bincode).expect("a change");
        assert!(ids.insert(change.id), "{} is in the changelog twice", change.id);
    }
    assert_eq!(ids.len(), faces);
}

fn pipeline() -> Pipeline {
    Pipeline::load(harness::workspace().join("pipelines/faces.toml")).expect("the pipeline")
}

async fn golden(tools: &Tools, input: &std::path::Path) -> Verdict {
    let home = tempfile::tempdir().expect("a folder");
    let arguments = ["up", "pipelines/faces.toml", "--input", input.to_str().expect("a path")];
    let running = Running::start(tools, home.path(), &arguments);
    let pipeline = pipeline();
    let bus = running.bus("faces").await;
    drained(&bus, &pipeline, std::fs::read_dir(input).expect("a folder").count()).await;
    let verdict = verdict(&bus, &pipeline).await;
    running.stop().await.ok();
    verdict
}

#[tokio::test]
async fn a_writer_that_slept_through_a_takeover_is_refused() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 3);
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let first = site.stage("cluster", &[]);
    let _others = ["preprocess", "extract", "classify"].map(|stage| site.stage(stage, &[]));
    let _capture = site.stage("capture", &[]);
    let log = names::changelog("faces", "cluster");
    eventually("a change", async || site.bus.stream_state(&log).await.ok()?.filter(|state| state.messages >= 2)).await;

    // What a stranger puts into the changelog costs a restore, and nothing else.
    publish_strange(&site).await;

    // It stops in the middle, with messages in hand and a state that will be old.
    signal(first.pid(), "STOP");
    let _second = site.stage("cluster", &[]);
    drained(&site.bus, &site.pipeline, photos).await;
    signal(first.pid(), "CONT");
    // Awake: it has to answer for what it held, which is all there already.
    drained(&site.bus, &site.pipeline, photos).await;
    assert_eq!(first.stop().await, Some(0));

    let verdict = verdict(&site.bus, &site.pipeline).await;
    verdict.assert_exactly_once();
    assert_changes_once(&site, verdict.decisions.len()).await;
    let golden = golden(&tools, input.path()).await;
    assert_eq!(verdict.decisions.keys().collect::<Vec<_>>(), golden.decisions.keys().collect::<Vec<_>>());
    assert_eq!(verdict.clusters, golden.clusters);
}

#[tokio::test]
async fn a_second_writer_is_refused_by_the_server() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let append = async |last: u64, change: &'static str| site.bus.append("cluster", last, vec![change.into()]).await;
    let last = append(0, "the first writer's").await.expect("nobody was before");
    let refused = append(0, "of one who does not know").await.expect_err("somebody was before");
    assert!(matches!(refused, causeway_bus::PublishError::Fenced { .. }), "{refused}");
    let last = append(last, "the first writer's").await.expect("it knows all");
    // Nor is any of a batch of which the first is too late: the second would have the right number.
    let batch = vec!["too late".into(), "as if in time".into()];
    let refused = site.bus.append("cluster", last - 1, batch).await.expect_err("somebody was before");
    assert!(matches!(refused, causeway_bus::PublishError::Fenced { .. }), "{refused}");
    let state =
        site.bus.stream_state(&names::changelog("faces", "cluster")).await.expect("a state").expect("a changelog");
    assert_eq!((state.messages, state.last_sequence), (2, last));
}

/// A long batch is sent in its order: the server refuses every change that overtakes another.
#[tokio::test]
async fn a_long_batch_of_changes_is_appended_in_order() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let mut last = 0;
    for _ in 0..10 {
        let changes: Vec<bytes::Bytes> = (0..500_u32).map(|number| number.to_le_bytes().to_vec().into()).collect();
        last = site.bus.append("cluster", last, changes).await.expect("nobody else writes");
    }
    assert_eq!(last, 5000);
    let mut records = site.bus.scan(&names::changelog("faces", "cluster"), 1, false).await.expect("a stream");
    let mut number = 0_u32;
    while let Some(record) = records.next().await {
        assert_eq!(record.expect("a record").body[..], (number % 500).to_le_bytes());
        number += 1;
    }
    assert_eq!(number, 5000);
}

/// The arguments that run a pipeline whose file is in its home; it is made where it is not there, by default without a snapshot.
fn up(home: &std::path::Path, input: &std::path::Path) -> [String; 3] {
    let file = home.join("faces.toml");
    if !file.exists() {
        std::fs::write(&file, faces(input, |_| "")).expect("it is written");
    }
    ["up".into(), file.to_str().expect("a path").into(), "--until-drained".into()]
}

async fn run(tools: &Tools, home: &std::path::Path, arguments: &[String]) -> harness::Finished {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Running::start(tools, home, &arguments).finish().await
}

/// A pipeline that ran to its end and was stopped; its home. Its state may be stored every few faces.
async fn ended(tools: &Tools, input: &std::path::Path, snapshots: bool) -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("a folder");
    if snapshots {
        let small = |stage: &str| if stage == "pipeline" { "[keep]\nchanges = \"64KiB\"" } else { "" };
        std::fs::write(home.path().join("faces.toml"), faces(input, small)).expect("it is written");
    }
    run(tools, home.path(), &up(home.path(), input)).await.ok();
    home
}

/// The outcomes of a home, and the clusters that its changelog makes.
async fn stored(home: &std::path::Path) -> (Verdict, Vec<BTreeSet<Id>>) {
    let pipeline = pipeline();
    let stored = harness::Stored::open(home, &pipeline).await;
    let verdict = verdict(&stored.bus, &pipeline).await;
    let (mut merges, mut changes) = (causeway_cluster::Merges::default(), Vec::new());
    let mut records = stored.bus.scan(&names::changelog("faces", "cluster"), 1, false).await.expect("a changelog");
    while let Some(record) = records.next().await {
        let change: causeway_cluster::Change =
            causeway_schemas::decode_body(&record.expect("a record").body, Codec::Bincode).expect("a change");
        merges.add(&change);
        changes.push((change.id, change.cluster));
    }
    let mut clusters: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    for (face, cluster) in changes {
        clusters.entry(merges.current(cluster)).or_default().insert(face);
    }
    stored.close().await;
    (verdict, clusters.into_values().collect())
}

/// The next `up` stops and says why, in one line, and what to do.
async fn assert_stops(tools: &Tools, input: &std::path::Path, home: &std::path::Path, why: &str) {
    let arguments = up(home, input);
    let stopped = run(tools, home, &arguments).await;
    assert_eq!(stopped.code, Some(1), "{stopped:?}");
    let said = stopped.stderr.lines().find(|line| line.contains("cannot restore [stage.cluster]"));
    let said = said.unwrap_or_else(|| panic!("{stopped:?}"));
    assert!(said.contains(why) && said.contains("causeway up --again"), "no `{why}`: {said}");
    // As it says.
    let again = run(tools, home, &[&arguments[..], &["--again".into()]].concat()).await.ok();
    assert!(!again.stderr.contains("cannot restore"), "{again:?}");
}

/// So many copies of the photos, and the home of a pipeline that ran over them to its end.
async fn photos_ended(tools: &Tools, copies: usize, snapshots: bool) -> (tempfile::TempDir, tempfile::TempDir) {
    let input = tempfile::tempdir().expect("a folder");
    copy_photos(tools, input.path(), copies);
    let home = ended(tools, input.path(), snapshots).await;
    (input, home)
}

/// Changes the file of the changelog that has its newest entry, as a failing disk may. Gives its folder.
fn damage(home: &std::path::Path, damage: impl Fn(&mut Vec<u8>)) -> PathBuf {
    let messages = home.join("edge/store/jetstream/$G/streams/faces_cluster_log/msgs");
    let files = std::fs::read_dir(&messages).expect("a folder").map(|file| file.expect("a file").path());
    let blocks = files.filter(|file| file.extension().is_some_and(|extension| extension == "blk"));
    let number = |file: &PathBuf| file.file_stem()?.to_str()?.parse::<u64>().ok();
    let newest = blocks.max_by_key(number).expect("a block");
    let mut block = std::fs::read(&newest).expect("a block");
    damage(&mut block);
    std::fs::write(&newest, block).expect("it is written");
    messages
}

/// The same, of a server that has to read that file at its start, since it has nothing else.
fn damage_unindexed(home: &std::path::Path, change: impl Fn(&mut Vec<u8>)) {
    let messages = damage(home, change);
    std::fs::remove_file(messages.join("index.db")).expect("it is removed");
}

#[tokio::test]
async fn a_changelog_without_its_last_entry_is_told_or_made_whole() {
    let tools = Tools::find();
    let (input, home) = photos_ended(&tools, 1, false).await;
    let flip = |block: &mut Vec<u8>| {
        let at = block.len() - 40;
        block[at] ^= 1;
    };
    // The server counts the entry by what it wrote down when it ended, and does not give it, without a word.
    damage(home.path(), flip);
    assert_stops(&tools, input.path(), home.path(), "of faces_cluster_log are missing").await;
    let before = stored(home.path()).await.0;
    let is_mended = async || {
        let up = run(&tools, home.path(), &up(home.path(), input.path())).await.ok();
        assert!(up.stderr.contains("its outcomes tell of 1 that it knows nothing of"), "{up:?}");
        assert!(up.stderr.contains("all that [stage.cluster] has lost is kept: 1 item run again"), "{up:?}");
        assert_eq!(stored(home.path()).await.0.assigned, before.assigned);
    };
    // Where it has to read its files it finds that the checksum is wrong, and forgets that there was an entry.
    damage_unindexed(home.path(), flip);
    is_mended().await;
    // A write that did not come to its end.
    damage_unindexed(home.path(), |block| block.truncate(block.len() - 100));
    is_mended().await;
}

/// As after a power failure: the outcomes tell of changes that the changelog has lost. They are made again as they were told.
#[tokio::test]
async fn what_the_end_of_the_changelog_has_lost_is_made_again_as_it_was_told() {
    let tools = Tools::find();
    // The newest snapshots are of what is lost.
    let (input, home) = photos_ended(&tools, 4, true).await;
    let (before, clusters) = stored(home.path()).await;
    assert!(clusters.len() < before.assigned.len(), "some belong together: {clusters:?}");
    let up = up(home.path(), input.path());
    let lose_half = || damage_unindexed(home.path(), |block| block.truncate(block.len() / 2));
    let stops = async || {
        let stopped = run(&tools, home.path(), &up).await;
        assert_eq!(stopped.code, Some(1), "{stopped:?}");
        assert!(stopped.stderr.contains("let `causeway reconcile` run again what is kept of it"), "{stopped:?}");
    };
    let reconcile = async |more: &[&str]| {
        Running::start(&tools, home.path(), &[&["reconcile", up[1].as_str()], more].concat()).finish().await
    };
    lose_half();
    let mended = run(&tools, home.path(), &up).await.ok();
    assert!(mended.stderr.contains("all that [stage.cluster] has lost is kept"), "{mended:?}");
    let (after, as_folded) = stored(home.path()).await;
    after.assert_exactly_once();
    assert_eq!(after.assigned, before.assigned);
    assert_eq!(as_folded, clusters);

    // What has no copy any more is named, and the others go on without it once a person knows.
    lose_half();
    let pipeline = pipeline();
    let store = harness::Stored::open(home.path(), &pipeline).await;
    store.bus.purge(&names::stream("faces", "capture")).await.expect("it is emptied");
    store.close().await;
    stops().await;
    assert!(!reconcile(&["--dry-run", "--json"]).await.json()["lost"].as_array().expect("a list").is_empty());
    // Nothing was done yet.
    stops().await;
    let told = reconcile(&["--json"]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    let lost = told.json()["lost"].clone();
    let names: Vec<&str> = lost.as_array().expect("a list").iter().filter_map(|one| one["item"].as_str()).collect();
    assert!(!names.is_empty() && names.iter().all(|name| input.path().join(name).exists()), "{lost}");
    run(&tools, home.path(), &up).await.ok();
    let (after, as_folded) = stored(home.path()).await;
    assert_eq!(after.assigned, before.assigned);
    assert!(as_folded.iter().flatten().count() < clusters.iter().flatten().count());
}

#[tokio::test]
async fn a_changelog_with_a_hole_is_told_and_not_gone_on_from() {
    let tools = Tools::find();
    let (input, home) = photos_ended(&tools, 1, false).await;
    let pipeline = pipeline();
    let change = async |change: &dyn Fn(causeway_bus::Bus) -> futures::future::BoxFuture<'static, ()>| {
        let stored = harness::Stored::open(home.path(), &pipeline).await;
        change(stored.bus.clone()).await;
        stored.close().await;
    };
    change(&|bus| {
        Box::pin(async move { bus.delete_message("faces_cluster_log", 3).await.map(drop).expect("it is removed") })
    })
    .await;
    assert_stops(&tools, input.path(), home.path(), "changes 3 to 3 of faces_cluster_log are missing").await;

    change(&|bus| {
        Box::pin(async move {
            let state = bus.stream_state("faces_cluster_log").await.expect("a state").expect("a changelog");
            bus.append("cluster", state.last_sequence, vec!["no change of ours".into()]).await.map(drop).expect("room");
        })
    })
    .await;
    assert_stops(&tools, input.path(), home.path(), "does not read").await;
}
