use causeway_bus::Outgoing;
use causeway_schemas::{Capture, Codec, Crop, Feature, Frame, Id, Message as _, Meta, Region, encode, header};

use harness::face;

/// What a stranger or a broken stage puts on a link, and which stages must set it aside for which reason.
pub(super) struct Strange {
    pub(super) name: &'static str,
    pub(super) message: Outgoing,
    pub(super) reason: &'static str,
    pub(super) takers: &'static [&'static str],
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
    let feature = Feature { shape: shape.to_vec(), ..face("stranger", "strange.jpg", vector) };
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

pub(super) fn newer() -> Outgoing {
    message("frame", "newer", "frame.v2", noise(100))
}

pub(super) fn frames() -> Vec<Strange> {
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
        ("picture", "not-an-image", good("picture")),
        ("gone", "body-missing", with_header(body("gone", Vec::new()), header::BODY, &"0".repeat(64))),
    ];
    strange(cases, &["preprocess"])
}

pub(super) fn crops() -> Vec<Strange> {
    let body = |name, body| message("crop", name, &Crop::kind(), body);
    let cases = [
        ("garbage", "malformed", body("garbage", noise(1000))),
        ("kind", "unknown-kind", message("crop", "kind", &Frame::kind(), frame(b"no picture"))),
        // By reference, since no message is that long.
        ("too-long", "too-long", body("too-long", noise(Crop::MAX_BYTES + 1))),
        ("lying", "unfit", body("lying", crop(112, 112, 10))),
        ("other-size", "unfit", body("other-size", crop(10, 10, 300))),
        ("no-size", "unfit", body("no-size", crop(0, 0, 0))),
        ("overflowing", "unfit", body("overflowing", crop(u32::MAX, u32::MAX, 3))),
    ];
    strange(cases, &["extract"])
}

/// Each taker of a feature sets it aside for itself.
pub(super) fn features() -> Vec<Strange> {
    let body = |name, body| message("feature", name, &Feature::kind(), body);
    let cases = [
        ("garbage", "malformed", body("garbage", noise(1000))),
        ("kind", "unknown-kind", message("feature", "kind", "cake.v1", feature(&[128], &[0.5; 128]))),
        ("lying", "unfit", body("lying", feature(&[128], &[0.5; 3]))),
        ("scalar", "unfit", body("scalar", feature(&[], &[0.5]))),
        ("no-number", "unfit", body("no-number", feature(&[128], &[f32::NAN; 128]))),
    ];
    strange(cases, &["classify", "cluster"])
}

fn strange<const N: usize>(
    cases: [(&'static str, &'static str, Outgoing); N],
    takers: &'static [&'static str],
) -> Vec<Strange> {
    cases.into_iter().map(|(name, reason, message)| Strange { name, message, reason, takers }).collect()
}
