//! The same over a link that is slow, loses packets and is cut.

use std::time::Duration;

use causeway_bus::{First, Outgoing, names};
use causeway_pipelines::Pipeline;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use harness::{
    Across, Cut, End, Quality, RELAY, StandIns, Tools, copy_photos, eventually, may_skip, stand_in_sites, verdict,
    without_faults_at,
};

use super::{all_across, comes, feature, publish, stored};
use crate::sites::{FILE, NAME, complete};

/// A link on which nothing is lost, and that has room for everything.
const GOOD: Quality = Quality { delay: Duration::from_millis(5), loss: 0.0, rate: None };

async fn across(quality: Quality) -> Option<Across> {
    let across = Across::start(&Tools::find(), quality).await;
    if across.is_none() {
        may_skip("a link needs network namespaces: run as root, with iproute2 and iptables");
    }
    across
}

#[tokio::test]
async fn the_link_of_these_tests_is_what_it_says() {
    let quality = Quality { delay: Duration::from_millis(10), loss: 0.05, rate: Some(20_000_000) };
    let Some(across) = across(quality).await else { return };
    let Some((mean, lost)) = across.ping(400) else { return may_skip("there is no ping: install iputils-ping") };
    assert!((20..30).contains(&mean.as_millis()), "a round trip takes {mean:?}");
    // A packet and its answer: 1 - 0.95².
    assert!((0.05..0.15).contains(&lost), "{lost} of the packets were lost");
    let flow = across.bare_flow(Duration::from_secs(3));
    assert!((1e4..2.6e6).contains(&flow), "{flow} bytes a second");
}

#[tokio::test]
async fn a_cut_loses_nothing_and_doubles_nothing() {
    let Some(across) = across(Quality { loss: 0.01, ..GOOD }).await else { return };
    let [edge, cloud] = across.buses.clone();
    let relay = across.relay(First::Oldest, None);
    let publishing = across.publish(Duration::from_millis(5), feature);
    comes(&cloud, 100).await;
    for how in [Cut::Drop, Cut::Reset] {
        across.link.cut(how);
        let behind =
            async || edge.durable_state("faces_extract", RELAY).await.ok()?.filter(|durable| durable.pending > 200);
        eventually("the edge goes on alone", behind).await;
        eventually("the relay says so", async || relay.carried.trouble()).await;
        let before = stored(&cloud).await.len();
        eventually("more waits", async || behind().await.filter(|durable| durable.pending > 400)).await;
        assert_eq!(stored(&cloud).await.len(), before, "{how:?}: it is cut");
        across.link.heal();
        comes(&cloud, before + 400).await;
    }
    let all = publishing.stop().await;
    let stored = all_across(&edge, &cloud, all).await;
    let twice: Vec<_> = stored.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[tokio::test]
async fn the_face_pipeline_over_a_link_that_is_cut_ends_as_at_one_site() {
    let Some(across) = across(Quality { loss: 0.01, ..GOOD }).await else { return };
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 6);
    let golden = without_faults_at(&tools, input.path(), photos).await;
    let folder = format!("--input={}", input.path().display());
    let (at_cloud, at_edge) = (home.path().join("cloud"), home.path().join("edge"));
    let cloud_up = across.causeway(&tools, End::Cloud, &at_cloud, &["up", FILE, "--site=cloud"]);
    let arguments = ["up", FILE, "--site=edge", &folder, "--set", "capture.rate=10"];
    let edge_up = across.causeway(&tools, End::Edge, &at_edge, &arguments);
    let (edge, cloud) = (across.bus(End::Edge, NAME).await, across.bus(End::Cloud, NAME).await);
    let decided = async || cloud.stream_state(&names::stream(NAME, "classify")).await.ok().flatten();
    let waiting = async || {
        let durable = edge.durable_state(&names::stream(NAME, "extract"), RELAY).await.ok()??;
        Some(durable.pending + durable.unacked)
    };
    for (how, so_far) in [(Cut::Drop, 3), (Cut::Reset, 20)] {
        eventually("decisions", async || decided().await.filter(|state| state.messages >= so_far)).await;
        across.link.cut(how);
        eventually("the edge goes on alone", async || waiting().await.filter(|features| *features > 8)).await;
        across.link.heal();
    }
    let seen = complete(&edge, photos).await;
    seen.assert_exactly_once();
    seen.assert_same_as(&golden);
    edge_up.stop().await.ok();
    cloud_up.stop().await.ok();
}

#[tokio::test]
async fn a_move_under_which_the_link_is_cut_goes_on_when_it_heals() {
    const ALL: usize = 1500;
    let Some(across) = across(GOOD).await else { return };
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    let (at_cloud, at_edge, path) =
        (home.path().join("cloud"), home.path().join("edge"), home.path().join("moved.toml"));
    std::fs::write(&path, stand_in_sites("moved")).expect("it is written");
    let file = path.to_str().expect("a path");
    let mut tools = stand_ins.tools().clone();
    let script = [(ITEMS, ALL.to_string()), (BYTES, "500".into()), (CAMERA, "0".into())];
    tools.env.extend(script.map(|(name, value)| (name.into(), value)));
    let cloud_up = across.causeway(&tools, End::Cloud, &at_cloud, &["up", file, "--site=cloud"]);
    let edge_up = across.causeway(&tools, End::Edge, &at_edge, &["up", file, "--site=edge"]);
    let (edge, cloud) = (across.bus(End::Edge, "moved").await, across.bus(End::Cloud, "moved").await);
    let decided = async |least: u64| {
        let come =
            async || cloud.stream_state("moved_classify").await.ok()?.filter(|state| state.last_sequence > least);
        eventually("more decisions", come).await.last_sequence
    };
    let mut last = decided(50).await;
    for (epoch, (how, to)) in [(Cut::Drop, "cloud"), (Cut::Reset, "edge")].into_iter().enumerate() {
        across.link.cut(how);
        let moves = ["move", "extract", "--to", to, "--pipeline", file, "--json", "--site", "cloud"];
        let moving = across.causeway(&tools, End::Cloud, &at_cloud, &moves);
        eventually("the hub knows", async || {
            let (placement, _) = causeway_stage::read_placement(&cloud).await.ok()?;
            (placement.epoch == epoch as u64 + 1).then_some(())
        })
        .await;
        across.link.heal();
        let told = moving.finish().await.ok().json();
        assert_eq!((&told["to"], &told["doubled"]), (&to.into(), &0.into()), "{told}");
        last = decided(last).await;
    }
    let pipeline = Pipeline::load(&path).unwrap_or_else(|error| panic!("{error}")).at("edge").expect("a site");
    let seen = eventually("all outcomes", async || {
        let seen = verdict(&edge, &pipeline).await;
        (seen.open.is_empty() && seen.captured.len() == ALL).then_some(seen)
    })
    .await;
    seen.assert_exactly_once();
    assert_eq!(seen.decisions.len(), ALL);
    edge_up.stop().await.ok();
    cloud_up.stop().await.ok();
}

#[tokio::test]
async fn a_long_body_comes_across_although_the_link_is_cut_meanwhile() {
    let Some(across) = across(Quality { rate: Some(20_000_000), ..GOOD }).await else { return };
    let [edge, cloud] = across.buses.clone();
    let relay = across.relay(First::Oldest, None);
    // It knows what the link does.
    publish(&edge, 1..50).await;
    comes(&cloud, 49).await;
    // Some 4 s of the link.
    let long = Outgoing { body: vec![7; 9 << 20].into(), ..feature(0) };
    edge.publish(&long).await.expect("it is stored");
    let began = across.link.packets();
    eventually("a part of it is across", async || (across.link.packets() > began + 1500).then_some(())).await;
    across.link.cut(Cut::Drop);
    eventually("the relay says so", async || relay.carried.trouble()).await;
    across.link.heal();
    all_across(&edge, &cloud, 50).await;
    let record = cloud.message_at("faces_extract", 50).await.expect("the cloud").expect("a message");
    let body = cloud.body(&record.headers, record.body).await.expect("its body is there");
    assert_eq!(body, long.body);
}

#[tokio::test]
async fn what_is_new_goes_first_where_that_is_asked_for() {
    const OLD: usize = 3000;
    const NEW: usize = 100;
    const NEWER: usize = 20;
    let Some(mut across) = across(GOOD).await else { return };
    let [edge, cloud] = across.buses.clone();
    publish(&edge, 0..OLD).await;
    // Some 4 s for all that waits.
    let relay = across.relay(First::Newest, Some(1 << 20));
    comes(&cloud, 601).await;
    publish(&edge, OLD..OLD + NEW).await;
    // What is new goes first to the end, when all that waits is held by the relay already.
    let all = OLD + NEW + NEWER;
    let is_held = async || (relay.carried.messages() as usize > OLD + NEW - 450).then_some(());
    eventually("all that waits is held", is_held).await;
    publish(&edge, OLD + NEW..all).await;
    let came = all_across(&edge, &cloud, all).await;
    assert!(came.values().all(|&times| times == 1));
    assert_eq!(relay.carried.messages(), all as u64, "what went first is not sent again");
    // In the order in which they came.
    let order = super::order(&cloud).await;
    let place_of = |number: usize| order.iter().position(|&one| one == number).expect("it came");
    let last_old = order.iter().rposition(|&number| number < OLD).expect("old ones");
    let (first_new, last_new) = (place_of(OLD), place_of(all - 1));
    assert!(first_new + 500 < last_old, "the first new one came as number {first_new}, the last old one as {last_old}");
    assert!(last_new + 100 < last_old, "the last new one came as number {last_new}, the last old one as {last_old}");
    let new: Vec<usize> = order.iter().copied().filter(|&number| number >= OLD).collect();
    assert!(new.is_sorted(), "{new:?}");
    // The cloud dies and then the relay, while it is far behind and new ones are ahead: another one goes on.
    across.kill_server(End::Cloud).await;
    publish(&edge, all..all + OLD).await;
    across.start_server(End::Cloud).await;
    comes(&cloud, all + 300).await;
    publish(&edge, all + OLD..all + OLD + NEW).await;
    comes(&cloud, all + 500).await;
    relay.kill();
    let _relay = across.relay(First::Newest, None);
    all_across(&edge, &cloud, all + OLD + NEW).await;
}
