use std::path::Path;
use std::process::Stdio;

use harness::{FPS, Running, Site, Tools, eventually, kill, make_video};

use super::{ffmpeg_of, ids, is_alive, numbers, pipeline, shots, stored};

const H264: &[&str] = &["-c:v", "libx264", "-preset", "ultrafast", "-g", "50", "-bf", "2"];
/// Noise makes frames that are too long for a pipe to hold more than a few: `ffmpeg` is there as long as frames are missing.
const NOISY: &[&str] =
    &["-vf", "noise=c0s=40:c0f=t", "-c:v", "libx264", "-preset", "ultrafast", "-crf", "12", "-bf", "2"];

fn video(tools: &Tools, dir: &Path, frames: u32, how: &[&str]) -> String {
    let path = dir.join("clip.mp4");
    make_video(tools, &path, frames, how);
    path.to_str().expect("a path").to_owned()
}

#[tokio::test]
async fn every_frame_of_a_file_is_captured_once_whoever_is_killed() {
    let (tools, dir) = (Tools::find(), tempfile::tempdir().expect("a folder"));
    let file = video(&tools, dir.path(), 300, NOISY);
    // Slow enough to be killed in the middle.
    let site = Site::start(&tools, &pipeline(&format!("input = {file:?}\nrate = 100\nbuffer = 4"))).await;
    let mut capture = site.stage("capture", &[]);
    let mut killed = None;
    for at in [20, 80] {
        stored(&site, at).await;
        let ffmpeg = ffmpeg_of(capture.pid(), killed).await;
        kill(ffmpeg);
        killed = Some(ffmpeg);
    }
    stored(&site, 110).await;
    let ffmpeg = ffmpeg_of(capture.pid(), killed).await;
    capture.kill().await;
    eventually("the end of ffmpeg", async || (!is_alive(ffmpeg)).then_some(())).await;
    capture = site.stage("capture", &["--set", "capture.rate=1000"]);
    assert_eq!(capture.ended().await, Some(0), "a file has an end");

    let first = shots(&site).await;
    assert_eq!(numbers(&first), (0..300).collect::<Vec<_>>());
    assert_eq!(ids(&first).len(), 300);
    for shot in &first {
        let capture = &shot.frame.capture;
        let ms = shot.number * 1000 / FPS;
        assert_eq!(capture.item, format!("clip.mp4@{}.{:03}s", ms / 1000, ms % 1000));
        assert_eq!((capture.epoch, capture.sequence), (0, u64::from(shot.number)));
    }
    // The times of the frames are as far apart as they were filmed, however fast the file is read.
    let at = |number: u32| first.iter().find(|shot| shot.number == number).expect("it").frame.capture.captured_at;
    assert_eq!(at(100) - at(0), 4_000_000_000);
    // Another run knows them all.
    assert_eq!(site.stage("capture", &["--set", "capture.rate=1000"]).ended().await, Some(0));
    assert_eq!(ids(&shots(&site).await), ids(&first));
}

#[tokio::test]
async fn a_video_is_thinned_by_time_and_by_change() {
    let (tools, dir) = (Tools::find(), tempfile::tempdir().expect("a folder"));
    let file = video(&tools, dir.path(), 100, H264);
    let site = Site::start(&tools, &pipeline(&format!("input = {file:?}\nfps = 5"))).await;
    assert_eq!(site.stage("capture", &[]).ended().await, Some(0));
    assert_eq!(numbers(&shots(&site).await), (0..100).step_by(5).collect::<Vec<_>>());

    // Of the frames at 5 a second those that change most: where the third bar, the fifth … turn over.
    let site = Site::start(&tools, &pipeline(&format!("input = {file:?}\nfps = 25\nscene = 0.25"))).await;
    assert_eq!(site.stage("capture", &[]).ended().await, Some(0));
    let changes = numbers(&shots(&site).await);
    assert!(changes.contains(&0) && changes.contains(&64), "the first and the greatest change: {changes:?}");
    assert!(changes.len() < 30, "{changes:?}");
}

#[tokio::test]
async fn a_video_comes_in_through_standard_input() {
    let (tools, dir, home) =
        (Tools::find(), tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let path = dir.path().join("clip.ts");
    make_video(&tools, &path, 50, &["-c:v", "mpeg2video", "-q:v", "2"]);
    let file = dir.path().join("cameras.toml");
    std::fs::write(&file, pipeline("")).expect("it is written");
    let arguments = ["up", file.to_str().expect("a path"), "--input", "-", "--until-drained", "--json"];
    let stdin: Stdio = std::fs::File::open(&path).expect("the video").into();
    let json = Running::start_with(&tools, home.path(), &arguments, stdin).finish().await.ok().json();
    assert_eq!(json["photos"], 50, "{json}");
    assert_eq!(json["dead_letters"], 0, "{json}");
}
