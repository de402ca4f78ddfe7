//! Two sites: the edge extracts, the cloud names and clusters. Pictures stay at the edge, names come back to it; each works on without the
//! other, and whoever dies, nothing is missing and nothing there twice.

use causeway_bus::server::{Server, Start};
use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use causeway_stage::Heartbeat;
use harness::{
    Running, Tools, Verdict, causeway, copy_photos, eventually, free_port, kill, verdict, without_faults_at, workspace,
};

pub(crate) const NAME: &str = "faces-edge-cloud";
pub(crate) const FILE: &str = "pipelines/faces-edge-cloud.toml";

fn pipeline(site: &str) -> Pipeline {
    let pipeline = Pipeline::load(workspace().join(FILE)).unwrap_or_else(|error| panic!("{error}"));
    pipeline.at(site).expect("one of its sites")
}

/// What a reader at the edge finds, once everything that was captured there has its outcomes.
pub(crate) async fn complete(edge: &Bus, photos: usize) -> Verdict {
    eventually("all outcomes at the edge", async || {
        let captured = edge.stream_state(&names::stream(NAME, "capture")).await.ok()??;
        let dead = edge.stream_state(&names::stream(NAME, names::DEAD)).await.ok()??;
        if captured.messages + dead.messages < photos as u64 {
            return None;
        }
        let seen = verdict(edge, &pipeline("edge")).await;
        seen.open.is_empty().then_some(seen)
    })
    .await
}

async fn beat(bus: &Bus, stage: &str) -> Option<Heartbeat> {
    let entries = bus.table_entries(names::REPLICAS).await.ok()?;
    let beats = entries.iter().filter_map(|entry| serde_json::from_slice::<Heartbeat>(&entry.value).ok());
    beats.into_iter().find(|beat| beat.stage == stage)
}

#[tokio::test]
async fn whoever_dies_at_either_site_it_ends_as_at_one() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 3);
    let golden = without_faults_at(&tools, input.path(), photos).await;
    let folder = format!("--input={}", input.path().display());
    let up = Running::start(&tools, home.path(), &["up", FILE, &folder]);
    let (edge, cloud) = (up.bus_at("edge", NAME).await, up.bus_at("cloud", NAME).await);
    let decisions = names::stream(NAME, "classify");
    let come = async |bus: &Bus, least: u64| {
        let there = async || bus.stream_state(&decisions).await.ok()?.filter(|state| state.messages >= least);
        eventually("decisions", there).await;
    };
    come(&edge, 1).await;
    let relay = up.stage_pid("relay", None).await;
    kill(relay);
    up.stage_pid("relay", Some(relay)).await;
    for (least, site) in [(4, "cloud"), (8, "edge")] {
        come(&edge, least).await;
        let server = up.server_pid(site, None).await;
        kill(server);
        up.server_pid(site, Some(server)).await;
    }
    let seen = complete(&edge, photos).await;
    seen.assert_exactly_once();
    seen.assert_same_as(&golden);
    // The pictures stayed where they were taken.
    for pixels in ["capture", "preprocess"] {
        assert_eq!(cloud.stream_state(&names::stream(NAME, pixels)).await.expect("it answers"), None, "{pixels}");
    }
    // The relay says how it is once a second, and was started anew.
    let status = eventually("what crossed", async || {
        let status = Running::start(&tools, home.path(), &["status", FILE, "--json"]).finish().await.ok().json();
        let carrying = status["sites"][0]["carrying"].as_array()?.clone();
        let crossed = carrying.iter().any(|one| one["stream"] == "extract" && one["messages"].as_u64() > Some(0));
        crossed.then_some(status)
    })
    .await;
    let sites = status["sites"].as_array().expect("two").iter().map(|site| site["site"].as_str().expect("a name"));
    assert_eq!(sites.collect::<Vec<_>>(), ["edge", "cloud"]);
    let stages = |site: usize| {
        let stages = status["sites"][site]["stages"].as_array().expect("stages");
        stages.iter().map(|stage| stage["name"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(stages(0), ["capture", "preprocess", "extract", "relay"]);
    assert_eq!(stages(1), ["classify", "cluster"]);
    let edges = &status["sites"][1]["edges"];
    assert_eq!(
        (&edges[0]["site"], edges[0]["state"].is_string()),
        (&"edge".into(), true),
        "the hub knows of it: {edges}"
    );
    let carrying = status["sites"][0]["carrying"].as_array().expect("what crosses").clone();
    let features =
        carrying.iter().find(|one| one["stream"] == "extract" && one["messages"].as_u64() > Some(0)).expect("features");
    assert_eq!((&features["from"], &features["to"]), (&"edge".into(), &"cloud".into()));
    assert!(features["bytes"].as_u64() > features["messages"].as_u64(), "{features}");
    up.stop().await.ok();
    // Both stores are there: nothing is done twice, and the report shows both sites.
    let again = Running::start(&tools, home.path(), &["up", FILE, &folder, "--until-drained", "--json"]);
    let told = again.finish().await.ok().json();
    assert_eq!((told["run"]["new"].as_u64(), told["photos"].as_u64()), (Some(0), Some(photos as u64)), "{told}");
}

#[tokio::test]
async fn an_edge_works_on_without_the_cloud_and_the_cloud_takes_what_waited() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 1);
    let golden = without_faults_at(&tools, input.path(), photos).await;
    let port = free_port();
    let file = home.path().join("pipeline.toml");
    let text = std::fs::read_to_string(workspace().join(FILE)).expect("the pipeline");
    let text =
        text.replace("# address = \"nats://cloud.example:4222\"", &format!("address = \"nats://127.0.0.1:{port}\""));
    std::fs::write(&file, text).expect("it is written");
    let (file, folder) = (file.to_str().expect("a path"), format!("--input={}", input.path().display()));
    let at = |site: &str| home.path().join(site);
    let edge_up = Running::start(&tools, &at("edge"), &["up", file, "--site=edge", &folder]);
    let edge = edge_up.bus_at("edge", NAME).await;
    let (features, wanted) = (names::stream(NAME, "extract"), golden.decisions.len() as u64);
    eventually("all features, none of which is lost", async || {
        edge.stream_state(&features).await.ok()?.filter(|state| state.messages == wanted)
    })
    .await;
    let waits = eventually("the relay to say so", async || {
        beat(&edge, "relay").await.filter(|beat| beat.state.starts_with("waiting: cloud is not reached"))
    })
    .await;
    assert!(waits.carrying.is_empty());
    // The cloud comes up, on a server of its operator's.
    let start = Start { port: Some(port), ..Start::default() };
    let server = Server::start("cloud", &at("server"), start).await.expect("a server");
    let cloud_up = Running::start(&tools, &at("cloud"), &["up", file, "--site=cloud"]);
    let seen = complete(&edge, photos).await;
    seen.assert_exactly_once();
    seen.assert_same_as(&golden);
    edge_up.stop().await.ok();
    cloud_up.stop().await.ok();
    server.stop().await;
}

#[tokio::test]
async fn a_gallery_at_the_hub_is_known_at_the_edge() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("pipeline.toml");
    let text = std::fs::read_to_string(workspace().join(FILE)).expect("the pipeline");
    // The edge names; the cloud clusters.
    let text = text.replace("[stage.classify]\nsite = \"cloud\"", "[stage.classify]\nsite = \"edge\"");
    std::fs::write(&file, text).expect("it is written");
    let file = file.to_str().expect("a path");
    let folder = format!("--input={}", tools.photos().join("input").display());
    let up = Running::start(&tools, home.path(), &["up", file, &folder]);
    let (edge, cloud) = (up.bus_at("edge", NAME).await, up.bus_at("cloud", NAME).await);
    let people = std::fs::read_dir(tools.photos().join("enrol")).expect("people").map(|entry| entry.expect("one"));
    let person = people.map(|entry| entry.path()).min().expect("somebody");
    let name = person.file_name().expect("a name").to_str().expect("text").to_owned();
    let who = format!("{name}={}", person.display());
    Running::start(&tools, home.path(), &["enrol", &who, "--pipeline", file]).finish().await.ok();
    let known = async |bus: &Bus| bus.table_entries(names::PEOPLE).await.ok().map(|people| people.len());
    assert_eq!(known(&cloud).await, Some(1));
    eventually("the person at the edge", async || known(&edge).await.filter(|people| *people == 1)).await;
    let refused =
        Running::start(&tools, home.path(), &["forget", &name, "--pipeline", file, "--site=edge"]).finish().await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("it is kept at the hub; say --site cloud"), "{}", refused.stderr);
    Running::start(&tools, home.path(), &["forget", &name, "--pipeline", file]).finish().await.ok();
    eventually("nobody at the edge", async || known(&edge).await.filter(|people| *people == 0)).await;
    up.stop().await.ok();
}

#[tokio::test]
async fn what_is_not_clear_of_sites_is_refused() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let refused = async |arguments: &[&str], why: &str| {
        let finished = Running::start(&tools, home.path(), arguments).finish().await;
        assert_eq!(finished.code, Some(1), "{finished:?}");
        assert!(finished.stderr.contains(why), "{}", finished.stderr);
    };
    refused(&["up", FILE, "--site=moon"], "cannot find the site `moon`").await;
    refused(&["up", FILE, "--nats=nats://127.0.0.1:1"], "cannot tell which site's server --nats is").await;
    refused(&["apply", FILE], "cannot tell which site is meant: say it with --site, one of edge, cloud").await;
    // An edge alone has to know where the hub is.
    refused(&["up", FILE, "--site=edge"], "no address of cloud is known").await;
    let validated = causeway(&tools, &["validate", FILE]).await.ok();
    assert!(validated.stdout.contains("ok"), "{validated:?}");
}
