//! `causeway validate --connect`: everything that a pipeline needs, looked at and not changed.

use std::net::TcpListener;

use harness::{Finished, Site, Tools, causeway, workspace};
use serde_json::Value;

const FACES: &str = "pipelines/faces.toml";

/// The findings of the one file.
fn findings(finished: &Finished, file: &str) -> Vec<Value> {
    finished.json()[file]["connect"].as_array().expect("findings").clone()
}

fn of<'a>(findings: &'a [Value], about: &str) -> &'a Value {
    let found = findings.iter().find(|finding| finding["about"] == about);
    found.unwrap_or_else(|| panic!("nothing is said of {about}: {findings:#?}"))
}

#[tokio::test]
async fn what_is_there_is_said() {
    let tools = Tools::find();
    let home = tempfile::tempdir().expect("a folder");
    let home = home.path().to_str().expect("a path");
    let input = tools.photos().join("input");
    let set = format!("capture.input={}", input.display());
    let checked = causeway(&tools, &["validate", FACES, "--connect", "--home", home, "--set", &set]).await.ok();
    let lines: Vec<&str> = checked.stdout.lines().collect();
    assert!(lines[0].starts_with("ok  pipelines/faces.toml  5 stages, "), "{}", checked.stdout);
    assert!(lines[1].starts_with("    ok    server: none is named; `up` starts its own, "), "{}", checked.stdout);
    assert_eq!(
        lines[2..],
        [
            "    ok    model yunet: version 2023mar, hash right, opened by [stage.preprocess]",
            "    ok    model sface: version 2021dec, hash right, opened by [stage.extract]",
            "    ok    source capture: 8 pictures",
        ]
    );
}

#[tokio::test]
async fn all_that_is_not_there_is_said_at_once() {
    let tools = Tools::find();
    let models = tempfile::tempdir().expect("a folder");
    let (_, from) = tools.env.iter().find(|(name, _)| name == "CAUSEWAY_MODELS").expect("the models");
    let sface = std::path::Path::new(from).join("sface.toml");
    std::fs::copy(sface, models.path().join("sface.toml")).expect("it is copied");
    std::fs::write(models.path().join("sface.onnx"), b"not that model").expect("it is written");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("nats://ada:secret@{}", listener.local_addr().expect("an address"));
    drop(listener);
    let models = models.path().to_str().expect("a path");
    let arguments = ["validate", FACES, "--connect", "--json", "--nats", &address, "--models", models];
    let more = ["--set", "capture.input=/nowhere"];
    let checked = causeway(&tools, &[&arguments[..], &more].concat()).await;
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(!checked.stdout.contains("secret"), "{}", checked.stdout);
    let findings = findings(&checked, FACES);
    let words = [
        ("server", "cannot reach the NATS server at"),
        ("model yunet", "cannot find the model `yunet`"),
        ("model sface", "cannot trust"),
        ("source capture", "cannot capture from /nowhere"),
    ];
    for (about, word) in words {
        let finding = of(&findings, about);
        assert_eq!(finding["state"], "wrong", "{finding}");
        assert!(finding["said"].as_str().is_some_and(|said| said.contains(word)), "{word}: {finding}");
    }
    assert!(of(&findings, "server")["help"].is_string() && of(&findings, "model yunet")["help"].is_string());
    // A fault of the file comes first.
    let wrong = ["validate", FACES, "--connect", "--set", "classify.threshold=7"];
    assert_eq!(causeway(&tools, &wrong).await.code, Some(64));
}

#[tokio::test]
async fn streams_are_compared_and_left_as_they_are() {
    let tools = Tools::find();
    let text = std::fs::read_to_string(workspace().join(FACES)).expect("the pipeline");
    let site = Site::start(&tools, &text).await;
    let nats = site.server.address();
    let check = async |set: &[&str]| {
        let checked =
            causeway(&tools, &[&["validate", FACES, "--connect", "--json", "--nats", &nats], set].concat()).await;
        (checked.code, findings(&checked, FACES))
    };
    let (code, found) = check(&[]).await;
    assert_eq!(code, Some(0), "{found:#?}");
    assert_eq!(of(&found, "streams")["said"], "10 streams as wanted", "{found:#?}");
    assert!(of(&found, "server")["said"].as_str().is_some_and(|said| said.starts_with("nats-server 2.")));
    assert_eq!(of(&found, "source capture")["state"], "note", "{found:#?}");

    let (code, found) = check(&["--set", "preprocess.link_bytes=1GiB"]).await;
    let stream = of(&found, "stream faces_preprocess");
    assert_eq!((code, &stream["state"]), (Some(0), &"note".into()), "{found:#?}");
    assert_eq!(stream["said"], "its bound in bytes is 268435456, wanted is 1073741824");
    let (_, again) = check(&["--set", "preprocess.link_bytes=1GiB"]).await;
    assert_eq!(again, found, "it was looked at, not changed");
}
