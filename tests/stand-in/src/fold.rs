use causeway_pipelines::ClusterOptions;
use causeway_schemas::{Assignment, Capture, Feature, Id, Region};
use causeway_stage::{Context, Failure, Fold};
use serde::{Deserialize, Serialize};

use crate::script::Manners;

/// Puts every feature into a cluster of its own.
pub(crate) struct Cluster {
    /// How many it had.
    features: u64,
    manners: Manners,
}

/// One feature.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Change {
    id: Id,
    capture: Capture,
    region: Region,
}

impl Fold for Cluster {
    const NAME: &'static str = "cluster";
    type Options = ClusterOptions;
    type Input = Feature;
    type Output = Assignment;
    type Change = Change;

    fn new(_: ClusterOptions, _: &Context) -> anyhow::Result<Self> {
        Ok(Self { manners: Manners::read(Self::NAME)?, features: 0 })
    }

    fn decide(&self, id: Id, feature: &Feature) -> Result<Change, Failure> {
        self.manners.at(&feature.capture);
        Ok(Change { id, capture: feature.capture.clone(), region: feature.region.clone() })
    }

    fn recall(&self, id: Id, feature: &Feature, _: &Assignment) -> Result<Change, Failure> {
        self.decide(id, feature)
    }

    fn apply(&mut self, _: &Change) {
        self.features += 1;
    }

    fn input_of(change: &Change) -> Id {
        change.id
    }

    fn snapshot(&self) -> Vec<u8> {
        self.features.to_le_bytes().into()
    }

    fn restore(&mut self, snapshot: &[u8]) -> anyhow::Result<()> {
        self.features = u64::from_le_bytes(snapshot.try_into()?);
        Ok(())
    }

    fn output(&self, change: &Change) -> Assignment {
        let Change { id, capture, region } = change.clone();
        Assignment { capture, region, cluster: id, score: 1.0, merged: Vec::new() }
    }
}
