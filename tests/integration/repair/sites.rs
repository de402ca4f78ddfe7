//! `reconcile`, `replay` and `chaos` where a pipeline has several sites.

use std::collections::BTreeSet;
use std::time::Duration;

use causeway_bus::{Bus, names};
use causeway_schemas::{Id, header};
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use futures::StreamExt as _;
use harness::{Running, StandIns, Tools, copy_photos, eventually, stand_in_sites, without_faults_at};
use serde_json::Value;

use crate::sites::{FILE, NAME, complete};

/// Each recovery takes up to some seconds.
const PATIENCE: Duration = Duration::from_mins(4);

/// Every outcome of these stages at a site: its stream, its place there, and the captured item that it belongs to.
async fn outcomes(bus: &Bus) -> Vec<(String, u64, Id)> {
    let mut found = Vec::new();
    for stage in ["classify", "cluster", names::EMPTY] {
        let stream = names::stream(NAME, stage);
        let mut records = bus.scan(&stream, 1, true).await.expect("a stream");
        while let Some(record) = records.next().await {
            let record = record.expect("a record");
            found.push((stream.clone(), record.sequence, record.headers.id(header::ROOT).expect("a root")));
        }
    }
    found
}

async fn lose(bus: &Bus, roots: &BTreeSet<Id>) {
    for (stream, sequence, root) in outcomes(bus).await {
        if roots.contains(&root) {
            assert!(bus.delete_message(&stream, sequence).await.expect("it is removed"));
        }
    }
}

fn ids(list: &Value) -> BTreeSet<Id> {
    let list = list.as_array().expect("a list").iter();
    list.map(|one| one["id"].as_str().expect("an id").parse().expect("an id")).collect()
}

#[tokio::test]
async fn what_sites_have_lost_comes_again_and_a_replay_answers_the_same() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 1);
    let golden = without_faults_at(&tools, input.path(), photos).await;
    let folder = format!("--input={}", input.path().display());
    let at_home = async |arguments: &[&str]| Running::start(&tools, home.path(), arguments).finish().await;
    let reconcile = async |more: &[&str]| at_home(&[&["reconcile", FILE, "--json"], more].concat()).await;
    let told = reconcile(&[]).await;
    assert!(told.code == Some(1) && told.stderr.contains("run `causeway up` first"), "{told:?}");

    let up = Running::start(&tools, home.path(), &["up", FILE, &folder]);
    let (edge, cloud) = (up.bus_at("edge", NAME).await, up.bus_at("cloud", NAME).await);
    complete(&edge, photos).await;
    let nothing: Value = Vec::<Value>::new().into();
    let well = reconcile(&[]).await.ok().json();
    assert_eq!(
        (&well["complete"], &well["again"], &well["brought_back"]),
        (&photos.into(), &nothing, &nothing),
        "{well}"
    );

    // Of some the edge loses what it had been given; of others nobody has anything any more.
    let roots: BTreeSet<Id> = outcomes(&edge).await.into_iter().map(|(_, _, root)| root).collect();
    let of_edge: BTreeSet<Id> = roots.iter().step_by(2).copied().collect();
    let of_both: BTreeSet<Id> = roots.difference(&of_edge).copied().collect();
    lose(&edge, &roots).await;
    lose(&cloud, &of_both).await;
    let dry = reconcile(&["--dry-run"]).await.ok().json();
    assert_eq!((ids(&dry["brought_back"]), ids(&dry["again"])), (of_edge.clone(), of_both.clone()), "{dry}");
    assert_eq!(outcomes(&edge).await, []);
    // From the edge the hub is looked at too; from the hub alone there is nothing to run again.
    let from_hub = reconcile(&["--site", "cloud"]).await;
    assert!(from_hub.code == Some(1) && from_hub.stderr.contains("nothing is captured at cloud"), "{from_hub:?}");
    let done = reconcile(&["--site", "edge", "--wait", "100"]).await.ok().json();
    assert_eq!((ids(&done["brought_back"]), ids(&done["again"])), (of_edge, of_both), "{done}");
    assert_eq!(done["unanswered"], 0, "{done}");
    let seen = complete(&edge, photos).await;
    seen.assert_exactly_once();
    seen.assert_same_as(&golden);
    let again = reconcile(&[]).await.ok().json();
    assert_eq!((&again["again"], &again["brought_back"], &again["complete"]), (&nothing, &nothing, &photos.into()));

    let same = at_home(&["replay", FILE, "--from", "1h", "--diff", "--json"]).await.ok().json();
    assert_eq!((&same["items"], &same["diff"]["changed"]), (&photos.into(), &0.into()), "{same}");
    let refused = at_home(&["replay", FILE, "--from", "1h", "--site", "cloud"]).await;
    assert!(refused.stderr.contains("say --site, with one of edge"), "{refused:?}");
    up.stop().await.ok();
}

#[tokio::test]
async fn harm_at_any_site_costs_nothing_and_doubles_nothing() {
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("faces.toml");
    std::fs::write(&file, stand_in_sites("faces")).expect("it is written");
    let file = file.to_str().expect("a path");
    let script = [(ITEMS, "1500".into()), (BYTES, "500".into()), (CAMERA, "0".into())];
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", file], &script);
    let edge = up.bus_at("edge", "faces").await;
    eventually("something to harm", async || {
        edge.stream_state("faces_classify").await.ok()?.filter(|state| state.messages > 20)
    })
    .await;
    let harm = [
        "chaos",
        file,
        "--faults=stage,server,pause",
        "--count=18",
        "--every=0.3",
        "--pause=1.5",
        "--seed=2",
        "--json",
    ];
    let told = Running::start(stand_ins.tools(), home.path(), &harm).finish_within(PATIENCE).await.ok().json();
    assert_eq!((&told["missing"], &told["doubled"]), (&0.into(), &0.into()), "{told}");
    let faults = told["faults"].as_object().expect("by name");
    for name in ["kill relay", "pause relay", "kill nats-server at edge", "kill nats-server at cloud", "kill cluster"] {
        assert!(faults.contains_key(name), "no `{name}`: {told}");
    }
    up.stop().await.ok();
}
