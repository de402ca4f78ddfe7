//! `causeway reconcile` closes what was lost, and names what is lost for good.

use std::collections::BTreeSet;

use causeway_bus::{Bus, names};
use causeway_schemas::{Id, header};
use futures::StreamExt as _;
use harness::{Site, Tools, Verdict, copy_photos, drained, eventually, faces, verdict};
use serde_json::Value;

use super::command;

/// Every message of a stream with the captured item that it belongs to.
async fn stored(bus: &Bus, stage: &str) -> Vec<(u64, Id)> {
    let mut found = Vec::new();
    let mut records = bus.scan(&names::stream("faces", stage), 1, true).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        found.push((record.sequence, record.headers.id(header::ROOT).expect("a root")));
    }
    found
}

fn ids(list: &Value) -> BTreeSet<Id> {
    let list = list.as_array().expect("a list").iter();
    list.map(|one| one["id"].as_str().expect("an id").parse().expect("an id")).collect()
}

async fn golden(tools: &Tools, input: &std::path::Path, photos: usize) -> Verdict {
    let site = Site::start(tools, &faces(input, |_| "")).await;
    let _stages = ["preprocess", "extract", "classify", "cluster"].map(|stage| site.stage(stage, &[]));
    site.stage("capture", &[]).ended().await;
    drained(&site.bus, &site.pipeline, photos).await;
    verdict(&site.bus, &site.pipeline).await
}

#[tokio::test]
async fn what_was_removed_behind_our_back_is_run_again() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 2);
    let golden = golden(&tools, input.path(), photos).await;

    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let bus = &site.bus;
    let reconcile = async |arguments: &[&str]| {
        let all = [&["reconcile", "--json"], arguments].concat();
        command(&tools, &site, &all).await
    };
    let preprocess = site.stage("preprocess", &[]);
    site.stage("capture", &[]).ended().await;
    let taken =
        async || bus.durable_state("faces_capture", "preprocess").await.ok()?.filter(|d| d.pending + d.unacked == 0);
    eventually("all crops", taken).await;
    preprocess.stop().await;
    // All is under way: nothing is open, nothing is done.
    let idle = reconcile(&[]).await.ok().json();
    let crops = stored(bus, "preprocess").await;
    let roots: BTreeSet<Id> = crops.iter().map(|&(_, root)| root).collect();
    assert_eq!((&idle["under_way"], &idle["again"]), (&roots.len().into(), &Value::Array(Vec::new())), "{idle}");

    // Every third crop goes, and with it a part of some photos and the whole of others; then all features but one.
    let removed: Vec<_> = crops.iter().step_by(3).collect();
    for (sequence, _) in &removed {
        assert!(bus.delete_message("faces_preprocess", *sequence).await.expect("it is removed"));
    }
    let mut lost: BTreeSet<Id> = removed.iter().map(|(_, root)| *root).collect();
    let extract = site.stage("extract", &[]);
    let taken =
        async || bus.durable_state("faces_preprocess", "extract").await.ok()?.filter(|d| d.pending + d.unacked == 0);
    eventually("all features", taken).await;
    let features = stored(bus, "extract").await;
    bus.purge_below("faces_extract", features[features.len() - 1].0).await.expect("it is purged");
    lost.extend(features[..features.len() - 1].iter().map(|&(_, root)| root));
    let _rest = ["preprocess", "classify", "cluster"].map(|stage| site.stage(stage, &[]));
    drained(bus, &site.pipeline, photos).await;
    assert_eq!(verdict(bus, &site.pipeline).await.open, lost, "the oracle sees what is missing");

    let dry = reconcile(&["--dry-run"]).await.ok().json();
    assert_eq!((ids(&dry["again"]), dry["lost"].as_array().map(Vec::len)), (lost.clone(), Some(0)), "{dry}");
    assert_eq!(bus.stream_state("faces_capture").await.expect("a state").expect("a stream").messages, photos as u64);

    let done = reconcile(&["--wait", "100"]).await.ok().json();
    assert_eq!((ids(&done["again"]), &done["unanswered"]), (lost, &0.into()), "{done}");
    drained(bus, &site.pipeline, photos).await;
    let verdict = verdict(bus, &site.pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured, golden.captured);
    assert_eq!((&verdict.decisions, &verdict.empties), (&golden.decisions, &golden.empties));
    assert_eq!(verdict.clusters, golden.clusters);
    // Once more: nothing is open, and the copies that it made are gone.
    let again = reconcile(&[]).await.ok().json();
    assert_eq!((&again["again"], &again["complete"]), (&Value::Array(Vec::new()), &photos.into()), "{again}");
    assert_eq!(bus.stream_state("faces_capture").await.expect("a state").expect("a stream").messages, photos as u64);
    extract.stop().await;
    assert_lost_is_named(&tools, &site).await;
}

/// An item of which an outcome is gone, and its copy too, cannot be mended: it is named, and the exit code says so.
async fn assert_lost_is_named(tools: &Tools, site: &Site) {
    let bus = &site.bus;
    let (decision, root) = stored(bus, "classify").await[0];
    let copy = stored(bus, "capture").await.into_iter().find(|&(_, of)| of == root).expect("its copy");
    bus.delete_message("faces_classify", decision).await.expect("it is removed");
    bus.delete_message("faces_capture", copy.0).await.expect("it is removed");
    let finished = command(tools, site, &["reconcile"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let line = finished.stdout.lines().find(|line| line.starts_with("lost")).expect("a line");
    assert!(line.contains(&root.to_string()), "{line}");
    assert!(finished.stderr.contains("1 lost"), "{}", finished.stderr);
}
