//! The copies of captured items that are kept for repair: which of them may go. What is known stays known from round to round, so that
//! a round reads what is new.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use causeway_bus::{Bus, BusError, Record, Records, StreamState, names};
use causeway_pipelines::{Ledger, Pipeline};
use causeway_schemas::{Id, header};
use causeway_stage::{outcome_of, outcome_streams};
use futures::StreamExt as _;

/// So many of the oldest copies are known, about 100 bytes each: a purge goes from window to window.
const WINDOW: usize = 8_192;
/// A pause before all outcomes are read once more for a copy that stands in the way of a purge.
const ALL_AGAIN: Duration = Duration::from_mins(1);

/// The oldest copies of a source.
pub(super) struct Copies {
    stream: String,
    /// In order.
    known: VecDeque<Captured>,
    /// Items of them that have not all their outcomes.
    open: Ledger,
    /// Where reading goes on in each stream of outcomes.
    next: HashMap<String, u64>,
    /// When all outcomes were read for what is known now.
    all_read: Option<Instant>,
    /// Dead letters that are gone: their items are open again.
    letters_gone: u64,
}

struct Captured {
    id: Id,
    sequence: u64,
    /// Unix time in ns, by the broker's clock.
    stored_at: u64,
    /// Length of its body, bytes.
    size: u64,
}

/// What a purge wants.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    /// So many bytes are too much.
    pub(super) bytes: f64,
    /// What was stored before is too old, Unix time in ns.
    pub(super) too_old: u64,
    /// All takers have acked what is up to here: nothing beyond it goes.
    pub(super) floor: u64,
}

/// What may go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Goes {
    /// The first sequence that stays.
    pub(super) first_kept: u64,
    /// How many of those that go are not complete.
    pub(super) given_up: u64,
    /// Bytes of them.
    pub(super) bytes: f64,
}

/// Which outcomes are read.
#[derive(Clone, Copy)]
enum Reading {
    /// Those that were not read yet.
    Next,
    /// Those that were stored then or later, Unix time in ns.
    Since(u64),
    All,
}

impl Copies {
    pub(super) fn new(pipeline: &Pipeline, source: &str) -> Self {
        Self {
            stream: names::stream(&pipeline.name, source),
            known: VecDeque::new(),
            open: Ledger::new(pipeline),
            next: HashMap::new(),
            all_read: None,
            letters_gone: 0,
        }
    }

    /// Looks at what is new. An item mostly has its outcomes after its copy: those of before are read where that does not do.
    pub(super) async fn look(&mut self, bus: &Bus, pipeline: &Pipeline, state: StreamState) -> Result<(), BusError> {
        self.begin_anew_if_needed(bus, pipeline, state).await?;
        while let Some(copy) = self.known.pop_front_if(|copy| copy.sequence < state.first_sequence) {
            self.open.forget(copy.id);
        }
        self.read(bus, pipeline, Reading::Next).await?;
        let next = self.known.back().map_or(state.first_sequence, |last| last.sequence + 1);
        if self.known.len() < WINDOW / 2 && next <= state.last_sequence {
            let mut records = bus.scan(&self.stream, next, true).await?.take(WINDOW - self.known.len());
            let mut since = None;
            while let Some(record) = records.next().await {
                let copy = Captured::of(&self.stream, &record?);
                since.get_or_insert(copy.stored_at);
                self.open.captured(copy.id);
                self.known.push_back(copy);
            }
            if let Some(since) = since {
                self.all_read = None;
                self.read(bus, pipeline, Reading::Since(since)).await?;
            }
        }
        Ok(())
    }

    /// Reads all outcomes, unless that was just done for the same copies.
    pub(super) async fn look_at_all(&mut self, bus: &Bus, pipeline: &Pipeline) -> Result<(), BusError> {
        if self.all_read.is_none_or(|read| read.elapsed() > ALL_AGAIN) {
            self.read(bus, pipeline, Reading::All).await?;
            self.all_read = Some(Instant::now());
        }
        Ok(())
    }

    /// What may go of what is known: by age and bytes, never beyond the floor, and not beyond the first item without all its outcomes
    /// unless space is `short`.
    pub(super) fn goes(&self, first: u64, want: Want, short: bool) -> Goes {
        let mut goes = Goes { first_kept: first, given_up: 0, bytes: 0.0 };
        for copy in &self.known {
            let wanted = goes.bytes < want.bytes || copy.stored_at < want.too_old;
            let is_open = self.open.knows(copy.id);
            if !wanted || copy.sequence > want.floor || (is_open && !short) {
                break;
            }
            goes.given_up += u64::from(is_open);
            goes.bytes += copy.size as f64;
            goes.first_kept = copy.sequence + 1;
        }
        goes
    }

    /// Whether nothing that is known stays, so that there may be more behind it.
    pub(super) fn all_go(&self, goes: Goes) -> bool {
        self.known.back().is_some_and(|last| last.sequence < goes.first_kept)
    }

    /// What is known does not hold where a stream was made anew, or where a dead letter went: its item was sent again.
    async fn begin_anew_if_needed(
        &mut self,
        bus: &Bus,
        pipeline: &Pipeline,
        state: StreamState,
    ) -> Result<(), BusError> {
        let mut is_other = self.known.back().is_some_and(|last| last.sequence > state.last_sequence);
        for (stream, next) in &self.next {
            is_other |= bus.stream_state(stream).await?.is_none_or(|state| state.last_sequence + 1 < *next);
        }
        let letters = bus.stream_state(&names::stream(&pipeline.name, names::DEAD)).await?.unwrap_or_default();
        let letters_gone = letters.last_sequence.saturating_sub(letters.messages);
        if is_other || letters_gone != self.letters_gone {
            self.known.clear();
            self.next.clear();
            self.open = Ledger::new(pipeline);
        }
        self.letters_gone = letters_gone;
        Ok(())
    }

    /// Reads outcomes in the order of their time, until all that is known is complete.
    async fn read(&mut self, bus: &Bus, pipeline: &Pipeline, reading: Reading) -> Result<(), BusError> {
        if self.open.is_empty() {
            return Ok(());
        }
        let mut all: Vec<(String, Records, Record)> = Vec::new();
        for stream in outcome_streams(pipeline) {
            let mut records = match reading {
                Reading::Next => bus.scan(&stream, self.next.get(&stream).copied().unwrap_or(1), true).await?,
                Reading::Since(since) => bus.scan_since(&stream, since, true).await?,
                Reading::All => bus.scan(&stream, 1, true).await?,
            };
            if let Some(first) = records.next().await.transpose()? {
                all.push((stream, records, first));
            }
        }
        while !self.open.is_empty()
            && let Some(at) = (0..all.len()).min_by_key(|&at| all[at].2.stored_at)
        {
            let (stream, records, record) = &mut all[at];
            self.next.insert(stream.clone(), record.sequence + 1);
            if let Some(outcome) = outcome_of(&record.headers)
                && self.open.knows(outcome.root)
            {
                self.open.outcome(&outcome);
                if self.open.is_complete(outcome.root) {
                    self.open.forget(outcome.root);
                }
            }
            match records.next().await.transpose()? {
                Some(next) => *record = next,
                None => drop(all.swap_remove(at)),
            }
        }
        Ok(())
    }
}

impl Captured {
    /// A message that carries no id of ours is known by its place: so its dead letter names it.
    fn of(stream: &str, record: &Record) -> Self {
        let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(stream, record.sequence));
        Self { id, sequence: record.sequence, stored_at: record.stored_at, size: record.size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPELINE: &str = r#"
pipeline = "faces"
[stage.capture]
[stage.preprocess]
from = "capture"
model = "yunet"
"#;

    /// Copies 3 to 7, of 10 bytes, stored at 30 to 70; those of `open` are open.
    fn copies(open: &[u64]) -> Copies {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faces.toml");
        std::fs::write(&path, PIPELINE).unwrap();
        let mut copies = Copies::new(&Pipeline::load(path).unwrap(), "capture");
        for sequence in 3..=7 {
            let id = Id::captured("photos", &sequence.to_string());
            if open.contains(&sequence) {
                copies.open.captured(id);
            }
            copies.known.push_back(Captured { id, sequence, stored_at: sequence * 10, size: 10 });
        }
        copies
    }

    fn first_kept(open: &[u64], bytes: f64, too_old: u64, floor: u64, short: bool) -> (u64, u64) {
        let goes = copies(open).goes(3, Want { bytes, too_old, floor }, short);
        (goes.first_kept, goes.given_up)
    }

    #[test]
    fn what_may_go() {
        assert_eq!(first_kept(&[], 0.0, 0, 9, false), (3, 0), "nothing is too much, nothing too old");
        assert_eq!(first_kept(&[], 15.0, 0, 9, false), (5, 0), "until it is enough");
        assert_eq!(first_kept(&[], 0.0, 51, 9, false), (6, 0), "what is too old");
        assert_eq!(first_kept(&[], 99.0, 0, 9, false), (8, 0));
        assert_eq!(first_kept(&[], 99.0, 0, 5, false), (6, 0), "not beyond what all have taken");
        assert_eq!(first_kept(&[], 99.0, 0, 5, true), (6, 0), "not where space is short either");
        assert_eq!(first_kept(&[5, 6], 99.0, 0, 9, false), (5, 0), "not beyond what is open");
        assert_eq!(first_kept(&[5, 6], 99.0, 0, 9, true), (8, 2), "unless space is short");
    }

    #[test]
    fn more_may_be_behind_what_goes_whole() {
        let copies = copies(&[]);
        let goes = |bytes| copies.goes(3, Want { bytes, too_old: 0, floor: 9 }, false);
        assert!(!copies.all_go(goes(40.0)));
        assert!(copies.all_go(goes(50.0)));
    }
}
