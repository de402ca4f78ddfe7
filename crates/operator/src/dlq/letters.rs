use causeway_bus::{Bus, Record, names};
use causeway_imaging::probe;
use causeway_pipelines::Pipeline;
use causeway_schemas::{Capture, Codec, DeadLetter, Id, Meta, decode_body, header};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::content::{Content, looks_like, short};
use crate::terminal::{bytes, date_time, one_line};

/// Most characters of a reason's details in a list.
const MAX_DETAIL: usize = 70;
/// Most characters of a text in `show`.
const MAX_TEXT: usize = 1000;
/// Pictures with more pixels are told by their size in bytes alone.
const MAX_PIXELS: u64 = 1 << 32;
/// The stage of what stands among dead letters and is none.
const NO_STAGE: &str = "?";

/// A dead letter as it is stored.
#[derive(Debug, Clone)]
#[expect(clippy::struct_field_names, reason = "it is one, as it is stored")]
pub(crate) struct Letter {
    /// Its place in its stream.
    pub(crate) sequence: u64,
    /// The subject that it stands under.
    pub(crate) subject: String,
    /// The id of the message that was set aside.
    pub(crate) id: String,
    /// What its headers say; none of a stranger's.
    pub(crate) meta: Option<Meta>,
    /// What a person knows it by: the captured item, or else the subject it came on.
    pub(crate) item: String,
    /// Where its message began, where that can be read.
    pub(crate) capture: Option<Capture>,
    /// What the message was, in a line and for a program.
    what: String,
    message: Value,
    /// Length of its body, bytes.
    bytes: usize,
    /// The letter; without its body where that was not asked for.
    pub(crate) letter: DeadLetter,
}

/// The dead letters that are `wanted`, the oldest first; with their bodies, if asked for.
pub(crate) async fn read(
    bus: &Bus,
    pipeline: &Pipeline,
    with_bodies: bool,
    wanted: impl Fn(&Letter) -> bool,
) -> anyhow::Result<Vec<Letter>> {
    let mut records = bus.scan(&names::stream(&pipeline.name, names::DEAD), 1, false).await?;
    let mut letters = Vec::new();
    while let Some(record) = records.next().await {
        let mut letter = Letter::of(bus, pipeline, record?).await;
        if !wanted(&letter) {
            continue;
        }
        if !with_bodies {
            letter.letter.body = Vec::new();
        }
        letters.push(letter);
    }
    Ok(letters)
}

/// The letter at a place with its body; `None` when it is gone.
pub(crate) async fn read_one(bus: &Bus, pipeline: &Pipeline, sequence: u64) -> anyhow::Result<Option<Letter>> {
    let record = bus.message_at(&names::stream(&pipeline.name, names::DEAD), sequence).await?;
    match record {
        Some(record) => Ok(Some(Letter::of(bus, pipeline, record).await)),
        None => Ok(None),
    }
}

impl Letter {
    async fn of(bus: &Bus, pipeline: &Pipeline, record: Record) -> Self {
        let body = bus.body(&record.headers, record.body.clone()).await;
        Self::of_body(pipeline, record, body.map_err(anyhow::Error::from))
    }

    /// The same, its body being there, or not to be had.
    pub(crate) fn of_body(pipeline: &Pipeline, record: Record, body: anyhow::Result<impl AsRef<[u8]>>) -> Self {
        let stream = names::stream(&pipeline.name, names::DEAD);
        let (codec, meta) = (record.headers.codec(), record.headers.meta().ok());
        let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(&stream, record.sequence)).to_string();
        let letter = body.and_then(|body| {
            decode_body::<DeadLetter>(body.as_ref(), codec)
                .map_err(|why| anyhow::anyhow!("not written by a stage, no dead letter: {why}"))
        });
        // A stranger may publish anything here: it is listed too, for what it is.
        let letter = letter.unwrap_or_else(|error| DeadLetter {
            stage: NO_STAGE.into(),
            reason: "unreadable".into(),
            detail: format!("{error:#}"),
            attempts: 0,
            models: Vec::new(),
            at: record.stored_at,
            subject: record.subject.clone(),
            headers: record.headers.to_pairs(),
            body: record.body.to_vec(),
        });
        Self::new(record.sequence, record.subject, id, meta, letter)
    }

    pub(crate) fn new(sequence: u64, subject: String, id: String, meta: Option<Meta>, letter: DeadLetter) -> Self {
        let content = content(&letter);
        let capture = capture(&content);
        Self {
            sequence,
            subject,
            id,
            meta,
            item: capture.as_ref().map_or_else(|| letter.subject.clone(), |capture| capture.item.clone()),
            what: body_text(&letter, &content),
            message: content.to_json(),
            bytes: letter.body.len(),
            capture,
            letter,
        }
    }

    /// Whether a stage wrote it.
    pub(crate) fn is_of_a_stage(&self) -> bool {
        self.letter.stage != NO_STAGE
    }

    /// What came in, as it was: the file that was captured, else the body of the message.
    pub(crate) fn original(&self) -> Vec<u8> {
        match content(&self.letter) {
            Content::Frame(frame) => frame.image,
            _ => self.letter.body.clone(),
        }
    }

    /// A crop as a picture that any viewer shows; `None` where it is none.
    pub(crate) fn picture(&self) -> Option<causeway_imaging::Picture> {
        match content(&self.letter) {
            Content::Crop(crop) => causeway_imaging::Picture::new(crop.width, crop.height, crop.pixels),
            _ => None,
        }
    }

    /// A row of the list, its id cut to `shown` characters.
    pub(crate) fn row(&self, shown: usize) -> Vec<String> {
        let letter = &self.letter;
        vec![
            self.id.chars().take(shown).collect(),
            date_time(letter.at),
            one_line(&letter.stage, MAX_DETAIL),
            one_line(&letter.reason, MAX_DETAIL),
            one_line(&self.item, MAX_DETAIL),
            self.bytes.to_string(),
            one_line(&letter.detail, MAX_DETAIL),
        ]
    }

    /// Its id, its stage and its item, for a line that says what was done to it.
    pub(crate) fn name(&self) -> String {
        let Self { item, letter, .. } = self;
        format!("{}  {}  {}", short(&self.id), one_line(&letter.stage, MAX_DETAIL), one_line(item, MAX_DETAIL))
    }

    /// The whole of it, a line a field.
    pub(crate) fn page(&self) -> String {
        let letter = &self.letter;
        let models = letter.models.iter().map(|model| {
            format!("{} {} (sha256 {}…)", model.name, model.version, model.sha256.chars().take(12).collect::<String>())
        });
        let models: Vec<_> = models.collect();
        let mut fields = vec![
            ("id", self.id.clone()),
            ("stage", letter.stage.clone()),
            ("reason", letter.reason.clone()),
            ("detail", letter.detail.clone()),
            ("item", self.item.clone()),
            ("attempts", letter.attempts.to_string()),
            ("when", format!("{} UTC", date_time(letter.at))),
            ("models", if models.is_empty() { "none".into() } else { models.join(", ") }),
            ("came on", letter.subject.clone()),
        ];
        if let Some(meta) = &self.meta {
            fields.push(("captured as", meta.root.to_string()));
            fields.extend(meta.origin.clone().map(|origin| ("origin", origin)));
            fields.extend((meta.generation > 0).then(|| ("generation", meta.generation.to_string())));
        }
        fields.push(("body", self.what.clone()));
        let line = |name: &str, value: &str| format!("{name:11}  {}\n", one_line(value, MAX_TEXT));
        let headers =
            letter.headers.iter().enumerate().map(|(place, (name, value))| {
                line(if place == 0 { "headers" } else { "" }, &format!("{name}: {value}"))
            });
        fields.iter().map(|(name, value)| line(name, value)).chain(headers).collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        let letter = &self.letter;
        json!({
            "id": self.id,
            "stage": letter.stage,
            "reason": letter.reason,
            "detail": letter.detail,
            "item": self.item,
            "attempts": letter.attempts,
            "at": letter.at,
            "models": letter.models,
            "subject": letter.subject,
            "root": self.meta.as_ref().map(|meta| meta.root),
            "origin": self.meta.as_ref().and_then(|meta| meta.origin.clone()),
            "generation": self.meta.as_ref().map(|meta| meta.generation),
            "headers": letter.headers,
            "bytes": self.bytes,
            "message": self.message,
        })
    }
}

/// What the message was when it was set aside.
fn content(letter: &DeadLetter) -> Content {
    let get = |name: &str| {
        let header = letter.headers.iter().find(|(found, _)| found == name);
        header.map(|(_, value)| value.as_str())
    };
    Content::decode(get(header::KIND), Codec::of(get(header::CONTENT_TYPE)), &letter.body)
}

fn capture(content: &Content) -> Option<Capture> {
    match content {
        Content::Frame(message) => Some(message.capture.clone()),
        Content::Crop(message) => Some(message.capture.clone()),
        Content::Feature(message) => Some(message.capture.clone()),
        Content::Decision(message) => Some(message.capture.clone()),
        Content::Assignment(message) => Some(message.capture.clone()),
        Content::Empty(message) => Some(message.capture.clone()),
        Content::Dead(_) | Content::Receipt(_) | Content::Other { .. } => None,
    }
}

fn body_text(letter: &DeadLetter, content: &Content) -> String {
    let size = bytes(letter.body.len() as u64);
    match content {
        Content::Other { .. } if letter.headers.is_empty() => {
            let looks = match looks_like(&letter.body) {
                Some(looks) => format!("it looks like {looks}{}", pixels(&letter.body)),
                None => "it looks like no picture and no text".into(),
            };
            format!("{size}, the original file; {looks}")
        }
        Content::Frame(frame) => format!("{size}: {}{}", content.line(), pixels(&frame.image)),
        content => format!("{size}: {}", content.line()),
    }
}

/// `, 640 × 480 px`, where the header of a picture says so.
fn pixels(image: &[u8]) -> String {
    probe(image, MAX_PIXELS).map_or(String::new(), |probe| format!(", {} × {} px", probe.width, probe.height))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn letter(id: &str, stage: &str) -> Letter {
        let letter = DeadLetter {
            stage: stage.into(),
            reason: "not-an-image".into(),
            detail: "cannot decode the file: it does not begin like any picture".into(),
            attempts: 1,
            models: Vec::new(),
            at: 1_769_879_109_000_000_000,
            subject: "notes.jpg".into(),
            headers: Vec::new(),
            body: b"dear diary".to_vec(),
        };
        Letter::new(1, String::new(), id.into(), None, letter)
    }

    #[test]
    fn a_page_tells_all() {
        let expected = "\
id           4hv7a0g5xrawwq2ybg5gmy7jb3
stage        capture
reason       not-an-image
detail       cannot decode the file: it does not begin like any picture
item         notes.jpg
attempts     1
when         2026-01-31 17:05:09 UTC
models       none
came on      notes.jpg
body         10 B, the original file; it looks like text
";
        assert_eq!(letter("4hv7a0g5xrawwq2ybg5gmy7jb3", "capture").page(), expected);
    }
}
