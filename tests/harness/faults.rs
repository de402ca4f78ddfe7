use std::path::Path;
use std::time::Duration;

use causeway_pipelines::Pipeline;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS, SLOW};

use crate::{Oracle, Running, Tools, Verdict, drained_within, stand_in_pipeline, verdict, workspace};

/// Longest run without faults.
const LONG: Duration = Duration::from_mins(10);

/// Writes a pipeline of stand-ins that captures `rate` messages a second.
///
/// # Panics
/// When it cannot be written.
pub fn stand_ins_at(home: &Path, rate: u32) -> String {
    let file = home.join("faces.toml");
    let more = |stage: &str| match stage {
        "pipeline" => "[keep]\nchanges = \"256KiB\"".into(),
        "capture" => format!("rate = {rate}"),
        _ => String::new(),
    };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    file.to_str().expect("a path").to_owned()
}

/// A camera of so many messages, each of which takes every stage some time: there is something in hand to be killed at.
pub fn at_work(items: u64) -> Vec<(&'static str, String)> {
    let slow = "preprocess=5,extract=5,classify=5,cluster=5";
    vec![(ITEMS, items.to_string()), (BYTES, "500".into()), (CAMERA, "1".into()), (SLOW, slow.into())]
}

/// The real pipeline at `rate` photos a second, and the arguments that run it.
///
/// # Panics
/// When it does not load.
pub fn faces_up(input: &Path, rate: u32) -> (Pipeline, [String; 5]) {
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let input = input.to_str().expect("a path").to_owned();
    let rate = format!("capture.rate={rate}");
    (pipeline, ["up".into(), "pipelines/faces.toml".into(), format!("--input={input}"), "--set".into(), rate])
}

/// What it gives without faults, for an oracle.
///
/// # Panics
/// When that goes wrong.
pub async fn without_faults(tools: &Tools, input: &Path, photos: usize) -> Oracle {
    Oracle::new(without_faults_at(tools, input, photos).await)
}

/// What it gives without faults.
///
/// # Panics
/// When that goes wrong.
pub async fn without_faults_at(tools: &Tools, input: &Path, photos: usize) -> Verdict {
    let home = tempfile::tempdir().expect("a folder");
    let (pipeline, arguments) = faces_up(input, 1000);
    let up = Running::start(tools, home.path(), &arguments.each_ref().map(String::as_str));
    let bus = up.bus(&pipeline.name).await;
    drained_within(LONG, &bus, &pipeline, photos).await;
    let verdict = verdict(&bus, &pipeline).await;
    up.stop().await.ok();
    verdict
}
