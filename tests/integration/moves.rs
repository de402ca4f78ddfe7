//! Stages move between sites while they work: nothing is lost, nothing counts twice, whoever dies on the way.

use std::path::{Path, PathBuf};

use causeway_bus::{Bus, Credentials, names};
use causeway_pipelines::{Phase, Pipeline};
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use harness::{Running, StandIns, Tools, Verdict, causeway, eventually, kill, signal, stand_in_pipeline, verdict};
use serde_json::Value;

/// Sixty pictures a second at the edge, out of a folder: begun anew, they are the same.
struct Sites {
    stand_ins: StandIns,
    home: tempfile::TempDir,
    file: PathBuf,
    items: u64,
}

impl Sites {
    fn new(items: u64) -> Self {
        Self::with(items, "[site.edge]\n[site.cloud]\nhub = true", |_| "")
    }

    /// With these sites, and more keys of each stage.
    fn with(items: u64, of_sites: &str, keys: impl Fn(&str) -> &'static str) -> Self {
        let stand_ins = StandIns::link(&Tools::find());
        let home = tempfile::tempdir().expect("a folder");
        let file = home.path().join("faces.toml");
        let more = |stage: &str| match stage {
            "pipeline" => of_sites.to_owned(),
            "capture" => "site = \"edge\"\nrate = 60".to_owned(),
            "preprocess" | "extract" => format!("site = \"edge\"\n{}", keys(stage)),
            _ => format!("site = \"cloud\"\n{}", keys(stage)),
        };
        std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
        Self { stand_ins, home, file, items }
    }

    fn file(&self) -> &str {
        self.file.to_str().expect("a path")
    }

    fn up(&self) -> Running {
        let script = [(ITEMS, self.items.to_string()), (BYTES, "500".into()), (CAMERA, "0".into())];
        Running::start_in(self.stand_ins.tools(), self.home.path(), &["up", self.file()], &script)
    }

    fn start(&self, command: &[&str]) -> Running {
        let file = ["--pipeline", self.file()];
        Running::start(self.stand_ins.tools(), self.home.path(), &[command, &file].concat())
    }

    /// Moves a stage; gives what the command tells.
    async fn moves(&self, stage: &str, to: &str) -> Value {
        self.start(&["move", stage, "--to", to, "--json"]).finish().await.ok().json()
    }

    async fn status(&self) -> Value {
        let status = Running::start(self.stand_ins.tools(), self.home.path(), &["status", self.file(), "--json"]);
        status.finish().await.ok().json()
    }

    fn at(&self, site: &str) -> Pipeline {
        Pipeline::load(&self.file).unwrap_or_else(|error| panic!("{error}")).at(site).expect("one of its sites")
    }

    /// What a reader at the edge finds, once all is there.
    async fn complete(&self, edge: &Bus) -> Verdict {
        for stage in ["classify", "cluster"] {
            let stream = names::stream("faces", stage);
            let all = async || edge.stream_state(&stream).await.ok()??.messages.checked_sub(self.items);
            eventually("all outcomes", all).await;
        }
        let seen = verdict(edge, &self.at("edge")).await;
        seen.assert_exactly_once();
        assert_eq!((seen.decisions.len() as u64, seen.assigned.len() as u64), (self.items, self.items));
        seen
    }
}

async fn captured(edge: &Bus, least: u64) {
    let stream = names::stream("faces", "capture");
    let there = async || edge.stream_state(&stream).await.ok()??.last_sequence.checked_sub(least);
    eventually("more of them", there).await;
}

/// Which durables a stream has; none where it is not there.
async fn takers(bus: &Bus, stream: &str, of: &[&str]) -> Vec<String> {
    let stream = names::stream("faces", stream);
    if bus.stream_state(&stream).await.expect("it answers").is_none() {
        return Vec::new();
    }
    let mut found = Vec::new();
    for durable in of {
        if bus.durable_state(&stream, durable).await.expect("it answers").is_some() {
            found.push((*durable).to_owned());
        }
    }
    found
}

#[tokio::test]
async fn stages_go_there_and_back_while_they_work() {
    let sites = Sites::new(3_000);
    let up = sites.up();
    let (edge, cloud) = (up.bus_at("edge", "faces").await, up.bus_at("cloud", "faces").await);
    captured(&edge, 50).await;
    let all = ["preprocess", "extract", "classify", "cluster", "relay-cloud", "relay-edge"];
    for (epoch, (stage, to)) in [
        ("extract", "cloud"),
        ("classify", "edge"),
        ("preprocess", "cloud"),
        ("cluster", "edge"),
        ("extract", "edge"),
        ("preprocess", "edge"),
        ("cluster", "cloud"),
        ("classify", "cloud"),
    ]
    .into_iter()
    .enumerate()
    {
        let told = sites.moves(stage, to).await;
        assert_eq!((told["lost"].as_u64(), told["doubled"].as_u64()), (Some(0), Some(0)), "{told}");
        assert_eq!(told["epoch"].as_u64(), Some(epoch as u64 + 1), "{told}");
        assert!(told["moved"].as_u64() > Some(0), "it works where it is now: {told}");
        if stage == "extract" && to == "cloud" {
            // What nobody takes any more is gone, with what it was taken from.
            assert_eq!(takers(&edge, "preprocess", &all).await, ["relay-cloud"]);
            assert_eq!(takers(&cloud, "preprocess", &all).await, ["extract"]);
            assert_eq!(takers(&edge, "extract", &all).await, [""; 0]);
        }
    }
    // It is as the file has it.
    assert_eq!(takers(&edge, "preprocess", &all).await, ["extract"]);
    assert_eq!(takers(&edge, "extract", &all).await, ["relay-cloud"]);
    assert_eq!(takers(&cloud, "extract", &all).await, ["classify", "cluster"]);
    let status = sites.status().await;
    for site in status["sites"].as_array().expect("two") {
        assert_eq!(
            (&site["placement"]["epoch"], &site["placement"]["sites"]),
            (&8.into(), &serde_json::json!({})),
            "{site}"
        );
        assert_eq!(site["drift"].as_array().map(Vec::len), Some(0), "{site}");
    }
    sites.complete(&edge).await;
    up.stop().await.ok();
}

#[tokio::test]
async fn a_move_goes_on_whoever_dies() {
    let sites = Sites::new(900);
    let up = sites.up();
    let edge = up.bus_at("edge", "faces").await;
    captured(&edge, 50).await;
    // The command only says what is wanted.
    let mut command = sites.start(&["move", "extract", "--to", "cloud"]);
    let is_known = async || {
        let (placement, _) = causeway_stage::read_placement(&edge).await.ok()?;
        (placement.epoch == 1).then_some(())
    };
    eventually("the edge to hear of it", is_known).await;
    if command.is_running() {
        kill(command.pid());
    }
    kill(up.stage_pid("extract", None).await);
    let relay = up.stage_pid("relay", None).await;
    kill(relay);
    for site in ["edge", "cloud"] {
        let server = up.server_pid(site, None).await;
        kill(server);
        up.server_pid(site, Some(server)).await;
    }
    let is_moved = async || {
        let (placement, _) = causeway_stage::read_placement(&edge).await.ok()?;
        (placement.moving.is_none() && placement.sites.contains_key("extract")).then_some(())
    };
    eventually("the move to end", is_moved).await;
    // It stays moved.
    up.stop().await.ok();
    let up = sites.up();
    let (edge, cloud) = (up.bus_at("edge", "faces").await, up.bus_at("cloud", "faces").await);
    let seen = sites.complete(&edge).await;
    assert!(seen.dead.is_empty(), "{:?}", seen.dead);
    assert_eq!(takers(&cloud, "preprocess", &["extract"]).await, ["extract"]);
    let told = sites.moves("extract", "cloud").await;
    assert_eq!((&told["moved"], &told["epoch"]), (&0.into(), &1.into()), "it is there already: {told}");
    up.stop().await.ok();
}

#[tokio::test]
async fn a_move_that_cannot_be_prepared_is_called_off() {
    let sites = Sites::new(600);
    let up = sites.up();
    let (edge, cloud) = (up.bus_at("edge", "faces").await, up.bus_at("cloud", "faces").await);
    captured(&edge, 50).await;
    // Nothing crosses: the edge does not hear of the move.
    let relay = up.stage_pid("relay", None).await;
    signal(relay, "STOP");
    let command = sites.start(&["move", "extract", "--to", "cloud"]);
    let takes = async || (takers(&cloud, "preprocess", &["extract"]).await == ["extract"]).then_some(());
    eventually("the cloud to be ready", takes).await;
    // Somebody who does not wait is told whom it waits for.
    for again in [&["--to", "cloud"][..], &["--to", "cloud", "--json"]] {
        let arguments = [&["move", "extract", "--timeout", "1"], again].concat();
        let watched = sites.start(&arguments).finish().await;
        assert_eq!(watched.code, Some(1), "{watched:?}");
        assert!(watched.stderr.contains("nothing is heard of edge"), "{}", watched.stderr);
    }
    let other = sites.start(&["move", "classify", "--to", "edge"]).finish().await;
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.stderr.contains("extract is on its way to cloud"), "{}", other.stderr);
    let back = sites.start(&["move", "extract", "--back"]);
    let is_back = async || {
        let (placement, _) = causeway_stage::read_placement(&cloud).await.ok()?;
        (placement.phase() == Some(Phase::Back)).then_some(())
    };
    eventually("the move to be called off", is_back).await;
    let watched = sites.start(&["move", "extract", "--back", "--timeout", "1"]).finish().await;
    assert_eq!(watched.code, Some(1), "{watched:?}");
    assert!(
        watched.stderr.contains("back: waits for edge to hear of it; nothing is heard of edge"),
        "{}",
        watched.stderr
    );
    signal(relay, "CONT");
    let back = back.finish().await.ok();
    assert!(back.stdout.contains("extract stays at edge"), "{}", back.stdout);
    let called_off = command.finish().await;
    assert_eq!(called_off.code, Some(1), "{called_off:?}");
    assert!(called_off.stderr.contains("was called off"), "{}", called_off.stderr);
    let is_gone = async || takers(&cloud, "preprocess", &["extract"]).await.is_empty().then_some(());
    eventually("nothing of it at the cloud", is_gone).await;
    assert_eq!(takers(&edge, "preprocess", &["extract", "relay-cloud"]).await, ["extract"]);
    sites.complete(&edge).await;
    up.stop().await.ok();
}

#[tokio::test]
async fn what_cannot_move_is_told() {
    let sites = Sites::new(20);
    let refused = async |arguments: &[&str], why: &str| {
        let finished = sites.start(arguments).finish().await;
        assert!(finished.code != Some(0), "{finished:?}");
        assert!(finished.stderr.contains(why), "{}", finished.stderr);
    };
    refused(&["move", "extract", "--to", "cloud"], "no results are stored in").await;
    let up = sites.up();
    up.bus_at("cloud", "faces").await;
    refused(&["move", "capture", "--to", "cloud"], "it is a source").await;
    refused(&["move", "extracts", "--to", "cloud"], "did you mean").await;
    refused(&["move", "extract", "--to", "moon"], "there is no site `moon`").await;
    refused(&["move", "extract", "--back"], "it is not on the move").await;
    refused(&["move", "extract"], "--to").await;
    let told = sites.start(&["move", "extract", "--to", "cloud", "--dry-run"]).finish().await.ok();
    assert!(told.stdout.contains("at edge: the relay to cloud takes preprocess: all that waits"), "{}", told.stdout);
    let one_site = Path::new("pipelines/faces.toml").to_str().expect("a path");
    let finished = Running::start(
        sites.stand_ins.tools(),
        sites.home.path(),
        &["move", "extract", "--to", "edge", "--pipeline", one_site],
    );
    let finished = finished.finish().await;
    assert!(finished.stderr.contains("it has one site"), "{}", finished.stderr);
    up.stop().await.ok();
}

#[tokio::test]
async fn stages_move_where_their_keys_open_and_nowhere_else() {
    let sites = "[site.edge]\ncredentials = \"keys/edge\"\n[site.cloud]\nhub = true\ncredentials = \"keys/cloud\"";
    let sites = Sites::with(3_000, sites, |stage| match stage {
        "extract" => "may_move_to = \"cloud\"",
        "cluster" => "may_move_to = \"edge\"",
        _ => "",
    });
    let keys = sites.home.path().join("keys");
    let out = format!("--out={}", keys.display());
    causeway(sites.stand_ins.tools(), &["keys", sites.file(), &out]).await.ok();
    let up = sites.up();
    let agent = |site: &str| Credentials::of(Some(&keys.join(site)), "agent");
    let edge = up.bus_with("edge", "faces", &agent("edge")).await;
    captured(&edge, 50).await;
    for (stage, to) in [("extract", "cloud"), ("cluster", "edge"), ("extract", "edge"), ("cluster", "cloud")] {
        let told = sites.moves(stage, to).await;
        assert_eq!((told["lost"].as_u64(), told["doubled"].as_u64()), (Some(0), Some(0)), "{told}");
        assert!(told["moved"].as_u64() > Some(0), "it works where it is now: {told}");
    }
    let refused = sites.start(&["move", "classify", "--to", "edge"]).finish().await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("it has no key there; say `may_move_to = [\"edge\"]`"), "{}", refused.stderr);
    sites.complete(&edge).await;
    // Nobody was ever kept from what he needed.
    for log in std::fs::read_dir(sites.home.path().join("logs")).expect("logs") {
        let log = std::fs::read_to_string(log.expect("a log").path()).expect("a log");
        let missed = log.lines().find(|line| line.contains("no responders") || line.contains("no stream takes"));
        assert_eq!(missed, None);
    }
    up.stop().await.ok();
}
