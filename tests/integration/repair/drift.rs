//! What drifted is said, and mended where that loses nothing.

use std::time::Duration;

use async_nats::jetstream;
use causeway_bus::{DurableWish, TakerSort, names};
use causeway_pipelines::Pipeline;
use harness::{Running, Site, Tools, copy_photos, drained, eventually, faces, verdict, workspace};
use serde_json::Value;

use super::{FEATURES, command, feature, is_idle, outcomes};

async fn context(address: &str) -> jetstream::Context {
    jetstream::new(async_nats::connect(address).await.expect("a client"))
}

/// What `status` lists of this sort.
async fn drift(tools: &Tools, site: &Site, sort: &str) -> Option<Value> {
    drift_with(tools, site, sort, &[]).await
}

/// The same, where its detail says all of `what`.
async fn drift_with(tools: &Tools, site: &Site, sort: &str, what: &[&str]) -> Option<Value> {
    let status = command(tools, site, &["status", "--json"]).await.ok().json();
    let says =
        |drift: &&Value| drift["detail"].as_str().is_some_and(|detail| what.iter().all(|what| detail.contains(what)));
    status["drift"].as_array()?.iter().filter(|drift| drift["sort"] == sort).find(says).cloned()
}

#[tokio::test]
async fn other_settings_and_missing_durables_are_mended() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let address = site.server.address();
    let js = context(&address).await;
    let file = site.pipeline.file.display().to_string();
    let _agent = Running::start(&tools, home.path(), &["agent", &file, "--nats", &address]);
    let mut stream = js.get_stream("faces_extract").await.expect("a stream");
    // What is changed while the agent starts it makes as it should be without a word, and a look may come between two changes:
    // changed again then, until one has seen both.
    let settings = eventually("it is said", async || {
        let mut config = stream.info().await.ok()?.config.clone();
        if config.discard == jetstream::stream::DiscardPolicy::New {
            config.discard = jetstream::stream::DiscardPolicy::Old;
            stream.delete_consumer("classify").await.ok()?;
            js.update_stream(&config).await.ok()?;
            js.delete_stream("faces_preprocess").await.ok()?;
        }
        drift_with(&tools, &site, "settings", &["answer to being full is Old", "no durable classify"]).await
    })
    .await;
    assert_eq!((&settings["stream"], &settings["mended"]), (&"faces_extract".into(), &true.into()), "{settings}");
    eventually("all as wanted", async || {
        let config = stream.info().await.ok()?.config.clone();
        let durable = site.bus.durable_state("faces_extract", "classify").await.ok()??;
        let made = site.bus.durable_state("faces_preprocess", "extract").await.ok()??;
        let is_new = config.discard == jetstream::stream::DiscardPolicy::New;
        (is_new && durable.pending + made.pending == 0).then_some(())
    })
    .await;
    let missing = eventually("it is said", async || drift(&tools, &site, "missing").await).await;
    assert_eq!(missing["stream"], "faces_preprocess", "{missing}");
}

#[tokio::test]
async fn a_durable_made_anew_loses_nothing_that_is_unread() {
    const FEATURES_SENT: usize = 500;
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let site = Site::start(&tools, &faces(input.path(), |_| "")).await;
    let _stages = ["classify", "cluster"].map(|stage| site.stage(stage, &[]));
    for stage in ["classify", "cluster"] {
        eventually("it pulls", async || {
            let durable = site.bus.durable_state("faces_extract", stage).await.ok()??;
            (durable.waiting > 0).then_some(())
        })
        .await;
    }
    let wish = DurableWish { name: "classify".into(), taker: TakerSort::Shared, subjects: Vec::new(), ends: false };
    // While they come and are answered, the durable is made anew again and again, and once a renewal is cut off.
    for number in 0..FEATURES_SENT {
        let (meta, body) = feature(&number.to_string());
        let mut headers = meta.to_headers();
        headers.push((causeway_schemas::header::CONTENT_TYPE, "application/x-bincode".into()));
        let one = causeway_bus::Outgoing { subject: FEATURES.into(), headers, body: body.into(), if_absent: false };
        site.bus.publish(&one).await.expect("it is stored");
        if number % 100 == 50 {
            let floor =
                site.bus.durable_state("faces_extract", "classify").await.expect("a state").expect("one").ack_floor;
            site.bus.renew_durable("faces_extract", &wish, floor + 1).await.expect("it is made anew");
        }
        if number == 220 {
            cut_off(&site, &wish).await;
        }
    }
    for stage in ["classify", "cluster"] {
        eventually("an idle link", async || is_idle(&site.bus, &site.pipeline, stage).await).await;
    }
    let decisions = outcomes(&site.bus, "classify").await;
    assert_eq!((decisions.len(), decisions.values().max()), (FEATURES_SENT + 1, Some(&1)));
    let link = site.bus.stream_state(&names::stream("faces", "extract")).await.expect("a state").expect("a link");
    assert_eq!(link.messages, 0, "no guard is left that keeps what all have acked");
}

/// As if the agent had been killed between the removal of the durable and the new one.
async fn cut_off(site: &Site, wish: &DurableWish) {
    let js = context(&site.server.address()).await;
    let stream = js.get_stream("faces_extract").await.expect("a stream");
    let floor = site.bus.durable_state("faces_extract", "classify").await.expect("a state").expect("one").ack_floor;
    let guard = jetstream::consumer::pull::Config {
        durable_name: Some("classify_renewal-guard".into()),
        deliver_policy: jetstream::consumer::DeliverPolicy::ByStartSequence { start_sequence: floor + 1 },
        ..Default::default()
    };
    stream.create_consumer(guard).await.expect("it is made");
    stream.delete_consumer("classify").await.expect("it is removed");
    let (meta, body) = feature("while there was none");
    let mut headers = meta.to_headers();
    headers.push((causeway_schemas::header::CONTENT_TYPE, "application/x-bincode".into()));
    let one = causeway_bus::Outgoing { subject: FEATURES.into(), headers, body: body.into(), if_absent: false };
    site.bus.publish(&one).await.expect("it is stored");
    site.bus.end_renewal("faces_extract", wish).await.expect("it is ended");
}

#[tokio::test]
async fn a_stream_that_lost_its_messages_is_reconciled() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 1);
    let path = input.path().to_str().expect("a path");
    let up = ["up", "pipelines/faces.toml", "--input", path];
    let drain = [&up[..], &["--until-drained", "--json"]].concat();
    Running::start(&tools, home.path(), &drain).finish().await.ok();
    // A disk that lost the files of a link: its durable is ahead of it.
    let streams = home.path().join("edge/store/jetstream/$G/streams");
    let link = streams.join("faces_preprocess/msgs");
    std::fs::remove_dir_all(&link).expect("it is there");
    for photo in std::fs::read_dir(input.path()).expect("photos") {
        let photo = photo.expect("a photo").path();
        let name = format!("again-{}", photo.file_name().expect("a name").to_string_lossy());
        std::fs::copy(&photo, photo.with_file_name(name)).expect("it is copied");
    }
    let running = Running::start(&tools, home.path(), &up);
    let bus = running.bus("faces").await;
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    drained(&bus, &pipeline, 2 * photos).await;
    let reconcile = ["reconcile", "--json", "--wait", "60"];
    let done = Running::start(&tools, home.path(), &reconcile).finish().await.ok().json();
    assert_eq!((&done["captured"], &done["lost"]), (&(2 * photos).into(), &Value::Array(Vec::new())), "{done}");
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    let status = Running::start(&tools, home.path(), &["status", "--json"]).finish().await.ok().json();
    eprintln!("{} {}", done, status["drift"]);
    tokio::time::timeout(Duration::from_secs(30), running.stop()).await.expect("it stops").ok();
}
