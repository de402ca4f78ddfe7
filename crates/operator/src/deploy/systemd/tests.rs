use super::*;
use crate::deploy::site::deployed_alone;

const DOOR: &str = "\
pipeline = \"door\"
[stage.capture]
password_file = \"door.password\"
[stage.preprocess]
from = \"capture\"
model = \"yunet\"
[stage.cluster]
from = \"preprocess\"
uses = \"extract\"
model = \"sface\"
";

fn files(input: &str, set: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let site = deployed_alone(DOOR);
    let (at, bin, models) = (Path::new("/etc/causeway/door"), Path::new("/usr/local/bin"), Path::new("/models"));
    let inputs = inputs(&site, Some(input), at)?;
    Units { site: &site, set, inputs, at, bin, models }.files(DOOR)
}

#[test]
fn a_pipeline_as_units() {
    let files =
        files("rtsp://ada:${CAMERA_PASSWORD}@10.0.0.5/1", &["preprocess.gate={ min_size = 24 }".into()]).unwrap();
    assert!(files.iter().all(|(_, text)| text.starts_with(MARK)), "each may be written over");
    let all: Vec<String> = files.iter().map(|(name, text)| format!("== {name}\n{text}")).collect();
    insta::assert_snapshot!("units", all.join("\n"));
}

#[test]
fn a_source_is_named_as_its_machine_has_it() {
    let refused = |input: &str| format!("{:#}", files(input, &[]).unwrap_err());
    assert!(refused("photos").contains("photos is relative"), "{}", refused("photos"));
    assert!(refused("-").contains("standard input"));
    let error = refused("rtsp://ada:s3cret@door/1");
    assert!(error.contains("${CAMERA_PASSWORD}") && !error.contains("s3cret"), "{error}");
    let device = files("/dev/video0", &[]).unwrap();
    let capture = &device.iter().find(|(name, _)| name.ends_with("capture.service")).unwrap().1;
    assert!(capture.contains("DeviceAllow=/dev/video0 rw") && !capture.contains("PrivateDevices=yes"), "{capture}");
}

#[test]
fn a_word_stays_what_it_is() {
    assert_eq!(quote("a b\"$c%n"), "\"a b\\\"$$c%%n\"");
    assert_eq!(quote("capture.password_file=%d/password"), "capture.password_file=%d/password");
    assert_eq!(quote("capture.rate=100%"), "capture.rate=100%%");
}
