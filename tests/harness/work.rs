use std::path::Path;
use std::time::Duration;

use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Capture, Dtype, Feature, ModelRef, Region};

use crate::running::PATIENCE;
use crate::{Tools, within};

/// The text of a face pipeline over `input`; `more` gives further keys of a stage, or tables at the top for `pipeline`.
pub fn faces(input: &Path, more: impl Fn(&str) -> &'static str) -> String {
    let stage = |name: &str, keys: String| format!("[stage.{name}]\n{keys}\n{}\n", more(name));
    [
        "pipeline = \"faces\"\n".into(),
        more("pipeline").into(),
        stage("capture", format!("input = {:?}", input.display().to_string())),
        stage("preprocess", "from = \"capture\"\nmodel = \"yunet\"".into()),
        stage("extract", "from = \"preprocess\"\nmodel = \"sface\"".into()),
        stage("classify", "from = \"extract\"".into()),
        stage("cluster", "from = \"extract\"".into()),
    ]
    .join("\n")
}

/// The feature of a face, as `extract` gives it: `vector` in SFace's space, of the first region of `item`.
pub fn face(source: &str, item: &str, vector: &[f32]) -> Feature {
    Feature {
        capture: Capture { source: source.into(), item: item.into(), epoch: 0, sequence: 0, captured_at: 1 },
        region: Region { x: 0.0, y: 0.0, w: 9.0, h: 9.0, score: 1.0, sharpness: 1.0, landmarks: vec![], frame: [9, 9] },
        dtype: Dtype::F32,
        shape: vec![u32::try_from(vector.len()).unwrap_or(u32::MAX)],
        data: Feature::encode_f32(vector),
        space: "sface-2021dec-128".into(),
        model: ModelRef { name: "sface".into(), version: "2021dec".into(), sha256: "0".repeat(64) },
    }
}

/// Puts `copies` of each of the demo's photos into a folder, each a photo of its own by its name. Gives how many.
///
/// # Panics
/// When the photos are not there.
pub fn copy_photos(tools: &Tools, to: &Path, copies: usize) -> usize {
    let mut photos = 0;
    for photo in std::fs::read_dir(tools.photos().join("input")).expect("the demo's photos") {
        let photo = photo.expect("a photo");
        for copy in 0..copies {
            let name = format!("{copy}-{}", photo.file_name().to_string_lossy());
            std::fs::copy(photo.path(), to.join(name)).expect("it is copied");
            photos += 1;
        }
    }
    photos
}

/// Waits until everything was captured and, link by link in graph order, nothing is pending nor unacked.
///
/// # Panics
/// When that does not come about.
pub async fn drained(bus: &Bus, pipeline: &Pipeline, photos: usize) {
    drained_within(PATIENCE, bus, pipeline, photos).await;
}

/// The same within a time of its own, for a test of minutes.
///
/// # Panics
/// When that does not come about in time.
pub async fn drained_within(patience: Duration, bus: &Bus, pipeline: &Pipeline, photos: usize) {
    within(patience, "drained", async || {
        let captured = bus.stream_state(&names::stream(&pipeline.name, "capture")).await.ok()??;
        if captured.messages < photos as u64 {
            return None;
        }
        for stage in pipeline.stages.iter().filter(|stage| !stage.is_source()) {
            let stream = names::stream(&pipeline.name, &stage.from[0]);
            let state = bus.durable_state(&stream, &stage.name).await.ok()??;
            if state.pending + state.unacked > 0 {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// Stops the source for good, so that it is known how many messages it has given; the supervisor waits for it.
///
/// # Panics
/// When there is no such process, or it does not come to rest in time.
pub async fn stopped(patience: Duration, bus: &Bus, capture: u32) -> usize {
    crate::signal(capture, "STOP");
    // What is on its way when it is stopped is stored, or is not.
    let mut last = 0;
    within(patience, "the end of what was on its way", async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = bus.stream_state("faces_capture").await.ok()??.messages;
        (std::mem::replace(&mut last, now) == now).then_some(())
    })
    .await;
    last as usize
}
