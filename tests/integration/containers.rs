//! The face pipeline as containers: images built from nothing, the compose file that `causeway deploy compose` writes, run by
//! a real engine; a container that is killed and started again by its policy costs nothing.

mod engine;
mod sites;

use std::time::Instant;

use causeway_bus::{Bus, Credentials, names};
use causeway_pipelines::Pipeline;
use harness::{Tools, copy_photos, drained, eventually, free_port, kill, verdict, workspace};

use engine::{Engine, open, pid, text};

/// Images of the test are told from a user's by their tag.
const TAG: &str = "test";
/// Nobody: what the images run as.
const UID: &str = "65532";
/// The images, each with the most megabytes that it may have. Compiled with Cargo's `dev`, programs are some three times larger
/// than released ones.
const IMAGES: [(&str, u64); 8] = [
    ("capture", 260),
    ("preprocess", 160),
    ("extract", 200),
    ("classify", 160),
    ("cluster", 80),
    ("relay", 80),
    ("causeway", 210),
    ("nats-server", 30),
];

#[tokio::test]
#[ignore = "minutes: makes a Debian, compiles in it, runs containers"]
async fn a_killed_container_is_started_again_and_costs_nothing() {
    let Some(engine) = Engine::find().await else { return };
    let tools = Tools::find();
    let began = Instant::now();
    engine.build_images().await;
    eprintln!("images built in {:.0?}", began.elapsed());
    assert_images_hold_only_what_runs(&engine).await;

    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 4);
    // Whoever the containers run as.
    open(input.path());
    let (port, folder) = (free_port().to_string(), input.path().to_str().expect("a path"));
    let arguments = ["pipelines/faces.toml", "--set", "capture.rate=10", "--publish", &port, "--input", folder];
    let deployment = engine.deploy(&tools, "one", &arguments, "{}").await;
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let address = format!("nats://127.0.0.1:{port}");
    let connects = async || Bus::connect(&address, &Credentials::default(), &pipeline.name, "test").await.ok();
    let bus = eventually("its broker", connects).await;

    let link = names::stream(&pipeline.name, "preprocess");
    eventually("a face that is embedded", async || {
        bus.durable_state(&link, "extract").await.ok()?.filter(|state| state.ack_floor >= 3)
    })
    .await;
    let before = deployment.inspect("extract").await;
    // As the kernel would: what `podman kill` ends was stopped by its user, and stays so.
    kill(pid(&before).expect("it runs"));
    let after = eventually("another process of the container", async || {
        let now = deployment.inspect("extract").await;
        (pid(&now).is_some() && pid(&now) != pid(&before)).then_some(now)
    })
    .await;
    assert_eq!(after["Id"], before["Id"]);
    assert!(after["RestartCount"].as_u64() > before["RestartCount"].as_u64(), "its policy started it again: {after}");

    drained(&bus, &pipeline, photos).await;
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len(), photos);
    assert!(verdict.dead.is_empty(), "{:?}", verdict.dead);
    assert!(verdict.decisions.len() > photos, "the photos have faces: {}", verdict.decisions.len());

    for stage in pipeline.stages.iter().filter(|stage| !stage.is_source()) {
        deployment.assert_confined(&stage.name).await;
        deployment.assert_healthy(&stage.name).await;
    }
    deployment.assert_confined("nats").await;
    deployment.assert_confined("agent").await;
    let status = deployment.compose(&["run", "--rm", "--no-deps", "-T", "agent", "status"]).await;
    assert!(text(&status).contains("classify"), "the command finds the broker and the pipeline: {}", text(&status));

    let capture = deployment.inspect("capture").await;
    assert_eq!(capture["State"]["Status"], "exited", "a source that has read all there is is not started again");
    deployment.compose(&["stop"]).await;
    for service in ["capture", "preprocess", "extract", "classify", "cluster", "agent"] {
        let state = deployment.inspect(service).await["State"].clone();
        assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &0.into()), "{service} drains: {state}");
    }
}

async fn assert_images_hold_only_what_runs(engine: &Engine) {
    for (name, most_mb) in IMAGES {
        let about = engine.inspect_image(name).await;
        assert_eq!(about["Config"]["User"], format!("{UID}:{UID}"), "{name}");
        let labels = &about["Config"]["Labels"];
        assert_eq!(labels["org.opencontainers.image.title"], format!("causeway/{name}"));
        assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
        for label in ["description", "revision", "licenses"] {
            let value = labels[format!("org.opencontainers.image.{label}")].as_str().unwrap_or_default();
            assert!(!value.is_empty() && value != "unknown", "{name} has no label {label}: {labels}");
        }
        let size_mb = about["Size"].as_u64().expect("a size") / 1_000_000;
        let files = engine.files(name).await;
        eprintln!("{name}: {size_mb} MB, {} files", files.len());
        assert!(size_mb <= most_mb, "{name} has {size_mb} MB: {files:#?}");
        assert_holds_only_what_runs(name, &files);
        let is_stage = !matches!(name, "causeway" | "nats-server");
        assert_eq!(!about["HealthCheck"].is_null() || !about["Healthcheck"].is_null(), is_stage, "{name}: {about}");
    }
}

/// A program, what it loads, whom it trusts, and licences.
fn assert_holds_only_what_runs(name: &str, files: &[String]) {
    let program = match name {
        "causeway" | "nats-server" => name.to_owned(),
        stage => format!("causeway-{stage}"),
    };
    let programs: Vec<_> = files.iter().filter(|path| path.starts_with("/usr/bin/")).collect();
    let expected = [format!("/usr/bin/{program}"), "/usr/bin/ffmpeg".into(), "/usr/bin/stage".into()];
    assert_eq!(
        programs,
        expected.iter().filter(|path| name == "capture" || !path.ends_with("ffmpeg")).collect::<Vec<_>>()
    );
    let is_known = |path: &str| {
        let is_library = path.contains(".so") && (path.starts_with("/lib") || path.starts_with("/usr/lib/"));
        let is_model = path.starts_with("/models/")
            && (path.contains(".toml") || path.contains(".onnx") || path.contains(".labels"));
        let is_text = path.starts_with("/usr/share/doc/");
        let is_system = ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt"];
        is_library || is_model || is_text || is_system.contains(&path) || path.starts_with("/usr/bin/")
    };
    let strange: Vec<_> = files.iter().filter(|path| !is_known(path)).collect();
    assert!(strange.is_empty(), "{name} holds {strange:?}");
    let has = |part: &str| files.iter().any(|path| path.contains(part));
    let engine = matches!(name, "preprocess" | "extract" | "classify" | "causeway");
    assert_eq!(has("libonnxruntime"), engine, "{name}: {files:#?}");
    assert_eq!(has("yunet.onnx"), matches!(name, "preprocess" | "causeway"), "{name}: {files:#?}");
    assert_eq!(has("sface.onnx"), matches!(name, "extract" | "causeway"), "{name}: {files:#?}");
    assert_eq!(has("mobilenet_v2.onnx"), engine, "{name}: {files:#?}");
}
