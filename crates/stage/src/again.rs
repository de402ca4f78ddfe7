//! Messages that were sent again. One that answers a dead letter is meant for the stage that set it aside alone: other takers
//! of its link ack it unread. Its letter goes when the stage has answered, after what it gave is stored and before its ack: so
//! there is a letter or an answer at every moment, whoever is killed when.

use causeway_bus::{Bus, Delivery, Outgoing};
use causeway_pipelines::{Pipeline, StageSpec};
use causeway_schemas::{Capture, DeadLetter, Id, Meta, header};

use crate::done;
use crate::env::{Env, RETRY_PAUSE};
use crate::held::Held;
use crate::outcomes::{self, Place};

/// The reason of an `empty.v1` in place of a dead letter that somebody dropped.
pub const DROPPED: &str = "dropped";

/// Headers that a message keeps when it is sent again: those that a stage reads, but for what belongs to one sending.
const KEPT: [&str; 9] = [
    header::PARENT,
    header::ROOT,
    header::PART,
    header::KIND,
    header::STAGE,
    header::ORIGIN,
    header::TRACEPARENT,
    header::CONTENT_TYPE,
    header::RUN,
];

/// Whether a delivery is meant for another stage than `spec`.
pub(crate) fn is_for_another(delivery: &Delivery, spec: &StageSpec) -> bool {
    delivery.headers.get(header::TO).is_some_and(|to| to != spec.name)
}

impl Env {
    /// Removes the dead letter that an input was sent again for, however long the broker is away.
    pub(crate) async fn close_letter(&self, held: &Held) {
        let letter = held.delivery.headers.get(header::LETTER).and_then(|place| place.parse().ok());
        let Some(letter) = letter else { return };
        let id = held.id().to_string();
        loop {
            match done::remove_letter(self, letter, &id).await {
                Ok(true) => return,
                Ok(false) => tracing::debug!("dead letter not removed: no agent is there; trying again"),
                Err(error) => tracing::debug!(%error, "dead letter not removed; trying again"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }
}

/// A message sent again as it was, on the subject it came on, under a new generation. `get` gives its headers.
pub fn again<'a>(
    subject: &str,
    id: Id,
    generation: u32,
    get: impl Fn(&str) -> Option<&'a str>,
    body: bytes::Bytes,
) -> Outgoing {
    let mut headers = vec![
        (header::MSG_ID, format!("{id}.g{generation}")),
        (header::ID, id.to_string()),
        (header::GENERATION, generation.to_string()),
    ];
    // What a stranger wrote may be no header that can be sent.
    let is_sent = |value: &&str| !value.contains(['\r', '\n']);
    headers.extend(KEPT.iter().filter_map(|&name| Some((name, get(name).filter(is_sent)?.to_owned()))));
    Outgoing { subject: subject.into(), headers, body, if_absent: false }
}

/// The message of a dead letter at `place` of its stream, for the stage that set it aside alone.
pub fn retry_of(letter: &DeadLetter, id: Id, place: u64, generation: u32) -> Outgoing {
    let get = |name: &str| letter.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let mut outgoing = again(&letter.subject, id, generation, get, letter.body.clone().into());
    if letter.body.is_empty() {
        // It was not to be had then.
        outgoing.headers.extend(get(header::BODY).map(|reference| (header::BODY, reference.to_owned())));
    }
    outgoing.headers.push((header::TO, letter.stage.clone()));
    outgoing.headers.push((header::LETTER, place.to_string()));
    outgoing
}

/// What stands in place of a dead letter that is dropped: the item stays accounted for. `meta` is what the letter's headers say,
/// `capture` where its message began.
pub fn dropped(pipeline: &Pipeline, subject: &str, meta: &Meta, capture: Capture, letter: &DeadLetter) -> Outgoing {
    let detail = format!("set aside as {}: {}", letter.reason, letter.detail);
    outcomes::empty(pipeline, &letter.stage, &Place::of(subject), meta, capture, DROPPED, detail)
}

/// Sets aside what its stage could not: stored as a dead letter of that stage.
pub async fn set_aside_for(
    bus: &Bus,
    pipeline: &Pipeline,
    meta: &Meta,
    letter: &DeadLetter,
) -> Result<(), causeway_bus::PublishError> {
    for stored in outcomes::set_aside(pipeline, &Place::of(&letter.subject), meta, letter) {
        bus.publish(&stored).await?;
    }
    Ok(())
}
