//! The state of a fold on its way to another broker: its changelog from a snapshot on, each change with the number that it has.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bus::error_chain;
use crate::{Bus, BusError, CHANGE, Line, PublishError, Snapshot, StreamWish, names};

/// Changes that are taken over at once, and their bytes.
const AT_ONCE: (usize, u64) = (256, 1 << 20);
/// What is said of a message of a changelog that is no change of ours: it keeps its number.
const PASSED_OVER: &str = "passed-over.v1";
/// How often it is looked what is new.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often for a snapshot that is not there.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(1);

/// What another broker needs of a changelog.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBegin {
    /// The first change.
    pub begin: u64,
    /// The change that the snapshot is made behind, where there is one.
    pub snapshot: Option<u64>,
    /// The last change when that was asked for.
    pub last: u64,
}

/// What was looked for of the snapshot that a changelog begins with.
#[derive(Default)]
struct Looked {
    /// Where the changelog begins.
    begin: Option<u64>,
    /// Whether it is here.
    is_here: bool,
    /// When it was looked for last.
    at: Option<Instant>,
}

/// Why a changelog is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A broker does not say.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// What was taken over was not stored.
    #[error(transparent)]
    Publish(#[from] PublishError),
    /// Changes are missing.
    #[error("changes {0} to {1} of {2} are missing")]
    Missing(u64, u64, String),
    /// A snapshot is missing.
    #[error("the snapshot behind change {0} of {1} is missing, or does not read")]
    NoSnapshot(u64, String),
}

impl Bus {
    /// Where the changelog of a fold begins for another broker: with what its newest snapshot was made behind.
    pub async fn log_begin(&self, stage: &str) -> Result<LogBegin, BusError> {
        let changelog = names::changelog(&self.pipeline, stage);
        let state = self.stream_state(&changelog).await?.unwrap_or_default();
        let newest = self.snapshots(stage).await?.into_iter().next();
        let begin = newest.as_ref().map_or(state.first_sequence.max(1), begin_of);
        Ok(LogBegin { begin, snapshot: newest.map(|snapshot| snapshot.sequence), last: state.last_sequence })
    }

    /// Makes the streams of a fold's state, its changelog so that it begins with the change `begin`. What is there stays.
    pub async fn make_log(&self, changelog: &StreamWish, snapshots: &StreamWish, begin: u64) -> Result<(), BusError> {
        if self.stream_state(&changelog.name).await?.is_none() {
            let config = Config { first_sequence: Some(begin.max(1)), ..changelog.config() };
            let made = self.js.create_stream(config).await;
            made.map_err(|error| {
                BusError::request(format!("make the stream {}", changelog.name), error_chain(&error))
            })?;
        }
        self.apply_stream(snapshots).await?;
        Ok(())
    }

    /// From now on nobody appends to a stream: gives its last sequence, which stays so. `None`: there is none.
    pub async fn shut_stream(&self, stream: &str) -> Result<Option<u64>, BusError> {
        let fail = |why: String| BusError::request(format!("shut the stream {stream}"), why);
        if self.stream_state(stream).await?.is_none() {
            return Ok(None);
        }
        let handle = self.js.get_stream(stream).await.map_err(|error| fail(error_chain(&error)))?;
        let config = Config { subjects: vec![names::shut(stream)], ..handle.cached_info().config.clone() };
        self.js.update_stream(&config).await.map_err(|error| fail(error_chain(&error)))?;
        Ok(self.stream_state(stream).await?.map(|state| state.last_sequence))
    }

    /// Removes a stream with all that it holds, if there is one.
    pub async fn remove_stream(&self, stream: &str) -> Result<(), BusError> {
        if self.stream_state(stream).await?.is_none() {
            return Ok(());
        }
        let removed = self.js.delete_stream(stream).await;
        removed.map_err(|error| BusError::request(format!("remove the stream {stream}"), error_chain(&error)))?;
        Ok(())
    }

    /// Takes over the state of a fold, as far as it is not here.
    async fn take_state(&self, from: &Self, stage: &str, looked: &mut Looked) -> Result<(), LogError> {
        let Some(begin) = self.take_log(from, stage).await? else { return Ok(()) };
        if looked.begin != Some(begin) {
            *looked = Looked { begin: Some(begin), ..Looked::default() };
        }
        // To look for a snapshot is to read all of them.
        if !looked.is_here && looked.at.is_none_or(|at| at.elapsed() > SNAPSHOT_EVERY) {
            looked.is_here = self.take_snapshot(from, stage, begin).await?;
            looked.at = Some(Instant::now());
        }
        Ok(())
    }

    /// Takes over what the changelog of a fold has at another broker and not here. Gives the change that it begins with; none where
    /// its streams are not made yet.
    async fn take_log(&self, from: &Self, stage: &str) -> Result<Option<u64>, LogError> {
        let changelog = names::changelog(&self.pipeline, stage);
        let subject = names::changelog_subject(&self.pipeline, stage);
        let Some(state) = self.stream_state(&changelog).await? else { return Ok(None) };
        if self.stream_state(&names::snapshots(&self.pipeline, stage)).await?.is_none() {
            return Ok(None);
        }
        let begin = if state.messages == 0 { state.last_sequence + 1 } else { state.first_sequence };
        let mut last = state.last_sequence;
        loop {
            let records = from.batch_from(&changelog, last + 1, AT_ONCE.0, AT_ONCE.1).await?;
            if records.is_empty() {
                break;
            }
            let mut changes = Vec::new();
            for (place, record) in records.into_iter().enumerate() {
                let (wanted, sequence) = (last + 1 + place as u64, record.sequence);
                if sequence != wanted {
                    return Err(LogError::Missing(wanted, sequence - 1, changelog));
                }
                let kind = if record.headers.kind() == Some(CHANGE) { CHANGE } else { PASSED_OVER };
                changes.push((kind, record.body));
            }
            last = self.append_all(&subject, last, changes).await?;
        }
        Ok(Some(begin))
    }

    /// Takes over the snapshot that the changelog here begins with; says whether it is here.
    async fn take_snapshot(&self, from: &Self, stage: &str, begin: u64) -> Result<bool, LogError> {
        let is_its = |snapshot: &&Snapshot| begin_of(snapshot) == begin;
        if self.snapshots(stage).await?.iter().any(|snapshot| is_its(&snapshot)) {
            return Ok(true);
        }
        let there = from.snapshots(stage).await?;
        let Some(snapshot) = there.iter().find(is_its) else { return Ok(false) };
        let changelog = names::changelog(&self.pipeline, stage);
        let no_snapshot = || LogError::NoSnapshot(snapshot.sequence, changelog.clone());
        if snapshot.bytes == 0 {
            self.store_snapshot(stage, snapshot.sequence, None, Bytes::new()).await?;
            return Ok(true);
        }
        let bytes = from.snapshot_bytes(stage, snapshot).await?.ok_or_else(no_snapshot)?;
        let change = self.message_at(&changelog, snapshot.sequence).await?.ok_or_else(no_snapshot)?;
        self.store_snapshot(stage, snapshot.sequence, Some(&change.body), bytes).await?;
        Ok(true)
    }
}

/// The change that a changelog begins with for a snapshot to be of it: the one that it was made behind; of one of no bytes, which says that
/// everything up to there is forgotten, the next.
fn begin_of(snapshot: &Snapshot) -> u64 {
    snapshot.sequence + u64::from(snapshot.bytes == 0)
}

impl Line {
    /// Keeps the changelog of a fold, as far as it was made for that, like the one at the other end (`there`: the other end's like the one
    /// here), for ever. Fenced, so that two who do so at once, or one who slept, do no harm.
    pub async fn copy_log(&self, here: &Bus, stage: &str, there: bool) {
        let mut said = String::new();
        let mut looked = Looked::default();
        loop {
            let (mut renewed, other) = (self.renewals(), self.bus());
            let (from, to) = if there { (here, &other) } else { (&other, here) };
            tokio::select! {
                taken = to.unless_renewed(to.take_state(from, stage, &mut looked)) => {
                    let why = taken.and_then(Result::err).map(|error| error.to_string()).unwrap_or_default();
                    if !why.is_empty() && why != said {
                        tracing::warn!(stage, why, "its state is not taken over yet; it is tried again");
                    }
                    said = why;
                }
                _ = renewed.changed() => {}
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
