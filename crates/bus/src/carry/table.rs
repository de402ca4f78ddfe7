use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Line;
use crate::{Bus, BusError, Follow};

/// Pause before a table is followed anew, and before what was not stored is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Which entries of a table are copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// All.
    All,
    /// All but this one: it is set here.
    AllBut(String),
    /// This one alone.
    Only(String),
}

impl Keys {
    fn has(&self, key: &str) -> bool {
        match self {
            Self::All => true,
            Self::AllBut(other) => key != other,
            Self::Only(only) => key == only,
        }
    }
}

impl Line {
    /// Keeps a table of the site of `here` as it is at the other end, for ever. All of it is compared whenever following begins anew, so
    /// whatever was missed meanwhile is made up for. Says whenever it is all here.
    pub async fn copy_table(&self, here: &Bus, table: &str, keys: &Keys, copied: impl Fn() + Send + Sync) {
        self.keep(here, table, keys, false, copied).await;
    }

    /// The other way: keeps what is here of a table there too.
    pub async fn copy_table_there(&self, here: &Bus, table: &str, keys: &Keys) {
        self.keep(here, table, keys, true, || ()).await;
    }

    async fn keep(&self, here: &Bus, table: &str, keys: &Keys, there: bool, copied: impl Fn() + Send + Sync) {
        loop {
            let (mut renewed, other) = (self.renewals(), self.bus());
            let (from, to) = if there { (here, &other) } else { (&other, here) };
            let copies = from.unless_renewed(to.unless_renewed(Box::pin(copy(from, to, table, keys, &copied))));
            tokio::select! {
                // What was asked for or set on the connection before is not answered any more.
                _ = copies => {}
                _ = renewed.changed() => continue,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Follows a table and sets each change elsewhere, until one of them fails.
async fn copy(from: &Bus, to: &Bus, table: &str, keys: &Keys, copied: &(impl Fn() + Send + Sync)) {
    let (told, changes) = mpsc::unbounded_channel();
    let mut tell = |follow| told.send(follow).is_ok();
    tokio::select! {
        followed = from.follow_table_once(table, &mut tell) => {
            let why = followed.err().map(|error| error.to_string());
            tracing::debug!(table, why, "the table is followed anew");
        }
        done = set(to, table, keys, changes, copied) => {
            let why = done.err().map(|error| error.to_string());
            tracing::debug!(table, why, "not copied; tried again");
        }
    }
}

/// Takes changes of a table elsewhere into the one of a bus, until there are no more.
async fn set(
    to: &Bus,
    table: &str,
    keys: &Keys,
    mut changes: mpsc::UnboundedReceiver<Follow>,
    copied: &(impl Fn() + Send + Sync),
) -> Result<(), BusError> {
    let entries = to.table_entries(table).await?.into_iter().filter(|entry| keys.has(&entry.key));
    let mut now: HashMap<String, Bytes> = entries.map(|entry| (entry.key, entry.value)).collect();
    // Which of them the other one has, until all of those have been told.
    let mut seen = Some(HashSet::new());
    while let Some(change) = changes.recv().await {
        match change {
            Follow::Put(entry) if keys.has(&entry.key) => {
                if now.get(&entry.key) != Some(&entry.value) {
                    to.table_put(table, &entry.key, entry.value.clone()).await?;
                }
                if let Some(seen) = &mut seen {
                    seen.insert(entry.key.clone());
                }
                now.insert(entry.key, entry.value);
            }
            Follow::Removed { key, .. } => {
                if now.remove(&key).is_some() {
                    to.table_remove(table, &key).await?;
                }
            }
            Follow::Put(_) => {}
            Follow::Loaded => {
                let Some(seen) = seen.take() else { continue };
                // A table that was just made anew has nothing to tell: nobody removed what is here.
                if seen.is_empty() && !now.is_empty() {
                    tracing::warn!(
                        table,
                        "where the table is copied from nothing of it is there; what was copied stays"
                    );
                    copied();
                    continue;
                }
                let strange: Vec<String> = now.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                for key in strange {
                    to.table_remove(table, &key).await?;
                    now.remove(&key);
                }
                copied();
            }
        }
    }
    Ok(())
}
