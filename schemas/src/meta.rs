use std::fmt;
use std::str::FromStr;

use crate::Id;

/// Names of the headers; `Nats-Msg-Id` is the broker's, the others are ours.
pub mod header {
    /// Logical id; never changes.
    pub const ID: &str = "Causeway-Id";
    /// Id of the message it was made of.
    pub const PARENT: &str = "Causeway-Parent";
    /// Id of what was captured.
    pub const ROOT: &str = "Causeway-Root";
    /// Which part of the captured item it is.
    pub const PART: &str = "Causeway-Part";
    /// Raised by retry, reconcile, replay and a run anew.
    pub const GENERATION: &str = "Causeway-Generation";
    /// Noun and version: `feature.v1`.
    pub const KIND: &str = "Causeway-Kind";
    /// Site and stream position of the captured item, set by its first taker.
    pub const ORIGIN: &str = "Causeway-Origin";
    /// The stage that made it.
    pub const STAGE: &str = "Causeway-Stage";
    /// The site that a relay brought it from: it does not take it back there.
    pub const VIA: &str = "Causeway-Via";
    /// The one stage that a message is meant for, where it was sent again: every other taker of its link acks it unread.
    pub const TO: &str = "Causeway-To";
    /// The place of the dead letter, in its stream, that a message was sent again for: it goes with the stage's answer.
    pub const LETTER: &str = "Causeway-Letter";
    /// The isolated run that a message belongs to.
    pub const RUN: &str = "Causeway-Run";
    /// SHA-256 of a body that is kept in the object store.
    pub const BODY: &str = "Causeway-Body";
    /// CloudEvents' own: of outcomes, for programs that know those and not us.
    pub const EVENT_VERSION: &str = "ce-specversion";
    /// `causeway.` and the kind.
    pub const EVENT_TYPE: &str = "ce-type";
    /// `/PIPELINE/SITE/SOURCE`.
    pub const EVENT_SOURCE: &str = "ce-source";
    /// The logical id.
    pub const EVENT_ID: &str = "ce-id";
    /// When the outcome was made, RFC 3339.
    pub const EVENT_TIME: &str = "ce-time";
    /// The id of the captured item.
    pub const EVENT_SUBJECT: &str = "ce-subject";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// The codec of the body.
    pub const CONTENT_TYPE: &str = "Content-Type";
    /// The broker's dedupe id: id and generation.
    pub const MSG_ID: &str = "Nats-Msg-Id";
}

/// Which part of a captured item a message is: one `i/n` (from 1) for every stage that gave more than one output, outermost
/// first: `2/3` is the second of three faces, `2/3,1/2` the first half of it. Empty where nothing was divided.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Part(Vec<(u32, u32)>);

/// Deepest nesting of parts that is read; a pipeline divides once or twice.
const MAX_DEPTH: usize = 16;

impl Part {
    /// The whole item.
    pub fn whole() -> Self {
        Self::default()
    }

    /// The part that is output `index` (from 0) of `count`; one output is the same part as its input.
    #[must_use]
    pub fn divide(&self, index: usize, count: usize) -> Self {
        let mut levels = self.0.clone();
        if count != 1 {
            levels.push((index as u32 + 1, count as u32));
        }
        Self(levels)
    }

    /// The levels, outermost first: (i, n), i from 1.
    pub fn levels(&self) -> &[(u32, u32)] {
        &self.0
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("1/1");
        }
        for (level, (index, count)) in self.0.iter().enumerate() {
            let comma = if level == 0 { "" } else { "," };
            write!(f, "{comma}{index}/{count}")?;
        }
        Ok(())
    }
}

impl FromStr for Part {
    type Err = MetaError;

    fn from_str(text: &str) -> Result<Self, MetaError> {
        let refuse = || MetaError::new(header::PART, text);
        if text == "1/1" {
            return Ok(Self::whole());
        }
        let mut levels = Vec::new();
        for level in text.split(',') {
            let (index, count) = level.split_once('/').ok_or_else(refuse)?;
            let (index, count) = (index.parse().map_err(|_| refuse())?, count.parse().map_err(|_| refuse())?);
            if index == 0 || index > count || levels.len() == MAX_DEPTH {
                return Err(refuse());
            }
            levels.push((index, count));
        }
        Ok(Self(levels))
    }
}

/// What the headers of a message say.
#[derive(Debug, Clone, PartialEq)]
pub struct Meta {
    /// Logical id.
    pub id: Id,
    /// Id of the message it was made of; none at capture.
    pub parent: Option<Id>,
    /// Id of the captured item.
    pub root: Id,
    /// Which part of the captured item.
    pub part: Part,
    /// 0 unless run again on purpose; inherited by children.
    pub generation: u32,
    /// Noun and version.
    pub kind: String,
    /// The stage that made it.
    pub stage: String,
    /// Site and stream position of the captured item: `edge/faces_capture/17`.
    pub origin: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// The isolated run that it belongs to; none in a live pipeline.
    pub run: Option<String>,
}

/// A header that is missing or wrong.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the header {name}: {value}")]
pub struct MetaError {
    name: &'static str,
    value: String,
}

impl MetaError {
    fn new(name: &'static str, value: &str) -> Self {
        Self { name, value: format!("`{}`", value.chars().take(80).collect::<String>()) }
    }

    fn missing(name: &'static str) -> Self {
        Self { name, value: "it is missing".into() }
    }
}

impl Meta {
    /// What a captured item starts with.
    pub fn captured(id: Id, stage: &str, kind: String, generation: u32) -> Self {
        Self {
            id,
            parent: None,
            root: id,
            part: Part::whole(),
            generation,
            kind,
            stage: stage.into(),
            origin: None,
            traceparent: None,
            run: None,
        }
    }

    /// What output `index` of `count` of this message starts with, made by `stage`.
    #[must_use]
    pub fn child(&self, stage: &str, kind: String, index: usize, count: usize) -> Self {
        Self {
            id: self.id.derived(stage, index),
            parent: Some(self.id),
            root: self.root,
            part: self.part.divide(index, count),
            generation: self.generation,
            kind,
            stage: stage.into(),
            origin: self.origin.clone(),
            traceparent: self.traceparent.clone(),
            run: self.run.clone(),
        }
    }

    /// The broker's dedupe id: a deliberate re-run has another one and passes.
    pub fn msg_id(&self) -> String {
        format!("{}.g{}", self.id, self.generation)
    }

    /// The headers as name and value.
    pub fn to_headers(&self) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            (header::MSG_ID, self.msg_id()),
            (header::ID, self.id.to_string()),
            (header::ROOT, self.root.to_string()),
            (header::PART, self.part.to_string()),
            (header::GENERATION, self.generation.to_string()),
            (header::KIND, self.kind.clone()),
            (header::STAGE, self.stage.clone()),
        ];
        headers.extend(self.parent.map(|parent| (header::PARENT, parent.to_string())));
        headers.extend(self.origin.clone().map(|origin| (header::ORIGIN, origin)));
        headers.extend(self.traceparent.clone().map(|trace| (header::TRACEPARENT, trace)));
        headers.extend(self.run.clone().map(|run| (header::RUN, run)));
        headers
    }

    /// Reads the headers through `get`, which gives the value of a name.
    pub fn from_headers<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Result<Self, MetaError> {
        let need = |name: &'static str| get(name).ok_or_else(|| MetaError::missing(name));
        let id = |name: &'static str, text: &str| text.parse::<Id>().map_err(|_| MetaError::new(name, text));
        let generation = need(header::GENERATION)?;
        Ok(Self {
            id: id(header::ID, need(header::ID)?)?,
            parent: get(header::PARENT).map(|text| id(header::PARENT, text)).transpose()?,
            root: id(header::ROOT, need(header::ROOT)?)?,
            part: need(header::PART)?.parse()?,
            generation: generation.parse().map_err(|_| MetaError::new(header::GENERATION, generation))?,
            kind: need(header::KIND)?.into(),
            stage: need(header::STAGE)?.into(),
            origin: get(header::ORIGIN).map(Into::into),
            traceparent: get(header::TRACEPARENT).map(Into::into),
            run: get(header::RUN).map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_read_back() {
        let photo = Meta::captured(Id::captured("s", "i"), "capture", "frame.v1".into(), 3);
        let photo = Meta { run: Some("monday".into()), ..photo };
        let face = photo.child("preprocess", "crop.v1".into(), 1, 3);
        for meta in [photo, face] {
            let headers = meta.to_headers();
            let get = |name: &str| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str());
            assert_eq!(Meta::from_headers(get).unwrap(), meta);
        }
    }

    #[test]
    fn a_part_names_its_place() {
        let second = Part::whole().divide(1, 3);
        assert_eq!(second.to_string(), "2/3");
        assert_eq!(second.divide(0, 1).to_string(), "2/3");
        assert_eq!(second.divide(0, 2).to_string(), "2/3,1/2");
        assert_eq!("2/3,1/2".parse::<Part>().unwrap(), second.divide(0, 2));
        for wrong in ["", "0/1", "4/3", "x", "1/2,", "1"] {
            assert!(wrong.parse::<Part>().is_err(), "{wrong}");
        }
    }
}
