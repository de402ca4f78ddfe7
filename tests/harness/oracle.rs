use std::collections::{BTreeMap, BTreeSet};

use causeway_bus::{Bus, CHANGE, names};
use causeway_cluster::{Change, Cluster};
use causeway_pipelines::{ClusterOptions, Pipeline};
use causeway_schemas::{Codec, Dtype, Feature, ModelRef, decode_body};
use causeway_stage::Fold as _;
use futures::StreamExt as _;

use crate::{Verdict, verdict};

/// Scores may differ by this from those of a run without faults.
const SAME_SCORE: f32 = 1e-4;
/// Clusters may differ by this, as pairwise F1, from those of a run without faults: the order of arrival is another one.
const SAME_CLUSTERS: f64 = 0.999;

/// Knows what a face pipeline has to give, by a run without faults, and judges another run over the same input by what any user
/// could read: the capture stream, the outcomes, the changelog.
pub struct Oracle {
    golden: Verdict,
}

type Face = (String, String);

impl Oracle {
    /// By what a run without faults gave.
    ///
    /// # Panics
    /// When that run has faults itself.
    pub fn new(golden: Verdict) -> Self {
        golden.assert_exactly_once();
        assert!(!golden.captured.is_empty(), "a run of nothing says nothing");
        Self { golden }
    }

    /// Everything that is wrong with a run: each begins with `missing`, `doubled` or `wrong`.
    ///
    /// # Panics
    /// When what is stored cannot be read.
    pub async fn faults(&self, bus: &Bus, pipeline: &Pipeline) -> Vec<String> {
        let seen = verdict(bus, pipeline).await;
        let mut faults = Vec::new();
        faults.extend(self.golden.captured.difference(&seen.captured).map(|id| format!("missing: capture of {id}")));
        faults.extend(seen.open.iter().map(|id| format!("missing: an outcome under {id}")));
        faults.extend(seen.doubled.iter().map(|what| format!("doubled: {what}")));
        faults.extend(self.values(&seen));
        for fold in pipeline.stages.iter().filter(|stage| stage.uses == "cluster") {
            let options = fold.options::<ClusterOptions>().expect("its options were checked");
            let changes = changelog(bus, pipeline, &fold.name).await;
            faults.extend(refolded(&seen, &changes, options.threshold));
        }
        faults
    }

    /// Labels, scores, reasons and clusters beside the golden ones.
    fn values(&self, seen: &Verdict) -> Vec<String> {
        let golden = &self.golden;
        let mut faults = Vec::new();
        for (face, (label, score)) in &golden.decisions {
            match seen.decisions.get(face) {
                None => faults.push(format!("missing: decision of {face:?}")),
                Some((as_label, as_score)) if as_label != label || (as_score - score).abs() > SAME_SCORE => {
                    faults.push(format!("wrong: {face:?} is {as_label:?} {as_score}, not {label:?} {score}"));
                }
                Some(_) => {}
            }
            if !seen.assigned.contains_key(face) {
                faults.push(format!("missing: assignment of {face:?}"));
            }
        }
        let strange = seen.decisions.keys().chain(seen.assigned.keys());
        let strange = strange.filter(|face| !golden.decisions.contains_key(*face)).collect::<BTreeSet<_>>();
        faults.extend(strange.iter().map(|face| format!("wrong: nobody is {face:?}")));
        if (&seen.empties, &seen.dead) != (&golden.empties, &golden.dead) {
            faults.push(format!("wrong: {:?} and {:?} set aside", seen.empties, seen.dead));
        }
        let f1 = pairwise_f1(&seen.clusters, &golden.clusters);
        if f1 < SAME_CLUSTERS {
            faults.push(format!("wrong: clusters as those without faults at a pairwise F1 of {f1:.4}"));
        }
        faults
    }
}

async fn changelog(bus: &Bus, pipeline: &Pipeline, stage: &str) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut records = bus.scan(&names::changelog(&pipeline.name, stage), 1, false).await.expect("a changelog");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        if record.headers.kind() == Some(CHANGE) {
            changes.push(decode_body(&record.body, Codec::Bincode).expect("a change"));
        }
    }
    changes
}

/// A fresh fold over the changelog: it decides each change as it stands there, and the outcomes say the same.
fn refolded(seen: &Verdict, changes: &[Change], threshold: f32) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fold = Cluster::with_threshold(threshold);
    let mut said: BTreeMap<Face, _> = BTreeMap::new();
    let parts = parts(seen);
    let mut ids = BTreeSet::new();
    for change in changes {
        if !ids.insert(change.id) {
            faults.push(format!("doubled: {} in the changelog", change.id));
            continue;
        }
        match fold.decide(change.id, &feature(change)) {
            Ok(decided) if decided.cluster == change.cluster && decided.merges == change.merges => {}
            decided => {
                faults.push(format!("wrong: {} is in {}, a fresh fold says {decided:?}", change.id, change.cluster));
            }
        }
        fold.apply(change);
        let face = parts.get(&place(&change.capture.item, &change.region));
        match face {
            Some(face) => drop(said.insert(face.clone(), fold.output(change))),
            None => faults.push(format!("missing: assignment of change {}", change.id)),
        }
    }
    for (face, assignment) in &seen.assigned {
        if said.get(face) != Some(assignment) {
            faults.push(format!("wrong: {face:?} is assigned {assignment:?}, the changelog says {:?}", said.get(face)));
        }
    }
    let sorted = |sizes: &mut dyn Iterator<Item = u64>| -> Vec<u64> {
        let mut sizes: Vec<u64> = sizes.collect();
        sizes.sort_unstable();
        sizes
    };
    let fresh = sorted(&mut fold.clusters().map(|(_, size)| size));
    let read = sorted(&mut seen.clusters.iter().map(|members| members.len() as u64));
    if fresh != read {
        faults.push(format!("wrong: clusters of {read:?} faces, a fresh fold has {fresh:?}"));
    }
    faults
}

/// Which part an assignment is of, by what its change knows too: where in which picture it lies.
fn parts(seen: &Verdict) -> BTreeMap<String, Face> {
    let assigned = seen.assigned.iter();
    assigned.map(|(face, said)| (place(&said.capture.item, &said.region), face.clone())).collect()
}

fn place(item: &str, region: &causeway_schemas::Region) -> String {
    format!("{item} {} {} {} {}", region.x, region.y, region.w, region.h)
}

fn feature(change: &Change) -> Feature {
    Feature {
        capture: change.capture.clone(),
        region: change.region.clone(),
        dtype: Dtype::F32,
        shape: vec![change.vector.len() as u32],
        data: Feature::encode_f32(&change.vector),
        space: change.space.clone(),
        model: ModelRef { name: String::new(), version: String::new(), sha256: String::new() },
    }
}

/// Over pairs of faces that are in one cluster; 1 when there is none.
fn pairwise_f1(seen: &BTreeSet<BTreeSet<Face>>, golden: &BTreeSet<BTreeSet<Face>>) -> f64 {
    let pairs = |clusters: &BTreeSet<BTreeSet<Face>>| -> BTreeSet<(Face, Face)> {
        let of = |cluster: &BTreeSet<Face>| {
            let mut pairs = Vec::new();
            for (at, one) in cluster.iter().enumerate() {
                pairs.extend(cluster.iter().skip(at + 1).map(|other| (one.clone(), other.clone())));
            }
            pairs
        };
        clusters.iter().flat_map(of).collect()
    };
    let (seen, golden) = (pairs(seen), pairs(golden));
    if seen.is_empty() && golden.is_empty() {
        return 1.0;
    }
    2.0 * seen.intersection(&golden).count() as f64 / (seen.len() + golden.len()) as f64
}
