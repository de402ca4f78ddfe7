//! Videos and cameras: every frame of a file exactly once, whoever is killed; a camera that comes and goes; what is dropped when
//! there is no room, and that it is counted; what cannot be read says why; whom a camera sees is named by a vote.

mod bad;
mod faces;
mod files;
mod full;
mod live;

use std::collections::BTreeSet;

use causeway_bus::names;
use causeway_schemas::{Frame, Id, decode, header};
use causeway_stage::Heartbeat;
use futures::StreamExt as _;
use harness::{Site, eventually, frame_number};

/// A frame that was stored, and the number that it shows.
struct Shot {
    id: Id,
    frame: Frame,
    number: u32,
}

/// A pipeline of a source with these keys and of one that could take from it, which does not run.
fn pipeline(keys: &str) -> String {
    format!(
        "pipeline = \"cameras\"\n[stage.capture]\n{keys}\n[stage.preprocess]\nfrom = \"capture\"\nmodel = \"yunet\"\n"
    )
}

/// Every frame that is stored, in the order it was.
async fn shots(site: &Site) -> Vec<Shot> {
    let mut records = site.bus.scan(&names::stream("cameras", "capture"), 1, false).await.expect("a stream");
    let mut shots = Vec::new();
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let id = record.headers.id(header::ID).expect("an id");
        let frame: Frame = decode(record.headers.kind(), record.headers.codec(), &record.body).expect("a frame");
        let picture = image::load_from_memory(&frame.image).expect("a picture").into_luma8();
        let number = frame_number(|x, y| picture.get_pixel(x, y).0[0]);
        shots.push(Shot { id, frame, number });
    }
    shots
}

/// Waits for so many frames to be stored.
async fn stored(site: &Site, frames: u64) {
    let stream = names::stream("cameras", "capture");
    let there = async || site.bus.stream_state(&stream).await.ok()?.filter(|state| state.last_sequence >= frames);
    eventually("frames", there).await;
}

fn numbers(shots: &[Shot]) -> Vec<u32> {
    let mut numbers: Vec<u32> = shots.iter().map(|shot| shot.number).collect();
    // Several are stored at once, so neighbours may change places.
    numbers.sort_unstable();
    numbers
}

fn ids(shots: &[Shot]) -> BTreeSet<Id> {
    shots.iter().map(|shot| shot.id).collect()
}

/// What the source last said of itself.
async fn beat(site: &Site) -> Option<Heartbeat> {
    let entries = site.bus.table_entries(names::REPLICAS).await.ok()?;
    let mut beats: Vec<_> = entries.iter().collect();
    beats.sort_by_key(|entry| entry.revision);
    serde_json::from_slice(&beats.last()?.value).ok()
}

/// The process of the `ffmpeg` that a source has started, as soon as it is another one than `not`.
async fn ffmpeg_of(source: u32, not: Option<u32>) -> u32 {
    eventually("an ffmpeg", async || child_of(source).filter(|&pid| Some(pid) != not)).await
}

/// The child of a process that runs `ffmpeg`: /proc/PID/stat is `pid (name) state parent …`.
fn child_of(parent: u32) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").expect("a /proc");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.into_iter().find(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind = stat.rsplit(") ").next().unwrap_or_default().to_owned();
        let mut fields = behind.split(' ');
        let (state, ppid) = (fields.next(), fields.next());
        stat.contains("(ffmpeg") && state != Some("Z") && ppid == Some(&parent.to_string())
    })
}

/// Whether a process runs: one that has ended and was not waited for does not.
fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
