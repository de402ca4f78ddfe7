//! The net under everything: what the broker gave up on, and what no client can read, becomes a dead letter, so that it shows.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use causeway_bus::{Bus, DurableState, RawRecord, names};
use causeway_pipelines::{Pipeline, StageSpec};
use causeway_schemas::{DeadLetter, Id, Meta, header};
use causeway_stage::{meta_of_unreadable, now_ns, set_aside_for};
use futures::StreamExt as _;
use serde::Deserialize;

use crate::{kept, layout};

/// Messages behind a durable's ack floor that are looked at in a round: what cannot be read is never acked, so that it is the
/// first of them before long.
const LOOKED_AT: u64 = 16;
/// The header block of a message that cannot be read, whole (base64): a header of its dead letter.
const RAW_HEADERS: &str = "Causeway-Raw-Headers";

/// What the broker says when it gives up on a message.
#[derive(Debug, Deserialize)]
pub(crate) struct Advisory {
    #[serde(rename = "type")]
    sort: String,
    stream: String,
    consumer: String,
    stream_seq: u64,
    #[serde(default)]
    deliveries: u64,
}

/// Messages that were removed from a stream before its taker had acked them, by stream and taker. Their bytes are gone, so
/// they are no dead letters: their items are open, and `reconcile` runs them again.
pub(crate) type Removed = BTreeMap<(String, String), u64>;

/// Most messages that the agent remembers to have removed.
const REMEMBERED: usize = 1024;

/// Looks again and again.
#[derive(Default)]
pub(crate) struct Net {
    /// What it removed itself: the broker tells of that too.
    own: HashSet<(String, u64)>,
    /// The message that each durable waits for, by stream and durable, and whether it was not there at the last look.
    waits_for: HashMap<(String, String), (u64, bool)>,
    /// Messages that were delivered again and can be read, by stream: they are long, and not read once more.
    readable: HashMap<String, BTreeSet<u64>>,
}

impl Net {
    /// One round.
    pub(crate) async fn round(&mut self, bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<Removed> {
        let removed = self.given_up(bus, pipeline).await?;
        self.unreadable(bus, pipeline).await?;
        Ok(removed)
    }

    async fn remove(&mut self, bus: &Bus, stream: &str, sequence: u64) -> anyhow::Result<()> {
        if self.own.len() == REMEMBERED {
            self.own.clear();
        }
        self.own.insert((stream.into(), sequence));
        bus.delete_message(stream, sequence).await?;
        Ok(())
    }

    /// Turns advisories into dead letters. An advisory goes when its message is set aside: the stream holds what is still to do.
    async fn given_up(&mut self, bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<Removed> {
        let stream = names::advisories(&pipeline.name);
        let mut removed = Removed::new();
        if bus.stream_state(&stream).await?.is_none_or(|state| state.messages == 0) {
            return Ok(removed);
        }
        let mut records = bus.scan(&stream, 1, false).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            let done = match serde_json::from_slice::<Advisory>(&record.body) {
                Ok(advisory) => self.set_aside_given_up(bus, pipeline, &advisory, &mut removed).await?,
                Err(error) => {
                    tracing::warn!(subject = record.subject, %error, "not an advisory; passed over");
                    true
                }
            };
            if done {
                bus.delete_message(&stream, record.sequence).await?;
            }
        }
        Ok(removed)
    }

    /// `false`: it cannot be done with yet, since another taker has not acked the message.
    async fn set_aside_given_up(
        &mut self,
        bus: &Bus,
        pipeline: &Pipeline,
        advisory: &Advisory,
        removed: &mut Removed,
    ) -> anyhow::Result<bool> {
        let Advisory { stream, consumer, stream_seq, deliveries, .. } = advisory;
        let giver = pipeline.stages.iter().find(|stage| names::stream(&pipeline.name, &stage.name) == *stream);
        let taker =
            pipeline.stage(consumer).filter(|taker| giver.is_some_and(|giver| taker.from.contains(&giver.name)));
        let (Some(giver), Some(taker)) = (giver, taker) else { return Ok(true) };
        let terminated = advisory.sort.contains("terminated");
        let Some(message) = bus.raw_message_at(stream, *stream_seq).await? else {
            // Where the broker gave up and it is gone, somebody answered it after all.
            if terminated && !self.own.contains(&(stream.clone(), *stream_seq)) {
                *removed.entry((stream.clone(), taker.name.clone())).or_default() += 1;
            }
            return Ok(true);
        };
        let (reason, detail) = if terminated {
            ("terminated", format!("somebody told the broker to deliver message {stream_seq} of {stream} no more"))
        } else {
            ("max-deliveries", format!("the broker delivered it {deliveries} times without an answer, and gave up"))
        };
        set_aside(bus, pipeline, taker, (stream, *stream_seq), &message, reason, detail, *deliveries).await?;
        if !pipeline.captures_here(giver) {
            // Nobody will ack it for this taker, so it would lie in the link for ever.
            let others = layout::durables_of(pipeline, stream).into_iter().filter(|other| other.name != *consumer);
            for other in others {
                match bus.durable_state(stream, &other.name).await? {
                    Some(durable) if durable.ack_floor >= *stream_seq => {}
                    None if other.ends => {}
                    _ => return Ok(false),
                }
            }
            self.remove(bus, stream, *stream_seq).await?;
        }
        Ok(true)
    }

    /// Finds messages whose headers no client can read: they break the connection of whoever takes them, again at every delivery.
    /// They are set aside for every taker and removed.
    async fn unreadable(&mut self, bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<()> {
        let wishes = layout::streams(pipeline);
        for giver in pipeline.stages.iter().filter(|stage| !pipeline.is_final(&stage.name)) {
            let stream = names::stream(&pipeline.name, &giver.name);
            let Some(wish) = wishes.iter().find(|wish| wish.name == stream) else { continue };
            let Some(state) = bus.stream_state(&stream).await? else { continue };
            let mut lowest = u64::MAX;
            for taker in &wish.durables {
                let Some(durable) = bus.durable_state(&stream, &taker.name).await? else { continue };
                lowest = lowest.min(durable.ack_floor);
                self.missing(bus, &stream, &taker.name, &durable).await?;
                if durable.redelivered == 0 {
                    continue;
                }
                let last = durable.delivered.min(durable.ack_floor + LOOKED_AT);
                for sequence in durable.ack_floor + 1..=last {
                    if self.readable.get(&stream).is_some_and(|readable| readable.contains(&sequence)) {
                        continue;
                    }
                    let Some(message) = bus.raw_message_at(&stream, sequence).await? else { continue };
                    if message.is_readable() {
                        self.readable.entry(stream.clone()).or_default().insert(sequence);
                        continue;
                    }
                    for taker in pipeline.takers(&giver.name) {
                        let detail =
                            "its headers are no UTF-8, or have a line that is no header: no client can read it".into();
                        let place = (stream.as_str(), sequence);
                        set_aside(bus, pipeline, taker, place, &message, "unreadable-headers", detail, 1).await?;
                    }
                    if pipeline.captures_here(giver) {
                        kept::removed(bus, &stream, &[(sequence, sequence)]).await?;
                    }
                    self.remove(bus, &stream, sequence).await?;
                }
            }
            if let Some(readable) = self.readable.get_mut(&stream) {
                // Where the stream was set back these are other messages.
                readable.retain(|&sequence| sequence > lowest && sequence <= state.last_sequence);
            }
        }
        Ok(())
    }

    /// A durable waits for ever for a message that it delivered once and whose bytes the disk has changed since. Once it has waited for
    /// it from one look to the next, the message is read; if it is not there twice it is acked: its item is open then, and `reconcile`
    /// runs it again.
    async fn missing(&mut self, bus: &Bus, stream: &str, taker: &str, durable: &DurableState) -> anyhow::Result<()> {
        let place = (stream.to_owned(), taker.to_owned());
        if durable.unacked == 0 {
            self.waits_for.remove(&place);
            return Ok(());
        }
        // The lowest that is not acked.
        let sequence = durable.ack_floor + 1;
        let before = self.waits_for.get(&place).filter(|(before, _)| *before == sequence);
        let was_missing = before.is_some_and(|&(_, was_missing)| was_missing);
        let is_missing = before.is_some() && bus.raw_message_at(stream, sequence).await?.is_none();
        self.waits_for.insert(place, (sequence, is_missing));
        if is_missing && was_missing {
            tracing::warn!(
                stream,
                sequence,
                taker,
                "the broker delivered this message and cannot read it any more; `causeway reconcile` runs its item again"
            );
            bus.ack_unreadable(stream, taker, sequence).await?;
        }
        Ok(())
    }
}

#[expect(clippy::too_many_arguments, reason = "each is a field of the letter")]
async fn set_aside(
    bus: &Bus,
    pipeline: &Pipeline,
    taker: &StageSpec,
    (stream, sequence): (&str, u64),
    message: &RawRecord,
    reason: &str,
    detail: String,
    attempts: u64,
) -> anyhow::Result<()> {
    let mut headers = message.header_pairs();
    let get = |name: &str| headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str());
    let id = get(header::ID).and_then(|id| id.parse().ok()).unwrap_or_else(|| Id::stored(stream, sequence));
    let meta = Meta::from_headers(get).unwrap_or_else(|_| meta_of_unreadable(id));
    let mut body = message.body.clone();
    if message.is_readable()
        && let Some(reference) = get(header::BODY)
    {
        let whole = bus.body_by_reference(reference).await;
        body = whole.unwrap_or(body);
    }
    let meta = if message.is_readable() {
        meta
    } else {
        // What cannot be read is not sent on.
        headers.push((RAW_HEADERS.into(), message.headers_base64()));
        Meta { origin: None, traceparent: None, run: None, ..meta }
    };
    let letter = DeadLetter {
        stage: taker.name.clone(),
        reason: reason.into(),
        detail,
        attempts,
        models: Vec::new(),
        at: now_ns(),
        subject: message.subject.clone(),
        headers,
        body: body.to_vec(),
    };
    tracing::warn!(stage = taker.name, %id, reason, detail = letter.detail, "message set aside by the agent");
    Ok(set_aside_for(bus, pipeline, &meta, &letter).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advisories_read() {
        let text = r#"{"type":"io.nats.jetstream.advisory.v1.max_deliver","id":"x","timestamp":"t","stream":"faces_capture",
            "consumer":"preprocess","stream_seq":22,"deliveries":5}"#;
        let advisory: Advisory = serde_json::from_str(text).unwrap();
        assert_eq!((advisory.stream_seq, advisory.deliveries, advisory.consumer.as_str()), (22, 5, "preprocess"));
    }
}
