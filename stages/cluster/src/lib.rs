//! The stage `cluster`: which faces belong together, decided as they come, without knowing anybody.
//!
//! Average link, one face at a time: a face joins the cluster to whose members its mean cosine is highest, if that reaches
//! the threshold, else it founds one. Then the cluster it joined merges with every other whose mean cosine over all pairs
//! reaches the threshold, nearest first: what came in an unlucky order comes together once the faces between are there.
//! A mean over few pairs is doubted more than one over many, since a wrong link is for ever.

mod merges;
mod space;

use std::collections::BTreeMap;

use anyhow::{anyhow, ensure};
use causeway_pipelines::ClusterOptions;
use causeway_schemas::{Assignment, Capture, Codec, Feature, Id, Region, decode_body, encode};
use causeway_stage::{Context, Failure, Fold};
use serde::{Deserialize, Serialize};

pub use crate::merges::Merges;
use crate::space::{Place, Space};

/// How all faces so far belong together: the sum of its changes.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    threshold: f64,
    max_clusters: usize,
    /// By embedding space and length of its vectors: faces of different ones are never compared.
    spaces: BTreeMap<(String, usize), Space>,
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
    /// No face yet; a face joins, and clusters merge, from the mean cosine `threshold` on, and none is ever forgotten.
    pub fn with_threshold(threshold: f32) -> Self {
        Self { threshold: f64::from(threshold), max_clusters: usize::MAX, spaces: BTreeMap::new() }
    }

    /// Every cluster that is known with how many faces it has: the older clusters of a space first.
    pub fn clusters(&self) -> impl Iterator<Item = (Id, u64)> {
        self.spaces.values().flat_map(Space::clusters)
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
        Ok(Self { max_clusters: options.max_clusters, ..Self::with_threshold(threshold) })
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
        let key = (change.space.clone(), change.vector.len());
        let space = self.spaces.entry(key).or_insert_with(|| Space::new(change.vector.len()));
        space.add(change);
        let forgotten = space.forget(self.max_clusters);
        if forgotten > 0 {
            tracing::info!(
                forgotten,
                known = self.max_clusters,
                "clusters that no face has joined for the longest time are forgotten"
            );
        }
    }

    fn input_of(change: &Change) -> Id {
        change.id
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

    /// Of each space its name, then the clusters.
    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for ((name, dim), space) in &self.spaces {
            let head = encode(&SpaceHead { name: name.clone(), dim: *dim, clusters: space.len() }, Codec::Bincode);
            bytes.extend_from_slice(&(head.len() as u64).to_le_bytes());
            bytes.extend_from_slice(&head);
            space.write(&mut bytes);
        }
        bytes
    }

    fn restore(&mut self, mut snapshot: &[u8]) -> anyhow::Result<()> {
        let short = || anyhow!("it ends in the middle of a space");
        self.spaces.clear();
        while !snapshot.is_empty() {
            let (length, rest) = snapshot.split_first_chunk().ok_or_else(short)?;
            let length = usize::try_from(u64::from_le_bytes(*length))?;
            let (head, rest) = rest.split_at_checked(length).ok_or_else(short)?;
            let SpaceHead { name, dim, clusters } =
                decode_body(head, Codec::Bincode).map_err(|why| anyhow!("a space does not read: {why}"))?;
            let (space, rest) = Space::read(dim, clusters, rest).ok_or_else(short)?;
            ensure!(self.spaces.insert((name, dim), space).is_none(), "a space is there twice");
            snapshot = rest;
        }
        Ok(())
    }
}

/// What is said of a space in a snapshot.
#[derive(Serialize, Deserialize)]
struct SpaceHead {
    name: String,
    dim: usize,
    clusters: usize,
}

#[cfg(test)]
mod tests;
