use std::collections::BTreeSet;
use std::path::PathBuf;

use causeway_stage::Heartbeat;
use harness::{Camera, Site, StageProcess, Tools, eventually, kill, make_video, signal};

use super::{Shot, beat, ffmpeg_of, pipeline, shots, stored};

const FRAMES: u32 = 1000;
/// `ada:s3cr3t/@` in base64, and as it stands in a URL.
const USER: (&str, &str) = ("YWRhOnMzY3IzdC9A", "ada:s3cr3t%2F%40@");
const SECRETS: [&str; 2] = ["s3cr3t/@", "s3cr3t%2F%40"];

struct Scene {
    tools: Tools,
    video: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let (tools, dir) = (Tools::find(), tempfile::tempdir().expect("a folder"));
        let video = dir.path().join("live.ts");
        // Every frame whole, so that a stream can begin anywhere.
        make_video(&tools, &video, FRAMES, &["-c:v", "mpeg2video", "-g", "1", "-q:v", "2", "-muxrate", "1M"]);
        make_video(&tools, &video.with_extension("mjpeg"), FRAMES, &["-c:v", "mjpeg", "-q:v", "3"]);
        Self { tools, video, _dir: dir }
    }
}

async fn state(site: &Site, says: &str) -> Heartbeat {
    eventually(says, async || beat(site).await.filter(|beat| beat.state.contains(says))).await
}

async fn running(site: &Site) {
    eventually("running", async || beat(site).await.filter(|beat| beat.state == "running")).await;
}

/// Of so many starts, each: no number is missing, none is twice, and the pictures go on. Gives the starts in order.
fn assert_goes_on(shots: &[Shot], starts: usize) -> Vec<u64> {
    let epochs: BTreeSet<u64> = shots.iter().map(|shot| shot.frame.capture.epoch).collect();
    assert_eq!(epochs.len(), starts);
    for &epoch in &epochs {
        assert_one_goes_on(shots, epoch);
    }
    epochs.into_iter().collect()
}

fn assert_one_goes_on(shots: &[Shot], epoch: u64) {
    let mut of_epoch: Vec<&Shot> = shots.iter().filter(|shot| shot.frame.capture.epoch == epoch).collect();
    of_epoch.sort_by_key(|shot| shot.frame.capture.sequence);
    for (expected, shot) in of_epoch.iter().enumerate() {
        let capture = &shot.frame.capture;
        assert_eq!((capture.sequence, &capture.source[..]), (expected as u64, "capture"));
        assert_eq!(capture.item, format!("start {epoch} frame {expected}"));
    }
    for pair in of_epoch.windows(2) {
        // The camera's video begins anew at its end.
        let step = (pair[1].number + FRAMES - pair[0].number) % FRAMES;
        assert!(step > 0 && step < FRAMES / 2, "{} after {}", pair[1].number, pair[0].number);
        assert!(pair[1].frame.capture.captured_at > pair[0].frame.capture.captured_at);
    }
}

/// A camera that is killed, cut, hung, and its source too; over `scheme`.
async fn comes_and_goes(scheme: &str) {
    let scene = Scene::new();
    let camera = Camera::start(&scene.video, FRAMES, None).await;
    let keys = format!("input = {:?}\nstall_ms = 1000\nbuffer = 1000", camera.url(scheme, ""));
    let site = Site::start(&scene.tools, &pipeline(&keys)).await;
    let capture = site.stage("capture", &[]);
    stored(&site, 10).await;
    let first = ffmpeg_of(capture.pid(), None).await;
    kill(first);
    let second = ffmpeg_of(capture.pid(), Some(first)).await;
    let more = async |frames: u64| {
        let now = shots(&site).await.len() as u64;
        stored(&site, now + frames).await;
    };
    more(10).await;
    camera.cut();
    let third = ffmpeg_of(capture.pid(), Some(second)).await;
    more(10).await;
    // A stopped ffmpeg is a stream that stalls.
    signal(third, "STOP");
    state(&site, "waiting: ").await;
    ffmpeg_of(capture.pid(), Some(third)).await;
    more(10).await;
    camera.hang(true);
    let hung = state(&site, "waiting: ").await;
    assert!(hung.state.contains(&camera.url(scheme, "").replace("/live", "")), "{}", hung.state);
    camera.hang(false);
    more(10).await;
    running(&site).await;
    capture.kill().await;
    let before = shots(&site).await;
    let first = assert_goes_on(&before, 1);
    let before = before.len();
    assert!(before >= 50, "{before}");

    let capture = site.stage("capture", &[]);
    stored(&site, before as u64 + 10).await;
    assert_eq!(capture.stop().await, Some(0));
    let all = shots(&site).await;
    assert_eq!(assert_goes_on(&all, 2)[0], first[0], "a later start has a later number");
    assert_eq!(super::ids(&all).len(), all.len());
}

#[tokio::test]
async fn a_camera_over_rtsp_comes_and_goes() {
    comes_and_goes("rtsp").await;
}

#[tokio::test]
async fn a_camera_over_http_comes_and_goes() {
    comes_and_goes("http").await;
}

#[tokio::test]
async fn a_camera_that_is_not_there_is_waited_for() {
    let scene = Scene::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let site = Site::start(&scene.tools, &pipeline(&format!("input = \"rtsp://{free}/live\""))).await;
    let capture = site.stage("capture", &[]);
    let beat = state(&site, "waiting: ").await;
    assert_eq!(
        beat.state,
        format!("waiting: rtsp://{free}: nothing listens there (connection refused): check the host and the port")
    );
    assert_eq!(capture.stop().await, Some(0), "who waits can be stopped");
}

#[tokio::test]
async fn a_password_is_used_and_never_shown() {
    let scene = Scene::new();
    let camera = Camera::start(&scene.video, FRAMES, Some(USER.0)).await;
    for scheme in ["rtsp", "http"] {
        // In the URL itself, which nobody should do and many will.
        let site =
            Site::start(&scene.tools, &pipeline(&format!("input = {:?}\nbuffer = 1000", camera.url(scheme, USER.1))))
                .await;
        let capture = site.stage("capture", &[]);
        stored(&site, 5).await;
        assert_unseen(&site, &capture).await;
        assert_eq!(capture.stop().await, Some(0));
        assert_goes_on(&shots(&site).await, 1);

        let wrong = camera.url(scheme, "ada:wr0ng%21@");
        let site = Site::start(&scene.tools, &pipeline(&format!("input = {wrong:?}"))).await;
        let capture = site.stage("capture", &[]);
        let beat = state(&site, "waiting: ").await;
        assert!(beat.state.ends_with("the user or the password is wrong (401 Unauthorized)"), "{}", beat.state);
        assert!(!beat.state.contains("wr0ng"), "{}", beat.state);
        assert_eq!(capture.stop().await, Some(0));
    }
}

/// In no argument of a process, no heartbeat and no metric.
async fn assert_unseen(site: &Site, capture: &StageProcess) {
    let ffmpeg = ffmpeg_of(capture.pid(), None).await;
    let beat = beat(site).await.expect("a heartbeat");
    let arguments = std::fs::read(format!("/proc/{ffmpeg}/cmdline")).expect("it runs");
    let seen = format!("{} {beat:?}", String::from_utf8_lossy(&arguments));
    for secret in SECRETS {
        assert!(!seen.contains(secret), "{seen}");
    }
}
