//! The units of `causeway deploy systemd`, run by a real systemd at two sites: keys, TLS, a link that loses packets; a service that is killed
//! is started again, a stage is moved.

use std::path::Path;
use std::time::Duration;

use causeway_bus::{Bus, Credentials, names};
use causeway_pipelines::Pipeline;
use harness::{
    BIN, Booted, End, Link, MODELS, PHOTOS, Quality, Tools, causeway, copy_photos, edge_cloud_file, eventually,
    may_skip, verdict, without_faults_at,
};

const NAME: &str = "faces-edge-cloud";
const QUALITY: Quality = Quality { delay: Duration::from_millis(5), loss: 0.0, rate: None };

/// Where the units look for what was written.
fn at(what: &str) -> String {
    format!("/etc/causeway/{NAME}/{what}")
}

/// Runs `causeway` at the cloud, as who keeps it.
async fn operates(cloud: &Booted, words: &[&str]) -> String {
    let credentials = format!("CAUSEWAY_CREDENTIALS={}", at("keys"));
    let (file, program) = (at(&format!("{NAME}.toml")), format!("{BIN}/causeway"));
    let before = ["env", &credentials, "CAUSEWAY_SITE=cloud", "CAUSEWAY_NATS=tls://127.0.0.1:4222", &program];
    let output = cloud.run(&[&before, words, &["--pipeline", &file]].concat()).await;
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
#[ignore = "a minute: boots two machines"]
async fn two_sites_as_services_of_systemd() {
    if !Path::new("/lib/systemd/systemd").exists() {
        return may_skip("systemd is not installed (on Debian: apt install systemd)");
    }
    let Some(link) = Link::new(QUALITY) else { return };
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let photos_at = home.path().join("photos");
    std::fs::create_dir(&photos_at).expect("a folder");
    let photos = copy_photos(&tools, &photos_at, 6);
    let golden = without_faults_at(&tools, &photos_at, photos).await;

    let file = edge_cloud_file(home.path(), &format!("tls://{}:4222", Link::address(End::Cloud)));
    let (file, keys) = (file.to_str().expect("a path"), home.path().join("keys"));
    let keys_at = keys.to_str().expect("a path");
    let met_at = link.test_address(End::Cloud);
    causeway(&tools, &["keys", file, "--out", keys_at]).await.ok();
    causeway(&tools, &["keys", file, "--out", keys_at, "--site", "cloud", "--host", &met_at]).await.ok();
    let places = ["--bin", BIN, "--models", MODELS];
    let folder = |site: &str| home.path().join(site).to_str().expect("a path").to_owned();
    let (edge_at, cloud_at) = (folder("edge"), folder("cloud"));
    let of_edge = [file, "--site", "edge", "--out", &edge_at, "--input", PHOTOS, "--set", "capture.rate=3"];
    causeway(&tools, &[&["deploy", "systemd"], &of_edge[..], &places].concat()).await.ok();
    let of_cloud = [file, "--site", "cloud", "--out", &cloud_at];
    causeway(&tools, &[&["deploy", "systemd"], &of_cloud[..], &places].concat()).await.ok();

    let boots = async |end, units: &str| Booted::boot(&tools, &link, end, NAME, Path::new(units), &photos_at).await;
    let (edge, cloud) = (boots(End::Edge, &edge_at).await, boots(End::Cloud, &cloud_at).await);
    let analysed = cloud.run(&["systemd-analyze", "verify", "--man=no", &at(&cloud.unit("extract"))]).await;
    assert!(analysed.status.success(), "{analysed:?}");

    let agent = Credentials::of(Some(&keys.join("cloud")), "agent");
    let address = format!("tls://{met_at}:4222");
    let connects = async || Bus::connect(&address, &agent, NAME, "test").await.ok();
    let bus = eventually("the cloud's broker", connects).await;
    let decisions = names::stream(NAME, "classify");
    let come = async |least: usize| {
        let told = eventually("decisions", async || {
            let state = bus.stream_state(&decisions).await.ok()??;
            (state.messages >= least as u64).then_some(())
        });
        tokio::select! {
            () = told => {}
            () = tokio::time::sleep(Duration::from_secs(100)) => {
                panic!("no {least} decisions.\nedge: {}\ncloud: {}", edge.said().await, cloud.said().await);
            }
        }
    };
    come(2).await;
    // As users of their own, each with its key and no other.
    let user = edge.show("extract", "UID").await;
    assert!(!user.is_empty() && user != "0", "{user}");
    let held = format!("ls /run/credentials/{}", edge.unit("extract"));
    let held = edge.run(&["sh", "-c", &held]).await;
    assert_eq!(String::from_utf8_lossy(&held.stdout).split_whitespace().collect::<Vec<_>>(), ["ca.pem", "extract.nk"]);
    // Whoever dies is started again.
    for (machine, service) in [(&edge, "extract"), (&cloud, "nats"), (&edge, "relay"), (&edge, "nats")] {
        let before = machine.show(service, "MainPID").await;
        machine.run(&["kill", "-KILL", &before]).await;
        eventually("another process", async || {
            let now = machine.show(service, "MainPID").await;
            (now != before && now != "0").then_some(())
        })
        .await;
        let now = bus.stream_state(&decisions).await.ok().flatten().map_or(0, |state| state.messages as usize);
        come(now + 1).await;
    }
    let moved = operates(&cloud, &["move", "extract", "--to", "cloud"]).await;
    // What was captured only the edge knows.
    assert!(moved.contains("extract is at cloud") && moved.contains("doubled 0"), "{moved}");
    eprintln!("{moved}");
    come(golden.decisions.len()).await;
    let pipeline = Pipeline::load(file).expect("the pipeline").at("cloud").expect("a site");
    let mut seen = eventually("all outcomes", async || {
        let seen = verdict(&bus, &pipeline).await;
        (seen.assigned.len() == golden.assigned.len() && seen.decisions.len() == golden.decisions.len()).then_some(seen)
    })
    .await;
    assert_eq!(seen.doubled, Vec::<String>::new());
    // What was captured lies at the edge.
    seen.captured.clone_from(&golden.captured);
    seen.assert_same_as(&golden);
    assert_eq!(edge.show("extract", "ActiveState").await, "active", "it waits where it was");
    for (machine, service) in [(&edge, "preprocess"), (&edge, "relay"), (&cloud, "cluster"), (&cloud, "agent")] {
        let stopped = machine.run(&["systemctl", "stop", &machine.unit(service)]).await;
        assert!(stopped.status.success(), "{stopped:?}");
        let result = (machine.show(service, "Result").await, machine.show(service, "ExecMainStatus").await);
        assert_eq!(result, ("success".into(), "0".into()), "{service} drains");
    }
}
