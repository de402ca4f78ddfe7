//! The agent of a site: the only long-lived holder of an operator's rights. It purges what is safe to purge, sets aside what the
//! broker gave up on, and mends what drifted.

mod copies;
mod moves;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use causeway_bus::{Bus, Snapshot, StreamState, names};
use causeway_pipelines::Pipeline;
use causeway_stage::{Placed, Unfolded, answer_stages, give_back_memory, now_ns};

use self::copies::{Copies, Goes, Want};
use self::moves::{Turn, take_part};
use crate::drift::Watch;
use crate::metrics::Told;
use crate::net::Net;
use crate::reconcile::run_lost_again;
use crate::up::heartbeats_at;
use crate::{kept, layout};

/// Above this share of its limit a capture stream is made smaller.
const FULL_SHARE: f64 = 0.8;
/// What a purge leaves of the limit.
const LEFT_SHARE: f64 = 0.6;
/// Above this share space is short: copies that are only kept for repair go, before the camera has to stop.
const SHORT_SHARE: f64 = 0.95;

struct Agent {
    bus: Bus,
    pipeline: Pipeline,
    /// Captured items whose repair copy went although they were not complete are counted there.
    told: Arc<Told>,
    /// The oldest copies of each source.
    copies: HashMap<String, Copies>,
    /// The snapshots of each fold.
    snapshots: HashMap<String, Seen>,
}

/// Snapshots as they were looked at last.
#[derive(Clone, Copy, Default)]
struct Seen {
    /// The last sequence of their stream.
    last: u64,
    /// When the next of them is on disk for good, Unix time in ns.
    next: Option<u64>,
}

/// After so many syncs what is stored is on disk for good.
const SYNCS: u64 = 2;
/// How often it is looked whether a fold has stopped.
const MEND_EVERY: Duration = Duration::from_secs(5);
/// How often it does its rounds.
const ROUND_EVERY: Duration = Duration::from_secs(1);

/// Runs again what folds have lost of their changelogs and stopped for, for ever: they go on at their next start.
pub(crate) async fn mend(bus: Bus, placed: Placed) {
    // What was tried, and could not be mended.
    let mut tried: HashMap<String, Unfolded> = HashMap::new();
    let mut every = tokio::time::interval(MEND_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let pipeline = Pipeline::clone(&placed.borrow());
        for fold in pipeline.stages_here().filter(|stage| stage.folds) {
            let Ok(unfolded) = Unfolded::read(&bus, &fold.name).await else { continue };
            if unfolded.open.is_empty() || tried.get(&fold.name) == Some(&unfolded) {
                continue;
            }
            match run_lost_again(&[(bus.clone(), pipeline.clone())], &fold.name).await {
                Ok(Some(items)) => {
                    tracing::warn!(
                        stage = fold.name,
                        items,
                        "its changelog had lost its end; all of it is kept, and is run again"
                    );
                }
                Ok(None) => drop(tried.insert(fold.name.clone(), unfolded)),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(stage = fold.name, error, "what it has lost was not run again; it comes again");
                }
            }
        }
    }
}

/// An agent at a site: all that it does, for ever. `file` is the pipeline as its file has it.
pub(crate) async fn work(bus: Bus, file: Pipeline, placed: Placed, told: Arc<Told>) {
    let turn = Turn::default();
    let takes_part = async {
        if file.is_split() {
            take_part(bus.clone(), file, placed.clone(), turn.clone()).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    tokio::join!(
        takes_part,
        answer_stages(bus.clone(), placed.clone()),
        keep(bus.clone(), placed.clone(), told, turn.clone())
    );
}

/// Does round after round, for ever.
async fn keep(bus: Bus, placed: Placed, told: Arc<Told>, turn: Turn) {
    let pipeline = Pipeline::clone(&placed.borrow());
    let mut agent = Agent { bus, pipeline, told, copies: HashMap::new(), snapshots: HashMap::new() };
    let (mut net, mut watch) = (Net::default(), Watch::default());
    let mut round = tokio::time::interval(ROUND_EVERY);
    round.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        agent.pipeline = Pipeline::clone(&placed.borrow());
        // First, since what no client can read would break this round too.
        match net.round(&agent.bus, &agent.pipeline).await {
            Ok(removed) => watch.removed(&removed, &agent.told),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "what the broker gave up on is not set aside yet; it is tried again");
            }
        }
        // Every time, since what is captured later than this is not missed.
        if let Err(error) = watch.ends(&agent.bus, &agent.pipeline, true, &agent.told).await {
            tracing::debug!(
                error = format!("{error:#}"),
                "the ends of the sources' streams not looked at; it comes again"
            );
        }
        {
            // Not while a move changes what is wanted.
            let _turn = turn.lock().await;
            agent.pipeline = Pipeline::clone(&placed.borrow());
            // A move waits for its turn.
            let looks = watch.round(&agent.bus, &agent.pipeline, &agent.told);
            if let Some(Err(error)) = agent.bus.unless_renewed(looks).await {
                tracing::debug!(error = format!("{error:#}"), "drift not looked at; it comes again");
            }
        }
        match agent.round().await {
            // What was read of outcomes for it is megabytes in small pieces, between which the heap grows from purge to purge.
            Ok(purged) if purged > 0 => give_back_memory(),
            Ok(_) => {}
            Err(error) => tracing::warn!(error = format!("{error:#}"), "the agent's round failed; it comes again"),
        }
    }
}

impl Agent {
    /// One round: purges the capture stream of each source, and the changelog of each fold. Gives how many messages were purged.
    async fn round(&mut self) -> anyhow::Result<u64> {
        let pipeline = self.pipeline.clone();
        let mut purged = 0;
        for source in pipeline.stages_here().filter(|stage| stage.is_source()) {
            purged += self.purge_captured(&source.name).await?;
        }
        // What is on the move is read from its beginning.
        for fold in pipeline.stages_here().filter(|stage| stage.folds && stage.moves_to.is_empty()) {
            purged += self.purge_changes(&fold.name).await?;
        }
        Ok(purged)
    }

    async fn purge_captured(&mut self, source: &str) -> anyhow::Result<u64> {
        let stream = names::stream(&self.pipeline.name, source);
        let Some(mut state) = self.bus.stream_state(&stream).await? else { return Ok(0) };
        let limit = state.max_bytes.unwrap_or(u64::MAX) as f64;
        let too_old = now_ns().saturating_sub(self.pipeline.keep_captured.age.as_nanos() as u64);
        let bytes = state.bytes as f64;
        // An item that is longer than the room above `FULL_SHARE` waits for it all the same.
        let waits = bytes <= limit * FULL_SHARE && state.messages > 0 && self.waits_for_room(source).await?;
        let mut over = match bytes {
            _ if waits => (bytes - limit * LEFT_SHARE).max(1.0),
            bytes if bytes > limit * FULL_SHARE => bytes - limit * LEFT_SHARE,
            _ => 0.0,
        };
        let short = bytes > limit * SHORT_SHARE;
        let mut purged = 0;
        while state.messages > 0 && (over > 0.0 || state.first_at < too_old) {
            let want = Want { bytes: over, too_old, floor: self.ack_floor(&stream).await? };
            let (goes, more) = self.purge_known(source, state, want, short, waits).await?;
            purged += goes.first_kept - state.first_sequence;
            over -= goes.bytes;
            match self.bus.stream_state(&stream).await? {
                Some(now) if more => state = now,
                _ => break,
            }
        }
        if purged > 0 {
            tracing::info!(stream, purged, "captured items purged");
        }
        Ok(purged)
    }

    /// Purges of the copies that are known what may go, and says whether there may be more.
    async fn purge_known(
        &mut self,
        source: &str,
        state: StreamState,
        want: Want,
        short: bool,
        waits: bool,
    ) -> anyhow::Result<(Goes, bool)> {
        let (bus, first) = (&self.bus, state.first_sequence);
        let copies = self.copies.entry(source.into()).or_insert_with(|| Copies::new(&self.pipeline, source));
        copies.look(bus, &self.pipeline, state).await?;
        let mut goes = copies.goes(first, want, false);
        if goes.first_kept == first {
            copies.look_at_all(bus, &self.pipeline).await?;
            goes = copies.goes(first, want, short);
        }
        if goes.first_kept == first && waits {
            goes = copies.goes(first, want, true);
        }
        if goes.first_kept == first {
            return Ok((goes, false));
        }
        let stream = names::stream(&self.pipeline.name, source);
        kept::purged(bus, &stream, goes.first_kept).await?;
        bus.purge_below(&stream, goes.first_kept).await?;
        let given_up = goes.given_up;
        let total = self.told.given_up.fetch_add(given_up, Ordering::Relaxed) + given_up;
        if given_up > 0 {
            tracing::warn!(
                stream,
                given_up,
                total,
                "space is short: repair copies of items without an outcome were removed"
            );
        }
        Ok((goes, copies.all_go(goes)))
    }

    /// Of a fold two snapshots stay, since one may not read, and the changes since the older one; of those before, as many as
    /// `keep.changes` has room for. The older one is on disk for good: a power failure takes the newest of what is stored, but what
    /// was purged does not come back.
    async fn purge_changes(&mut self, fold: &str) -> anyhow::Result<u64> {
        let stored = names::snapshots(&self.pipeline.name, fold);
        let Some(state) = self.bus.stream_state(&stored).await? else { return Ok(0) };
        let seen = self.snapshots.get(fold).copied().unwrap_or_default();
        if state.messages == 0 || (seen.last == state.last_sequence && seen.next.is_none_or(|next| now_ns() < next)) {
            return Ok(0);
        }
        let snapshots = self.bus.snapshots(fold).await?;
        let unsafe_for = self.pipeline.sync.every().unwrap_or_default().as_nanos() as u64 * SYNCS;
        let (safe, others): (Vec<&Snapshot>, _) =
            snapshots.iter().skip(1).partition(|snapshot| snapshot.stored_at + unsafe_for <= now_ns());
        let next = others.iter().map(|snapshot| snapshot.stored_at + unsafe_for).min();
        let seen = Seen { last: state.last_sequence, next };
        let Some(&older) = safe.first() else {
            self.snapshots.insert(fold.into(), seen);
            return Ok(0);
        };
        let newer = snapshots.iter().take_while(|&snapshot| snapshot != older);
        let begin = newer.map(|snapshot| snapshot.at).fold(older.at, u64::min);
        if begin > state.first_sequence {
            kept::purged(&self.bus, &stored, begin).await?;
            self.bus.purge_below(&stored, begin).await?;
        }
        let stream = names::changelog(&self.pipeline.name, fold);
        let Some(changelog) = self.bus.stream_state(&stream).await? else { return Ok(0) };
        // Changes of a fold are about as long as each other.
        let over =
            changelog.bytes.saturating_sub(self.pipeline.keep_changes) as f64 / (changelog.bytes as f64).max(1.0);
        let wanted = changelog.first_sequence + (over * changelog.messages as f64) as u64;
        let first_kept = wanted.min(older.sequence);
        let purged = first_kept.saturating_sub(changelog.first_sequence);
        if purged > 0 {
            kept::purged(&self.bus, &stream, first_kept).await?;
            self.bus.purge_below(&stream, first_kept).await?;
            tracing::info!(stream, purged, "changes that snapshots know purged");
        }
        self.snapshots.insert(fold.into(), seen);
        Ok(purged)
    }

    /// Whether a replica of a source says that its link has no room.
    async fn waits_for_room(&self, source: &str) -> anyhow::Result<bool> {
        let mut beats = heartbeats_at(&self.bus).await?.into_iter();
        Ok(beats.any(|beat| beat.stage == source && beat.waits_for_room()))
    }

    /// The last sequence that every taker has acked: nothing beyond it is ever purged.
    async fn ack_floor(&self, stream: &str) -> anyhow::Result<u64> {
        let mut floor = u64::MAX;
        for taker in layout::durables_of(&self.pipeline, stream) {
            match self.bus.durable_state(stream, &taker.name).await? {
                Some(durable) => floor = floor.min(durable.ack_floor),
                None if taker.ends => {}
                None => floor = 0,
            }
        }
        Ok(floor)
    }
}
