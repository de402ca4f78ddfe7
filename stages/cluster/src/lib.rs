//! The stage `cluster`: which faces belong together, decided as they come, without knowing anybody.
//!
//! Average link, one face at a time: a face joins the cluster to whose members its mean cosine is highest, if that reaches
//! the threshold, else it founds one. Then the cluster it joined merges with every other whose mean cosine over all pairs
//! reaches the threshold, nearest first: what came in an unlucky order comes together once the faces between are there.
//! A mean over few pairs is doubted more than one over many, since a wrong link is for ever.

mod space;

use std::collections::{BTreeMap, HashMap};

use anyhow::ensure;
use causeway_pipelines::ClusterOptions;
use causeway_schemas::{Assignment, Capture, Feature, Id, Region};
use causeway_stage::{Context, Failure, Fold};
use serde::{Deserialize, Serialize};

use crate::space::{Place, Space};

/// All faces so far and how they belong together: the sum of its changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    threshold: f64,
    /// By embedding space and length of its vectors: faces of different ones are never compared.
    spaces: BTreeMap<(String, usize), Space>,
    /// Every change made, by the id of its face.
    changes: HashMap<Id, Change>,
    /// A cluster that is no more → the older one that it was merged into, which may be no more itself.
    merged: HashMap<Id, Id>,
}

/// One face and what it changed: an entry of the changelog.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// The face: the id of its feature.
    pub id: Id,
    /// The embedding space of `vector`.
    pub space: String,
    /// Its feature, L2-normalised.
    pub vector: Vec<f32>,
    /// Where it began.
    pub capture: Capture,
    /// Which part of the frame it is.
    pub region: Region,
    /// The cluster it is in, after the merges; `id` itself when it founded one.
    pub cluster: Id,
    /// Mean cosine to the members of the cluster it joined, before it and the merges; 1 for the founder of one.
    pub score: f32,
    /// Clusters that were merged into `cluster`, in the order of merging.
    pub merges: Vec<Id>,
}

impl Cluster {
    /// No face yet; a face joins, and clusters merge, from the mean cosine `threshold` on.
    pub fn with_threshold(threshold: f32) -> Self {
        Self {
            threshold: f64::from(threshold),
            spaces: BTreeMap::new(),
            changes: HashMap::new(),
            merged: HashMap::new(),
        }
    }

    /// Every cluster with its members: the older clusters of a space first, the first member being the one whose id the
    /// cluster has.
    pub fn clusters(&self) -> impl Iterator<Item = (Id, &[Id])> {
        self.spaces.values().flat_map(Space::clusters)
    }

    /// What became of a cluster: the one it is part of now, itself when it was never merged.
    pub fn current(&self, cluster: Id) -> Id {
        let mut current = cluster;
        // Ends: a cluster is merged once, and only into an older one.
        while let Some(&older) = self.merged.get(&current) {
            current = older;
        }
        current
    }
}

impl Fold for Cluster {
    const NAME: &'static str = "cluster";
    type Options = ClusterOptions;
    type Input = Feature;
    type Output = Assignment;
    type Change = Change;

    fn new(options: ClusterOptions, _: &Context) -> anyhow::Result<Self> {
        let threshold = options.threshold;
        ensure!(
            (-1.0..=1.0).contains(&threshold),
            "cannot cluster from a cosine of {threshold} on: it is within -1..1"
        );
        Ok(Self::with_threshold(threshold))
    }

    fn decide(&self, id: Id, feature: &Feature) -> Result<Change, Failure> {
        let vector =
            feature.unit_vector().map_err(|why| Failure::unfit(format!("cannot cluster the feature: {why}")))?;
        let key = (feature.space.clone(), vector.len());
        let place = match self.spaces.get(&key) {
            Some(space) => space.place(&vector, self.threshold),
            None => Place::Founds,
        };
        let (cluster, score, merges) = match place {
            Place::Founds => (id, 1.0, Vec::new()),
            // Rounding may leave a cosine a trifle outside.
            Place::Joins { cluster, score, merges } => (cluster, score.clamp(-1.0, 1.0) as f32, merges),
        };
        let (capture, region) = (feature.capture.clone(), feature.region.clone());
        Ok(Change { id, space: key.0, vector, capture, region, cluster, score, merges })
    }

    /// Where the face was put then, whatever is there now: a reader knows it by that cluster.
    fn recall(&self, id: Id, feature: &Feature, told: &Assignment) -> Result<Change, Failure> {
        let change = self.decide(id, feature)?;
        Ok(Change { cluster: told.cluster, score: told.score, merges: told.merged.clone(), ..change })
    }

    fn apply(&mut self, change: &Change) {
        if self.changes.contains_key(&change.id) {
            return;
        }
        let key = (change.space.clone(), change.vector.len());
        let space = self.spaces.entry(key).or_insert_with(|| Space::new(change.vector.len()));
        space.add(change);
        for &younger in &change.merges {
            // What would go in circles is no merge; a changelog that says so is not ours, and must not stop a restore.
            if self.current(change.cluster) != younger {
                self.merged.entry(younger).or_insert(change.cluster);
            }
        }
        self.changes.insert(change.id, change.clone());
    }

    fn known(&self, id: Id) -> Option<Change> {
        self.changes.get(&id).cloned()
    }

    fn output(&self, change: &Change) -> Assignment {
        Assignment {
            capture: change.capture.clone(),
            region: change.region.clone(),
            cluster: change.cluster,
            score: change.score,
            merged: change.merges.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
