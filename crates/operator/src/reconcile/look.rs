use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use causeway_bus::{Bus, names};
use causeway_pipelines::{Flow, Ledger, Outcome, Pipeline, StageSpec};
use causeway_schemas::{Id, header};
use causeway_stage::{Unfolded, links_of, now_ns, outcome_of, outcome_streams};
use futures::StreamExt as _;

use crate::{kept, layout};

/// A stream this full may have given up its oldest outcomes for newer ones.
const NEARLY_FULL: f64 = 0.8;
/// What is known by its outcomes alone may have been captured this long before the first of them.
const UNDER_WAY_AT_MOST: Duration = Duration::from_mins(10);

/// Where the copy of a captured item lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Captured {
    pub(crate) site: String,
    pub(super) stream: String,
    pub(super) sequence: u64,
    pub(crate) stored_at: u64,
}

impl Captured {
    /// Sorts as they came, so that a fold meets the founder of a cluster before its members.
    pub(super) fn place(&self) -> (&str, &str, u64) {
        (&self.site, &self.stream, self.sequence)
    }

    /// As a header says it.
    pub(super) fn origin(&self) -> String {
        format!("{}/{}/{}", self.site, self.stream, self.sequence)
    }
}

/// Messages of a capture stream that the broker does not give any more, and that nobody removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Gone {
    pub(super) site: String,
    pub(super) stream: String,
    /// First and last of each gap.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Of how many nothing else that is stored tells: they cannot be named.
    pub(super) unknown: usize,
}

/// What the changelog of a fold has lost.
#[derive(Debug)]
pub(super) struct Lost {
    /// Where the fold is.
    pub(super) site: String,
    pub(super) stage: String,
    pub(super) unfolded: Unfolded,
}

/// An outcome that lies at another site than the one where its item was captured.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// Where its item was captured.
    pub(super) home: String,
    /// Where it lies.
    pub(super) site: String,
    pub(super) stream: String,
    pub(super) sequence: u64,
    pub(super) outcome: Outcome,
    subject: String,
    stored_at: u64,
}

/// Everything that was captured and what became of it.
///
/// A running pipeline is looked at from its sources on, outcomes last: a message is acked only when all that it gave is stored
/// further down, or where it is carried to, so whatever moves meanwhile is met where it went.
#[derive(Debug)]
pub(crate) struct Look {
    /// What was captured, by its id: the first copy of each.
    pub(crate) captured: BTreeMap<Id, Captured>,
    /// What has its outcomes where it was captured.
    pub(crate) ledger: Ledger,
    /// What was captured at a site before this may have had outcomes that are not kept there any more, Unix time in ns.
    horizons: HashMap<String, u64>,
    /// Captured ids that a message of is stored and not acked by all.
    under_way: HashSet<Id>,
    /// Copies that were made to run an item again.
    copies: Vec<(Id, Captured)>,
    /// When the first outcome of an item was stored, Unix time in ns, and the site where it was captured.
    first_outcome: HashMap<Id, (u64, String)>,
    /// Items that were captured at sites that are not looked at, as outcomes of them tell.
    strangers: HashSet<Id>,
    /// Whether all sites are looked at that tell of what was captured at one of them: it, and the hub.
    is_whole: bool,
    /// What is missing of each capture stream; how much of it is unknown is told at the end.
    gone: Vec<Gone>,
    /// What folds have lost that can be run again, or named as lost.
    pub(super) lost_by_folds: Vec<Lost>,
    /// Where the items lay of which something else is stored, as headers say it.
    origins: HashSet<String>,
    /// Of a pipeline with several sites: the subjects of outcomes that are where their items were captured, and the outcomes that are not.
    there: HashSet<String>,
    elsewhere: Vec<Elsewhere>,
}

impl Look {
    /// Looks at sites of a pipeline, each as it is placed and seen there.
    ///
    /// # Panics
    /// Where there are none.
    pub(crate) async fn at(sites: &[(Bus, Pipeline)]) -> anyhow::Result<Self> {
        let pipeline = &sites[0].1;
        let horizon = now_ns().saturating_sub(pipeline.keep_outcomes.age.as_nanos() as u64);
        let mut look = Self {
            captured: BTreeMap::new(),
            ledger: Ledger::new(pipeline),
            horizons: sites.iter().map(|(_, seen)| (seen.here.clone(), horizon)).collect(),
            strangers: HashSet::new(),
            is_whole: sites.iter().any(|(_, seen)| seen.here == pipeline.hub().name),
            under_way: HashSet::new(),
            copies: Vec::new(),
            first_outcome: HashMap::new(),
            gone: Vec::new(),
            lost_by_folds: Vec::new(),
            origins: HashSet::new(),
            there: HashSet::new(),
            elsewhere: Vec::new(),
        };
        for stage in &pipeline.stages {
            for (bus, seen) in on_its_way(sites, stage) {
                look.stream(bus, seen, &stage.name).await?;
            }
        }
        for link in links_of(Flow::Ends) {
            for (bus, seen) in sites {
                look.stream(bus, seen, link).await?;
            }
        }
        for (bus, seen) in sites {
            look.outcomes(bus, seen).await?;
        }
        look.folds(sites).await?;
        Ok(look)
    }

    /// Reads a stream that somebody takes from, a stage or a relay.
    async fn stream(&mut self, bus: &Bus, pipeline: &Pipeline, filled_by: &str) -> anyhow::Result<()> {
        let stream = names::stream(&pipeline.name, filled_by);
        let captures = pipeline.stage(filled_by).is_some_and(|stage| pipeline.captures_here(stage));
        let takers = layout::durables_of(pipeline, &stream);
        // Of what readers have at home, what still goes to others is theirs alone.
        let is_read = pipeline.stage(filled_by).is_none_or(|stage| pipeline.is_final(&stage.name));
        if takers.is_empty() && !captures {
            return Ok(());
        }
        let last = if captures { kept::last(bus, &stream).await? } else { 0 };
        let mut stored = Vec::new();
        let mut records = bus.scan(&stream, 1, true).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(&stream, record.sequence));
            let root = record.headers.id(header::ROOT).unwrap_or(id);
            self.origins.extend(record.headers.get(header::ORIGIN).map(Into::into));
            if captures {
                let (sequence, stored_at) = (record.sequence, record.stored_at);
                let captured = Captured { site: pipeline.here.clone(), stream: stream.clone(), sequence, stored_at };
                if record.headers.get(header::ORIGIN).is_some() {
                    self.copies.push((id, captured.clone()));
                }
                self.captured.entry(id).or_insert(captured);
            }
            stored.push((root, record.sequence, record.subject));
        }
        if captures {
            let found: Vec<u64> = stored.iter().map(|&(_, sequence, _)| sequence).collect();
            let last = last.max(found.last().copied().unwrap_or(0));
            let ranges = kept::gone(bus, &stream, &found, last).await?;
            self.gone.push(Gone { site: pipeline.here.clone(), stream: stream.clone(), ranges, unknown: 0 });
        }
        // Asked for behind the messages: one that was acked in between is met further down.
        let mut takes = Vec::new();
        for taker in &takers {
            let durable = bus.durable_state(&stream, &taker.name).await?;
            if durable.is_none() && taker.ends {
                continue;
            }
            let durable = durable
                .with_context(|| format!("cannot find the durable {} of {stream}; run `causeway apply`", taker.name))?;
            // One that has nothing to give and nothing in hand gives nothing more, whatever its floor says.
            if durable.pending + durable.unacked > 0 {
                takes.push((durable.ack_floor, &taker.subjects));
            }
        }
        let is_taken = |sequence: u64, subject: &str| {
            let is_its = |of: &String| subject.starts_with(of.trim_end_matches('>'));
            takes.iter().any(|(floor, of)| sequence > *floor && (of.is_empty() || of.iter().any(is_its)))
        };
        let taken: HashMap<u64, Id> = stored
            .iter()
            .filter(|(_, sequence, subject)| is_taken(*sequence, subject) && !(is_read && is_home(subject, pipeline)))
            .map(|&(root, sequence, _)| (sequence, root))
            .collect();
        self.under_way.extend(taken.values());
        let is_here = |copy: &Captured| copy.site == pipeline.here && copy.stream == stream;
        self.copies.retain(|(_, copy)| !is_here(copy) || !taken.contains_key(&copy.sequence));
        Ok(())
    }

    async fn outcomes(&mut self, bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<()> {
        let dead = names::stream(&pipeline.name, names::DEAD);
        for stream in outcome_streams(pipeline) {
            if let Some(state) = bus.stream_state(&stream).await?
                && state.max_bytes.is_some_and(|most| state.bytes as f64 > most as f64 * NEARLY_FULL)
            {
                let horizon = self.horizons.entry(pipeline.here.clone()).or_default();
                *horizon = (*horizon).max(state.first_at);
            }
            let mut records = bus.scan(&stream, 1, true).await?;
            while let Some(record) = records.next().await {
                let record = record?;
                self.origins.extend(record.headers.get(header::ORIGIN).map(Into::into));
                let Some(outcome) = outcome_of(&record.headers) else { continue };
                if pipeline.is_split() {
                    if !is_home(&record.subject, pipeline) {
                        let home = names::site_of(&record.subject).to_owned();
                        if !self.horizons.contains_key(&home) {
                            self.strangers.insert(outcome.root);
                        } else if stream != dead {
                            // Letters stay where they were written; a receipt tells of them.
                            let (site, stream, stored_at) = (pipeline.here.clone(), stream.clone(), record.stored_at);
                            let (sequence, subject) = (record.sequence, record.subject);
                            self.elsewhere.push(Elsewhere {
                                home,
                                site,
                                stream,
                                sequence,
                                outcome,
                                subject,
                                stored_at,
                            });
                        }
                        continue;
                    }
                    self.there.insert(record.subject);
                }
                self.ledger.outcome(&outcome);
                let first = self.first_outcome.entry(outcome.root);
                let (first, _) = first.or_insert_with(|| (record.stored_at, pipeline.here.clone()));
                *first = (*first).min(record.stored_at);
            }
        }
        Ok(())
    }

    /// What folds have lost.
    async fn folds(&mut self, sites: &[(Bus, Pipeline)]) -> anyhow::Result<()> {
        for (bus, seen) in sites {
            for fold in seen.stages_here().filter(|stage| stage.folds) {
                let unfolded = Unfolded::read(bus, &fold.name).await?;
                if !unfolded.open.is_empty() {
                    self.lost_by_folds.push(Lost { site: seen.here.clone(), stage: fold.name.clone(), unfolded });
                }
            }
        }
        Ok(())
    }

    /// Whether it can be said of an item that a fold has lost whether it can be run again: it was captured at a site that is looked at.
    pub(super) fn is_known(&self, id: &Id) -> bool {
        self.captured.contains_key(id) || !self.strangers.contains(id)
    }

    /// Items whose outcomes are there, and which a fold has lost: they have to be run again for it. Those are not among them that were
    /// captured at sites that are not looked at.
    pub(super) fn unfolded(&self) -> BTreeSet<Id> {
        let lost = self.lost_by_folds.iter().flat_map(|lost| &lost.unfolded.open);
        lost.copied().filter(|id| self.is_known(id)).collect()
    }

    /// What was captured at a site before this may have had outcomes that are not kept there any more, Unix time in ns.
    fn horizon(&self, site: &str) -> u64 {
        self.horizons.get(site).copied().unwrap_or_default()
    }

    /// Whether outcomes of it would be kept still.
    pub(crate) fn is_judged(&self, captured: &Captured) -> bool {
        captured.stored_at >= self.horizon(&captured.site)
    }

    /// Outcomes that are not where their items were captured, of items that are open there.
    pub(super) fn to_bring(&self) -> Vec<&Elsewhere> {
        let mut wanted: HashSet<&str> = HashSet::new();
        let open = self.elsewhere.iter().filter(|one| {
            one.stored_at >= self.horizon(&one.home)
                && self.is_open(one.outcome.root)
                && !self.there.contains(&one.subject)
        });
        // Two sites may have it.
        open.filter(|one| wanted.insert(&one.subject)).collect()
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
        let is_judged = |id: &Id| {
            let first = self.first_outcome.get(id);
            first.is_some_and(|(first, site)| *first > self.horizon(site) + UNDER_WAY_AT_MOST.as_nanos() as u64)
        };
        let mut lost: Vec<Id> = self.ledger.open().filter(|id| !self.captured.contains_key(id)).collect();
        // The rest of it may be under way at the hub.
        lost.retain(|id| self.is_whole && self.is_open(*id) && is_judged(id));
        lost.extend(self.unfolded().into_iter().filter(|id| !self.captured.contains_key(id)));
        lost.sort_unstable();
        lost.dedup();
        lost.into_iter()
    }

    /// What is missing of the capture streams, and how many items of it nothing else tells of.
    pub(super) fn gone(&self) -> Vec<Gone> {
        let gone = self.gone.iter().filter(|gone| !gone.ranges.is_empty());
        gone.map(|gone| {
            let Gone { site, stream, ranges, .. } = gone;
            let place = format!("{site}/{stream}/");
            let of_stream = |origin: &String| origin.strip_prefix(&place)?.parse::<u64>().ok();
            let known: HashSet<u64> = self.origins.iter().filter_map(of_stream).collect();
            let all = ranges.iter().flat_map(|&(first, last)| first..=last);
            let unknown = all.filter(|sequence| !known.contains(sequence)).count();
            Gone { unknown, ..gone.clone() }
        })
        .collect()
    }

    /// Copies of complete items whose original is kept.
    pub(super) fn needless_copies(&self) -> impl Iterator<Item = &Captured> {
        let is_needless =
            |(id, copy): &&(Id, Captured)| self.ledger.is_complete(*id) && self.captured.get(id) != Some(copy);
        self.copies.iter().filter(is_needless).map(|(_, copy)| copy)
    }
}

/// Whether it was captured at the site that a pipeline is seen from.
pub(crate) fn is_home(subject: &str, pipeline: &Pipeline) -> bool {
    names::site_of(subject) == pipeline.here
}

/// The sites in the order in which a message of a stage comes by: where it is made, the hub, where it is wanted.
fn on_its_way<'a>(sites: &'a [(Bus, Pipeline)], stage: &StageSpec) -> Vec<&'a (Bus, Pipeline)> {
    let mut ordered: Vec<&(Bus, Pipeline)> = sites.iter().collect();
    ordered.sort_by_key(|(_, seen)| {
        let is_made = seen.stage(&stage.name).is_some_and(|stage| stage.runs_at(&seen.here));
        (!is_made, seen.hub().name != seen.here)
    });
    ordered
}
