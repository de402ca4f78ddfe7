use std::collections::{BTreeMap, BTreeSet};

use causeway_bus::{Bus, names};
use causeway_pipelines::{Ledger, Pipeline};
use causeway_schemas::{Assignment, Codec, Decision, Id, Message as _, decode_body};
use causeway_stage::outcome_of;
use futures::StreamExt as _;

/// What a reader of a pipeline's subjects finds.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Captured ids.
    pub captured: BTreeSet<Id>,
    /// Captured ids whose tree is not closed.
    pub open: BTreeSet<Id>,
    /// The subjects of all outcomes.
    pub subjects: BTreeSet<String>,
    /// Outcomes that were found more than once.
    pub doubled: Vec<String>,
    /// Label and score by photo and part.
    pub decisions: BTreeMap<(String, String), (Option<String>, f32)>,
    /// What the fold said of each photo and part.
    pub assigned: BTreeMap<(String, String), Assignment>,
    /// The photos and parts that lie in one cluster, merges followed.
    pub clusters: BTreeSet<BTreeSet<(String, String)>>,
    /// Reason by photo.
    pub empties: BTreeMap<String, String>,
    /// Stage and reason of each dead letter, with its id.
    pub dead: BTreeMap<Id, (String, String)>,
    /// The source of each dead letter: the subject it came on, or the item at capture.
    pub dead_subjects: BTreeMap<String, (String, String)>,
}

/// Reads every outcome of a face pipeline, and what was captured, off its streams.
///
/// # Panics
/// When an outcome cannot be read as what its stream holds.
pub async fn verdict(bus: &Bus, pipeline: &Pipeline) -> Verdict {
    let mut verdict = Verdict::default();
    let mut ledger = Ledger::new(pipeline);
    for source in pipeline.stages.iter().filter(|stage| stage.is_source()) {
        let mut records = bus.scan(&names::stream(&pipeline.name, &source.name), 1, true).await.expect("a stream");
        while let Some(record) = records.next().await {
            let record = record.expect("a record");
            let id = record.headers.id(causeway_schemas::header::ID);
            let id = id.unwrap_or_else(|| Id::stored(&names::stream(&pipeline.name, &source.name), record.sequence));
            verdict.captured.insert(id);
            ledger.captured(id);
        }
    }
    for stream in causeway_stage::outcome_streams(pipeline) {
        let mut records = bus.scan(&stream, 1, false).await.expect("a stream");
        while let Some(record) = records.next().await {
            let record = record.expect("a record");
            if !verdict.subjects.insert(record.subject.clone()) {
                verdict.doubled.push(record.subject.clone());
            }
            let meta = record.headers.meta().expect("an outcome has our headers");
            ledger.outcome(&outcome_of(&record.headers).expect("an outcome has our headers"));
            let body = bus.body(&record.headers, record.body).await.expect("a body");
            let part = meta.part.to_string();
            match meta.kind.as_str() {
                kind if kind == Decision::kind() => {
                    let decision: Decision = decode_body(&body, Codec::Json).expect("a decision");
                    let face = (decision.capture.item, part);
                    if verdict.decisions.insert(face.clone(), (decision.label, decision.score)).is_some() {
                        verdict.doubled.push(format!("{face:?}"));
                    }
                }
                kind if kind == Assignment::kind() => {
                    let assignment: Assignment = decode_body(&body, Codec::Json).expect("an assignment");
                    let face = (assignment.capture.item.clone(), part);
                    if verdict.assigned.insert(face.clone(), assignment).is_some() {
                        verdict.doubled.push(format!("{face:?}"));
                    }
                }
                _ => outcome_without_face(&mut verdict, &meta, &body),
            }
        }
    }
    verdict.clusters = clusters(&verdict.assigned);
    verdict.open = ledger.open().collect();
    verdict
}

fn outcome_without_face(verdict: &mut Verdict, meta: &causeway_schemas::Meta, body: &[u8]) {
    if meta.kind == "empty.v1" {
        let empty: causeway_schemas::Empty = decode_body(body, Codec::Json).expect("an empty");
        verdict.empties.insert(empty.capture.item, empty.reason);
    } else if meta.kind == causeway_schemas::Receipt::KIND {
        // Its letter lies where its stage is.
        let _: causeway_schemas::Receipt = decode_body(body, Codec::Json).expect("a receipt");
    } else {
        let letter: causeway_schemas::DeadLetter = decode_body(body, Codec::Json).expect("a dead letter");
        let why = (letter.stage.clone(), letter.reason.clone());
        assert!(verdict.dead.insert(meta.id, why.clone()).is_none(), "two dead letters of {}", meta.id);
        verdict.dead_subjects.insert(letter.subject, why);
    }
}

fn clusters(assigned: &BTreeMap<(String, String), Assignment>) -> BTreeSet<BTreeSet<(String, String)>> {
    let mut joined: BTreeMap<Id, Id> = BTreeMap::new();
    for assignment in assigned.values() {
        joined.extend(assignment.merged.iter().map(|&merged| (merged, assignment.cluster)));
    }
    let mut clusters: BTreeMap<Id, BTreeSet<_>> = BTreeMap::new();
    for (face, assignment) in assigned {
        let mut cluster = assignment.cluster;
        while let Some(&into) = joined.get(&cluster) {
            cluster = into;
        }
        clusters.entry(cluster).or_default().insert(face.clone());
    }
    clusters.into_values().collect()
}

impl Verdict {
    /// Nothing is missing and nothing is there twice.
    ///
    /// # Panics
    /// When something is.
    pub fn assert_exactly_once(&self) {
        assert!(self.open.is_empty(), "not closed: {:?}", self.open);
        assert!(self.doubled.is_empty(), "doubled: {:?}", self.doubled);
        let assigned: usize = self.clusters.iter().map(BTreeSet::len).sum();
        assert_eq!(assigned, self.decisions.len(), "a decision and an assignment for every face");
    }

    /// The same faces, names, scores and clusters as `golden`.
    ///
    /// # Panics
    /// When they differ.
    pub fn assert_same_as(&self, golden: &Self) {
        assert_eq!(self.captured, golden.captured);
        assert_eq!(self.decisions.keys().collect::<Vec<_>>(), golden.decisions.keys().collect::<Vec<_>>());
        for (face, (label, score)) in &self.decisions {
            let (golden_label, golden_score) = &golden.decisions[face];
            assert_eq!(label, golden_label, "{face:?}");
            assert!((score - golden_score).abs() < 1e-4, "{face:?}: {score} is not {golden_score}");
        }
        assert_eq!(self.clusters, golden.clusters);
        assert_eq!(self.empties, golden.empties);
        assert_eq!(self.dead, golden.dead);
    }
}
