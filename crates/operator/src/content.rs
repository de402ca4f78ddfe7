//! What is in a message, for a person (a line) and for a program (JSON): every kind, and what is none.

use causeway_imaging::{Format, ImageError, format_of};
use causeway_schemas::{
    Assignment, Codec, Crop, DeadLetter, Decision, Empty, Feature, Frame, Message, Ranked, Receipt, Region, decode,
    decode_body,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::terminal::{Paint, bytes, one_line};

/// Most characters of a text of strangers in a line.
const MAX_TEXT: usize = 120;
/// Characters of an id that are shown where it only tells apart.
pub(crate) const SHORT_ID: usize = 8;

/// A decoded message.
#[derive(Debug)]
pub(crate) enum Content {
    Frame(Frame),
    Crop(Crop),
    Feature(Feature),
    Decision(Decision),
    Assignment(Assignment),
    Empty(Empty),
    Dead(DeadLetter),
    Receipt(Receipt),
    /// No message of ours.
    Other {
        /// Why it is not read.
        why: String,
        /// Length of the body, bytes.
        len: usize,
        /// What the bytes look like.
        looks: Option<&'static str>,
    },
}

impl Content {
    /// Reads a body whose headers said `kind` and `codec`.
    pub(crate) fn decode(kind: Option<&str>, codec: Codec, body: &[u8]) -> Self {
        let noun = kind.and_then(|kind| kind.split_once(".v")).map(|(noun, _)| noun);
        let read = match noun {
            Some(Frame::NOUN) => read(kind, codec, body).map(Self::Frame),
            Some(Crop::NOUN) => read(kind, codec, body).map(Self::Crop),
            Some(Feature::NOUN) => read(kind, codec, body).map(Self::Feature),
            Some(Decision::NOUN) => read(kind, codec, body).map(Self::Decision),
            Some(Assignment::NOUN) => read(kind, codec, body).map(Self::Assignment),
            Some(Empty::NOUN) => read(kind, codec, body).map(Self::Empty),
            _ if kind == Some(DeadLetter::KIND) => decode_body(body, codec).map(Self::Dead),
            _ if kind == Some(Receipt::KIND) => decode_body(body, codec).map(Self::Receipt),
            _ => Err(match kind {
                Some(kind) => format!("unknown kind `{}`", one_line(kind, MAX_TEXT)),
                None => "no kind".into(),
            }),
        };
        read.unwrap_or_else(|why| Self::Other { why, len: body.len(), looks: looks_like(body) })
    }

    /// In one line.
    pub(crate) fn line(&self) -> String {
        let size = |body: &[u8]| bytes(body.len() as u64);
        match self {
            Self::Frame(frame) => {
                let what = looks_like(&frame.image).unwrap_or("image");
                format!("{}  {what}, {}", item(frame), size(&frame.image))
            }
            Self::Crop(crop) => {
                format!("{}  {} × {} px of {}", item(crop), crop.width, crop.height, region(&crop.region))
            }
            Self::Feature(feature) => {
                let norm = feature.vector().map(|vector| vector.iter().map(|x| x * x).sum::<f32>().sqrt());
                let norm = norm.map_or("no vector".into(), |norm| format!("norm {norm:.3}"));
                let (space, model) = (one_line(&feature.space, MAX_TEXT), one_line(&feature.model.name, MAX_TEXT));
                format!("{}  {space} {:?}, {norm}, by {model}", item(feature), feature.shape)
            }
            Self::Decision(decision) => format!("{}  {}", item(decision), answer(decision)),
            Self::Assignment(assignment) => {
                let cluster = short(assignment.cluster);
                let merged: Vec<_> = assignment.merged.iter().map(short).collect();
                let merged = if merged.is_empty() { String::new() } else { format!(", merged {}", merged.join(" ")) };
                format!("{}  cluster {cluster} {:.2}{merged}", item(assignment), assignment.score)
            }
            Self::Empty(empty) => {
                let (stage, reason) = (one_line(&empty.stage, MAX_TEXT), one_line(&empty.reason, MAX_TEXT));
                format!("{}  {stage}: {reason}: {}", item(empty), one_line(&empty.detail, MAX_TEXT))
            }
            Self::Dead(letter) => {
                let (stage, reason) = (one_line(&letter.stage, MAX_TEXT), one_line(&letter.reason, MAX_TEXT));
                let (subject, detail) = (one_line(&letter.subject, MAX_TEXT), one_line(&letter.detail, MAX_TEXT));
                format!(
                    "{}  {stage}: {}: {detail} ({})",
                    Paint::Bold.on(&subject),
                    Paint::Red.on(&reason),
                    size(&letter.body)
                )
            }
            Self::Receipt(receipt) => {
                let (stage, reason) = (one_line(&receipt.stage, MAX_TEXT), one_line(&receipt.reason, MAX_TEXT));
                format!("{stage}: {reason}; its letter is at {}", one_line(&receipt.site, MAX_TEXT))
            }
            Self::Other { why, len, looks } => {
                let looks = looks.map_or(String::new(), |looks| format!(", looks like {looks}"));
                format!("not readable: {}; {len} bytes{looks}", one_line(why, MAX_TEXT))
            }
        }
    }

    /// As an object; bytes are replaced by their length.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Frame(frame) => {
                without_bytes(&Frame { capture: frame.capture.clone(), image: Vec::new() }, "image", frame.image.len())
            }
            Self::Crop(crop) => {
                let bare =
                    Crop { capture: crop.capture.clone(), region: crop.region.clone(), pixels: Vec::new(), ..*crop };
                without_bytes(&bare, "pixels", crop.pixels.len())
            }
            Self::Feature(feature) => {
                let bare = Feature { data: Vec::new(), ..feature.clone() };
                without_bytes(&bare, "data", feature.data.len())
            }
            Self::Decision(decision) => json!(decision),
            Self::Assignment(assignment) => json!(assignment),
            Self::Empty(empty) => json!(empty),
            Self::Dead(letter) => dead_json(letter),
            Self::Receipt(receipt) => json!(receipt),
            Self::Other { why, len, looks } => json!({ "unreadable": why, "bytes": len, "looks_like": looks }),
        }
    }
}

/// A dead letter as an object, with the length of its body in place of the body.
fn dead_json(letter: &DeadLetter) -> Value {
    let bare = DeadLetter {
        stage: letter.stage.clone(),
        reason: letter.reason.clone(),
        detail: letter.detail.clone(),
        models: letter.models.clone(),
        subject: letter.subject.clone(),
        headers: letter.headers.clone(),
        body: Vec::new(),
        ..*letter
    };
    without_bytes(&bare, "body", letter.body.len())
}

fn without_bytes(message: &impl Serialize, field: &str, len: usize) -> Value {
    let mut object = json!(message);
    object[field] = json!({ "bytes": len });
    object
}

fn read<M: Message>(kind: Option<&str>, codec: Codec, body: &[u8]) -> Result<M, String> {
    decode(kind, codec, body).map_err(|error| error.to_string())
}

fn item(message: &impl Message) -> String {
    Paint::Bold.on(&one_line(&message.capture().item, MAX_TEXT))
}

/// Labels after the first that are shown of a list.
const MAX_OTHERS: usize = 2;

/// `Ada Lovelace 0.74 (margin 0.31)`, `unknown (nearest Ada Lovelace 0.21)`; of a list `tabby cat 0.62, lynx 0.11`.
fn answer(decision: &Decision) -> String {
    let (score, margin) = (decision.score, decision.margin);
    if let [best, others @ ..] = &decision.top[..] {
        let ranked = |one: &Ranked| format!("{} {:.2}", one_line(&one.label, MAX_TEXT), one.score);
        let first = match &decision.label {
            Some(label) => format!("{} {score:.2}", Paint::Green.on(&one_line(label, MAX_TEXT))),
            None => format!("unknown ({}", ranked(best)),
        };
        let others = others.iter().take(MAX_OTHERS).map(ranked);
        let list = std::iter::once(first).chain(others).collect::<Vec<_>>().join(", ");
        return if decision.label.is_some() { list } else { list + ")" };
    }
    match (&decision.label, &decision.nearest) {
        (Some(label), _) => {
            format!("{} {score:.2} (margin {margin:.2})", Paint::Green.on(&one_line(label, MAX_TEXT)))
        }
        (None, Some(nearest)) => {
            format!("unknown (nearest {} {score:.2}, margin {margin:.2})", one_line(nearest, MAX_TEXT))
        }
        (None, None) => "unknown (nobody is enrolled)".into(),
    }
}

fn region(region: &Region) -> String {
    let Region { x, y, w, h, score, sharpness, .. } = region;
    format!("{w:.0} × {h:.0} px at {x:.0}, {y:.0}, score {score:.2}, sharpness {sharpness:.0}")
}

/// As much of an id as tells it from others.
pub(crate) fn short(id: impl std::fmt::Display) -> String {
    id.to_string().chars().take(SHORT_ID).collect()
}

/// What bytes look like that nobody vouches for.
pub(crate) fn looks_like(body: &[u8]) -> Option<&'static str> {
    /// As much of a text as is looked at.
    const PROBED: usize = 512;
    match format_of(body) {
        Ok(Format::Jpeg) => return Some("JPEG"),
        Ok(Format::Png) => return Some("PNG"),
        Ok(Format::WebP) => return Some("WebP"),
        Err(ImageError::Unsupported { .. }) => return Some("an image"),
        Err(_) => {}
    }
    let start = &body[..body.len().min(PROBED)];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // Cut within a character.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&start[..error.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let plain = !text.is_empty() && text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t'));
    plain.then_some("text")
}

#[cfg(test)]
mod tests {
    use causeway_schemas::{Capture, Dtype, Id, ModelRef, encode};

    use super::*;

    fn capture() -> Capture {
        Capture { source: "capture".into(), item: "a/photo.jpg".into(), epoch: 0, sequence: 3, captured_at: 1 }
    }

    fn face() -> Region {
        let landmarks = vec![[1.0, 2.0]];
        Region { x: 10.0, y: 20.0, w: 100.0, h: 120.0, score: 0.93, sharpness: 77.7, landmarks, frame: [640, 480] }
    }

    fn model() -> ModelRef {
        ModelRef { name: "sface".into(), version: "2021dec".into(), sha256: "00".into() }
    }

    fn decision(label: Option<&str>, nearest: Option<&str>) -> Decision {
        Decision {
            capture: capture(),
            region: face(),
            label: label.map(Into::into),
            score: 0.741,
            margin: 0.52,
            nearest: nearest.map(Into::into),
            model: model(),
            gallery: 4,
            top: Vec::new(),
            route: "classify".into(),
        }
    }

    fn again<M: Message>(message: &M, codec: Codec) -> Content {
        Content::decode(Some(&M::kind()), codec, &encode(message, codec))
    }

    #[test]
    fn of_a_list_the_best_labels_are_shown() {
        let top = [("tabby", 0.741), ("lynx", 0.2), ("puma", 0.03), ("tiger", 0.01)];
        let top: Vec<Ranked> = top.map(|(label, score)| Ranked { label: label.into(), score }).to_vec();
        let known = Decision { top: top.clone(), ..decision(Some("tabby"), Some("tabby")) };
        assert_eq!(answer(&known), "tabby 0.74, lynx 0.20, puma 0.03");
        let unknown = Decision { top, ..decision(None, Some("tabby")) };
        assert_eq!(answer(&unknown), "unknown (tabby 0.74, lynx 0.20, puma 0.03)");
    }

    #[test]
    fn every_kind_is_a_line() {
        let frame = Frame { capture: capture(), image: b"\xff\xd8\xff\xe0 and so on".to_vec() };
        assert_eq!(again(&frame, Codec::Bincode).line(), "a/photo.jpg  JPEG, 14 B");
        let crop = Crop { capture: capture(), region: face(), width: 2, height: 1, pixels: vec![0; 6] };
        assert_eq!(
            again(&crop, Codec::Bincode).line(),
            "a/photo.jpg  2 × 1 px of 100 × 120 px at 10, 20, score 0.93, sharpness 78"
        );
        let feature = Feature {
            capture: capture(),
            region: face(),
            dtype: Dtype::F32,
            shape: vec![2],
            data: Feature::encode_f32(&[0.6, 0.8]),
            space: "sface-128".into(),
            model: model(),
        };
        assert_eq!(again(&feature, Codec::Bincode).line(), "a/photo.jpg  sface-128 [2], norm 1.000, by sface");
        assert_eq!(
            again(&decision(Some("Ada Lovelace"), Some("Ada Lovelace")), Codec::Json).line(),
            "a/photo.jpg  Ada Lovelace 0.74 (margin 0.52)"
        );
        assert_eq!(
            again(&decision(None, Some("Ada Lovelace")), Codec::Json).line(),
            "a/photo.jpg  unknown (nearest Ada Lovelace 0.74, margin 0.52)"
        );
        assert_eq!(again(&decision(None, None), Codec::Json).line(), "a/photo.jpg  unknown (nobody is enrolled)");
        let cluster = Id::captured("s", "i");
        let assignment = Assignment {
            capture: capture(),
            region: face(),
            cluster,
            score: 1.0,
            merged: vec![cluster.derived("x", 0)],
        };
        let line = again(&assignment, Codec::Json).line();
        assert!(line.starts_with(&format!("a/photo.jpg  cluster {} 1.00, merged ", short(cluster))), "{line}");
        let empty =
            Empty { capture: capture(), stage: "preprocess".into(), reason: "no-face".into(), detail: "none".into() };
        assert_eq!(again(&empty, Codec::Json).line(), "a/photo.jpg  preprocess: no-face: none");
    }

    fn letter() -> DeadLetter {
        DeadLetter {
            stage: "capture".into(),
            reason: "not-an-image".into(),
            detail: "cannot decode".into(),
            attempts: 1,
            models: vec![model()],
            at: 5,
            subject: "notes.jpg".into(),
            headers: vec![("a".into(), "b".into())],
            body: b"hello".to_vec(),
        }
    }

    #[test]
    fn a_dead_letter_is_a_line_and_an_object_without_its_bytes() {
        let content = Content::decode(Some("dead.v1"), Codec::Json, &encode(&letter(), Codec::Json));
        assert_eq!(content.line(), "notes.jpg  capture: not-an-image: cannot decode (5 B)");
        let object = content.to_json();
        assert_eq!((&object["body"]["bytes"], &object["models"][0]["name"]), (&json!(5), &json!("sface")));
    }

    #[test]
    fn pixels_are_told_by_their_length() {
        let crop = Crop { capture: capture(), region: face(), width: 2, height: 1, pixels: vec![0; 6] };
        let object = again(&crop, Codec::Bincode).to_json();
        assert_eq!((&object["pixels"]["bytes"], &object["width"]), (&json!(6), &json!(2)));
    }

    #[test]
    fn what_is_no_message_says_so() {
        let line = |kind, body: &[u8]| Content::decode(kind, Codec::Bincode, body).line();
        assert_eq!(line(None, b"hi there"), "not readable: no kind; 8 bytes, looks like text");
        assert_eq!(line(Some("song.v1"), &[0, 1]), "not readable: unknown kind `song.v1`; 2 bytes");
        assert!(line(Some("frame.v9"), &[0]).contains("run a newer stage"));
        assert!(line(Some("frame.v1"), &[0]).starts_with("not readable: cannot decode the body as frame.v1"));
        assert!(line(Some("\x1b[31m"), &[]).contains("\\u{1b}"));
    }

    #[test]
    fn bytes_are_looked_at() {
        assert_eq!(looks_like("grüße".as_bytes()), Some("text"));
        assert_eq!(looks_like(&[0, 159, 146, 150]), None);
        assert_eq!(looks_like(b""), None);
        let long = "ü".repeat(400);
        assert_eq!(looks_like(&long.as_bytes()[1..]), None);
        assert_eq!(looks_like(format!("a{long}").as_bytes()), Some("text"));
    }
}
