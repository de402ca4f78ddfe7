use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use causeway_bus::{Bus, Record, names};
use causeway_pipelines::{Ledger, Outcome, Pipeline};
use causeway_schemas::Id;
use causeway_stage::{outcome_of, outcome_streams};
use futures::StreamExt as _;
use tokio::task::JoinSet;

use crate::reconcile::is_home;

/// A reader that hears nothing for this long asks whether there is something: after a broker has died it may have been forgotten.
const QUIET: Duration = Duration::from_millis(100);
/// Pause before a read that failed is tried again.
const PAUSE: Duration = Duration::from_millis(20);

/// Reads every outcome as it comes, as any reader of the pipeline's subjects does, whatever happens to the broker meanwhile.
pub(super) struct Watch {
    seen: Arc<Mutex<Seen>>,
    _readers: JoinSet<()>,
}

struct Seen {
    ledger: Ledger,
    outcomes: HashSet<(Id, String, String)>,
    doubled: Vec<String>,
    complete: HashMap<Id, Instant>,
    last: Instant,
}

impl Watch {
    /// Watches sites: an outcome counts where its item was captured.
    pub(super) fn start(sites: &[(Bus, Pipeline)]) -> Self {
        let ledger = Ledger::new(&sites[0].1);
        let (outcomes, complete) = (HashSet::new(), HashMap::new());
        let seen = Seen { ledger, outcomes, doubled: Vec::new(), complete, last: Instant::now() };
        let seen = Arc::new(Mutex::new(seen));
        let mut readers = JoinSet::new();
        for (bus, pipeline) in sites {
            let letters = [names::DEAD, names::RECEIPT].map(|link| names::stream(&pipeline.name, link));
            for stream in outcome_streams(pipeline) {
                // A dead letter replaces the one before it under its subject, and may be answered later: that is no second outcome.
                let once = !letters.contains(&stream);
                let of = pipeline.is_split().then(|| pipeline.clone());
                readers.spawn(read(bus.clone(), stream, Which { once, of }, Arc::clone(&seen)));
            }
        }
        Self { seen, _readers: readers }
    }

    /// When the last of these had all its outcomes; `None` while one has not.
    pub(super) fn complete_at(&self, roots: &HashSet<Id>) -> Option<Instant> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let times: Option<Vec<Instant>> = roots.iter().map(|root| seen.complete.get(root).copied()).collect();
        times?.into_iter().max()
    }

    /// When the last outcome came.
    pub(super) fn last(&self) -> Instant {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// The subjects of outcomes that came a second time.
    pub(super) fn doubled(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).doubled.clone()
    }
}

/// Which outcomes of a stream count.
struct Which {
    /// Each once.
    once: bool,
    /// Of what was captured at the site that this is seen from.
    of: Option<Pipeline>,
}

async fn read(bus: Bus, stream: String, which: Which, seen: Arc<Mutex<Seen>>) {
    let mut next = 1;
    loop {
        let Ok(mut records) = bus.follow(&stream, next, true).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        loop {
            match tokio::time::timeout(QUIET, records.next()).await {
                Ok(Some(Ok(record))) => {
                    next = record.sequence + 1;
                    if which.of.as_ref().is_none_or(|of| is_home(&record.subject, of)) {
                        seen.lock().unwrap_or_else(PoisonError::into_inner).note(&record, which.once);
                    }
                }
                Ok(_) => break,
                Err(_) => match bus.stream_state(&stream).await {
                    Ok(Some(state)) if state.last_sequence < next => {}
                    _ => break,
                },
            }
        }
    }
}

impl Seen {
    fn note(&mut self, record: &Record, once: bool) {
        let Some(outcome) = outcome_of(&record.headers) else { return };
        self.last = Instant::now();
        let Outcome { root, stage, part } = &outcome;
        if once && !self.outcomes.insert((*root, stage.clone(), part.to_string())) {
            self.doubled.push(record.subject.clone());
        }
        self.ledger.outcome(&outcome);
        if self.ledger.is_complete(*root) {
            self.complete.entry(*root).or_insert(self.last);
        }
    }
}
