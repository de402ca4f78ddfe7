//! What a pipeline found: everything that its outcome subjects hold, put together. It reads only what any user could read.
//!
//! What an outcome is, its kind says, never the name of the stage that gave it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::bail;
use causeway_bus::{Bus, names};
use causeway_pipelines::{Ledger, Outcome, Pipeline};
use causeway_schemas::{
    Assignment, Capture, Codec, DeadLetter, Decision, DecodeError, Empty, Id, Message, Meta, Receipt, Region, decode,
    decode_body, header,
};
use causeway_stage::outcome_streams;
use futures::StreamExt as _;
use serde::Serialize;

/// Bytes of set-aside messages that are held, all together; what is beyond is told without its body.
const MAX_BODIES: usize = 128 << 20;

/// The results of a pipeline as they are stored now.
#[derive(Debug)]
pub(crate) struct Results {
    /// Decisions by the id of the feature they are about.
    pub(crate) decisions: BTreeMap<Id, Found<Decision>>,
    /// Assignments by the id of the feature they are about.
    pub(crate) assignments: BTreeMap<Id, Found<Assignment>>,
    /// Inputs that rightly gave nothing.
    pub(crate) empties: Vec<Found<Empty>>,
    /// Messages that were set aside.
    pub(crate) dead_letters: Vec<Found<DeadLetter>>,
    /// What was set aside at another site, or at this one too.
    pub(crate) receipts: Vec<Meta>,
    /// Every outcome, for counting.
    pub(crate) outcomes: Vec<Outcome>,
    /// Which items are complete.
    pub(crate) ledger: Ledger,
    /// Outcomes that do not read; a stranger's, or a newer version's.
    pub(crate) unreadable: usize,
    /// What was captured, by its id, as far as an outcome says it.
    captures: HashMap<Id, Capture>,
    /// A cluster that is no more → the one that it was merged into, which may be no more itself.
    merged: HashMap<Id, Id>,
    /// The stages that capture.
    sources: Vec<String>,
    /// Bytes of set-aside messages that were read.
    bodies: usize,
}

/// An outcome with what its headers say.
#[derive(Debug, Clone)]
pub(crate) struct Found<M> {
    pub(crate) meta: Meta,
    pub(crate) message: M,
}

/// One face, or whatever region a model looked at: its decision and its assignment, of which one may be missing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Face<'a> {
    /// The id of the feature that both are about.
    pub(crate) id: Id,
    pub(crate) meta: &'a Meta,
    pub(crate) capture: &'a Capture,
    pub(crate) region: &'a Region,
    pub(crate) decision: Option<&'a Decision>,
    /// The cluster it is in now, all merges followed.
    pub(crate) cluster: Option<Id>,
}

impl<'a> Face<'a> {
    /// The name it was given.
    pub(crate) fn label(&self) -> Option<&'a str> {
        self.decision?.label.as_deref()
    }
}

/// The faces that belong together.
#[derive(Debug)]
pub(crate) struct Cluster<'a> {
    pub(crate) id: Id,
    pub(crate) faces: Vec<Face<'a>>,
}

impl<'a> Cluster<'a> {
    /// The names that its faces were given; none: it is unknown.
    pub(crate) fn names(&self) -> BTreeSet<&'a str> {
        self.faces.iter().filter_map(Face::label).collect()
    }
}

/// One person with the faces that were recognised, the surest first.
#[derive(Debug)]
pub(crate) struct Recognised<'a> {
    pub(crate) name: &'a str,
    pub(crate) faces: Vec<Face<'a>>,
}

/// How much of everything there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(crate) struct Numbers {
    /// Captured items with any outcome.
    pub(crate) photos: usize,
    pub(crate) faces: usize,
    /// Names that were given.
    pub(crate) people: usize,
    pub(crate) clusters: usize,
    /// Clusters of which no face has a name.
    pub(crate) unknown_clusters: usize,
    pub(crate) empties: usize,
    pub(crate) dead_letters: usize,
}

impl Results {
    pub(crate) fn new(pipeline: &Pipeline) -> Self {
        Self {
            decisions: BTreeMap::new(),
            assignments: BTreeMap::new(),
            empties: Vec::new(),
            dead_letters: Vec::new(),
            receipts: Vec::new(),
            outcomes: Vec::new(),
            ledger: Ledger::new(pipeline),
            unreadable: 0,
            captures: HashMap::new(),
            merged: HashMap::new(),
            sources: pipeline.stages.iter().filter(|stage| stage.is_source()).map(|stage| stage.name.clone()).collect(),
            bodies: 0,
        }
    }

    /// Reads all outcomes that are stored now at the site that a pipeline is seen from.
    pub(crate) async fn read(bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<Self> {
        let mut results = Self::new(pipeline);
        for stream in outcome_streams(pipeline) {
            results.read_stream(bus, &stream).await?;
        }
        Ok(results)
    }

    /// The same, and the dead letters of other sites: those stay where they were made.
    pub(crate) async fn read_all(sites: &[(Bus, Pipeline)]) -> anyhow::Result<Self> {
        let Some(((bus, pipeline), others)) = sites.split_first() else { bail!("no site is open") };
        let mut results = Self::read(bus, pipeline).await?;
        for (bus, pipeline) in others {
            results.read_stream(bus, &names::stream(&pipeline.name, names::DEAD)).await?;
        }
        Ok(results)
    }

    async fn read_stream(&mut self, bus: &Bus, stream: &str) -> anyhow::Result<()> {
        let mut records = bus.scan(stream, 1, false).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            let Ok(meta) = record.headers.meta() else {
                self.unreadable += 1;
                continue;
            };
            let read = match bus.body(&record.headers, record.body).await {
                Ok(body) => self.add(meta, record.headers.codec(), &body).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(why) = read {
                tracing::warn!(stream, sequence = record.sequence, why, "outcome not readable");
                self.unreadable += 1;
            }
        }
        Ok(())
    }

    /// Takes one outcome, in the order in which they were stored.
    pub(crate) fn add(&mut self, meta: Meta, codec: Codec, body: &[u8]) -> Result<(), DecodeError> {
        let kind = Some(meta.kind.as_str());
        let about = meta.parent.unwrap_or(meta.id);
        self.outcomes.push(Outcome { root: meta.root, stage: meta.stage.clone(), part: meta.part.clone() });
        self.ledger.outcome(&self.outcomes[self.outcomes.len() - 1]);
        match meta.kind.split_once('.').map_or(meta.kind.as_str(), |(noun, _)| noun) {
            Decision::NOUN => {
                let message: Decision = decode(kind, codec, body)?;
                self.captured(&meta, &message);
                // Two stages may judge the same face: a name says more than none.
                let known = self.decisions.get(&about).is_some_and(|known| known.message.label.is_some());
                if !known {
                    self.decisions.insert(about, Found { meta, message });
                }
            }
            Assignment::NOUN => {
                let message: Assignment = decode(kind, codec, body)?;
                self.captured(&meta, &message);
                message.merged.iter().for_each(|&younger| self.merge(younger, message.cluster));
                self.assignments.entry(about).or_insert(Found { meta, message });
            }
            Empty::NOUN => {
                let message: Empty = decode(kind, codec, body)?;
                self.captured(&meta, &message);
                self.empties.push(Found { meta, message });
            }
            DeadLetter::NOUN => {
                let malformed = |why| DecodeError::Malformed { kind: DeadLetter::KIND.into(), why };
                let mut message: DeadLetter = decode_body(body, codec).map_err(malformed)?;
                self.bodies += message.body.len();
                if self.bodies > MAX_BODIES {
                    message.body = Vec::new();
                }
                self.dead_letters.push(Found { meta, message });
            }
            Receipt::NOUN => self.receipts.push(meta),
            // What a pipeline of another sort gives: counted, and left to those who read its subjects.
            _ => {}
        }
        Ok(())
    }

    fn captured(&mut self, meta: &Meta, message: &impl Message) {
        self.captures.entry(meta.root).or_insert_with(|| message.capture().clone());
    }

    /// `younger` became part of `older`. What would go in circles is no merge.
    fn merge(&mut self, younger: Id, older: Id) {
        if self.current(older) != younger {
            self.merged.entry(younger).or_insert(older);
        }
    }

    /// The cluster that `cluster` is part of now; itself when it was never merged.
    pub(crate) fn current(&self, cluster: Id) -> Id {
        let mut current = cluster;
        while let Some(&older) = self.merged.get(&current) {
            current = older;
        }
        current
    }

    /// What was captured under this id, as far as an outcome says it.
    pub(crate) fn capture(&self, root: Id) -> Option<&Capture> {
        self.captures.get(&root)
    }

    /// Every face, photo by photo.
    pub(crate) fn faces<'a>(&'a self) -> Vec<Face<'a>> {
        let ids: BTreeSet<Id> = self.decisions.keys().chain(self.assignments.keys()).copied().collect();
        let mut faces: Vec<Face<'a>> = ids.into_iter().filter_map(|id| self.face(id)).collect();
        faces.sort_by(|a, b| {
            let captured = |face: &Face<'a>| (&face.capture.source, face.capture.epoch, face.capture.sequence);
            let part = |face: &Face<'a>| (&face.capture.item, &face.meta.part, face.id);
            captured(a).cmp(&captured(b)).then_with(|| part(a).cmp(&part(b)))
        });
        faces
    }

    fn face(&self, id: Id) -> Option<Face<'_>> {
        let (decision, assignment) = (self.decisions.get(&id), self.assignments.get(&id));
        let (meta, capture, region) = match (decision, assignment) {
            (Some(Found { meta, message }), _) => (meta, &message.capture, &message.region),
            (None, Some(Found { meta, message })) => (meta, &message.capture, &message.region),
            (None, None) => return None,
        };
        let cluster = assignment.map(|assignment| self.current(assignment.message.cluster));
        Some(Face { id, meta, capture, region, decision: decision.map(|found| &found.message), cluster })
    }

    /// Every cluster that is left after the merges, the largest first.
    pub(crate) fn clusters(&self) -> Vec<Cluster<'_>> {
        let mut clusters: BTreeMap<Id, Vec<Face<'_>>> = BTreeMap::new();
        for face in self.faces() {
            if let Some(cluster) = face.cluster {
                clusters.entry(cluster).or_default().push(face);
            }
        }
        let mut clusters: Vec<_> = clusters.into_iter().map(|(id, faces)| Cluster { id, faces }).collect();
        clusters.sort_by_key(|cluster| std::cmp::Reverse(cluster.faces.len()));
        clusters
    }

    /// Everybody who was recognised, the most seen first.
    pub(crate) fn people(&self) -> Vec<Recognised<'_>> {
        let mut people: BTreeMap<&str, Vec<Face<'_>>> = BTreeMap::new();
        for face in self.faces() {
            if let Some(name) = face.label() {
                people.entry(name).or_default().push(face);
            }
        }
        let mut people: Vec<_> = people.into_iter().map(|(name, faces)| Recognised { name, faces }).collect();
        for person in &mut people {
            let score = |face: &Face<'_>| face.decision.map_or(0.0, |decision| decision.score);
            person.faces.sort_by(|a, b| score(b).total_cmp(&score(a)));
        }
        people.sort_by_key(|person| std::cmp::Reverse(person.faces.len()));
        people
    }

    pub(crate) fn numbers(&self) -> Numbers {
        let clusters = self.clusters();
        let ids: BTreeSet<&Id> = self.decisions.keys().chain(self.assignments.keys()).collect();
        Numbers {
            photos: self.photos().len(),
            faces: ids.len(),
            people: self.people().len(),
            clusters: clusters.len(),
            unknown_clusters: clusters.iter().filter(|cluster| cluster.names().is_empty()).count(),
            empties: self.empties.len(),
            dead_letters: self.dead_letters.len(),
        }
    }

    /// The captured ids with any outcome. What a stranger published and a stage set aside was never captured.
    pub(crate) fn photos(&self) -> BTreeSet<Id> {
        let strange = self.dead_letters.iter().filter(|letter| self.is_strange(&letter.message));
        let given_up = self.empties.iter().filter(|empty| empty.message.capture.source.is_empty());
        let strange: BTreeSet<Id> =
            strange.map(|letter| letter.meta.root).chain(given_up.map(|empty| empty.meta.root)).collect();
        self.outcomes.iter().map(|outcome| outcome.root).filter(|root| !strange.contains(root)).collect()
    }

    /// Whether it came off a link without the headers that every message of ours has.
    fn is_strange(&self, letter: &DeadLetter) -> bool {
        !self.sources.contains(&letter.stage) && !letter.headers.iter().any(|(name, _)| name == header::ROOT)
    }

    /// How many outcomes there are of each reason, among those given.
    pub(crate) fn reasons<'a, M: 'a>(
        found: &'a [Found<M>],
        reason: impl Fn(&'a M) -> &'a str,
    ) -> BTreeMap<&'a str, usize> {
        let mut counts = BTreeMap::new();
        for found in found {
            *counts.entry(reason(&found.message)).or_default() += 1;
        }
        counts
    }
}

#[cfg(test)]
pub(crate) mod tests;
