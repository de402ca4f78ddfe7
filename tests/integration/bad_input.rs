//! Whatever comes in ends as a decision, an `empty` with its reason, or a dead letter with stage, reason and the original
//! bytes; nothing crashes, nothing is lost, nothing is retried for ever, and the good ones are as they would be alone.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::Path;

use causeway_bus::{Bus, Outgoing, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{
    Capture, Codec, Crop, DeadLetter, Decision, Dtype, Feature, Frame, Id, Message as _, Meta, ModelRef, Region,
    decode_body, encode, header,
};
use causeway_stage::read_ledger;
use futures::StreamExt as _;
use harness::{
    Running, Site, Stored, Tools, Verdict, causeway, copy_photos, dead_letters, eventually, verdict, workspace,
};
use image::{DynamicImage, ImageFormat};
use serde_json::Value;

/// A name or `None`, and the score, by photo and face.
type Decisions = BTreeMap<(String, String), (Option<String>, f32)>;

#[tokio::test]
async fn bad_files_end_with_a_reason_and_the_good_ones_as_ever() {
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    copy_photos(&tools, input.path(), 1);
    let (golden, _) = run(&tools, input.path()).await;
    let bad = write_bad_files(&tools, input.path());
    let (verdict, home) = run(&tools, input.path()).await;

    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len(), golden.captured.len() + 6, "what is a picture by its header");
    assert_eq!(verdict.dead.len(), bad.len());
    for (face, expected) in &golden.decisions {
        assert_eq!(verdict.decisions.get(face), Some(expected), "{face:?}");
    }
    for (photo, expected) in &golden.empties {
        assert_eq!(verdict.empties.get(photo), Some(expected), "{photo}");
    }
    let label = |photo: &str| {
        let mut faces = verdict.decisions.iter().filter(|((item, _), _)| item == photo);
        let (_, (label, score)) = faces.next().unwrap_or_else(|| panic!("{photo} has a face"));
        assert!(faces.next().is_none(), "one face in {photo}");
        (label.clone().expect("somebody known"), *score)
    };
    let (upright, upright_score) = label("upright.jpg");
    let (rotated, rotated_score) = label("rotated.jpg");
    assert_eq!(upright, "Barack Obama");
    assert_eq!(rotated, upright);
    assert!((rotated_score - upright_score).abs() < 0.05, "{rotated_score} is not {upright_score}");
    assert_eq!(label("deep.png").0, upright);
    for photo in ["cmyk.jpg", "animated.webp", "0-cat.png"] {
        assert_eq!(verdict.empties.get(photo).map(String::as_str), Some("no-face"), "{photo}");
    }
    dead_letters_give_back(&tools, home.path(), &bad).await;
}

/// Runs the face pipeline over `input`, with one person known, to its end; gives what was stored, and where.
async fn run(tools: &Tools, input: &Path) -> (Verdict, tempfile::TempDir) {
    let home = tempfile::tempdir().expect("a folder");
    let person = format!("Barack Obama={}", tools.photos().join("enrol/Barack Obama").display());
    Running::start(tools, home.path(), &["enrol", &person]).finish().await.ok();
    let input = input.to_str().expect("a path");
    let up = ["up", "pipelines/faces.toml", "--input", input, "--until-drained", "--json"];
    let summary = Running::start(tools, home.path(), &up).finish().await.ok().json();
    for stage in summary["stages"].as_array().expect("stages") {
        assert_eq!(stage["restarts"], 0, "{stage}");
        let log = home.path().join(format!("logs/{}.log", stage["stage"].as_str().expect("a name")));
        assert!(!std::fs::read_to_string(log).expect("a log").contains("panicked"), "{stage}");
    }
    let pipeline = faces();
    let stored = Stored::open(home.path(), &pipeline).await;
    let verdict = verdict(&stored.bus, &pipeline).await;
    stored.close().await;
    (verdict, home)
}

fn faces() -> Pipeline {
    Pipeline::load(&workspace().join("pipelines/faces.toml")).expect("the pipeline")
}

/// Writes the bad ones and the odd ones; gives those that must end as dead letters with stage and reason.
fn write_bad_files(tools: &Tools, to: &Path) -> BTreeMap<&'static str, (&'static str, &'static str)> {
    let photo = std::fs::read(tools.photos().join("input/obama-speaking.jpg")).expect("a photo");
    let upright = image::load_from_memory(&photo).expect("a photo");
    let testdata = workspace().join("crates/imaging/testdata");
    let read = |name| std::fs::read(testdata.join(name)).expect("a picture");
    let files = [
        ("upright.jpg", photo.clone()),
        // Held so that its right side was up: orientation 6 is turned by 90° clockwise to be upright.
        ("rotated.jpg", with_orientation(&encoded(&upright.rotate270(), ImageFormat::Jpeg), 6)),
        ("deep.png", encoded(&DynamicImage::ImageLuma16(upright.to_luma16()), ImageFormat::Png)),
        ("cmyk.jpg", read("cmyk.jpg")),
        ("animated.webp", read("animated.webp")),
        ("truncated.jpg", photo[..photo.len() / 2].to_vec()),
        ("text.jpg", b"dear diary".to_vec()),
        ("huge.png", png_header(60_000, 60_000)),
        ("empty.jpg", Vec::new()),
    ];
    for (name, bytes) in files {
        std::fs::write(to.join(name), bytes).expect("it is written");
    }
    BTreeMap::from([
        ("truncated.jpg", ("preprocess", "rejected")),
        ("text.jpg", ("capture", "not-an-image")),
        ("huge.png", ("capture", "too-many-pixels")),
        ("empty.jpg", ("capture", "empty-file")),
    ])
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).expect("it can be encoded");
    bytes.into_inner()
}

/// A JPEG with an EXIF block that says nothing but the orientation, 1 to 8.
fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
    // Little-endian TIFF with one entry: tag 0x0112 (orientation), type 3 (16 bits), count 1.
    let tiff = [b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".as_slice(), &[orientation, 0, 0, 0, 0, 0, 0, 0]];
    let block = [b"Exif\0\0".as_slice(), &tiff.concat()].concat();
    let length = u16::try_from(block.len() + 2).expect("a short block").to_be_bytes();
    [&jpeg[..2], &[0xFF, 0xE1], &length, &block, &jpeg[2..]].concat()
}

/// A PNG that is nothing but its header.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let sum = crc32(&chunk).to_be_bytes();
    [b"\x89PNG\r\n\x1a\n\0\0\0\x0d".as_slice(), &chunk, &sum, b"\0\0\0\x04IDAT"].concat()
}

/// CRC-32 of the PNG specification, annex D.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// `dlq ls` lists each of `bad` with its stage and reason, and `dlq show` gives back the file as it was.
async fn dead_letters_give_back(tools: &Tools, home: &Path, bad: &BTreeMap<&str, (&str, &str)>) {
    let listed = Running::start(tools, home, &["dlq", "ls", "--json"]).finish().await.ok().json();
    let listed = listed["dead_letters"].as_array().expect("dead letters").clone();
    let text = |letter: &Value, key: &str| letter[key].as_str().expect("a text").to_owned();
    let found: BTreeMap<_, _> =
        listed.iter().map(|letter| (text(letter, "item"), (text(letter, "stage"), text(letter, "reason")))).collect();
    let expected = bad.iter().map(|(&item, &(stage, reason))| (item.to_owned(), (stage.into(), reason.into())));
    assert_eq!(found, expected.collect());
    let body = home.join("body");
    for letter in &listed {
        let show = ["dlq", "show", &text(letter, "id"), "--json", "--body", body.to_str().expect("a path")];
        Running::start(tools, home, &show).finish().await.ok();
        let item = text(letter, "item");
        let original = bad_file(tools, &item);
        assert!(std::fs::read(&body).expect("a body") == original, "{item} comes back as it was");
    }
}

/// The bytes of one of the bad files.
fn bad_file(tools: &Tools, name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    write_bad_files(tools, folder.path());
    std::fs::read(folder.path().join(name)).expect("a bad file")
}

/// What a stranger or a broken stage puts on a link, and which stages must set it aside for which reason.
struct Strange {
    name: &'static str,
    message: Outgoing,
    reason: &'static str,
    takers: &'static [&'static str],
}

#[tokio::test]
async fn strange_messages_are_set_aside_and_good_traffic_goes_on() {
    let tools = Tools::find();
    let text = std::fs::read_to_string(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let site = Site::start(&tools, &text).await;
    let bus = &site.bus;
    let stages = ["preprocess", "extract", "classify", "cluster"].map(|stage| site.stage(stage, &[]));

    let strange: Vec<_> = frames().into_iter().chain(crops()).chain(features()).collect();
    for one in &strange {
        bus.publish(&one.message).await.unwrap_or_else(|error| panic!("{}: {error}", one.name));
    }
    let newer = newer();
    bus.publish(&newer).await.expect("it is stored");
    let photos = tools.photos().join("input");
    let input = format!("capture.input={}", photos.display());
    assert_eq!(site.stage("capture", &["--set", &input]).ended().await, Some(0));

    let expected: BTreeSet<(&str, &str)> =
        strange.iter().flat_map(|one| one.takers.iter().map(|&taker| (one.message.subject.as_str(), taker))).collect();
    let letters = eventually("a dead letter for each", async || {
        let letters = dead_letters(bus, &site.pipeline).await;
        (letters.len() >= expected.len()).then_some(letters)
    })
    .await;
    let found: BTreeSet<(&str, &str)> =
        letters.iter().map(|(_, letter)| (letter.subject.as_str(), letter.stage.as_str())).collect();
    assert_eq!(found, expected);
    assert_eq!(letters.len(), expected.len());
    for one in &strange {
        for (meta, letter) in letters.iter().filter(|(_, letter)| letter.subject == one.message.subject) {
            assert_is_of(one, meta, letter);
        }
    }
    assert_good_traffic(bus, &site.pipeline, photos.read_dir().expect("photos").count()).await;
    assert_nothing_again(bus, &site.pipeline).await;
    assert_newer_waits(&tools, &site, &newer).await;
    assert_dlq_lists(&tools, &site, &letters).await;
    for stage in &stages {
        // The most memory it ever had: a forged length claims nothing.
        let status = std::fs::read_to_string(format!("/proc/{}/status", stage.pid())).expect("it runs");
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak: u64 = peak.expect("a peak").parse().expect("a number");
        assert!(peak < 700_000, "{peak} kB");
    }
    for stage in stages {
        assert_eq!(stage.stop().await, Some(0));
    }
}

/// The letter says why, and holds what came.
fn assert_is_of(one: &Strange, meta: &Meta, letter: &DeadLetter) {
    let name = one.name;
    assert_eq!(letter.reason, one.reason, "{name}: {}", letter.detail);
    assert!(!letter.detail.is_empty(), "{name}");
    assert!(letter.body == one.message.body, "{name}: its body is the original's");
    let id = one.message.headers.iter().find(|(name, _)| *name == header::ID);
    if let Some(id) = id.and_then(|(_, id)| id.parse::<Id>().ok()) {
        assert_eq!(meta.id, id, "{name}");
    }
    for (header, value) in &one.message.headers {
        assert!(letter.headers.iter().any(|(found, is)| found == header && is == value), "{name}: {header}: {value}");
    }
}

/// Every photo of the demo has its outcomes.
async fn assert_good_traffic(bus: &Bus, pipeline: &Pipeline, photos: usize) {
    eventually("the outcomes of the good ones", async || {
        let ledger = read_ledger(bus, pipeline).await.ok()?;
        let mut records = bus.scan(&names::stream(&pipeline.name, "capture"), 1, true).await.ok()?;
        let mut complete = 0;
        while let Some(record) = records.next().await {
            let record = record.ok()?;
            let id = record.headers.id(header::ID);
            if record.subject.ends_with(".edge.capture") && id.is_some_and(|id| ledger.is_complete(id)) {
                complete += 1;
            }
        }
        (complete == photos).then_some(())
    })
    .await;
    let decisions = decisions(bus, pipeline).await;
    assert!(decisions.len() > photos / 2, "{decisions:?}");
}

async fn decisions(bus: &Bus, pipeline: &Pipeline) -> Decisions {
    let mut decisions = BTreeMap::new();
    let mut records = bus.scan(&names::stream(&pipeline.name, "classify"), 1, false).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let part = record.headers.meta().expect("an outcome has our headers").part.to_string();
        let decision: Decision = decode_body(&record.body, Codec::Json).expect("a decision");
        decisions.insert((decision.capture.item, part), (decision.label, decision.score));
    }
    decisions
}

/// On no link anything is waiting or worked on, but for the one message that needs a newer reader.
async fn assert_nothing_again(bus: &Bus, pipeline: &Pipeline) {
    eventually("rest", async || {
        for stage in pipeline.stages.iter().filter(|stage| !stage.is_source()) {
            let state = bus.durable_state(&names::stream(&pipeline.name, &stage.from[0]), &stage.name).await.ok()??;
            let held = u64::from(stage.name == "preprocess");
            if state.pending > 0 || state.unacked != held {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// It is neither lost nor dead, and `status` says what it waits for.
async fn assert_newer_waits(tools: &Tools, site: &Site, newer: &Outgoing) {
    let kept = site.bus.scan(&names::stream(&site.pipeline.name, "capture"), 1, false).await.expect("a stream");
    let kept = kept.filter_map(async |record| record.ok().filter(|record| record.subject == newer.subject));
    assert_eq!(kept.map(|record| record.body).collect::<Vec<_>>().await, [newer.body.clone()]);
    let address = site.server.address();
    eventually("the newer version shown as waiting", async || {
        let status = causeway(tools, &["status", "--json", "--nats", &address]).await.ok().json();
        let stage = status["stages"].as_array()?.iter().find(|stage| stage["name"] == "preprocess")?.clone();
        let state = stage["state"].as_str()?;
        (state.starts_with("waiting: ") && state.contains("frame.v2")).then_some(())
    })
    .await;
}

async fn assert_dlq_lists(tools: &Tools, site: &Site, letters: &[(Meta, DeadLetter)]) {
    let address = site.server.address();
    let listed = causeway(tools, &["dlq", "ls", "--json", "--nats", &address]).await.ok().json();
    let listed = listed["dead_letters"].as_array().expect("dead letters").clone();
    assert_eq!(listed.len(), letters.len());
    let folder = tempfile::tempdir().expect("a folder");
    let body = folder.path().join("body");
    let body_path = body.to_str().expect("a path");
    for subject in ["faces.frame.edge.random", "faces.crop.edge.too-long", "faces.feature.edge.garbage"] {
        let (meta, letter) = letters.iter().find(|(_, letter)| letter.subject == subject).expect("a dead letter");
        let id = meta.id.to_string();
        let show = ["dlq", "show", &id, "--stage", &letter.stage, "--json", "--body", body_path, "--nats", &address];
        let shown = causeway(tools, &show).await.ok().json();
        assert_eq!(shown["reason"], letter.reason.as_str(), "{subject}");
        assert!(std::fs::read(&body).expect("a body") == letter.body, "{subject}: its body is the original's");
    }
}

/// A message with all our headers, on a subject that no other has.
fn message(link: &str, name: &'static str, kind: &str, body: Vec<u8>) -> Outgoing {
    let meta = Meta::captured(Id::captured("stranger", &format!("{link} {name}")), "stranger", kind.into(), 0);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    Outgoing { subject: format!("faces.{link}.edge.{name}"), headers, body: body.into(), if_absent: false }
}

/// The same with one header otherwise; without it where there is no value.
fn with_header(mut message: Outgoing, name: &'static str, value: &str) -> Outgoing {
    message.headers.retain(|(found, _)| *found != name);
    if !value.is_empty() {
        message.headers.push((name, value.into()));
    }
    message
}

fn capture() -> Capture {
    Capture { source: "stranger".into(), item: "strange.jpg".into(), epoch: 0, sequence: 0, captured_at: 0 }
}

fn frame(image: &[u8]) -> Vec<u8> {
    encode(&Frame { capture: capture(), image: image.to_vec() }, Codec::Bincode)
}

fn region() -> Region {
    Region { x: 0.0, y: 0.0, w: 9.0, h: 9.0, score: 1.0, sharpness: 1.0, landmarks: Vec::new(), frame: [9, 9] }
}

fn crop(width: u32, height: u32, pixels: usize) -> Vec<u8> {
    let crop = Crop { capture: capture(), region: region(), width, height, pixels: vec![7; pixels] };
    encode(&crop, Codec::Bincode)
}

fn feature(shape: &[u32], vector: &[f32]) -> Vec<u8> {
    let model = ModelRef { name: "sface".into(), version: "2021dec".into(), sha256: "0".repeat(64) };
    let feature = Feature {
        capture: capture(),
        region: region(),
        dtype: Dtype::F32,
        shape: shape.to_vec(),
        data: Feature::encode_f32(vector),
        space: "sface-2021dec-128".into(),
        model,
    };
    encode(&feature, Codec::Bincode)
}

/// Bytes that are nothing, the same on every run.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

fn newer() -> Outgoing {
    message("frame", "newer", "frame.v2", noise(100))
}

fn frames() -> Vec<Strange> {
    let good = |name| message("frame", name, &Frame::kind(), frame(b"no picture"));
    let body = |name, body| message("frame", name, &Frame::kind(), body);
    let random = Outgoing { headers: Vec::new(), ..body("random", noise(1000)) };
    // A source's name that is longer than any message.
    let forged = [u64::MAX.to_le_bytes().as_slice(), &noise(100)].concat();
    let large = [(100_u64 << 20).to_le_bytes().as_slice(), &noise(100)].concat();
    let cases = [
        ("random", "bad-headers", random),
        ("no-kind", "bad-headers", with_header(good("no-kind"), header::KIND, "")),
        ("id", "bad-headers", with_header(good("id"), header::ID, "not an id")),
        ("root", "bad-headers", with_header(good("root"), header::ROOT, "8zzzzzzzzzzzzzzzzzzzzzzzzz")),
        ("parent", "bad-headers", with_header(good("parent"), header::PARENT, "?")),
        ("part", "bad-headers", with_header(good("part"), header::PART, "9/3")),
        ("generation", "bad-headers", with_header(good("generation"), header::GENERATION, "-1")),
        ("cake", "unknown-kind", with_header(good("cake"), header::KIND, "cake.v1")),
        ("noun", "unknown-kind", with_header(good("noun"), header::KIND, "frame")),
        ("older", "unknown-kind", with_header(good("older"), header::KIND, "frame.v0")),
        ("garbage", "malformed", body("garbage", noise(1000))),
        ("nothing", "malformed", body("nothing", Vec::new())),
        ("forged", "malformed", body("forged", forged)),
        ("large", "malformed", body("large", large)),
        ("more", "malformed", body("more", [frame(b"no picture"), b"more".to_vec()].concat())),
        ("json", "malformed", with_header(good("json"), header::CONTENT_TYPE, "application/json")),
        ("picture", "rejected", good("picture")),
        ("gone", "body-missing", with_header(body("gone", Vec::new()), header::BODY, &"0".repeat(64))),
    ];
    strange(cases, &["preprocess"])
}

fn crops() -> Vec<Strange> {
    let body = |name, body| message("crop", name, &Crop::kind(), body);
    let cases = [
        ("garbage", "malformed", body("garbage", noise(1000))),
        ("kind", "unknown-kind", message("crop", "kind", &Frame::kind(), frame(b"no picture"))),
        // By reference, since no message is that long.
        ("too-long", "too-long", body("too-long", noise(Crop::MAX_BYTES + 1))),
        ("lying", "rejected", body("lying", crop(112, 112, 10))),
        ("other-size", "rejected", body("other-size", crop(10, 10, 300))),
        ("no-size", "rejected", body("no-size", crop(0, 0, 0))),
        ("overflowing", "rejected", body("overflowing", crop(u32::MAX, u32::MAX, 3))),
    ];
    strange(cases, &["extract"])
}

/// Each taker of a feature sets it aside for itself.
fn features() -> Vec<Strange> {
    let body = |name, body| message("feature", name, &Feature::kind(), body);
    let cases = [
        ("garbage", "malformed", body("garbage", noise(1000))),
        ("kind", "unknown-kind", message("feature", "kind", "cake.v1", feature(&[128], &[0.5; 128]))),
        ("lying", "rejected", body("lying", feature(&[128], &[0.5; 3]))),
        ("scalar", "rejected", body("scalar", feature(&[], &[0.5]))),
        ("no-number", "rejected", body("no-number", feature(&[128], &[f32::NAN; 128]))),
    ];
    strange(cases, &["classify", "cluster"])
}

fn strange<const N: usize>(
    cases: [(&'static str, &'static str, Outgoing); N],
    takers: &'static [&'static str],
) -> Vec<Strange> {
    cases.into_iter().map(|(name, reason, message)| Strange { name, message, reason, takers }).collect()
}
