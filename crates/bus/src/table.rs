use std::time::Duration;

use async_nats::jetstream::kv::{self, Operation};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _};

use crate::bus::{RENEWED, error_chain};
use crate::{Bus, BusError, Record, names};

/// One entry of a table.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key, encoded as one token.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The table's revision that set it.
    pub revision: u64,
    /// When it was set by the broker's clock, Unix time in ns.
    pub stored_at: u64,
}

/// What a follower of a table is told.
#[derive(Debug)]
pub enum Follow {
    /// A key was set.
    Put(Entry),
    /// A key was removed.
    Removed {
        /// The key.
        key: String,
        /// The table's revision that removed it.
        revision: u64,
    },
    /// All that was there when following began has been told.
    Loaded,
}

/// Pause before a table is followed anew.
const RENEW_PAUSE: Duration = Duration::from_millis(500);
/// How often it is looked for a change that nobody told of.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// When it is looked again for one that was told of and is not there yet.
const SOON: Duration = Duration::from_millis(2);
/// The header that says that a key was removed, and the broker's of one whose time was over.
/// (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-8.md>, ADR-43)
const REMOVED: [&str; 2] = ["KV-Operation", "Nats-Marker-Reason"];

impl Bus {
    async fn store(&self, table: &str) -> Result<kv::Store, BusError> {
        let bucket = names::bucket(&self.pipeline, table);
        let store = self.js.get_key_value(&bucket).await;
        store.map_err(|error| {
            BusError::request(format!("open the table {bucket} (run `causeway apply`)"), error_chain(&error))
        })
    }

    /// What is tried, for a person: a stream that a disk has damaged takes nothing more, and it is its name that helps then.
    fn setting(&self, table: &str, key: &str) -> String {
        format!("set {key} in the table {table} (stream {})", names::stream_of_table(&self.pipeline, table))
    }

    /// Sets a key.
    pub async fn table_put(&self, table: &str, key: &str, value: Bytes) -> Result<u64, BusError> {
        let put = || async {
            let put = self.store(table).await?.put(key, value.clone()).await;
            put.map_err(|error| BusError::request(self.setting(table, key), error_chain(&error)))
        };
        self.asked(put).await
    }

    /// Sets a key that has `revision` now (0: does not exist). `None`: another writer was first. Where the connection was renewed
    /// meanwhile it may be set, or not.
    pub async fn table_swap(
        &self,
        table: &str,
        key: &str,
        value: Bytes,
        revision: u64,
    ) -> Result<Option<u64>, BusError> {
        let fail = |why: String| BusError::request(self.setting(table, key), why);
        let swap = async {
            let store = self.store(table).await?;
            // A key that was removed does not exist, but its mark has a revision.
            let after = if revision == 0 {
                let entry = store.entry(key).await.map_err(|error| fail(error_chain(&error)))?;
                entry.filter(|entry| entry.operation != Operation::Put).map_or(0, |removed| removed.revision)
            } else {
                revision
            };
            match store.update(key, value, after).await {
                Ok(revision) => Ok(Some(revision)),
                Err(error) if matches!(error.kind(), kv::UpdateErrorKind::WrongLastRevision) => Ok(None),
                Err(error) => Err(fail(error_chain(&error))),
            }
        };
        self.unless_renewed(swap).await.unwrap_or_else(|| Err(fail(RENEWED.into())))
    }

    /// Removes a key: a mark takes the place of its value.
    pub async fn table_remove(&self, table: &str, key: &str) -> Result<(), BusError> {
        let remove = || async {
            let removed = self.store(table).await?.delete(key).await;
            removed
                .map_err(|error| BusError::request(format!("remove {key} from the table {table}"), error_chain(&error)))
        };
        self.asked(remove).await
    }

    /// The value of a key and its revision.
    pub async fn table_get(&self, table: &str, key: &str) -> Result<Option<Entry>, BusError> {
        let get = || async {
            let entry = self.store(table).await?.entry(key).await;
            entry.map_err(|error| BusError::request(format!("read {key} of the table {table}"), error_chain(&error)))
        };
        let entry = self.asked(get).await?;
        Ok(entry.filter(|entry| entry.operation == Operation::Put).map(Into::into))
    }

    /// All entries of a table.
    pub async fn table_entries(&self, table: &str) -> Result<Vec<Entry>, BusError> {
        let mut entries = Vec::new();
        self.follow_table_once(table, &mut |follow| match follow {
            Follow::Put(entry) => {
                entries.retain(|known: &Entry| known.key != entry.key);
                entries.push(entry);
                true
            }
            Follow::Removed { key, .. } => {
                entries.retain(|known| known.key != key);
                true
            }
            Follow::Loaded => false,
        })
        .await?;
        Ok(entries)
    }

    /// Tells `told` every entry of a table, that it is loaded, and every change; renews itself; ends with the connection.
    pub async fn follow_table(&self, table: &str, mut told: impl FnMut(Follow) + Send) {
        loop {
            let mut told = |follow| {
                told(follow);
                true
            };
            // A broker that was started anew has forgotten who follows, which the client notices after half a minute.
            let followed = self.unless_renewed(self.follow_table_once(table, &mut told)).await;
            if self.has_ended() {
                return;
            }
            let Some(followed) = followed else { continue };
            if let Err(error) = followed {
                tracing::warn!(table, %error, "table not followed; trying again");
            }
            tokio::time::sleep(RENEW_PAUSE).await;
        }
    }

    /// Follows until `told` says no more. Needs no consumer: a subscription says that there is something new, and what it is is read.
    pub(crate) async fn follow_table_once(
        &self,
        table: &str,
        told: &mut (dyn FnMut(Follow) -> bool + Send),
    ) -> Result<(), BusError> {
        let fail = |why: String| BusError::request(format!("follow the table {table}"), why);
        let changed = self.client.subscribe(names::keys_of_table(&self.pipeline, table)).await;
        let mut changed = changed.map_err(|error| fail(error.to_string()))?;
        let stream = names::stream_of_table(&self.pipeline, table);
        let (mut next, mut loaded, mut again) = (1, false, None);
        loop {
            let state = self.stream_state(&stream).await?;
            let state = state.ok_or_else(|| fail(format!("there is no {stream}; run `causeway apply`")))?;
            if state.last_sequence + 1 < next {
                return Err(fail("it was made anew".into()));
            }
            let mut records = self.pieces(&stream, next, state, false).with_new();
            let (begin, mut last) = (next, 0);
            while let Some(record) = records.next().await? {
                last = record.sequence;
                if let Some(follow) = self.change_of(table, record)
                    && !told(follow)
                {
                    return Ok(());
                }
            }
            if last < state.last_sequence && state.messages > 0 && begin <= state.last_sequence {
                // The last one is always there, unless it cannot be read.
                tracing::warn!(table, "the broker does not give all entries of this table");
            }
            next = next.max(state.last_sequence.max(last) + 1);
            if !loaded {
                loaded = true;
                if !told(Follow::Loaded) {
                    return Ok(());
                }
            }
            // Where a stream has copies what is new is told of before it is stored, and one of two before the other.
            again = again.map(|pause| pause * 4).filter(|&pause| pause < LOOK_EVERY);
            match tokio::time::timeout(again.unwrap_or(LOOK_EVERY), changed.next()).await {
                Ok(Some(_)) => again = Some(SOON),
                // With the connection.
                Ok(None) => return Ok(()),
                Err(_) => {}
            }
            while let Some(Some(_)) = changed.next().now_or_never() {}
        }
    }

    /// What a message of a table's stream says.
    fn change_of(&self, table: &str, record: Record) -> Option<Follow> {
        let key =
            record.subject.strip_prefix(names::keys_of_table(&self.pipeline, table).trim_end_matches('>'))?.to_owned();
        let revision = record.sequence;
        let is_there = REMOVED.iter().all(|&header| record.headers.get(header).is_none_or(|of| of == "PUT"));
        Some(if is_there {
            Follow::Put(Entry { key, value: record.body, revision, stored_at: record.stored_at })
        } else {
            Follow::Removed { key, revision }
        })
    }
}

impl From<kv::Entry> for Entry {
    fn from(entry: kv::Entry) -> Self {
        let stored_at = u64::try_from(entry.created.unix_timestamp_nanos()).unwrap_or(0);
        Self { key: entry.key, value: entry.value, revision: entry.revision, stored_at }
    }
}
