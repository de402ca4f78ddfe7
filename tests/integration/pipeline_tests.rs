//! `causeway test`: the tests that a pipeline file carries, run with the real stages.

use std::path::Path;

use harness::{Finished, Tools, causeway, workspace};
use tempfile::TempDir;

const PIPELINE: &str = r#"pipeline = "p"
[stage.capture]
[stage.preprocess]
from = "capture"
model = "yunet"
[stage.extract]
from = "preprocess"
model = "sface"
[stage.classify]
from = "extract"
[stage.cluster]
from = "extract"
"#;

/// A pipeline with these tests, in a folder of its own with the demo's photos as `photos/`.
fn with_tests(tools: &Tools, tests: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(tools.photos(), dir.path().join("photos")).expect("a link");
    let file = dir.path().join("p.toml");
    std::fs::write(&file, format!("{PIPELINE}{tests}")).expect("it is written");
    let file = file.to_str().expect("a path").to_owned();
    (dir, file)
}

async fn test(tools: &Tools, tests: &str, more: &[&str]) -> Finished {
    let (dir, file) = with_tests(tools, tests);
    let finished = causeway(tools, &[&["test", &file], more].concat()).await;
    let hide = |text: String| text.replace(dir.path().to_str().expect("a path"), "DIR");
    Finished { stdout: hide(finished.stdout), stderr: hide(finished.stderr), ..finished }
}

/// Without the times, which differ.
fn without_times(text: &str) -> String {
    let lines = text.lines().map(|line| match line.rsplit_once(", ") {
        Some((line, time)) if time.ends_with(" s") => line,
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[tokio::test]
async fn the_tests_of_the_face_pipeline_pass() {
    let tools = Tools::find();
    assert!(workspace().join(".tools/photos").is_dir(), "the tests name the demo's photos");
    let finished = causeway(&tools, &["test", "pipelines/faces.toml", "--json"]).await.ok();
    let object = finished.json();
    let tests = object["tests"].as_array().expect("tests");
    assert!(object["failed"] == 0 && tests.len() >= 6, "{object}");
    assert!(tests.iter().all(|test| test["ok"] == true && test["error"].is_null()));
    assert_eq!(tests[1]["stages"], serde_json::json!(["capture", "preprocess"]));
}

#[tokio::test]
async fn what_is_otherwise_is_shown_beside_what_was_expected() {
    let tools = Tools::find();
    let tests = r#"
[[test]]
name = "right"
stage = "cluster"
input = [{ vector = [1.0, 0.0] }, { vector = [0.0, 1.0] }]
expect = [{ cluster = "a", score = 1 }, { cluster = "b" }]
[[test]]
name = "another count, name, score and cluster"
stage = "classify"
input = [{ vector = [1.0, 0.0] }, { vector = [0.0, 1.0] }]
people = { Ada = [[1.0, 0.0]] }
expect = [{ unknown = true, score = { max = 0.5 } }, { label = "Ada", score = { is = 0.5, within = 0.1 } }, { count = 1 }]
"#;
    let wrong = test(&tools, tests, &[]).await;
    assert_eq!(wrong.code, Some(64), "a list has no count: {wrong:?}");
    let finished = test(&tools, &tests.replace(", { count = 1 }", ", { empty = \"no-face\" }"), &[]).await;
    assert_eq!((finished.code, &finished.stderr[..]), (Some(1), ""), "{finished:?}");
    assert_eq!(
        without_times(&finished.stdout),
        "\
ok    right  cluster
FAIL  another count, name, score and cluster  classify
      DIR/p.toml:19
      count
        expected  3
        got       2
      answer 1: label
        expected  unknown
        got       \"Ada\"
      answer 1: score
        expected  0.5 or less
        got       1.0000
      answer 2: label
        expected  \"Ada\"
        got       unknown
      answer 2: score
        expected  0.5 ± 0.1
        got       0.0000
2 tests: 1 passed, 1 failed
"
    );
    let one = test(&tools, &tests.replace(", { count = 1 }", ""), &["RIGHT"]).await.ok();
    assert_eq!(without_times(&one.stdout), "ok    right  cluster\n1 test: 1 passed, 0 failed\n");
}

#[tokio::test]
async fn real_pictures_go_through_real_stages() {
    let tools = Tools::find();
    let tests = r#"
[[test]]
name = "empties and rejects keep their place"
from = "preprocess"
stage = "cluster"
input = ["photos/input/cat.png", "photos/input/astronaut.png", "p.toml"]
expect = [{ empty = "no-face" }, { cluster = "a", region = { x = 178.6, w = 90.5 } }, { reject = "not-an-image" }]
[[test]]
name = "a picture of nobody is no message"
stage = "preprocess"
input = "photos/input/cat.png"
expect = { count = 1 }
[[test]]
name = "a region elsewhere"
stage = "preprocess"
from = "capture"
input = "photos/input/astronaut.png"
expect = { region = { x = 10, y = 63.4, within = 2 } }
"#;
    let finished = test(&tools, tests, &["--json"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    let object = finished.json();
    assert_eq!((&object["passed"], &object["failed"]), (&1.into(), &2.into()), "{object:#}");
    assert_eq!(object["tests"][0]["ok"], true, "{object:#}");
    let difference = &object["tests"][1]["differences"][0];
    assert!(difference["got"].as_str().is_some_and(|got| got.starts_with("empty, no-face: ")), "{difference}");
    let difference = &object["tests"][2]["differences"][0];
    assert_eq!(difference["expected"], "x 10.0, y 63.4 ± 2 px");
    assert_eq!(difference["key"], "region");
}

#[tokio::test]
async fn a_stage_that_cannot_run_fails_its_test_and_no_other() {
    let tools = Tools::find();
    let tests = r#"
[[test]]
name = "no model"
stage = "extract"
input = { vector = [1.0] }
expect = { count = 1 }
[[test]]
name = "a message that is none"
stage = "classify"
input = { data = 3, shape = [1], dtype = "F32" }
expect = { reject = "malformed" }
"#;
    let finished = test(&tools, tests, &["--models", "/nowhere"]).await;
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stdout.contains("cannot run: [stage.extract]: "), "{}", finished.stdout);
    assert!(finished.stdout.contains("/nowhere"), "{}", finished.stdout);
    assert!(finished.stdout.contains("ok    a message that is none"), "{}", finished.stdout);
}

#[tokio::test]
async fn a_wrong_test_is_told_with_its_place_and_up_passes_over_it() {
    let tools = Tools::find();
    let tests = r#"
[[test]]
stage = "clasify"
input = "nowhere.png"
expect = { cont = 1 }
[[test]]
name = "t"
stage = "preprocess"
from = "cluster"
input = "nowhere.png"
people = { Ada = "nobody" }
expect = { label = "Ada", empty = "no-face" }
[[test]]
name = "t"
stage = "classify"
input = []
expect = []
"#;
    let refused = test(&tools, tests, &[]).await;
    assert_eq!((refused.code, &refused.stdout[..]), (Some(64), ""), "{refused:?}");
    let words = [
        "the test has no `name`",
        "there is no stage `clasify`",
        "did you mean `classify`?",
        "unknown key `cont`",
        "did you mean `count`?",
        "what `cluster` gives does not come to `preprocess`",
        "there is no DIR/nobody",
        "`label` is of a decision, and preprocess gives a crop",
        "an answer with `empty` has nothing else",
        "another test is called `t` too",
        "`input` is empty",
        "`expect` must be a table, or a list of one or more",
        "p.toml:14:1",
    ];
    for word in words {
        assert!(refused.stderr.contains(word), "`{word}` is not in {}", refused.stderr);
    }
    let (_dir, file) = with_tests(&tools, tests);
    let validated = causeway(&tools, &["validate", &file]).await;
    assert_eq!(validated.code, Some(64), "{validated:?}");
    causeway(&tools, &["graph", &file]).await.ok();
}

#[tokio::test]
async fn a_pipeline_without_tests_is_not_passed() {
    let tools = Tools::find();
    let none = test(&tools, "", &[]).await;
    assert_eq!((none.code, &none.stdout[..]), (Some(1), ""), "{none:?}");
    assert!(none.stderr.contains("it has no [[test]]") && none.stderr.contains("docs/"), "{}", none.stderr);
    let other = causeway(&tools, &["test", "pipelines/faces.toml", "no such words"]).await;
    assert_eq!(other.code, Some(1), "{other:?}");
    assert!(other.stderr.contains("a cat has no face"), "{}", other.stderr);
}

#[tokio::test]
async fn a_first_pipeline_is_right_and_never_written_over() {
    let tools = Tools::find();
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("front_door.toml");
    let file = file.to_str().expect("a path");
    let written = causeway(&tools, &["init", file]).await.ok();
    assert!(
        written.stdout.contains("the pipeline `front-door`") && written.stdout.contains("causeway up "),
        "{written:?}"
    );
    let validated = causeway(&tools, &["validate", file]).await.ok();
    assert_eq!(validated.stdout, format!("ok  {file}  5 stages\n"));
    let text = std::fs::read_to_string(file).expect("it was written");
    assert!(text.starts_with("#:schema ./pipeline.schema.json\n"), "{text}");
    assert!(dir.path().join("pipeline.schema.json").is_file());
    std::fs::write(file, "mine").expect("it is written");
    let refused = causeway(&tools, &["init", file]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("it exists already"), "{}", refused.stderr);
    assert_eq!(std::fs::read_to_string(file).expect("it is there"), "mine");
    assert!(!Path::new("faces.toml").exists());
    for kind in ["camera", "objects"] {
        let file = dir.path().join(kind).with_extension("toml");
        let file = file.to_str().expect("a path");
        causeway(&tools, &["init", file, "--kind", kind]).await.ok();
        causeway(&tools, &["validate", file]).await.ok();
    }
}
