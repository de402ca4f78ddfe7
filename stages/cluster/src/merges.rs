use std::collections::HashMap;

use causeway_schemas::Id;

use crate::Change;

/// What became of clusters, as changes tell.
#[derive(Debug, Clone, Default)]
pub struct Merges {
    /// A cluster that is no more → the older one that it was merged into, which may be no more itself.
    merged: HashMap<Id, Id>,
}

impl Merges {
    /// Takes in the next change.
    pub fn add(&mut self, change: &Change) {
        for &younger in &change.merges {
            // What would go in circles is no merge; a changelog that says so is not ours.
            if self.current(change.cluster) != younger {
                self.merged.entry(younger).or_insert(change.cluster);
            }
        }
    }

    /// The cluster that one is part of now, itself when it was never merged.
    pub fn current(&self, cluster: Id) -> Id {
        let mut current = cluster;
        // Ends: a cluster is merged once, and only into an older one.
        while let Some(&older) = self.merged.get(&current) {
            current = older;
        }
        current
    }
}
