//! Drift: what the broker has otherwise than the pipeline wants it, and what stands still. It is said once, counted, shown by
//! `status`, and mended where that loses nothing.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use causeway_bus::{Bus, Compared, DurableState, DurableWish, StreamWish, names};
use causeway_pipelines::Pipeline;
use causeway_stage::now_ns;
use serde::{Deserialize, Serialize};

use crate::metrics::Told;
use crate::net::Removed;
use crate::terminal::count;
use crate::{kept, layout};

/// How often it is looked: some forty small requests.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A durable that has work, has somebody who asks for it, and gives nothing for this long stands still.
const STALL: Duration = Duration::from_secs(10);
/// Findings that are kept for `status`, the newest last.
const KEPT: usize = 16;
/// A pause before what could not be mended is tried once more.
const AGAIN: Duration = Duration::from_mins(1);
/// The key of the findings in the table of what the pipeline agrees on.
const KEY: &str = "drift";

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// When it was found, Unix time in ns.
    pub(crate) at: u64,
    /// The stream.
    pub(crate) stream: String,
    /// A short fixed name: `settings`, `missing`, `unfit`, `reset`, `removed`, `ahead`, `stalled`.
    pub(crate) sort: String,
    /// The whole of it, for a person.
    pub(crate) detail: String,
    /// Whether it was mended.
    pub(crate) mended: bool,
}

/// What was seen of a durable, to tell whether it moves.
struct Seen {
    delivered: u64,
    since: Instant,
}

/// Looks again and again, and remembers what it saw.
#[derive(Default)]
pub(crate) struct Watch {
    looked: Option<Instant>,
    durables: HashMap<(String, String), Seen>,
    findings: Vec<Drift>,
    /// Whether there are findings that are not stored yet.
    is_new: bool,
    /// What could not be mended, and when that was last tried.
    tried: HashMap<(String, &'static str), Instant>,
}

/// A stream or a table has not what it had.
const RESET: &str = "reset";

/// What a broker that was just met has lost since it was last seen: it is said, and kept for `status`.
pub(crate) async fn lost(bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<()> {
    let mut lost = kept::look(bus, pipeline, false).await?;
    lost.extend(kept::look_at_table(bus, names::PEOPLE).await?);
    if lost.is_empty() {
        return Ok(());
    }
    let mut all = findings(bus).await;
    for (stream, detail) in lost {
        tracing::warn!(stream, detail, "the broker has lost what was stored");
        all.push(Drift { at: now_ns(), stream, sort: RESET.into(), detail, mended: false });
    }
    store(bus, &mut all).await
}

/// Keeps the newest of them.
async fn store(bus: &Bus, findings: &mut Vec<Drift>) -> anyhow::Result<()> {
    let excess = findings.len().saturating_sub(KEPT);
    findings.drain(..excess);
    bus.table_put(names::CONTROL, KEY, serde_json::to_vec(findings)?.into()).await?;
    Ok(())
}

/// What the agent found last, the newest last.
pub(crate) async fn findings(bus: &Bus) -> Vec<Drift> {
    let entry = bus.table_get(names::CONTROL, KEY).await.ok().flatten();
    entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default()
}

impl Watch {
    /// Looks, unless it has just looked.
    pub(crate) async fn round(&mut self, bus: &Bus, pipeline: &Pipeline, told: &Told) -> anyhow::Result<()> {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return Ok(());
        }
        if self.looked.replace(Instant::now()).is_none() {
            let mut stored = findings(bus).await;
            stored.append(&mut self.findings);
            self.findings = stored;
            // Seconds where they are long: so not at the start of everything.
            for fold in pipeline.stages_here().filter(|stage| stage.folds) {
                match kept::look_at_changelog(bus, &fold.name).await {
                    Ok(Some((stream, detail))) => self.say(&stream, RESET, detail, false, told),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(stage = fold.name, %error, "its changelog was not looked through"),
                }
            }
        }
        // Before what is missing is made anew.
        self.ends(bus, pipeline, false, told).await?;
        for wish in layout::streams(pipeline) {
            self.stream(bus, &wish, told).await?;
        }
        if self.is_new {
            store(bus, &mut self.findings).await?;
            self.is_new = false;
        }
        Ok(())
    }

    /// Messages went before they were acked.
    pub(crate) fn removed(&mut self, removed: &Removed, told: &Told) {
        for ((stream, taker), &messages) in removed {
            let messages = count(messages as usize, "message");
            let detail = format!("{messages} went before {taker} had acked, removed by somebody");
            self.say(stream, "removed", detail + "; `causeway reconcile` runs the items again", false, told);
        }
    }

    async fn stream(&mut self, bus: &Bus, wish: &StreamWish, told: &Told) -> anyhow::Result<()> {
        let (sort, detail, mendable) = match bus.compare_stream(wish).await? {
            Compared::Same => ("", String::new(), false),
            Compared::Missing => ("missing", "the stream is not there".into(), true),
            Compared::Differs(points) => ("settings", points.join("; "), true),
            Compared::Unfit(points) => ("unfit", points.join("; "), false),
            Compared::Taken { subject, by } => ("unfit", format!("{subject} is taken by the stream {by}"), false),
        };
        if !sort.is_empty() && self.is_due(&wish.name, sort) {
            let mended = mendable && is_done(bus.apply_stream(wish).await);
            self.say(&wish.name, sort, detail, mended, told);
        }
        for durable in &wish.durables {
            self.durable(bus, &wish.name, durable, told).await?;
        }
        Ok(())
    }

    /// Says which streams, or sources', have lost their end.
    pub(crate) async fn ends(
        &mut self,
        bus: &Bus,
        pipeline: &Pipeline,
        sources: bool,
        told: &Told,
    ) -> anyhow::Result<()> {
        for (stream, detail) in kept::look(bus, pipeline, sources).await? {
            self.say(&stream, RESET, detail, false, told);
        }
        Ok(())
    }

    async fn durable(&mut self, bus: &Bus, stream: &str, wish: &DurableWish, told: &Told) -> anyhow::Result<()> {
        bus.end_renewal(stream, wish).await?;
        let Some(state) = bus.durable_state(stream, &wish.name).await? else { return Ok(()) };
        // Asked for behind the durable: it only grows, unless the stream lost its end.
        let Some(of_stream) = bus.stream_state(stream).await? else { return Ok(()) };
        let key = (stream.to_owned(), wish.name.clone());
        if state.delivered > of_stream.last_sequence && self.is_due(stream, "ahead") {
            let detail = format!(
                "the durable {} is at message {}, the stream ends at {}: what comes would not be delivered",
                wish.name, state.delivered, of_stream.last_sequence
            );
            let mended = is_done(bus.renew_durable(stream, wish, 1).await);
            self.say(stream, "ahead", detail, mended, told);
            self.durables.remove(&key);
            return Ok(());
        }
        let now = Instant::now();
        let seen = self.durables.entry(key.clone()).or_insert(Seen { delivered: state.delivered, since: now });
        if seen.delivered != state.delivered || !could_give(&state) {
            *seen = Seen { delivered: state.delivered, since: now };
        } else if seen.since.elapsed() > STALL {
            let detail = format!(
                "the durable {} has {} messages to give and {} who ask, and gave none for {STALL:?}",
                wish.name, state.pending, state.waiting
            );
            let mended = is_done(bus.renew_durable(stream, wish, state.ack_floor + 1).await);
            self.say(stream, "stalled", detail, mended, told);
            self.durables.remove(&key);
        }
        Ok(())
    }

    /// Whether something that cannot be mended is due to be tried, and said, once more.
    fn is_due(&mut self, stream: &str, sort: &'static str) -> bool {
        let key = (stream.to_owned(), sort);
        if self.tried.get(&key).is_some_and(|tried| tried.elapsed() < AGAIN) {
            return false;
        }
        self.tried.insert(key, Instant::now());
        true
    }

    fn say(&mut self, stream: &str, sort: &'static str, detail: String, mended: bool, told: &Told) {
        if mended {
            self.tried.remove(&(stream.to_owned(), sort));
        }
        told.drifted(sort);
        let known =
            self.findings.iter().any(|known| known.stream == stream && known.sort == sort && known.detail == detail);
        if known && !mended {
            return;
        }
        tracing::warn!(stream, sort, detail, mended, "the broker has not what the pipeline wants");
        self.is_new = true;
        self.findings.push(Drift { at: now_ns(), stream: stream.into(), sort: sort.into(), detail, mended });
    }
}

/// Whether it has work, somebody asks, and nothing that it gave is being worked on.
fn could_give(state: &DurableState) -> bool {
    state.pending > 0 && state.waiting > 0 && state.unacked == 0
}

fn is_done<T>(done: Result<T, causeway_bus::BusError>) -> bool {
    match done {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "drift not mended; it is tried again");
            false
        }
    }
}
