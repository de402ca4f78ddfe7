//! `causeway demo`: the first run, the second that has nothing to do, the one anew, and the report that they leave.

use std::path::Path;

use harness::{Finished, Running, Tools};
use serde_json::Value;

async fn demo(tools: &Tools, home: &Path, more: &[&str]) -> Finished {
    Running::start(tools, home, &[&["demo", "--json"], more].concat()).finish().await.ok()
}

async fn people(tools: &Tools, home: &Path) -> Vec<Value> {
    let people = Running::start(tools, home, &["people", "--json"]).finish().await.ok().json();
    people["people"].as_array().expect("people").clone()
}

#[tokio::test]
async fn a_second_demo_skips_what_has_its_outcomes_and_shows_the_whole_result() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let photos = std::fs::read_dir(tools.photos().join("input")).expect("photos").count();

    let first = demo(&tools, home.path(), &[]).await;
    let numbers = first.json();
    let keys: Vec<_> = numbers.as_object().expect("an object").keys().map(String::as_str).collect();
    assert_eq!(keys, ["clusters", "dead_letters", "faces", "people", "photos", "report"], "sorted by serde_json");
    assert_eq!(first.stdout.lines().count(), 1, "the talk is on stderr: {}", first.stdout);
    assert_eq!(
        (&numbers["photos"], &numbers["people"], &numbers["dead_letters"]),
        (&photos.into(), &1.into(), &0.into())
    );
    assert!(numbers["faces"].as_u64() >= numbers["clusters"].as_u64() && numbers["clusters"].as_u64() > Some(1));
    assert!(first.stderr.contains("Barack Obama"), "who was enrolled: {}", first.stderr);
    assert!(!first.stderr.contains("skipped"), "{}", first.stderr);
    assert_report_stands_alone(&numbers);

    let second = demo(&tools, home.path(), &[]).await;
    assert_eq!(second.json(), numbers);
    let skipped = format!("{photos} photos skipped");
    assert!(second.stderr.contains(&skipped) && second.stderr.contains("--again"), "{}", second.stderr);
    assert_report_stands_alone(&numbers);

    let again = demo(&tools, home.path(), &["--again"]).await;
    assert_eq!(again.json(), numbers);
    assert!(!again.stderr.contains("skipped"), "{}", again.stderr);
}

#[tokio::test]
async fn at_two_sites_it_says_what_crossed() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let one = demo(&tools, &home.path().join("one"), &[]).await.json();
    let two = demo(&tools, &home.path().join("two"), &["pipelines/faces-edge-cloud.toml"]).await.json();
    for key in ["photos", "faces", "people", "clusters", "dead_letters"] {
        assert_eq!(two[key], one[key], "{key}, as at one site");
    }
    assert_report_stands_alone(&two);
    let crossed = two["crossed"].as_array().expect("what crossed");
    let features = crossed.iter().find(|one| one["stream"] == "extract").expect("features");
    assert_eq!(
        (&features["from"], &features["to"], &features["messages"]),
        (&"edge".into(), &"cloud".into(), &two["faces"])
    );
    let report = std::fs::read_to_string(two["report"].as_str().expect("a path")).expect("the report");
    assert!(report.contains("what crossed") && report.contains("edge → cloud"));
    // A feature is a hundredth of a picture.
    assert!(features["bytes"].as_u64() < Some(2000 * two["faces"].as_u64().expect("a number")), "{features}");
}

/// The report is one file that loads nothing, and names who was recognised.
fn assert_report_stands_alone(numbers: &Value) {
    let report = std::fs::read_to_string(numbers["report"].as_str().expect("a path")).expect("the report");
    assert!(report.contains("Barack Obama"));
    assert!(report.contains("data:image/"), "the thumbnails are in it");
    for load in
        ["<script src", "<link", "<iframe", "@import", "src=\"http", "src=\"/", "href=\"http", "url(http", "url(/"]
    {
        assert!(!report.contains(load), "`{load}` is in the report");
    }
    // The name of SVG is no address that is loaded.
    let rest = report.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("http://") && !rest.contains("https://"));
}

#[tokio::test]
async fn the_demo_enrols_whom_it_does_not_know() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    demo(&tools, home.path(), &[]).await;
    let known = people(&tools, home.path()).await;
    assert_eq!(known.iter().map(|person| &person["name"]).collect::<Vec<_>>(), ["Barack Obama"]);

    Running::start(&tools, home.path(), &["forget", "Barack Obama"]).finish().await.ok();
    assert_eq!(people(&tools, home.path()).await, Vec::<Value>::new());
    // With photos of nobody to enrol, nobody is recognised: what was forgotten is not remembered elsewhere.
    let photos = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(tools.photos().join("input"), photos.path().join("input")).expect("a link");
    let photos = photos.path().to_str().expect("a path");
    let forgotten = demo(&tools, home.path(), &["--again", "--photos", photos]).await.json();
    assert_eq!(forgotten["people"], 0);

    // The demo's own photos have a folder of somebody, who is enrolled again.
    let again = demo(&tools, home.path(), &["--again"]).await.json();
    assert_eq!(again["people"], 1);
    assert_eq!(again["faces"], forgotten["faces"]);
    assert_eq!(people(&tools, home.path()).await.len(), 1);
}
