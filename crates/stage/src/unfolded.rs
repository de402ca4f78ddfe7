//! What the changelog of a fold has lost, as its outcomes tell: between the fold, which finds it and stops, and `causeway reconcile`,
//! which runs it again, as do `up` and an agent on its own where nothing is lost by that.

use std::collections::BTreeSet;

use causeway_bus::{Bus, BusError, names};
use causeway_schemas::Id;
use serde::{Deserialize, Serialize};

/// Most captured ids: they have to fit into one entry of a table. The others are found once these are seen to.
const MOST: usize = 20_000;

/// Captured ids with an outcome whose change is lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unfolded {
    /// The fold has stopped for these, the oldest by their outcomes.
    pub open: BTreeSet<Id>,
    /// Of the last of them the place in the stream of outcomes.
    open_to: u64,
    /// What is lost up to this place was run again, or named as lost: the fold may go on without it.
    settled_to: u64,
    /// Those that were, while others were captured at sites that whoever saw to it did not reach.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    seen_to: BTreeSet<Id>,
}

/// The key of what a fold has lost, in the table of what the pipeline agrees on.
pub fn unfolded_key(stage: &str) -> String {
    format!("unfolded.{stage}")
}

impl Unfolded {
    /// As it stands; of a fold that never lost anything, nothing.
    pub async fn read(bus: &Bus, stage: &str) -> Result<Self, BusError> {
        let entry = bus.table_get(names::CONTROL, &unfolded_key(stage)).await?;
        Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default())
    }

    /// Writes it down.
    pub async fn store(&self, bus: &Bus, stage: &str) -> Result<(), BusError> {
        let value = serde_json::to_vec(self).map_err(|error| BusError::Request {
            what: format!("write down what the changelog of {stage} has lost"),
            why: error.to_string(),
        })?;
        bus.table_put(names::CONTROL, &unfolded_key(stage), value.into()).await.map(drop)
    }

    /// What is lost now: captured ids, each with the place of an outcome, in their order.
    pub(crate) fn with(&self, lost: impl IntoIterator<Item = (Id, u64)>) -> Self {
        let (mut open, mut seen_to, mut open_to, mut is_lost) = (BTreeSet::new(), BTreeSet::new(), 0, false);
        for (id, place) in lost {
            is_lost = true;
            if !self.is_settled(place) && open.len() + seen_to.len() < MOST {
                if self.seen_to.contains(&id) { &mut seen_to } else { &mut open }.insert(id);
                open_to = place;
            }
        }
        // When nothing is lost any more it may be lost another time.
        let settled_to = if is_lost { self.settled_to } else { 0 };
        Self { open, open_to, settled_to, seen_to }.or_settled()
    }

    /// These were run again, or named as lost; with the last of them all of it is.
    #[must_use]
    pub fn see_to(mut self, ids: impl IntoIterator<Item = Id>) -> Self {
        self.seen_to.extend(ids);
        self.open.retain(|id| !self.seen_to.contains(id));
        self.or_settled()
    }

    fn or_settled(self) -> Self {
        if self.open.is_empty() && !self.seen_to.is_empty() { self.settle() } else { self }
    }

    /// Whether what has its outcome there was seen to.
    pub(crate) fn is_settled(&self, place: u64) -> bool {
        place <= self.settled_to
    }

    /// All of it was run again, or named as lost.
    #[must_use]
    pub fn settle(self) -> Self {
        let settled_to = self.settled_to.max(self.open_to);
        Self { open: BTreeSet::new(), open_to: 0, settled_to, seen_to: BTreeSet::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(places: std::ops::Range<u64>) -> Vec<(Id, u64)> {
        places.map(|place| (Id::stored("test", place), place)).collect()
    }

    #[test]
    fn what_was_settled_is_not_asked_for_until_it_is_lost_again() {
        let first = Unfolded::default().with(lost(5..7));
        assert_eq!(first.open.len(), 2);
        let settled = first.settle();
        assert!(settled.with(lost(5..7)).open.is_empty());
        let more = settled.with(lost(6..8));
        assert_eq!((more.open.contains(&Id::stored("test", 7)), more.open.len()), (true, 1));
        // All was made again meanwhile.
        assert_eq!(more.settle().with([]).with(lost(5..6)).open.len(), 1);
    }

    #[test]
    fn what_was_captured_at_several_sites_is_seen_to_at_each() {
        let [of_one, of_other] = [5, 6].map(|place| Id::stored("test", place));
        let all = Unfolded::default().with(lost(5..7));
        let half = all.see_to([of_one]);
        assert_eq!(half.open, [of_other].into());
        // The fold is started once more, and finds the same missing.
        let again = half.with(lost(5..7));
        assert_eq!(again.open, [of_other].into());
        let done = again.see_to([of_other]);
        assert!(done.open.is_empty() && done.with(lost(5..7)).open.is_empty(), "{done:?}");
        assert!(half.with(lost(5..6)).with(lost(5..6)).open.is_empty(), "the rest is found again by itself");
    }

    #[test]
    fn more_than_one_entry_holds_are_seen_to_one_after_the_other() {
        let (all, mut unfolded, mut turns) = (lost(1..50_001), Unfolded::default(), 0);
        loop {
            unfolded = unfolded.with(all.clone());
            let length = serde_json::to_vec(&unfolded).map_or(0, |value| value.len());
            assert!(unfolded.open.len() <= MOST && length < 1_000_000, "{length} bytes");
            if unfolded.open.is_empty() {
                break;
            }
            (unfolded, turns) = (unfolded.settle(), turns + 1);
        }
        assert_eq!(turns, 3);
    }
}
