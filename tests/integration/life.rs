//! The life of a stage: probes, drain, back-pressure, a live gallery, a broker that dies.

use std::time::Duration;

use causeway_bus::names;
use causeway_schemas::{Codec, Decision, Feature, Id, Meta, Person, decode, decode_body, encode};
use causeway_stage::Heartbeat;
use futures::StreamExt as _;
use harness::{Running, Site, Tools, copy_photos, drained, eventually, faces, kill, verdict, workspace};

async fn beat(site: &Site, stage: &str) -> Option<Heartbeat> {
    let entries = site.bus.table_entries(names::REPLICAS).await.ok()?;
    let beats = entries.iter().filter_map(|entry| serde_json::from_slice::<Heartbeat>(&entry.value).ok());
    beats.into_iter().find(|beat| beat.stage == stage)
}

async fn get(address: &str, path: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("it answers");
    answer
}

#[tokio::test]
async fn a_stage_answers_probes_and_drains_when_told_to_stop() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    copy_photos(&tools, input.path(), 2);
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let preprocess = site.stage("preprocess", &[]);
    let beat =
        eventually("a heartbeat", async || beat(&site, "preprocess").await.filter(|beat| beat.state == "running"))
            .await;
    assert!(get(&beat.health, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(&beat.health, "/readyz").await.contains("running"));

    site.stage("capture", &[]).ended().await;
    let link = names::stream("faces", "preprocess");
    eventually("a crop", async || site.bus.stream_state(&link).await.ok()?.filter(|state| state.messages > 2)).await;
    assert_eq!(preprocess.stop().await, Some(0), "a drained stage ends with 0");
    // What it had taken is answered or handed back at once; nothing waits for an ack that will not come.
    let state = site
        .bus
        .durable_state(&names::stream("faces", "capture"), "preprocess")
        .await
        .expect("a state")
        .expect("a durable");
    assert_eq!(state.unacked, 0, "{state:?}");

    let _rest = ["preprocess", "extract", "classify", "cluster"].map(|stage| site.stage(stage, &[]));
    drained(&site.bus, &site.pipeline, 16).await;
    let metrics = eventually("metrics", async || {
        let beat = self::beat(&site, "extract").await?;
        let text = get(&beat.health, "/metrics").await;
        text.contains("result=\"handled\"").then_some(text)
    })
    .await;
    assert!(metrics.contains("causeway_stage_process_seconds_bucket"), "{metrics}");
    verdict(&site.bus, &site.pipeline).await.assert_exactly_once();
}

#[tokio::test]
async fn a_full_link_stops_its_producer_and_says_so() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 6);
    let small = |stage: &str| if stage == "preprocess" { "link_bytes = \"1MiB\"" } else { "" };
    let site = Site::start(&tools, &faces(input.path(), small)).await;
    let _preprocess = site.stage("preprocess", &[]);
    let _capture = site.stage("capture", &[]);
    let waiting = eventually("the stop to show", async || {
        beat(&site, "preprocess").await.filter(|beat| beat.state.starts_with("waiting"))
    })
    .await;
    assert_eq!(waiting.state, "waiting: faces.crop is full");
    let link = names::stream("faces", "preprocess");
    let state = site.bus.stream_state(&link).await.expect("a state").expect("a stream");
    assert!(state.bytes <= 1 << 20, "{state:?}");
    // Room again: it goes on, and nothing was dropped.
    let _rest = ["extract", "classify", "cluster"].map(|stage| site.stage(stage, &[]));
    drained(&site.bus, &site.pipeline, photos).await;
    let verdict = verdict(&site.bus, &site.pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len(), photos);
}

#[tokio::test]
async fn who_is_enrolled_is_known_at_once() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let _classify = site.stage("classify", &[]);
    let mut decisions = site.bus.subscribe("faces.decision.>").await.expect("a subscription");
    let vector = |x: f32, y: f32| [x, y].into_iter().chain([0.0; 126]).collect::<Vec<f32>>();
    let ask = async |site: &Site, number: usize| {
        publish_feature(site, number, &vector(0.6, 0.8)).await;
    };
    ask(&site, 0).await;
    let before = decision(&mut decisions).await;
    assert_eq!((before.label, before.nearest), (None, None));

    let person = Person {
        name: "Ada".into(),
        space: "sface-2021dec-128".into(),
        vectors: vec![vector(0.6, 0.8)],
        photos: vec!["ada.jpg".into()],
        enrolled_at: 1,
    };
    let revision =
        site.bus.table_put(names::PEOPLE, "Ada", encode(&person, Codec::Json).into()).await.expect("it is put");
    // A replica follows; a decision says which revision it was made by.
    let mut number = 0;
    let after = loop {
        number += 1;
        ask(&site, number).await;
        let decision = decision(&mut decisions).await;
        if decision.gallery >= revision {
            break decision;
        }
    };
    assert_eq!(after.label.as_deref(), Some("Ada"));
    assert!((after.score - 1.0).abs() < 1e-4, "{}", after.score);
}

async fn decision(decisions: &mut causeway_bus::Records) -> Decision {
    let record = tokio::time::timeout(Duration::from_secs(20), decisions.next()).await;
    let record = record.expect("a decision comes").expect("the subscription lives").expect("a record");
    assert_eq!(record.headers.codec(), Codec::Json, "strangers read JSON");
    decode(record.headers.kind(), record.headers.codec(), &record.body).expect("a decision")
}

async fn publish_feature(site: &Site, number: usize, vector: &[f32]) {
    let example: Feature =
        decode_body(&std::fs::read(workspace().join("schemas/golden/feature.v1.bin")).expect("golden"), Codec::Bincode)
            .expect("a feature");
    let feature =
        Feature { shape: vec![128], data: Feature::encode_f32(vector), space: "sface-2021dec-128".into(), ..example };
    let meta = Meta::captured(Id::captured("test", &number.to_string()), "extract", "feature.v1".into(), 0);
    let outgoing = causeway_bus::Outgoing {
        subject: names::subject("faces", "feature", "edge", "test"),
        headers: meta.to_headers(),
        body: encode(&feature, Codec::Bincode).into(),
        if_absent: false,
    };
    site.bus.publish(&outgoing).await.expect("it is stored");
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_stops_everything_in_order() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 1);
    let arguments = ["up", "pipelines/faces.toml", "--input", input.path().to_str().expect("a path"), "--json"];
    let running = Running::start(&tools, home.path(), &arguments);
    let pipeline = causeway_pipelines::Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let bus = running.bus(&pipeline.name).await;
    drained(&bus, &pipeline, photos).await;
    // A terminal sends it to every process of the group. The server must outlive the stages and the last look at the results, so
    // it is in another one; in the same, whether the run still ends is a race.
    let server = running.about().await["server"]["pid"].as_u64().expect("a server");
    assert_ne!(group_of(server), group_of(running.pid().into()));
    running.interrupt_group();
    let finished = running.finish().await.ok();
    assert_eq!(finished.json()["photos"], photos, "{finished:?}");
    assert!(home.path().join("report.html").is_file());
}

#[tokio::test]
async fn a_broker_that_dies_costs_nothing_and_restarts_nobody() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 4);
    let arguments = ["up", "pipelines/faces.toml", "--input", input.path().to_str().expect("a path")];
    let running = Running::start(&tools, home.path(), &arguments);
    let pipeline = causeway_pipelines::Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let bus = running.bus(&pipeline.name).await;
    let link = names::stream("faces", "extract");
    eventually("a feature", async || bus.stream_state(&link).await.ok()?.filter(|state| state.last_sequence > 3)).await;
    let about = running.about().await;
    let before = running.stage_pid("extract", None).await;
    kill(u32::try_from(about["server"]["pid"].as_u64().expect("a server")).expect("a pid"));
    drained(&bus, &pipeline, photos).await;
    assert_eq!(running.stage_pid("extract", None).await, before, "a broker's death restarts no stage");
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len(), photos);
    running.stop().await.ok();
}

#[tokio::test]
async fn children_end_with_a_killed_up_and_the_next_one_goes_on() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 4);
    let path = input.path().to_str().expect("a path");
    let running = Running::start(&tools, home.path(), &["up", "pipelines/faces.toml", "--input", path]);
    let pipeline = causeway_pipelines::Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let bus = running.bus(&pipeline.name).await;
    let link = names::stream("faces", "extract");
    eventually("a feature", async || bus.stream_state(&link).await.ok()?.filter(|state| state.last_sequence > 3)).await;
    let about = running.about().await;
    let children: Vec<u64> = about["stages"]
        .as_array()
        .expect("stages")
        .iter()
        .map(|stage| stage[1]["pid"].as_u64().expect("a pid"))
        .collect();
    assert!(children.len() >= 4, "{about}");
    kill(running.pid());
    let server = about["server"]["pid"].as_u64().expect("a server");
    for pid in children.into_iter().chain([server]) {
        eventually("the end of a child", async || (!is_alive(pid)).then_some(())).await;
    }
    drop(running);

    let json = Running::start(
        &tools,
        home.path(),
        &["up", "pipelines/faces.toml", "--input", path, "--until-drained", "--json"],
    )
    .finish()
    .await
    .ok()
    .json();
    assert_eq!(json["photos"], photos, "{json}");
    assert_eq!(json["dead_letters"], 0, "{json}");
}

fn group_of(pid: u64) -> i32 {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
    nix::unistd::getpgid(Some(pid)).expect("it runs").as_raw()
}

/// Whether a process runs: one that has ended and was not waited for does not.
fn is_alive(pid: u64) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
