//! What a move does to what comes out, as a reader sees it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use causeway_bus::{Bus, BusError, Record, Records, names};
use causeway_pipelines::{Handover, Ledger, Pipeline};
use causeway_schemas::{Id, header};
use causeway_stage::{outcome_of, outcome_streams};
use futures::StreamExt as _;
use futures::stream::SelectAll;

use crate::cli::PlaceArgs;

/// How long what was captured meanwhile may take to have its outcomes, once the move has ended.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What it was like.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Became {
    /// Messages that the stage gave where it was moved to; `None` where that is not reached from here.
    pub(super) moved: Option<usize>,
    /// Those that it gave in both places.
    pub(super) again: usize,
    /// Items captured meanwhile that have not all their outcomes; `None` where not all captures can be seen from here.
    pub(super) lost: Option<usize>,
    /// Outcomes that are there twice.
    pub(super) doubled: Option<usize>,
    /// Longest time between two messages of the stage.
    pub(super) longest_gap: Option<Duration>,
}

/// Looks at what comes out while a stage moves.
pub(super) struct Watch {
    pipeline: Pipeline,
    hub: Bus,
    /// Where things are captured, with the stream and the last message before; `None` where one of them is not reached.
    captures: Option<Vec<(Bus, String, u64)>>,
    /// The streams of outcomes at the hub, with the last message before.
    outcomes: Vec<(String, u64)>,
    /// What the stage gives, with the site where it comes by.
    given: SelectAll<futures::stream::BoxStream<'static, (String, Result<Record, BusError>)>>,
    to: Vec<String>,
    /// Whether all sites that the stage goes to are reached from here.
    sees_all: bool,
    seen: HashMap<Id, usize>,
    moved: usize,
    last: Option<Instant>,
    longest: Option<Duration>,
}

impl Watch {
    /// Begins to look, at all sites that are reached from here.
    pub(super) async fn begin(
        whole: &Pipeline,
        handover: &Handover<'_>,
        stage: &str,
        place: &PlaceArgs,
        hub: &Bus,
    ) -> anyhow::Result<Self> {
        let mut buses: HashMap<String, Bus> = HashMap::from([(whole.here.clone(), hub.clone())]);
        for site in whole.sites.iter().filter(|site| site.name != whole.here) {
            if let Some(bus) = reach(whole, &site.name, place).await {
                buses.insert(site.name.clone(), bus);
            }
        }
        let spec = whole.stage(stage);
        let link = names::link(&whole.name, spec.map_or(stage, |spec| &spec.link));
        let mut given = SelectAll::new();
        for site in &handover.sites {
            if let Some(bus) = buses.get(*site) {
                let (records, site): (Records, _) = (bus.subscribe(&link).await?, (*site).to_owned());
                given.push(records.map(move |record| (site.clone(), record)).boxed());
            }
        }
        let mut captures = Some(Vec::new());
        for source in whole.stages.iter().filter(|stage| stage.is_source()) {
            for site in &source.sites {
                let stream = names::stream(&whole.name, &source.name);
                let Some(bus) = buses.get(site) else {
                    captures = None;
                    continue;
                };
                let last = bus.stream_state(&stream).await?.map_or(0, |state| state.last_sequence);
                if let Some(captures) = &mut captures {
                    captures.push((bus.clone(), stream, last));
                }
            }
        }
        let mut outcomes = Vec::new();
        for stream in outcome_streams(whole) {
            let last = hub.stream_state(&stream).await?.map_or(0, |state| state.last_sequence);
            outcomes.push((stream, last));
        }
        let to = spec.map(|spec| spec.moves_to.clone()).unwrap_or_default();
        let sees_all = to.iter().all(|site| buses.contains_key(site));
        let (pipeline, hub, seen) = (whole.clone(), hub.clone(), HashMap::new());
        Ok(Self { pipeline, hub, captures, outcomes, given, to, sees_all, seen, moved: 0, last: None, longest: None })
    }

    /// Looks on for a while.
    pub(super) async fn wait(&mut self, pause: Duration) {
        let until = tokio::time::Instant::now() + pause;
        if self.given.is_empty() {
            return tokio::time::sleep_until(until).await;
        }
        while let Ok(given) = tokio::time::timeout_at(until, self.given.next()).await {
            match given {
                Some((site, Ok(record))) => self.gave(&site, &record),
                Some((_, Err(error))) => tracing::debug!(%error, "not seen"),
                None => return tokio::time::sleep_until(until).await,
            }
        }
    }

    fn gave(&mut self, site: &str, record: &Record) {
        // Relays carry it by other sites.
        let Some(id) = record.headers.id(header::ID).filter(|_| record.headers.get(header::VIA).is_none()) else {
            return;
        };
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            self.longest = self.longest.max(Some(now - last));
        }
        *self.seen.entry(id).or_default() += 1;
        self.moved += usize::from(self.to.iter().any(|to| to == site));
    }

    /// What it was like, once what was captured meanwhile has its outcomes, or has had time for it.
    pub(super) async fn end(mut self) -> Became {
        let (until, mut became) = (Instant::now() + PATIENCE, Became::default());
        // What is captured from here on is as ever.
        let ends = self.ends().await;
        loop {
            // The first message of the new place may still come.
            self.wait(LOOK_EVERY).await;
            if let Ok((open, twice)) = self.outcomes(&ends).await {
                (became.lost, became.doubled) = (open, Some(twice));
                if open.is_none_or(|open| open == 0) {
                    break;
                }
            }
            if Instant::now() > until {
                break;
            }
        }
        became.again = self.seen.values().filter(|&&times| times > 1).count();
        became.moved = self.sees_all.then_some(self.moved);
        became.longest_gap = self.longest;
        became
    }

    /// The last message that was captured, at each place.
    async fn ends(&self) -> Vec<u64> {
        let mut ends = Vec::new();
        for (bus, stream, _) in self.captures.iter().flatten() {
            let state = bus.stream_state(stream).await.ok().flatten();
            ends.push(state.map_or(0, |state| state.last_sequence));
        }
        ends
    }

    /// How many of what was captured up to these have not all their outcomes, and how many outcomes are there twice.
    async fn outcomes(&self, ends: &[u64]) -> Result<(Option<usize>, usize), BusError> {
        let mut captured = HashSet::new();
        for ((bus, stream, last), &end) in self.captures.iter().flatten().zip(ends) {
            let mut records = bus.scan(stream, last + 1, true).await?;
            while let Some(record) = records.next().await {
                let record = record?;
                if record.sequence > end {
                    break;
                }
                captured.extend(record.headers.id(header::ID));
            }
        }
        let (mut ledger, mut seen, mut twice) = (Ledger::new(&self.pipeline), HashSet::new(), 0);
        for (stream, last) in &self.outcomes {
            let mut records = self.hub.scan(stream, last + 1, true).await?;
            while let Some(record) = records.next().await {
                let record = record?;
                if let Some(outcome) = outcome_of(&record.headers) {
                    ledger.outcome(&outcome);
                }
                // A dead letter has the id of what it sets aside, and another one may take its place.
                twice += usize::from(!seen.insert(record.subject.clone()));
            }
        }
        let open = captured.iter().filter(|&&id| !ledger.is_complete(id)).count();
        Ok((self.captures.is_some().then_some(open), twice))
    }
}

/// The bus of another site, where it is known where that is.
async fn reach(pipeline: &Pipeline, site: &str, place: &PlaceArgs) -> Option<Bus> {
    let there = pipeline.clone().at(site).ok()?;
    // What is named is the hub's.
    let place = PlaceArgs { nats: None, credentials: None, ..place.clone() };
    let address = place.address(&there)?;
    let connected = Bus::connect(&address, &place.credentials_for(&there), &there.name, "causeway move").await;
    connected.inspect_err(|error| tracing::debug!(site, %error, "not reached from here")).ok()
}
