use std::path::{Path, PathBuf};

use causeway_stage::EXIT_UNFIT;
use harness::{Running, Site, Tools, ffmpeg, make_video};

use super::pipeline;

/// Files that are no videos, and what is said of them.
fn bad_videos(tools: &Tools, dir: &Path) -> Vec<(PathBuf, &'static str)> {
    let at = |name: &str| dir.join(name);
    let whole = at("whole.mkv");
    make_video(tools, &whole, 10, &["-c:v", "mpeg4", "-q:v", "2"]);
    // A codec that nobody knows: its name stands in the header.
    let unknown = std::fs::read(&whole).expect("a video");
    let (known, strange) = (b"V_MPEG4/ISO/ASP", b"V_STRANGE/CODEC");
    let place = unknown.windows(known.len()).position(|bytes| bytes == known).expect("a codec");
    let mut unknown = unknown;
    unknown[place..place + known.len()].copy_from_slice(strange);
    std::fs::write(at("unknown.mkv"), unknown).expect("it is written");
    std::fs::write(at("empty.mp4"), b"").expect("it is written");
    std::fs::write(at("text.mp4"), b"no video at all, but a text that says so\n".repeat(20)).expect("it is written");
    // An index is written last.
    make_video(tools, &at("whole.mp4"), 25, &["-c:v", "mpeg4"]);
    let cut = std::fs::read(at("whole.mp4")).expect("a video");
    std::fs::write(at("cut.mp4"), &cut[..cut.len() / 2]).expect("it is written");
    ffmpeg(tools, &["-f", "lavfi", "-i", "sine=duration=1"], &at("sound.mkv"));
    make_video(tools, &at("none.mkv"), 0, &["-c:v", "mpeg4"]);
    [
        ("unknown.mkv", "ffmpeg knows no decoder for its codec"),
        ("empty.mp4", "the file is empty"),
        ("text.mp4", "it is no video or not a whole one"),
        ("cut.mp4", "its index is missing"),
        ("sound.mkv", "there are no moving pictures in it"),
        ("none.mkv", "there is no frame in it"),
        ("gone.mp4", "No such file or directory"),
    ]
    .map(|(name, says)| (at(name), says))
    .into()
}

#[tokio::test]
async fn what_is_no_video_says_why_once_and_ends() {
    let (tools, dir) = (Tools::find(), tempfile::tempdir().expect("a folder"));
    for (path, says) in bad_videos(&tools, dir.path()) {
        let site = Site::start(&tools, &pipeline(&format!("input = {:?}", path.display().to_string()))).await;
        let ended = site.finish_stage("capture", &[]).await;
        assert_eq!(ended.code, Some(i32::from(EXIT_UNFIT)), "{ended:?}");
        let expected = format!("cannot capture from {}: ", path.display());
        let told: Vec<_> =
            ended.stderr.lines().filter(|line| line.contains(&expected) && line.contains(says)).collect();
        assert_eq!(told.len(), 1, "{says} in {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_source_that_fails_leaves_the_others_alone_and_the_run_says_so() {
    let (tools, dir, home) =
        (Tools::find(), tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    make_video(&tools, &dir.path().join("good.mkv"), 20, &["-c:v", "mpeg4"]);
    make_video(&tools, &dir.path().join("bad.mkv"), 0, &["-c:v", "mpeg4"]);
    let text = "pipeline = \"two\"\n\
        [stage.good]\nuses = \"capture\"\ninput = \"good.mkv\"\nemits = \"good\"\n\
        [stage.bad]\nuses = \"capture\"\ninput = \"bad.mkv\"\nemits = \"bad\"\n\
        [stage.preprocess]\nfrom = [\"good\", \"bad\"]\nmodel = \"yunet\"\n";
    let file = dir.path().join("two.toml");
    std::fs::write(&file, text).expect("it is written");
    let file = file.to_str().expect("a path");
    let ended = Running::start(&tools, home.path(), &["up", file, "--until-drained"]).finish().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("[stage.bad]") && last.contains("bad.mkv: there is no frame in it"), "{ended:?}");
    let status = Running::start(&tools, home.path(), &["status", file, "--json"]).finish().await.ok().json();
    let empty = status["streams"].as_array().expect("streams").iter().find(|stream| stream["name"] == "empty");
    assert_eq!(empty.expect("a stream")["messages"], 20, "no face in any of them: {status}");
}

#[tokio::test]
async fn what_no_camera_can_do_is_refused() {
    let tools = Tools::find();
    for (keys, says) in [
        ("input = \"http://127.0.0.1:1/\"\nrepeat = true", "only folders and files begin anew"),
        ("input = \"http://127.0.0.1:1/\"\nrate = 5", "thin it with `fps`"),
        ("input = \"rtsp://ada:${NOT_SET_ANYWHERE}@127.0.0.1:1/\"", "variable NOT_SET_ANYWHERE, which is not set"),
        ("input = \"rtsp://ada@127.0.0.1:1/\"\npassword_file = \"gone\"", "cannot read the password_file"),
    ] {
        let site = Site::start(&tools, &pipeline(keys)).await;
        let ended = site.finish_stage("capture", &[]).await;
        assert_eq!(ended.code, Some(i32::from(EXIT_UNFIT)), "{keys}: {ended:?}");
        assert!(ended.stderr.contains(says), "{says} in {}", ended.stderr);
    }
}
