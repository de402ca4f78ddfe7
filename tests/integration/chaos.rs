//! `causeway chaos`: one fault of each sort, judged by the command and by the oracle; and what it says when the promise is broken.

use std::path::Path;

use causeway_bus::Bus;
use harness::{
    Finished, Running, StandIns, Tools, at_work, copy_photos, drained, faces_up, stand_ins_at, without_faults,
};

async fn chaos(tools: &Tools, home: &Path, arguments: &[&str]) -> Finished {
    let all: Vec<&str> = ["chaos"].iter().chain(arguments).copied().collect();
    Running::start(tools, home, &all).finish().await
}

#[tokio::test]
async fn one_fault_of_each_sort_costs_nothing_and_doubles_nothing() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 10);
    let oracle = without_faults(&tools, input.path(), photos).await;

    let (pipeline, arguments) = faces_up(input.path(), 6);
    let up = Running::start(&tools, home.path(), &arguments.each_ref().map(String::as_str));
    let bus = up.bus(&pipeline.name).await;
    let sorts = "--faults=stage,all,server,pause,pause-server";
    let told =
        chaos(&tools, home.path(), &[sorts, "--count=10", "--every=0.3", "--pause=1.5", "--seed=4", "--json"]).await;
    let told = told.ok().json();
    assert_eq!((&told["missing"], &told["doubled"]), (&0.into(), &0.into()), "{told}");
    assert_eq!(told["kills"], 6, "two of each sort that kills: {told}");
    drained(&bus, &pipeline, photos).await;
    let faults = oracle.faults(&bus, &pipeline).await;
    assert!(faults.is_empty(), "{faults:#?}");
    up.stop().await.ok();
}

#[tokio::test]
async fn what_is_lost_is_told() {
    let stand_ins_of = StandIns::link(&Tools::find());
    let tools = stand_ins_of.tools();
    let home = tempfile::tempdir().expect("a folder");
    let file = stand_ins_at(home.path(), 150);
    let up = Running::start_in(tools, home.path(), &["up", &file], &at_work(1500));
    let bus = up.bus("faces").await;
    let arguments = [&file, "--faults=stage", "--stage=extract", "--count=2", "--every=0.5", "--settle=5", "--json"];
    let told = tokio::join!(chaos(tools, home.path(), &arguments), emptied(&bus)).0;
    assert_eq!(told.code, Some(1), "{told:?}");
    let told = told.json();
    let missing = told["missing"].as_u64().expect("a number");
    assert!(missing > 0, "{told}");
    assert_eq!(told["missing_ids"].as_array().expect("a list").len() as u64, missing, "{told}");
    up.stop().await.ok();
}

/// Removes what waits for `extract` behind everybody's back, once there is something.
async fn emptied(bus: &Bus) {
    harness::eventually("something waits", async || {
        let waiting = bus.durable_state("faces_preprocess", "extract").await.ok()??;
        (waiting.pending >= 3).then_some(())
    })
    .await;
    bus.purge("faces_preprocess").await.expect("it is emptied");
}

#[tokio::test]
async fn what_cannot_be_harmed_is_told() {
    let stand_ins_of = StandIns::link(&Tools::find());
    let tools = stand_ins_of.tools();
    let (home, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let file = stand_ins_at(home.path(), 10);
    let refused = async |home: &Path, arguments: &[&str], why: &str| {
        let told = chaos(tools, home, arguments).await;
        assert!(told.code != Some(0) && told.stderr.contains(why), "no `{why}`: {told:?}");
    };
    refused(home.path(), &[&file], "start `causeway up` there first").await;
    let up = Running::start_in(tools, home.path(), &["up", &file], &at_work(100_000));
    let about = up.about().await;
    refused(home.path(), &["pipelines/objects.toml"], "not objects: name its file").await;
    refused(home.path(), &[&file, "--stage=extrakt"], "it has capture, preprocess, extract, classify, cluster").await;
    refused(home.path(), &[&file, "--every=0"], "a number of seconds, 0.01 to 86400").await;
    refused(home.path(), &[&file, "--faults=flood"], "possible values: stage, all, server").await;

    let nats = about["nats"].as_str().expect("an address").to_owned();
    let foreign = Running::start_in(tools, other.path(), &["up", &file, "--nats", &nats], &at_work(10));
    foreign.about().await;
    refused(other.path(), &[&file, "--faults=server"], "not one that `up` started").await;
    foreign.stop().await.ok();
    up.stop().await.ok();
}
