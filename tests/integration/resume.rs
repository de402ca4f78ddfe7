//! Kill any stage in mid-run: every photo's tree is closed exactly once, with the values of a run without kills.

use std::path::Path;

use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use harness::{Running, Site, Tools, Verdict, copy_photos, drained, eventually, kill, verdict, workspace};

/// Copies of the demo's photos, so that the run is long enough to be killed in: each copy is a photo of its own.
const COPIES: usize = 4;

#[tokio::test]
async fn killed_stages_resume() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), COPIES);

    let golden = run(&tools, input.path(), &[]).await;
    golden.assert_exactly_once();
    assert_eq!(golden.captured.len(), photos);
    assert!(golden.decisions.len() > photos / 2, "{} faces", golden.decisions.len());

    let stages = ["capture", "preprocess", "extract", "classify", "cluster"];
    let killed = run(&tools, input.path(), &stages).await;
    killed.assert_exactly_once();
    killed.assert_same_as(&golden);
}

/// A re-run of a later generation passes every dedupe window and meets the outcomes that are there: none is doubled.
#[tokio::test]
async fn a_run_again_ends_on_the_same_outcomes() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 1);
    let text = std::fs::read_to_string(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let site = Site::start(&tools, &text).await;
    let set = format!("capture.input={}", input.path().display());
    let _stages = ["preprocess", "extract", "classify", "cluster"].map(|stage| site.stage(stage, &["--set", &set]));
    assert_eq!(site.stage("capture", &["--set", &set]).ended().await, Some(0));
    drained(&site.bus, &site.pipeline, photos).await;
    let first = verdict(&site.bus, &site.pipeline).await;
    first.assert_exactly_once();

    assert_eq!(site.stage("capture", &["--set", &set, "--generation", "1"]).ended().await, Some(0));
    drained(&site.bus, &site.pipeline, 2 * photos).await;
    let again = verdict(&site.bus, &site.pipeline).await;
    again.assert_exactly_once();
    again.assert_same_as(&first);
}

/// Runs the face pipeline over `input` and kills each of `killed` once, in the middle of its work.
async fn run(tools: &Tools, input: &Path, killed: &[&str]) -> Verdict {
    let home = tempfile::tempdir().expect("a folder");
    let file = workspace().join("pipelines/faces.toml");
    let pipeline = Pipeline::load(&file).expect("the pipeline");
    let input_path = input.to_str().expect("a path");
    // A camera's pace, so that the source can be killed in the middle too.
    let arguments = ["up", "pipelines/faces.toml", "--input", input_path, "--set", "capture.rate=25"];
    let running = Running::start(tools, home.path(), &arguments);
    let bus = running.bus(&pipeline.name).await;
    for stage in killed {
        let pid = running.stage_pid(stage, None).await;
        in_the_middle(&bus, &pipeline, stage).await;
        kill(pid);
        running.stage_pid(stage, Some(pid)).await;
    }
    drained(&bus, &pipeline, std::fs::read_dir(input).expect("a folder").count()).await;
    let verdict = verdict(&bus, &pipeline).await;
    running.stop().await.ok();
    verdict
}

/// Waits until a stage has answered something and has more to do, or has nothing left (a kill must not make it fail then).
async fn in_the_middle(bus: &Bus, pipeline: &Pipeline, stage: &str) {
    let spec = pipeline.stage(stage).expect("a stage");
    let from = spec.from.first().map_or(stage, String::as_str);
    let stream = names::stream(&pipeline.name, from);
    eventually("work for the stage", async || {
        if spec.is_source() {
            return bus.stream_state(&stream).await.ok()?.filter(|state| state.messages >= 3).map(|_| ());
        }
        let state = bus.durable_state(&stream, stage).await.ok()??;
        (state.ack_floor >= 3).then_some(())
    })
    .await;
}
