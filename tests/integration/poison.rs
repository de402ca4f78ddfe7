//! A message that its stage does not survive is set aside; its neighbours are not.

use harness::{Running, Tools, workspace};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _};

/// A picture of 100 megapixels: it takes longer than the stage below has time for, on any machine on which a photo does not.
fn huge() -> Vec<u8> {
    const SIDE: u32 = 10_000;
    let pixels = vec![0; (SIDE * SIDE) as usize];
    let mut bytes = Vec::new();
    let encoder = PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::NoFilter);
    encoder.write_image(&pixels, SIDE, SIDE, ExtendedColorType::L8).expect("it is encoded");
    bytes
}

#[tokio::test]
async fn what_kills_its_stage_is_set_aside_and_its_neighbours_are_not() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    for photo in ["hanks-close-up.png", "astronaut.png", "cat.png"] {
        for copy in ["a", "z"] {
            let from = tools.photos().join("input").join(photo);
            std::fs::copy(from, input.path().join(format!("{copy}-{photo}"))).expect("it is copied");
        }
    }
    std::fs::write(input.path().join("huge.png"), huge()).expect("it is written");
    // A hang ends the process: its time is over long before the picture is decoded and scaled.
    let text = std::fs::read_to_string(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let file = home.path().join("faces.toml");
    let text = text.replace("[stage.preprocess]", "[stage.preprocess]\nmax_pixels = 100000000\nmax_process_ms = 700");
    let text = text.replace("[stage.capture]", "[stage.capture]\nmax_pixels = 100000000");
    std::fs::write(&file, text).expect("it is written");
    let path = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
    let arguments = ["up", &path(&file), "--input", &path(input.path()), "--until-drained", "--json"];
    let summary = Running::start(&tools, home.path(), &arguments).finish().await.ok().json();
    assert_eq!(summary["dead_letters"], 1, "{summary}");
    assert_eq!(summary["dead_reasons"]["killed"], 1, "{summary}");
    assert_eq!(summary["faces"], 4, "{summary}");
    assert_eq!(summary["empties"], 2, "{summary}");

    let listed = Running::start(&tools, home.path(), &["dlq", "ls", &path(&file), "--json"]).finish().await.ok();
    assert!(listed.stdout.contains("\"preprocess\"") && listed.stdout.contains("killed"), "{}", listed.stdout);
}
