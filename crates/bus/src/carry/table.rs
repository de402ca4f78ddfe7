use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Line;
use crate::{Bus, BusError, Follow};

/// Pause before a table is followed anew, and before what was not stored here is tried again.
const PAUSE: Duration = Duration::from_millis(500);

impl Line {
    /// Keeps a table of the site of `here` as it is at the other end, for ever. All of it is compared whenever following begins anew, so
    /// whatever was missed meanwhile is made up for.
    pub async fn copy_table(&self, here: &Bus, table: &str) {
        loop {
            let (mut renewed, there) = (self.renewals(), self.bus());
            let (told, changes) = mpsc::unbounded_channel();
            let mut tell = |follow| told.send(follow).is_ok();
            tokio::select! {
                followed = there.follow_table_once(table, &mut tell) => {
                    let why = followed.err().map(|error| error.to_string());
                    tracing::debug!(table, why, "the other site's table is followed anew");
                }
                copied = copy(here, table, changes) => {
                    let why = copied.err().map(|error| error.to_string());
                    tracing::debug!(table, why, "not copied; tried again");
                }
                // What was asked for on the connection before does not come any more.
                _ = renewed.changed() => continue,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Takes changes of a table elsewhere into the one here, until there are no more.
async fn copy(here: &Bus, table: &str, mut changes: mpsc::UnboundedReceiver<Follow>) -> Result<(), BusError> {
    let entries = here.table_entries(table).await?;
    let mut now: HashMap<String, Bytes> = entries.into_iter().map(|entry| (entry.key, entry.value)).collect();
    // Which of them the other one has, until all of those have been told.
    let mut seen = Some(HashSet::new());
    while let Some(change) = changes.recv().await {
        match change {
            Follow::Put(entry) => {
                if now.get(&entry.key) != Some(&entry.value) {
                    here.table_put(table, &entry.key, entry.value.clone()).await?;
                }
                if let Some(seen) = &mut seen {
                    seen.insert(entry.key.clone());
                }
                now.insert(entry.key, entry.value);
            }
            Follow::Removed { key, .. } => {
                if now.remove(&key).is_some() {
                    here.table_remove(table, &key).await?;
                }
            }
            Follow::Loaded => {
                let Some(seen) = seen.take() else { continue };
                // A table that was just made anew has nothing to tell: nobody removed what is here.
                if seen.is_empty() && !now.is_empty() {
                    tracing::warn!(table, "the table is empty at the other site; what is here stays");
                    continue;
                }
                let strange: Vec<String> = now.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                for key in strange {
                    here.table_remove(table, &key).await?;
                    now.remove(&key);
                }
            }
        }
    }
    Ok(())
}
