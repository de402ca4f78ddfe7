use super::*;
use crate::deploy::site::deployed_alone;

const DOOR: &str = "\
pipeline = \"door\"
[stage.capture]
[stage.preprocess]
from = \"capture\"
model = \"yunet\"
[stage.extract]
from = \"preprocess\"
model = \"sface\"
[stage.cluster]
from = \"extract\"
";

fn plain<'a>(site: &'a Deployed, inputs: &'a [(String, Input)]) -> Compose<'a> {
    Compose {
        site,
        set: &[],
        inputs,
        images: "localhost/causeway",
        tag: "1.2.3",
        nats_image: None,
        models: None,
        replicas: Vec::new(),
        publish: None,
    }
}

fn input(written: &str) -> Input {
    Input::of(Path::new(written), Path::new("/pipelines"), None).unwrap()
}

#[test]
fn a_pipeline_as_it_is() {
    let inputs = [("capture".to_owned(), input("/photos"))];
    let site = deployed_alone(DOOR);
    let files = plain(&site, &inputs).files(DOOR).unwrap();
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["compose.yaml", "nats-server.conf", "door.toml"]);
    assert!(files.iter().all(|(_, text)| text.starts_with(MARK)), "each may be written over");
    assert!(files[2].1.ends_with(DOOR));
    insta::assert_snapshot!("compose", files[0].1);
    insta::assert_snapshot!("nats_conf", files[1].1);
}

#[test]
fn a_pipeline_with_everything_asked_for() {
    let inputs = [("capture".to_owned(), input("/my \"photos\"/$2024/*.jpg"))];
    let site = deployed_alone(DOOR);
    let compose = Compose {
        set: &["cluster.threshold=0.5".into()],
        images: "registry.example/team/causeway",
        nats_image: Some("docker.io/library/nats:2.12"),
        models: Some("/models of mine".into()),
        replicas: vec![("extract".into(), 2)],
        publish: Some(4222),
        ..plain(&site, &inputs)
    };
    insta::assert_snapshot!("compose_with_everything", compose.files(DOOR).unwrap()[0].1);
}

#[test]
fn a_stage_cannot_be_called_like_a_service() {
    let text = DOOR
        .replace("stage.cluster", "stage.agent")
        .replace("from = \"extract\"", "uses = \"cluster\"\nfrom = \"extract\"");
    let error = plain(&deployed_alone(&text), &[]).files(&text).unwrap_err().to_string();
    assert!(error.starts_with("cannot deploy [stage.agent]"), "{error}");
}

#[test]
fn an_input_is_mounted_as_far_as_it_is_no_pattern() {
    let mounted = |from: &str, within: &str| {
        let to = if within.contains(".png") { within } else { "/input" };
        let mounts = vec![(from.to_owned(), to.to_owned())];
        Input { mounts, keys: vec![("input", within.into())], ..Input::default() }
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    std::fs::write(&file, "").unwrap();
    assert_eq!(input(dir.path().to_str().unwrap()), mounted(dir.path().to_str().unwrap(), "/input"));
    assert_eq!(input(file.to_str().unwrap()), mounted(file.to_str().unwrap(), "/input/a.png"));
    assert_eq!(input("/p/*/a?.jpg"), mounted("/p", "/input/*/a?.jpg"));
    // What is not there yet is taken for a folder.
    assert_eq!(input("/not/there"), mounted("/not/there", "/input"));
    assert_eq!(input("photos"), mounted("/pipelines/photos", "/input"));
}

#[test]
fn a_camera_is_reached_from_its_container() {
    let deployed = |written: &str| {
        let inputs = [("capture".to_owned(), input(written))];
        let files = plain(&deployed_alone(DOOR), &inputs).files(DOOR).unwrap();
        files[0].1.split("  capture:").nth(1).unwrap().split("\n\n").next().unwrap().to_owned()
    };
    insta::assert_snapshot!("camera_by_url", deployed("rtsp://ada:${CAMERA_PASSWORD}@10.0.0.5/1"));
    insta::assert_snapshot!("camera_by_device", deployed("/dev/video0"));

    let with_file = Input::of(Path::new("rtsp://ada@door/1"), Path::new("/p"), Some(Path::new("secret"))).unwrap();
    assert_eq!(with_file.mounts, [("/p/secret".to_owned(), "/etc/causeway/secret".to_owned())]);
    assert!(with_file.keys.contains(&("password_file", "/etc/causeway/secret".into())));
}

#[test]
fn what_a_container_cannot_read_or_should_not_hold_is_refused() {
    let refused = |written: &str| Input::of(Path::new(written), Path::new("/p"), None).unwrap_err().to_string();
    let error = refused("rtsp://ada:s3cret@door/1");
    assert!(error.contains("${CAMERA_PASSWORD}") && !error.contains("s3cret"), "{error}");
    assert!(refused("-").contains("standard input"));
    assert!(refused("gopher://door").contains("gopher"));
}

#[test]
fn a_text_of_yaml_stays_what_it_is() {
    assert_eq!(quote("a: \"b\" #\n$HOME"), r#""a: \"b\" #\n$$HOME""#);
}
