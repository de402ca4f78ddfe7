use causeway_bus::names;
use harness::{Site, Tools, eventually, make_video};

use super::{Shot, beat, pipeline, shots};

/// Frames of the video; each is some 20 kB at quality 100, and the link holds 1 MiB.
const FRAMES: u64 = 200;

/// Captures a video into a link that is full after some frames; makes room once `is_stuck`. Gives what was stored in the end, and how
/// many were dropped.
async fn capture(on_full: &str, is_stuck: impl Fn(&causeway_stage::Heartbeat) -> bool) -> (Vec<Shot>, u64) {
    let (tools, dir) = (Tools::find(), tempfile::tempdir().expect("a folder"));
    let file = dir.path().join("clip.mkv");
    // Noise, which JPEG cannot make small.
    let noise = ["-vf", "noise=all_strength=40:all_flags=t,scale=640:-1:flags=neighbor", "-c:v", "mpeg4", "-q:v", "2"];
    make_video(&tools, &file, FRAMES as u32, &noise);
    let keys = format!("input = {:?}\non_full = \"{on_full}\"\nbuffer = 10\nquality = 100", file.display().to_string());
    let text = pipeline(&keys) + "[keep]\ncaptured = { bytes = \"1MiB\" }\n";
    let site = Site::start(&tools, &text).await;
    let mut capture = site.stage("capture", &[]);
    let stuck = eventually("a full link", async || {
        beat(&site).await.filter(|beat| beat.state.contains("cameras.frame is full") && is_stuck(beat))
    })
    .await;
    let before = shots(&site).await;
    assert!(before.len() < FRAMES as usize / 2, "{} fit", before.len());
    let mut all = before;
    let stream = names::stream("cameras", "capture");
    let ended = async {
        loop {
            // Room, as often as it is full again; what comes meanwhile stays.
            let seen = site.bus.stream_state(&stream).await.expect("the stream").expect("it is there").last_sequence;
            all.extend(shots(&site).await);
            site.bus.purge_below(&stream, seen + 1).await.expect("it is purged");
            let waited = tokio::time::timeout(std::time::Duration::from_millis(300), capture.ended()).await;
            if let Ok(code) = waited {
                break code;
            }
        }
    }
    .await;
    assert_eq!(ended, Some(0));
    all.extend(shots(&site).await);
    all.sort_by_key(|shot| shot.frame.capture.sequence);
    all.dedup_by_key(|shot| shot.id);
    let last = eventually("its last word", async || beat(&site).await.filter(|beat| beat.state == "ended")).await;
    assert!(last.dropped >= stuck.dropped);
    (all, last.dropped)
}

fn sequences(shots: &[Shot]) -> Vec<u64> {
    shots.iter().map(|shot| shot.frame.capture.sequence).collect()
}

#[tokio::test]
async fn block_drops_nothing() {
    let (shots, dropped) = capture("block", |_| true).await;
    assert_eq!(dropped, 0);
    assert_eq!(sequences(&shots), (0..FRAMES).collect::<Vec<_>>());
}

#[tokio::test]
async fn drop_newest_keeps_what_came_first_and_counts_the_rest() {
    let (shots, dropped) = capture("drop-newest", |beat| beat.dropped > 20).await;
    assert_eq!(shots.len() as u64 + dropped, FRAMES, "{dropped} dropped");
    let first = sequences(&shots);
    // What was there when the link was full is there without a gap.
    let whole = first.iter().zip(0..).take_while(|(found, expected)| **found == *expected).count();
    assert!(whole >= 20 && dropped > 20, "{first:?}");
}

#[tokio::test]
async fn keep_latest_drops_the_oldest_and_counts_them() {
    let (shots, dropped) = capture("keep-latest", |beat| beat.dropped > 20).await;
    assert_eq!(shots.len() as u64 + dropped, FRAMES, "{dropped} dropped");
    let stored = sequences(&shots);
    assert!(
        dropped > 20 && stored.ends_with(&(FRAMES - 10..FRAMES).collect::<Vec<_>>()),
        "the last are there: {stored:?}"
    );
}
