//! What the changelog of a fold has lost, as its outcomes tell: between the fold, which finds it and stops, and `causeway reconcile`,
//! which runs it again.

use std::collections::BTreeSet;

use causeway_bus::{Bus, BusError, names};
use causeway_schemas::Id;
use serde::{Deserialize, Serialize};

/// Most captured ids of both sorts: they have to fit into one entry of a table. The others are found at the next start.
const MOST: usize = 20_000;

/// Captured ids with an outcome whose change is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfolded {
    /// The fold has stopped for these.
    pub open: BTreeSet<Id>,
    /// These were run again, or named as lost: the fold may go on without them.
    pub settled: BTreeSet<Id>,
}

fn key(stage: &str) -> String {
    names::token(&format!("unfolded {stage}"))
}

impl Unfolded {
    /// As it stands; of a fold that never lost anything, nothing.
    pub async fn read(bus: &Bus, stage: &str) -> Result<Self, BusError> {
        let entry = bus.table_get(names::CONTROL, &key(stage)).await?;
        Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default())
    }

    /// Writes it down.
    pub async fn store(&self, bus: &Bus, stage: &str) -> Result<(), BusError> {
        let value = serde_json::to_vec(self).map_err(|error| BusError::Request {
            what: format!("write down what the changelog of {stage} has lost"),
            why: error.to_string(),
        })?;
        bus.table_put(names::CONTROL, &key(stage), value.into()).await.map(drop)
    }

    /// What is lost now. What was settled and is not lost any more may be lost another time.
    pub(crate) fn with(&self, lost: impl IntoIterator<Item = Id>) -> Self {
        let (settled, open): (BTreeSet<Id>, BTreeSet<Id>) = lost.into_iter().partition(|id| self.settled.contains(id));
        let room = MOST.saturating_sub(settled.len());
        Self { open: open.into_iter().take(room).collect(), settled }
    }

    /// All of it was run again, or named as lost.
    #[must_use]
    pub fn settle(mut self) -> Self {
        self.settled.append(&mut self.open);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_settled_is_not_asked_for_until_it_is_lost_again() {
        let ids: Vec<Id> = (0..4).map(|number| Id::stored("test", number)).collect();
        let first = Unfolded::default().with(ids[..2].to_vec());
        assert_eq!(first.open.len(), 2);
        let settled = first.settle();
        assert!(settled.with(ids[..2].to_vec()).open.is_empty());
        let more = settled.with(ids[1..3].to_vec());
        assert_eq!((more.open.contains(&ids[2]), more.open.len(), more.settled.len()), (true, 1, 1));
        // The first was made again meanwhile.
        assert_eq!(more.settle().with([ids[0]]).open.len(), 1);
    }

    #[test]
    fn as_many_as_one_entry_holds() {
        let all = Unfolded::default().with((0..30_000).map(|number| Id::stored("test", number)));
        let length = serde_json::to_vec(&all.clone().settle()).map_or(0, |value| value.len());
        assert!(all.open.len() == MOST && length < 1_000_000, "{length} bytes");
    }
}
