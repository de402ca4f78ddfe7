use std::collections::BTreeMap;
use std::path::Path;

use causeway_bus::names;
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, Decision, decode_body};
use futures::StreamExt as _;
use harness::{Running, Stored, Tools, ffmpeg, workspace};

/// Seconds that somebody is in the picture.
const SECONDS: u32 = 6;

/// A film of somebody who comes nearer: made of one photo, since no film of a face may be had.
fn film(tools: &Tools, to: &Path) {
    let photo = tools.photos().join("input/obama-speaking.jpg").display().to_string();
    let seconds = SECONDS.to_string();
    let nearer = "crop='min(iw,ih*4/3)':'min(ih,iw*3/4)',scale=960:720,\
                  zoompan=z='1+0.002*on':x='iw/2-iw/zoom/2':y=0:d=1:s=640x480:fps=25";
    let arguments = ["-loop", "1", "-framerate", "25", "-i", &photo, "-t", &seconds, "-vf", nearer];
    ffmpeg(tools, &[&arguments[..], &["-pix_fmt", "yuv420p", "-c:v", "libx264", "-preset", "ultrafast"]].concat(), to);
}

/// The pipeline that a user with a camera is given, from the film to the names.
#[tokio::test]
async fn who_walks_up_to_a_camera_is_named_by_all_that_was_seen_of_them() {
    let tools = Tools::find();
    let (dir, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let clip = dir.path().join("door.mp4");
    film(&tools, &clip);
    let file = workspace().join("pipelines/camera.toml");
    let (file, clip) = (file.to_str().expect("a path"), clip.to_str().expect("a path"));
    let person = format!("Barack Obama={}", tools.photos().join("enrol/Barack Obama").display());
    Running::start(&tools, home.path(), &["enrol", &person, "--pipeline", file]).finish().await.ok();
    // A film is read as fast as it can be: nothing of it is to be dropped here.
    let up = ["up", file, "--input", clip, "--set", "capture.on_full=block", "--until-drained", "--json"];
    let summary = Running::start(&tools, home.path(), &up).finish().await.ok().json();
    assert_eq!(summary["photos"], SECONDS * 2, "two frames a second: {summary}");

    let pipeline = Pipeline::load(Path::new(file)).expect("the pipeline");
    let stored = Stored::open(home.path(), &pipeline).await;
    let mut records = stored.bus.scan(&names::stream("camera", "classify"), 1, false).await.expect("a stream");
    let mut decisions = BTreeMap::new();
    while let Some(record) = records.next().await {
        let decision: Decision = decode_body(&record.expect("a record").body, Codec::Json).expect("a decision");
        decisions.insert(decision.capture.sequence, decision);
    }
    assert!(decisions.len() > SECONDS as usize, "most frames show the face: {decisions:?}");
    for decision in decisions.values() {
        assert_eq!(decision.label.as_deref(), Some("Barack Obama"), "{decision:?}");
    }
    let routes: Vec<_> = decisions.values().map(|decision| decision.route.as_str()).collect();
    assert_eq!(routes[0], "classify", "the first appearance is alone");
    assert!(routes[1..].iter().all(|route| *route == "vote"), "{routes:?}");
    stored.close().await;
}
