//! Two sites as containers on two networks, each written by `causeway deploy compose` and nothing else: keys, TLS, a relay between them;
//! containers are killed, the way between the networks is cut, a stage is moved.

use std::path::Path;
use std::process::Command;

use causeway_bus::{Bus, Credentials, names};
use causeway_pipelines::Pipeline;
use harness::{Tools, causeway, copy_photos, edge_cloud_file, eventually, free_port, kill, verdict, without_faults_at};

use super::engine::{Deployment, Engine, open, pid, text};

const NAME: &str = "faces-edge-cloud";
/// The networks of the two: not Podman's own, so that one may be cut off from the other.
const EDGE: &str = "10.91.17.0/24";
const CLOUD: &str = "10.91.18.0/24";
/// The machine, as the edge's containers see it: behind its port is the broker of the cloud.
const MACHINE: &str = "10.91.17.1";

fn network(subnet: &str) -> String {
    format!("networks: {{ default: {{ ipam: {{ config: [{{ subnet: \"{subnet}\" }}] }} }} }}\n")
}

/// The way between the two networks, cut. Dropped, it is whole again.
struct Cut;

impl Cut {
    const WAYS: [[&str; 2]; 2] = [[EDGE, CLOUD], [CLOUD, EDGE]];

    fn new() -> Self {
        for way in Self::WAYS {
            assert!(Self::rule("-I", way), "cannot cut the way between two networks: iptables refuses");
        }
        Self
    }

    fn rule(verb: &str, [from, to]: [&str; 2]) -> bool {
        let rule = ["-w", verb, "FORWARD", "-s", from, "-d", to, "-j", "DROP"];
        Command::new("iptables").args(rule).status().is_ok_and(|status| status.success())
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        for way in Self::WAYS {
            Self::rule("-D", way);
        }
    }
}

/// Kills the process of a service and waits until its policy has started another.
async fn kill_one(deployment: &Deployment<'_>, service: &str) {
    let before = deployment.inspect(service).await;
    kill(pid(&before).expect("it runs"));
    eventually("another process of the container", async || {
        let now = deployment.inspect(service).await;
        (pid(&now).is_some() && pid(&now) != pid(&before)).then_some(())
    })
    .await;
}

async fn agent_at(address: &str, keys: &Path) -> Bus {
    let credentials = Credentials::of(Some(keys), "agent");
    eventually("its broker", async || Bus::connect(address, &credentials, NAME, "test").await.ok()).await
}

#[tokio::test]
#[ignore = "minutes: makes a Debian, compiles in it, runs containers"]
async fn two_sites_on_two_networks_lose_nothing() {
    let Some(engine) = Engine::find().await else { return };
    let tools = Tools::find();
    engine.build_images().await;
    let home = tempfile::tempdir().expect("a folder");
    let input = home.path().join("photos");
    std::fs::create_dir(&input).expect("a folder");
    let photos = copy_photos(&tools, &input, 12);
    let golden = without_faults_at(&tools, &input, photos).await;
    // Whoever the containers run as.
    open(home.path());
    open(&input);

    let (port, of_edge) = (free_port(), free_port().to_string());
    let file = edge_cloud_file(home.path(), &format!("tls://cloud.test:{port}"));
    let (file, keys) = (file.to_str().expect("a path"), home.path().join("keys"));
    causeway(&tools, &["keys", file, "--out", keys.to_str().expect("a path")]).await.ok();
    let cloud = engine.deploy(&tools, "cloud", &[file, "--site", "cloud"], &network(CLOUD)).await;
    let reaches = format!("{}services: {{ relay: {{ extra_hosts: [\"cloud.test:{MACHINE}\"] }} }}\n", network(EDGE));
    let photos_at = input.to_str().expect("a path");
    let arguments = [file, "--site", "edge", "--publish", &of_edge, "--input", photos_at, "--set", "capture.rate=2"];
    let edge = engine.deploy(&tools, "edge", &arguments, &reaches).await;
    let at_cloud = agent_at(&format!("tls://127.0.0.1:{port}"), &keys.join("cloud")).await;
    let at_edge = agent_at(&format!("tls://127.0.0.1:{of_edge}"), &keys.join("edge")).await;

    let (decisions, crops) = (names::stream(NAME, "classify"), names::stream(NAME, "preprocess"));
    let stored = async |bus: &Bus, stream: &str| Some(bus.stream_state(stream).await.ok()??.last_sequence);
    let more_than = async |bus: &Bus, stream: &str, before: u64| {
        eventually("something new", async || stored(bus, stream).await.filter(|&last| last > before)).await
    };
    more_than(&at_cloud, &decisions, 2).await;
    for (deployment, service) in [(&edge, "relay"), (&cloud, "classify"), (&edge, "nats"), (&cloud, "nats")] {
        kill_one(deployment, service).await;
        let before = stored(&at_cloud, &decisions).await.unwrap_or_default();
        more_than(&at_cloud, &decisions, before).await;
    }

    // The edge works on while nothing crosses.
    let cut = Cut::new();
    let before = eventually("nothing new", async || {
        let before = stored(&at_cloud, &decisions).await?;
        let crop = stored(&at_edge, &crops).await?;
        more_than(&at_edge, &crops, crop + 4).await;
        (stored(&at_cloud, &decisions).await? == before).then_some(before)
    })
    .await;
    drop(cut);
    more_than(&at_cloud, &decisions, before).await;

    let moved = cloud.compose(&["run", "--rm", "--no-deps", "-T", "agent", "move", "extract", "--to", "cloud"]).await;
    let moved = text(&moved);
    // What was captured only the edge knows.
    assert!(moved.contains("extract is at cloud") && moved.contains("doubled 0"), "{moved}");
    eprintln!("{moved}");
    let parked = edge.inspect("extract").await;
    assert_eq!(parked["State"]["Status"], "running", "it waits where it was: {parked}");
    edge.assert_healthy("extract").await;

    let pipeline = Pipeline::load(file).expect("the pipeline").at("edge").expect("a site");
    let seen = eventually("all outcomes at the edge", async || {
        let captured = stored(&at_edge, &names::stream(NAME, "capture")).await?;
        if captured < photos as u64 {
            return None;
        }
        let seen = verdict(&at_edge, &pipeline).await;
        seen.open.is_empty().then_some(seen)
    })
    .await;
    seen.assert_exactly_once();
    seen.assert_same_as(&golden);
    for (deployment, services) in
        [(&edge, &["relay", "extract", "agent", "nats"][..]), (&cloud, &["extract", "classify"])]
    {
        for service in services {
            deployment.assert_confined(service).await;
        }
    }
    // Each container has its own key and no other: what it is given is what is mounted.
    let mounts = edge.inspect("extract").await["Mounts"].clone();
    let given = mounts.as_array().expect("mounts").iter().filter_map(|mount| mount["Destination"].as_str());
    let mut keys: Vec<&str> = given.filter(|at| at.starts_with("/etc/causeway/keys/")).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["/etc/causeway/keys/ca.pem", "/etc/causeway/keys/extract.nk"]);
}
