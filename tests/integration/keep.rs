//! What is kept: the capture stream gives up what is complete, and nothing that nobody has taken.

use causeway_bus::names;
use causeway_pipelines::Pipeline;
use harness::{Running, Tools, copy_photos, drained, eventually, faces, verdict};

#[tokio::test]
async fn a_small_capture_stream_carries_a_long_run() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    // Three times what the stream may hold.
    let photos = copy_photos(&tools, input.path(), 3);
    let file = home.path().join("faces.toml");
    let small =
        |stage: &str| if stage == "pipeline" { "[keep]\ncaptured = { age = \"7d\", bytes = \"2MiB\" }\n" } else { "" };
    std::fs::write(&file, faces(input.path(), small)).expect("it is written");
    let pipeline = Pipeline::load(&file).expect("the pipeline");
    let path = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
    let running = Running::start(&tools, home.path(), &["up", &path(&file), "--input", &path(input.path())]);
    let bus = running.bus("faces").await;
    let stream = names::stream("faces", "capture");
    let most = 2 << 20;
    eventually("all captured", async || {
        let state = bus.stream_state(&stream).await.ok()??;
        assert!(state.bytes <= most, "{state:?}");
        (state.last_sequence >= photos as u64).then_some(())
    })
    .await;
    drained(&bus, &pipeline, 0).await;
    let verdict = verdict(&bus, &pipeline).await;
    assert!(verdict.captured.len() < photos, "something was purged");
    assert!(verdict.open.is_empty(), "not closed: {:?}", verdict.open);
    let answered = verdict.decisions.keys().map(|(photo, _)| photo).chain(verdict.empties.keys());
    let answered: std::collections::BTreeSet<_> = answered.collect();
    assert_eq!(answered.len(), photos, "every photo has its outcome, also those whose copy is gone");
    running.stop().await.ok();
}

#[tokio::test]
async fn an_item_longer_than_the_room_that_is_left_gets_room() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    // Noise, which PNG cannot make small: two of these fill three quarters of the stream, a third does not fit.
    let photos = 6;
    for photo in 0..photos {
        let mut noise = photo + 1_u32;
        let picture = image::RgbImage::from_fn(364, 364, |_, _| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            image::Rgb([(noise >> 8) as u8, (noise >> 16) as u8, (noise >> 24) as u8])
        });
        picture.save(input.path().join(format!("{photo}.png"))).expect("it is written");
    }
    let file = home.path().join("faces.toml");
    let small =
        |stage: &str| if stage == "pipeline" { "[keep]\ncaptured = { age = \"7d\", bytes = \"1MiB\" }\n" } else { "" };
    std::fs::write(&file, faces(input.path(), small)).expect("it is written");
    let path = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
    let arguments = ["up", &path(&file), "--input", &path(input.path()), "--until-drained", "--json"];
    let summary = Running::start(&tools, home.path(), &arguments).finish().await.ok().json();
    assert_eq!((&summary["empties"], &summary["dead_letters"]), (&photos.into(), &0.into()), "{summary}");
}
