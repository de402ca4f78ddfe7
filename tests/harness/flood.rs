use std::path::Path;
use std::time::Instant;

use causeway_bus::{Outgoing, names};
use causeway_pipelines::Ledger;
use causeway_schemas::{Capture, Codec, Frame, Id, Message as _, Meta, encode, header};
use causeway_stage::outcome_of;
use futures::StreamExt as _;

use crate::{Site, StageProcess, Tools, copy_photos, faces, within};

/// What became of broken messages among good ones.
#[derive(Debug)]
pub struct Flood {
    /// Messages that cannot be read.
    pub corrupt: usize,
    /// Messages that can be, with a picture that cannot.
    pub malformed: usize,
    /// Dead letters that there have to be: a link's takers set the same message aside each.
    pub expected: usize,
    /// Dead letters.
    pub letters: usize,
    /// Stages that did not live through it.
    pub crashed: usize,
    /// Photos a second, without and with the broken ones.
    pub good: (f64, f64),
}

/// Photos a second.
const RATE: usize = 6;
/// Longest that one run may take.
const PATIENCE: std::time::Duration = std::time::Duration::from_mins(10);

/// Runs the face pipeline at a camera's pace, once by itself and once with so many broken messages and pictures among the good
/// ones, drawn by `seed`.
///
/// # Panics
/// When a run does not come to its end.
pub async fn flood(tools: &Tools, corrupt: usize, malformed: usize, seed: u64) -> Flood {
    let input = tempfile::tempdir().expect("a folder");
    // As long as the broken ones take to be sent and set aside.
    let copies = (corrupt + malformed).div_ceil(800).max(2);
    let photos = copy_photos(tools, input.path(), copies);
    let (site, stages) = start(tools, input.path()).await;
    let alone = good(&site, photos, async |_| {}).await;
    drop((site, stages));

    let (site, stages) = start(tools, input.path()).await;
    let broken = broken(tools, corrupt, malformed, seed);
    let expected = broken.iter().map(|message| takers(&message.subject)).sum();
    let among = good(&site, photos, async |site: &Site| {
        for message in &broken {
            site.bus.publish(message).await.expect("it is stored");
        }
    })
    .await;
    let dead = names::stream("faces", names::DEAD);
    let letters = async || Some(site.bus.stream_state(&dead).await.ok()??.messages as usize);
    within(PATIENCE, "the dead letters", async || letters().await.filter(|&letters| letters >= expected)).await;
    let letters = letters().await.expect("an answer");
    let mut crashed = 0;
    for stage in stages {
        crashed += usize::from(stage.stop().await != Some(0));
    }
    Flood { corrupt, malformed, expected, letters, crashed, good: (alone, among) }
}

async fn start(tools: &Tools, input: &Path) -> (Site, Vec<StageProcess>) {
    let site = Site::start(tools, &faces(input, |stage| if stage == "capture" { "rate = 6" } else { "" })).await;
    let stages = ["preprocess", "extract", "classify", "cluster"].map(|stage| site.stage(stage, &[]));
    (site, stages.into())
}

/// Captures all photos while `meanwhile` is done; how many a second had all their outcomes, from the first to the last.
async fn good(site: &Site, photos: usize, meanwhile: impl AsyncFnOnce(&Site)) -> f64 {
    assert!(photos > RATE, "a rate needs more than a second");
    let capture = site.stage("capture", &[]);
    let ((), rate) = tokio::join!(meanwhile(site), completed(site, photos));
    drop(capture);
    rate
}

async fn completed(site: &Site, photos: usize) -> f64 {
    let (mut ledger, mut times) = (Ledger::new(&site.pipeline), Vec::new());
    let streams = causeway_stage::outcome_streams(&site.pipeline).into_iter();
    let follow = async |stream: String| site.bus.follow(&stream, 1, true).await.expect("a stream");
    let mut outcomes = futures::stream::select_all(futures::future::join_all(streams.map(follow)).await);
    let all = async {
        while times.len() < photos {
            let record = outcomes.next().await.expect("it goes on").expect("a record");
            let Some(outcome) = outcome_of(&record.headers) else { continue };
            let is_good = record.subject.contains(".edge.capture");
            let was_complete = ledger.is_complete(outcome.root);
            ledger.outcome(&outcome);
            if is_good && !was_complete && ledger.is_complete(outcome.root) {
                times.push(Instant::now());
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("the photos have their outcomes");
    (photos - 1) as f64 / (times[photos - 1] - times[0]).as_secs_f64()
}

/// How many stages take from the link of a subject.
fn takers(subject: &str) -> usize {
    if subject.starts_with("faces.feature.") { 2 } else { 1 }
}

fn broken(tools: &Tools, corrupt: usize, malformed: usize, seed: u64) -> Vec<Outgoing> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let golden = |kind: &str| {
        let file = crate::workspace().join(format!("schemas/golden/{kind}.bin"));
        std::fs::read(file).expect("golden bytes")
    };
    let kinds = ["frame.v1", "crop.v1", "feature.v1"].map(|kind| (kind, golden(kind)));
    let mut messages = Vec::with_capacity(corrupt + malformed);
    for number in 0..corrupt {
        let (kind, whole) = &kinds[number % kinds.len()];
        let (kind, body) = corrupted(&mut chance, kind, whole);
        messages.push(message(kinds[number % kinds.len()].0, number, kind, body));
    }
    let photos = tools.photos().join("input");
    let read = |name: &str| std::fs::read(photos.join(name)).expect("a photo");
    let (jpeg, png) = (read("obama-speaking.jpg"), read("astronaut.png"));
    for number in 0..malformed {
        let image = malformed_image(&mut chance, &jpeg, &png);
        let item = format!("malformed-{number}");
        let capture = Capture { source: "flood".into(), item, epoch: 0, sequence: number as u64, captured_at: 0 };
        let body = encode(&Frame { capture, image }, Codec::Bincode);
        messages.push(message("frame.v1", corrupt + number, Frame::kind(), body));
    }
    chance.shuffle(&mut messages);
    messages
}

fn message(link: &str, number: usize, kind: String, body: Vec<u8>) -> Outgoing {
    let link = link.trim_end_matches(".v1");
    let meta = Meta::captured(Id::captured("flood", &number.to_string()), "flood", kind, 0);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    Outgoing { subject: format!("faces.{link}.edge.flood"), headers, body: body.into(), if_absent: false }
}

/// A body that is not of its kind, whatever was drawn.
fn corrupted(chance: &mut fastrand::Rng, kind: &str, whole: &[u8]) -> (String, Vec<u8>) {
    let mut bytes = whole.to_vec();
    let kind = match chance.u8(0..4) {
        // Ends too early.
        0 => {
            bytes.truncate(chance.usize(0..whole.len()));
            kind
        }
        // Does not end.
        1 => {
            bytes.extend((0..chance.usize(1..64)).map(|_| 0));
            kind
        }
        // A length of more than there is, at its very beginning.
        2 => {
            bytes.splice(0..1, [253, 255, 255, 255, 255, 255, 255, 255, 127]);
            kind
        }
        // Of a noun that is not ours.
        _ => "verdict.v1",
    };
    (kind.to_owned(), bytes)
}

/// Bytes that begin as a picture, and are none.
fn malformed_image(chance: &mut fastrand::Rng, jpeg: &[u8], png: &[u8]) -> Vec<u8> {
    let garbage = |chance: &mut fastrand::Rng, head: &[u8]| {
        let mut bytes = head.to_vec();
        bytes.extend((0..chance.usize(1..4096)).map(|_| chance.u8(..)));
        bytes
    };
    match chance.u8(0..6) {
        0 => jpeg[..chance.usize(0..jpeg.len() / 2)].to_vec(),
        1 => png[..chance.usize(0..png.len() / 2)].to_vec(),
        2 => garbage(chance, &jpeg[..20]),
        3 => garbage(chance, &png[..33]),
        4 => garbage(chance, b"RIFF\xff\xff\xff\xffWEBPVP8 "),
        _ => garbage(chance, &[]),
    }
}
