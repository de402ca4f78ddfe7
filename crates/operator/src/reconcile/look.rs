use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use causeway_bus::{Bus, names};
use causeway_pipelines::{Ledger, Pipeline, StageSpec};
use causeway_schemas::{Id, header};
use causeway_stage::{Unfolded, now_ns, outcome_of, outcome_streams};
use futures::StreamExt as _;

use crate::kept;

/// A stream this full may have given up its oldest outcomes for newer ones.
const NEARLY_FULL: f64 = 0.8;
/// What is known by its outcomes alone may have been captured this long before the first of them.
const UNDER_WAY_AT_MOST: Duration = Duration::from_mins(10);

/// Where the copy of a captured item lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(super) stream: String,
    pub(super) sequence: u64,
    pub(crate) stored_at: u64,
    site: String,
}

impl Captured {
    /// Sorts as they came, so that a fold meets the founder of a cluster before its members.
    pub(super) fn place(&self) -> (&str, u64) {
        (&self.stream, self.sequence)
    }

    /// As a header says it.
    pub(super) fn origin(&self) -> String {
        format!("{}/{}/{}", self.site, self.stream, self.sequence)
    }
}

/// Messages of a capture stream that the broker does not give any more, and that nobody removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(super) stream: String,
    /// First and last of each gap.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Of how many nothing else that is stored tells: they cannot be named.
    pub(super) unknown: usize,
}

/// Everything that was captured and what became of it.
///
/// A running pipeline is looked at from its sources on, outcomes last: a message is acked only when all that it gave is stored
/// further down, so whatever moves meanwhile is met where it went.
#[derive(Debug)]
pub(crate) struct Look {
    /// What was captured, by its id: the first copy of each.
    pub(crate) captured: BTreeMap<Id, Captured>,
    pub(crate) ledger: Ledger,
    /// What was captured before this may have had outcomes that are not kept any more, Unix time in ns.
    pub(crate) horizon: u64,
    /// Captured ids that a message of is stored and not acked by all.
    under_way: HashSet<Id>,
    /// Copies that were made to run an item again.
    copies: Vec<(Id, Captured)>,
    /// When the first outcome of an item was stored, Unix time in ns.
    first_outcome: HashMap<Id, u64>,
    /// What is missing of each capture stream: first and last of each gap.
    gone: Vec<(String, Vec<(u64, u64)>)>,
    /// What the changelog of a fold has lost, by stage.
    pub(super) unfolded_of: Vec<(String, Unfolded)>,
    /// Where the items lay of which something else is stored, as headers say it.
    origins: HashSet<String>,
}

impl Look {
    pub(crate) async fn at(bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<Self> {
        let mut look = Self {
            captured: BTreeMap::new(),
            ledger: Ledger::new(pipeline),
            horizon: 0,
            under_way: HashSet::new(),
            copies: Vec::new(),
            first_outcome: HashMap::new(),
            gone: Vec::new(),
            unfolded_of: Vec::new(),
            origins: HashSet::new(),
        };
        for stage in pipeline.stages.iter().filter(|stage| !pipeline.is_final(&stage.name)) {
            look.links(bus, pipeline, stage).await?;
        }
        look.outcomes(bus, pipeline).await?;
        for fold in pipeline.stages.iter().filter(|stage| stage.folds) {
            let unfolded = Unfolded::read(bus, &fold.name).await?;
            if !unfolded.open.is_empty() {
                look.unfolded_of.push((fold.name.clone(), unfolded));
            }
        }
        Ok(look)
    }

    /// Reads the stream of a stage that others take from.
    async fn links(&mut self, bus: &Bus, pipeline: &Pipeline, stage: &StageSpec) -> anyhow::Result<()> {
        let stream = names::stream(&pipeline.name, &stage.name);
        let last = if stage.is_source() { kept::last(bus, &stream).await? } else { 0 };
        let mut stored = Vec::new();
        let mut records = bus.scan(&stream, 1, true).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(&stream, record.sequence));
            let root = record.headers.id(header::ROOT).unwrap_or(id);
            stored.push((root, record.sequence));
            self.origins.extend(record.headers.get(header::ORIGIN).map(Into::into));
            if stage.is_source() {
                let (sequence, stored_at) = (record.sequence, record.stored_at);
                let captured = Captured { stream: stream.clone(), sequence, stored_at, site: pipeline.here.clone() };
                if record.headers.get(header::ORIGIN).is_some() {
                    self.copies.push((id, captured.clone()));
                }
                self.captured.entry(id).or_insert(captured);
            }
        }
        if stage.is_source() {
            let found: Vec<u64> = stored.iter().map(|&(_, sequence)| sequence).collect();
            let last = last.max(found.last().copied().unwrap_or(0));
            self.gone.push((stream.clone(), kept::gone(bus, &stream, &found, last).await?));
        }
        // Asked for behind the messages: one that was acked in between is met further down.
        let mut floor = u64::MAX;
        for taker in pipeline.takers(&stage.name) {
            let durable = bus.durable_state(&stream, &taker.name).await?;
            let durable = durable
                .with_context(|| format!("cannot find the durable {} of {stream}; run `causeway apply`", taker.name))?;
            // One that has nothing to give and nothing in hand gives nothing more, whatever its floor says.
            let is_idle = durable.pending + durable.unacked == 0;
            floor = floor.min(if is_idle { u64::MAX } else { durable.ack_floor });
        }
        self.under_way.extend(stored.iter().filter(|&&(_, sequence)| sequence > floor).map(|&(root, _)| root));
        self.copies.retain(|(_, copy)| copy.stream != stream || copy.sequence <= floor);
        Ok(())
    }

    async fn outcomes(&mut self, bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<()> {
        self.horizon = now_ns().saturating_sub(pipeline.keep_outcomes.age.as_nanos() as u64);
        for stream in outcome_streams(pipeline) {
            if let Some(state) = bus.stream_state(&stream).await?
                && state.max_bytes.is_some_and(|most| state.bytes as f64 > most as f64 * NEARLY_FULL)
            {
                self.horizon = self.horizon.max(state.first_at);
            }
            let mut records = bus.scan(&stream, 1, true).await?;
            while let Some(record) = records.next().await {
                let record = record?;
                self.origins.extend(record.headers.get(header::ORIGIN).map(Into::into));
                if let Some(outcome) = outcome_of(&record.headers) {
                    self.ledger.outcome(&outcome);
                    let first = self.first_outcome.entry(outcome.root).or_insert(record.stored_at);
                    *first = (*first).min(record.stored_at);
                }
            }
        }
        Ok(())
    }

    /// Items whose outcomes are there, and which a fold has lost: they have to be run again for it.
    pub(super) fn unfolded(&self) -> BTreeSet<Id> {
        self.unfolded_of.iter().flat_map(|(_, unfolded)| &unfolded.open).copied().collect()
    }

    pub(super) fn is_under_way(&self, id: Id) -> bool {
        self.under_way.contains(&id) && !self.ledger.is_complete(id)
    }

    /// Neither complete nor under way.
    pub(super) fn is_open(&self, id: Id) -> bool {
        !self.ledger.is_complete(id) && !self.under_way.contains(&id)
    }

    /// Items that some outcome tells of, which are open, or lost by a fold, and of which there is no copy.
    pub(super) fn without_copy(&self) -> impl Iterator<Item = Id> {
        let horizon = self.horizon + UNDER_WAY_AT_MOST.as_nanos() as u64;
        let is_judged = move |id: &Id| self.first_outcome.get(id).is_some_and(|&first| first > horizon);
        let mut lost: Vec<Id> = self.ledger.open().filter(|id| !self.captured.contains_key(id)).collect();
        lost.retain(|id| self.is_open(*id) && is_judged(id));
        lost.extend(self.unfolded().into_iter().filter(|id| !self.captured.contains_key(id)));
        lost.sort_unstable();
        lost.dedup();
        lost.into_iter()
    }

    /// What is missing of the capture streams, and how many items of it nothing else tells of.
    pub(super) fn gone(&self) -> Vec<Gone> {
        let gone = self.gone.iter().filter(|(_, ranges)| !ranges.is_empty());
        gone.map(|(stream, ranges)| {
            let place = format!("/{stream}/");
            let of_stream = |origin: &String| origin.split_once(&place)?.1.parse::<u64>().ok();
            let known: HashSet<u64> = self.origins.iter().filter_map(of_stream).collect();
            let all = ranges.iter().flat_map(|&(first, last)| first..=last);
            let unknown = all.filter(|sequence| !known.contains(sequence)).count();
            Gone { stream: stream.clone(), ranges: ranges.clone(), unknown }
        })
        .collect()
    }

    /// Copies of complete items whose original is kept.
    pub(super) fn needless_copies(&self) -> impl Iterator<Item = (&str, u64)> {
        let is_needless =
            |(id, copy): &&(Id, Captured)| self.ledger.is_complete(*id) && self.captured.get(id) != Some(copy);
        self.copies.iter().filter(is_needless).map(|(_, copy)| (copy.stream.as_str(), copy.sequence))
    }
}
