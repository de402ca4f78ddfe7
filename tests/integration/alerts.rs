//! For each alert of `deploy/prometheus/rules.yml` a fault that makes it fire, in a running pipeline that a real Prometheus scrapes.
//! The rules are the project's own, with seconds for minutes.

use std::time::Duration;

use std::path::Path;

use causeway_bus::{Bus, Outgoing, names};
use causeway_schemas::{Id, Meta};
use harness::{
    Camera, Prometheus, Running, Tools, copy_photos, eventually, faces, free_port, kill, make_video, signal,
};
use tempfile::TempDir;

/// A running pipeline, its folders, and the Prometheus that scrapes it.
struct Watched {
    running: Running,
    prometheus: Prometheus,
    bus: Bus,
    _folders: [TempDir; 2],
}

impl Watched {
    /// Runs a face pipeline over the demo's photos, again and again, and waits until every process is scraped.
    async fn start(more: impl Fn(&str) -> &'static str, env: &[(&str, String)]) -> Option<Self> {
        let input = tempfile::tempdir().expect("a folder");
        copy_photos(&Tools::find(), input.path(), 1);
        let of_photos = faces(input.path(), more);
        Self::start_of(of_photos, input, env).await
    }

    /// The same of a pipeline that reads something of `input`.
    async fn start_of(pipeline: String, input: TempDir, env: &[(&str, String)]) -> Option<Self> {
        let (tools, home) = (Tools::find(), tempfile::tempdir().expect("a folder"));
        let prometheus = Prometheus::start(home.path()).await?;
        let file = home.path().join("pipeline.toml");
        std::fs::write(&file, pipeline).expect("it is written");
        let file = path(&file);
        let running = Running::start_in(&tools, home.path(), &["up", &file], env);
        let bus = running.bus("faces").await;
        eventually("all targets", async || {
            let up = prometheus.up().await;
            ["capture", "preprocess", "extract", "up"].iter().all(|name| up.iter().any(|up| up == name)).then_some(())
        })
        .await;
        // A rate needs a figure from before the fault.
        let dead = "causeway_stream_stored_messages_total{stage=\"dead\"}";
        eventually("a first figure", async || prometheus.value(dead).await).await;
        Some(Self { running, prometheus, bus, _folders: [input, home] })
    }

    /// Puts a message on a link as a stranger would.
    async fn publish(&self, link: &str, kind: &str, number: usize) {
        let meta = Meta::captured(Id::captured("stranger", &number.to_string()), "stranger", kind.into(), 0);
        let outgoing = Outgoing {
            subject: names::subject("faces", link, "edge", "stranger"),
            headers: meta.to_headers(),
            body: "what nobody can read".into(),
            if_absent: false,
        };
        self.bus.publish(&outgoing).await.expect("it is stored");
    }
}

fn path(path: &Path) -> String {
    path.to_str().expect("a path").into()
}

/// The demo's photos, again and again.
fn repeated(stage: &str) -> &'static str {
    if stage == "capture" { "repeat = true\nrate = 4" } else { "" }
}

#[tokio::test]
#[ignore = "alerts need a while to fire"]
async fn a_stage_that_hangs() {
    let small = |stage: &str| match stage {
        "preprocess" => "link_bytes = \"1MiB\"",
        "capture" => "repeat = true\nrate = 10",
        _ => "",
    };
    let Some(watched) = Watched::start(small, &[]).await else { return };
    let Watched { running, prometheus, .. } = &watched;
    let extract = running.stage_pid("extract", None).await;
    let held = "causeway_stage_held{stage=\"extract\"}";
    eventually("messages in its hands", async || prometheus.value(held).await.filter(|&held| held > 0.0)).await;
    signal(extract, "STOP");
    prometheus.fires("CausewayProcessDown", "process", "extract").await;
    prometheus.fires("CausewayStageDown", "stage", "extract").await;
    prometheus.fires("CausewayLinkStalled", "stage", "extract").await;
    prometheus.fires("CausewayStreamNearLimit", "stage", "preprocess").await;
    prometheus.fires("CausewayStageBlocked", "stage", "preprocess").await;
    // What is captured waits before the stage that the full link stopped.
    prometheus.fires("CausewayLagGrowing", "stage", "preprocess").await;
    // What it held comes again, which is little beside what waits: so it stands still again and again.
    let pauses = async {
        loop {
            signal(extract, "CONT");
            tokio::time::sleep(Duration::from_millis(500)).await;
            signal(extract, "STOP");
            tokio::time::sleep(Duration::from_millis(1500)).await;
        }
    };
    tokio::select! {
        _ = prometheus.fires("CausewayRedeliveries", "stage", "extract") => (),
        () = pauses => (),
    }
    signal(extract, "CONT");
    watched.running.stop().await.ok();
}

#[tokio::test]
#[ignore = "alerts need a while to fire"]
async fn what_cannot_be_handled_a_stage_that_dies_and_a_collector_that_is_away() {
    let nowhere = ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", free_port()));
    let Some(watched) = Watched::start(repeated, &[nowhere]).await else { return };
    let prometheus = &watched.prometheus;
    prometheus.fires("CausewaySpansLost", "stage", "preprocess").await;
    for number in 0..3 {
        watched.publish("frame", "frame.v1", number).await;
    }
    prometheus.fires("CausewayDeadLetters", "stage", "dead").await;
    watched.publish("crop", "crop.v99", 4).await;
    prometheus.fires("CausewayRetrying", "stage", "extract").await;
    let mut pid = watched.running.stage_pid("classify", None).await;
    for _ in 0..4 {
        kill(pid);
        pid = watched.running.stage_pid("classify", Some(pid)).await;
    }
    prometheus.fires("CausewayRestarting", "stage", "classify").await;
    watched.running.stop().await.ok();
}

#[tokio::test]
#[ignore = "alerts need a while to fire"]
async fn a_stage_that_needs_nearly_all_its_time() {
    let Some(watched) = Watched::start(repeated, &[]).await else { return };
    let query = "histogram_quantile(0.99, sum by (le) (rate(causeway_stage_process_seconds_bucket{stage=\"preprocess\"}[10s])))";
    let needs = eventually("a measure", async || watched.prometheus.value(query).await.filter(|&s| s > 0.0)).await;
    watched.running.stop().await.ok();
    // A little more than it needs is allowed: it is warned of, and hardly ever ended.
    let limit = format!("max_process_ms = {}", (needs * 1100.0).max(100.0) as u64);
    let limit: &'static str = limit.leak();
    let slow = |stage: &str| if stage == "preprocess" { limit } else { repeated(stage) };
    let Some(watched) = Watched::start(slow, &[]).await else { return };
    watched.prometheus.fires("CausewayProcessSlow", "stage", "preprocess").await;
    watched.running.stop().await.ok();
}

#[tokio::test]
#[ignore = "alerts need a while to fire"]
async fn too_little_space_for_what_is_captured() {
    let small = |stage: &str| match stage {
        "pipeline" => "[keep]\ncaptured = { age = \"7d\", bytes = \"6MiB\" }",
        "capture" => "repeat = true\nrate = 10",
        _ => "",
    };
    let Some(watched) = Watched::start(small, &[]).await else { return };
    // What is captured is taken, but has no outcome while this one stands still.
    signal(watched.running.stage_pid("extract", None).await, "STOP");
    watched.prometheus.fires("CausewayRepairCopiesRemoved", "pipeline", "faces").await;
    signal(watched.running.stage_pid("extract", None).await, "CONT");
    watched.running.stop().await.ok();
}

#[tokio::test]
#[ignore = "alerts need a while to fire"]
async fn a_camera_that_shows_more_than_there_is_room_for() {
    let (tools, dir) = (Tools::find(), tempfile::tempdir().expect("a folder"));
    let video = dir.path().join("live.ts");
    make_video(&tools, &video, 50, &["-c:v", "mpeg2video", "-g", "1", "-q:v", "2"]);
    // Noise, so that frames are long and the link is soon full.
    let noise = ["-vf", "noise=all_strength=40:all_flags=t,scale=640:-1:flags=neighbor", "-c:v", "mjpeg", "-q:v", "2"];
    make_video(&tools, &video.with_extension("mjpeg"), 50, &noise);
    let camera = Camera::start(&video, 50, None).await;
    let small = |stage: &str| match stage {
        "pipeline" => "[keep]\ncaptured = { bytes = \"8MiB\" }",
        "capture" => "on_full = \"drop-newest\"\nbuffer = 5\nquality = 100",
        _ => "",
    };
    let pipeline = faces(Path::new(&camera.url("http", "")), small);
    let Some(watched) = Watched::start_of(pipeline, dir, &[]).await else { return };
    let Watched { running, prometheus, .. } = &watched;
    let dropped = "causeway_stage_messages_total{stage=\"capture\",result=\"dropped\"}";
    eventually("a figure from before the fault", async || prometheus.value(dropped).await.filter(|&n| n == 0.0)).await;
    // What is captured is not taken.
    let preprocess = running.stage_pid("preprocess", None).await;
    signal(preprocess, "STOP");
    prometheus.fires("CausewayCameraDrops", "stage", "capture").await;
    signal(preprocess, "CONT");
    watched.running.stop().await.ok();
}
