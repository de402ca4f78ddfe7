//! Snapshots of a fold's state: in a stream of its own each is a head, and behind it the parts of its bytes. They are appended as
//! changes are, so that one is whole or ends where its writer did.

use std::cmp::Reverse;

use bytes::Bytes;
use causeway_schemas::{Codec, decode_body, encode};
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::publish::{HEADER_ROOM, hex};
use crate::{Bus, BusError, PublishError, Record, StreamState, names};

/// The kind of a head.
const HEAD: &str = "snapshot.v1";
/// The kind of a part.
const PART: &str = "part.v1";
/// Bytes of a part, at most.
const PART_BYTES: usize = 128 << 10;
/// Messages that are sent before the first of them is acked: whatever else the process has to say waits behind so many at most.
const WINDOW: usize = 4;

/// A stored snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The place of its head in the stream of snapshots.
    pub at: u64,
    /// The change that it was made behind: the changelog's sequence.
    pub sequence: u64,
    /// Its length.
    pub bytes: u64,
    /// When the broker stored its head, Unix time in ns.
    pub stored_at: u64,
    head: Head,
}

/// What is said of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    sequence: u64,
    /// When the broker stored that change, Unix time in ns: another change that has its number since is another one.
    stored_at: u64,
    bytes: u64,
    parts: u64,
    sha256: String,
}

impl Head {
    /// Whether it begins a changelog that was emptied: everything before is forgotten.
    fn is_base(&self) -> bool {
        self.bytes == 0
    }
}

impl Bus {
    /// Stores a snapshot of the state that a fold has behind the change `sequence`, whose body is `change`; of no bytes, that
    /// everything up to that change is forgotten. Refused where the changelog has another change there. Gives the place of its head.
    pub async fn store_snapshot(
        &self,
        stage: &str,
        sequence: u64,
        change: Option<&Bytes>,
        bytes: impl Into<Bytes>,
    ) -> Result<u64, PublishError> {
        let bytes = bytes.into();
        let subject = names::snapshots_subject(&self.pipeline, stage);
        let unsure = |error: BusError| PublishError::Unsure { subject: subject.clone(), why: error.to_string() };
        let stored = self.message_at(&names::changelog(&self.pipeline, stage), sequence).await.map_err(unsure)?;
        if change.is_some() && change != stored.as_ref().map(|stored| &stored.body) {
            return Err(PublishError::Fenced { subject });
        }
        let stream = names::snapshots(&self.pipeline, stage);
        let state = self.stream_state(&stream).await.map_err(unsure)?;
        let last = state.map_or(0, |state| state.last_sequence);
        let part = PART_BYTES.min(self.max_payload().saturating_sub(HEADER_ROOM)).max(1);
        let hashed = bytes.clone();
        // Of a large state it takes a while, in which messages that are held have to be kept alive.
        let sha256 = tokio::task::spawn_blocking(move || hex(&Sha256::digest(&hashed))).await;
        let sha256 =
            sha256.map_err(|error| PublishError::Unsure { subject: subject.clone(), why: error.to_string() })?;
        let head = Head {
            sequence,
            stored_at: stored.map_or(0, |stored| stored.stored_at),
            bytes: bytes.len() as u64,
            parts: bytes.len().div_ceil(part) as u64,
            sha256,
        };
        let head = (HEAD, Bytes::from(encode(&head, Codec::Json)));
        let parts = (0..bytes.len()).step_by(part).map(|at| (PART, bytes.slice(at..bytes.len().min(at + part))));
        let all: Vec<_> = std::iter::once(head).chain(parts).collect();
        let mut end = last;
        for some in all.chunks(WINDOW) {
            end = self.append_all(&subject, end, some.to_vec()).await?;
        }
        Ok(last + 1)
    }

    /// The snapshots of a fold that are whole by their numbers and of this changelog, that of the latest change first. Where the
    /// changelog has lost its end, those of what is lost are of another one.
    pub async fn snapshots(&self, stage: &str) -> Result<Vec<Snapshot>, BusError> {
        let stream = names::snapshots(&self.pipeline, stage);
        let mut heads = Vec::new();
        let mut records = self.scan(&stream, 1, true).await?;
        // Of the newest head how many parts follow it without a gap.
        let mut following: Option<(u64, u64)> = None;
        while let Some(record) = records.next().await {
            let record = record?;
            match &mut following {
                Some((at, parts)) if record.headers.kind() == Some(PART) && record.sequence == *at + *parts + 1 => {
                    *parts += 1;
                }
                _ => {
                    heads.extend(following.take());
                    following = (record.headers.kind() == Some(HEAD)).then_some((record.sequence, 0));
                }
            }
        }
        heads.extend(following);
        let changelog = names::changelog(&self.pipeline, stage);
        let state = self.stream_state(&changelog).await?.unwrap_or_default();
        let mut snapshots = Vec::new();
        for (at, parts) in heads {
            let Some(record) = self.message_at(&stream, at).await? else { continue };
            let Some(head) = read(&record).filter(|head| head.parts == parts) else { continue };
            let change = self.message_at(&changelog, head.sequence).await?;
            if is_of(&head, state, change.as_ref()) {
                let Head { sequence, bytes, .. } = head;
                snapshots.push(Snapshot { at, sequence, bytes, stored_at: record.stored_at, head });
            }
        }
        // One who slept may have stored his after a later one.
        snapshots.sort_by_key(|snapshot: &Snapshot| Reverse((snapshot.sequence, snapshot.at)));
        Ok(snapshots)
    }

    /// The bytes of a snapshot; `None` where they are not what was stored.
    pub async fn snapshot_bytes(&self, stage: &str, snapshot: &Snapshot) -> Result<Option<Vec<u8>>, BusError> {
        let stream = names::snapshots(&self.pipeline, stage);
        let (mut whole, mut sha256) = (Vec::new(), Sha256::new());
        if !snapshot.head.is_base() {
            let mut records = self.scan(&stream, snapshot.at + 1, false).await?;
            let mut left = snapshot.head.parts;
            while left > 0
                && let Some(record) = records.next().await
            {
                let record = record?;
                sha256.update(&record.body);
                whole.extend_from_slice(&record.body);
                left -= 1;
                if whole.len() as u64 > snapshot.bytes {
                    return Ok(None);
                }
            }
        }
        Ok((hex(&sha256.finalize()) == snapshot.head.sha256).then_some(whole))
    }
}

fn read(record: &Record) -> Option<Head> {
    decode_body(&record.body, Codec::Json).ok()
}

/// Whether a snapshot is of a changelog that is so and has `change` at the snapshot's place.
fn is_of(head: &Head, changelog: StreamState, change: Option<&Record>) -> bool {
    match change {
        // What is there is not forgotten.
        Some(change) => !head.is_base() && change.stored_at == head.stored_at,
        None => head.is_base() && changelog.last_sequence >= head.sequence && changelog.first_sequence > head.sequence,
    }
}
