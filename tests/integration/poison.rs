//! A message that its stage does not survive is set aside; its neighbours are not, and none that was only there.

use std::path::Path;

use causeway_bus::{Bus, names};
use causeway_stand_in::script::{BYTES, ITEMS, POISON, SLOW};
use harness::{Running, StandIns, Tools, eventually, kill, stand_in_pipeline, workspace};
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _};

/// A picture of 100 megapixels: it takes ten times as long as a photo, on a fast machine two thirds of a second.
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
    let text = text.replace("[stage.preprocess]", "[stage.preprocess]\nmax_pixels = 100000000\nmax_process_ms = 400");
    let text = text.replace("[stage.capture]", "[stage.capture]\nmax_pixels = 100000000");
    std::fs::write(&file, text).expect("it is written");
    let path = |path: &std::path::Path| path.to_str().expect("a path").to_owned();
    let arguments = ["up", &path(&file), "--input", &path(input.path()), "--until-drained", "--json"];
    let summary = Running::start(&tools, home.path(), &arguments).finish().await.ok().json();
    assert_eq!(summary["dead_letters"], 1, "{summary}");
    assert_eq!(summary["dead_reasons"]["hung"], 1, "{summary}");
    assert_eq!(summary["faces"], 4, "{summary}");
    assert_eq!(summary["empties"], 2, "{summary}");

    let listed = Running::start(&tools, home.path(), &["dlq", "ls", &path(&file), "--json"]).finish().await.ok();
    assert!(listed.stdout.contains("\"preprocess\"") && listed.stdout.contains("hung"), "{}", listed.stdout);
}

/// Writes a pipeline of stand-ins into `home`; gives the arguments that run it to its end.
fn stand_ins(home: &Path, more: impl Fn(&str) -> String) -> Vec<String> {
    let file = home.join("faces.toml");
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    ["up", file.to_str().expect("a path"), "--until-drained", "--json"].map(str::to_owned).to_vec()
}

fn script(items: u64, more: &[(&'static str, &str)]) -> Vec<(&'static str, String)> {
    let mut script = vec![(ITEMS, items.to_string()), (BYTES, "500".into())];
    script.extend(more.iter().map(|(name, value)| (*name, (*value).to_owned())));
    script
}

#[tokio::test]
async fn every_way_of_not_surviving_a_message_is_told_apart() {
    let stand_ins_of = StandIns::link(&Tools::find());
    let tools = stand_ins_of.tools();
    let home = tempfile::tempdir().expect("a folder");
    let limits = |stage: &str| match stage {
        "pipeline" | "capture" => String::new(),
        _ => "max_process_ms = 1000\nquarantine_bytes = \"256MiB\"".into(),
    };
    let arguments = stand_ins(home.path(), limits);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let poison = "preprocess/17=abort,preprocess/33=hang,extract/49=memory,extract/65=too-much,classify/81=panic,cluster/97=abort";
    let summary = Running::start_in(tools, home.path(), &arguments, &script(300, &[(POISON, poison)]));
    let summary = summary.finish().await.ok().json();
    assert_eq!(summary["photos"], 300, "{summary}");
    assert_eq!(summary["dead_letters"], 6, "{summary}");
    let listed = Running::start(tools, home.path(), &["dlq", "ls", arguments[1], "--json"]).finish().await.ok();
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let letters = listed["dead_letters"].as_array().expect("a list").iter();
    let mut told: Vec<_> = letters.map(|letter| (text(&letter["stage"]), text(&letter["reason"]))).collect();
    told.sort();
    let expected = [
        ("classify", "panicked"),
        ("cluster", "killed"),
        ("extract", "out-of-memory"),
        ("extract", "too-much"),
        ("preprocess", "hung"),
        ("preprocess", "killed"),
    ];
    assert_eq!(told, expected.map(|(stage, reason)| (stage.to_owned(), reason.to_owned())), "{listed:#}");
}

#[tokio::test]
async fn what_is_only_there_when_its_stage_is_killed_is_never_set_aside() {
    // Two runs that are its own doing would set it aside: it is killed at far more.
    const KILLS: u64 = 8;
    let stand_ins_of = StandIns::link(&Tools::find());
    let tools = stand_ins_of.tools();
    let home = tempfile::tempdir().expect("a folder");
    let arguments = stand_ins(home.path(), |_| String::new());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    // One message, which takes long enough to be killed at.
    let slow = script(1, &[(SLOW, "classify=3000")]);
    let up = Running::start_in(tools, home.path(), &arguments, &slow);
    let mut last = None;
    for kills in 0..KILLS {
        let pid = up.stage_pid("classify", last).await;
        let bus = up.bus("faces").await;
        // At first it has the message in hand; after that it has begun to try it once more than it was killed at that.
        let link = names::stream("faces", "extract");
        eventually("the message is being handled", async || match kills {
            0 => bus.durable_state(&link, "classify").await.ok()??.unacked.checked_sub(1).map(drop),
            _ => (unseen(&bus).await == Some(kills)).then_some(()),
        })
        .await;
        kill(pid);
        last = Some(pid);
    }
    let summary = up.finish().await.ok().json();
    assert_eq!(summary["dead_letters"], 0, "{summary}");
    assert_eq!(summary["faces"], 1, "{summary}");
}

/// The runs of the one message that has marks, of which nobody saw the end.
async fn unseen(bus: &Bus) -> Option<u64> {
    let marked = bus.table_entries(names::ATTEMPTS).await.ok()?;
    let marks: serde_json::Value = serde_json::from_slice(&marked.first()?.value).expect("JSON");
    marks["unseen"].as_u64()
}
