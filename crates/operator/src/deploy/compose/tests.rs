use super::*;

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

fn pipeline(text: &str) -> Pipeline {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("door.toml");
    std::fs::write(&file, text).unwrap();
    let mut pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    pipeline.file = "door.toml".into();
    pipeline
}

fn plain(inputs: &[(String, Input)]) -> Compose<'_> {
    Compose {
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

#[test]
fn a_pipeline_as_it_is() {
    let inputs = [("capture".to_owned(), Input::of(Path::new("/photos")).unwrap())];
    let files = plain(&inputs).files(&pipeline(DOOR), DOOR).unwrap();
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["compose.yaml", "nats-server.conf", "door.toml"]);
    assert!(files.iter().all(|(_, text)| text.starts_with(MARK)), "each may be written over");
    assert!(files[2].1.ends_with(DOOR));
    insta::assert_snapshot!("compose", files[0].1);
    insta::assert_snapshot!("nats_conf", files[1].1);
}

#[test]
fn a_pipeline_with_everything_asked_for() {
    let inputs = [("capture".to_owned(), Input::of(Path::new("/my \"photos\"/$2024/*.jpg")).unwrap())];
    let compose = Compose {
        set: &["cluster.threshold=0.5".into()],
        images: "registry.example/team/causeway",
        nats_image: Some("docker.io/library/nats:2.12"),
        models: Some("/models of mine".into()),
        replicas: vec![("extract".into(), 2)],
        publish: Some(4222),
        ..plain(&inputs)
    };
    insta::assert_snapshot!("compose_with_everything", compose.files(&pipeline(DOOR), DOOR).unwrap()[0].1);
}

#[test]
fn a_stage_cannot_be_called_like_a_service() {
    let text = DOOR
        .replace("stage.cluster", "stage.agent")
        .replace("from = \"extract\"", "uses = \"cluster\"\nfrom = \"extract\"");
    let error = plain(&[]).files(&pipeline(&text), &text).unwrap_err().to_string();
    assert!(error.starts_with("cannot deploy [stage.agent]"), "{error}");
}

#[test]
fn an_input_is_mounted_as_far_as_it_is_no_pattern() {
    let input = |from: &str, within: &str| {
        let to = if within.contains(".png") { within } else { "/input" };
        Input { from: from.into(), to: to.into(), within: within.into() }
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.png");
    std::fs::write(&file, "").unwrap();
    assert_eq!(Input::of(dir.path()).unwrap(), input(dir.path().to_str().unwrap(), "/input"));
    assert_eq!(Input::of(&file).unwrap(), input(file.to_str().unwrap(), "/input/a.png"));
    assert_eq!(Input::of(Path::new("/p/*/a?.jpg")).unwrap(), input("/p", "/input/*/a?.jpg"));
    // What is not there yet is taken for a folder.
    assert_eq!(Input::of(Path::new("/not/there")).unwrap(), input("/not/there", "/input"));
}

#[test]
fn a_text_of_yaml_stays_what_it_is() {
    assert_eq!(quote("a: \"b\" #\n$HOME"), r#""a: \"b\" #\n$$HOME""#);
}
