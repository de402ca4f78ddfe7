//! The stage protocol in a simulation: the decisions of [`crate::protocol`], the ids of the wire and the ledger of the pipeline, all
//! real, against a broker and processes that fail at every point in between. Each run follows from its seed:
//!
//! ```text
//! CAUSEWAY_SEED=17 cargo test -p causeway-stage simulation      one seed again
//! CAUSEWAY_SEEDS=1000000 cargo test -p causeway-stage simulation
//! ```

mod broker;
mod chance;
mod replica;

use std::collections::{BTreeMap, BTreeSet};

use causeway_pipelines::{Ledger, Outcome, Pipeline};
use causeway_schemas::{Id, Meta};

use broker::Broker;
use chance::Chance;
use replica::Replica;

/// Seeds that a run of the tests tries.
const SEEDS: u64 = 100_000;
/// Most items of a seed.
const ITEMS: usize = 4;
/// Kills of a seed that have nothing to do with any message.
const KILLS: usize = 6;
/// Steps while things go wrong, and after which everything must have come to rest.
const FAULTY: usize = 400;
const QUIET: usize = 20_000;

/// capture → split → (last, fold): `split` gives each item 0 to 3 parts.
const LINKS: [(&str, &[&str]); 2] = [("capture", &["split"]), ("split", &["last", "fold"])];

/// How an implementation is broken on purpose, to see that a run notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Broken {
    #[default]
    Not,
    DrawsIds,
    AcksFirst,
    PutsAlways,
    SecondWriter,
    FoldForgets,
    NoMarks,
}

struct World {
    broker: Broker,
    replicas: Vec<Replica>,
    chance: Chance,
    items: Vec<Item>,
}

/// A captured item.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item {
    pub(super) id: Id,
    /// How many parts `split` makes of it; 0 gives an `empty`.
    pub(super) parts: usize,
    /// Whether it ends the process that handles it in `split`.
    pub(super) is_poison: bool,
}

impl World {
    fn new(seed: u64, broken: Broken) -> Self {
        let mut chance = Chance::of(seed);
        let count = 1 + chance.below(ITEMS);
        let item = |number: usize| {
            let id = Id::captured("camera", &number.to_string());
            Item { id, parts: chance.below(4), is_poison: chance.one_in(8) }
        };
        let items: Vec<Item> = (0..count).map(item).collect();
        let mut broker = Broker::new(&LINKS);
        broker.forgets_if_absent = broken == Broken::PutsAlways;
        broker.has_no_fence = broken == Broken::SecondWriter;
        // Two of each share a durable; two writers of the fold are one that slept and its successor.
        let replicas = ["split", "split", "last", "last", "fold", "fold"];
        let replicas = replicas.into_iter().map(|stage| Replica::new(stage, broken)).collect();
        Self { broker, replicas, chance, items }
    }

    /// Runs until all is at rest; what is wrong then.
    fn run(mut self) -> Result<(), String> {
        let mut to_capture: Vec<Item> = self.items.clone();
        let mut kills = KILLS;
        for step in 0..FAULTY + QUIET {
            self.broker.is_faulty = step < FAULTY;
            self.broker.now += 1;
            // The source keeps at an item until it is stored.
            if let Some(item) = to_capture.last() {
                let meta = Meta::captured(item.id, "capture", "frame.v1".into(), 0);
                if self.broker.publish("capture", meta, &mut self.chance).is_ok() {
                    to_capture.pop();
                }
            }
            for replica in &self.replicas {
                replica.keep_alive(&mut self.broker);
            }
            let at = self.chance.below(self.replicas.len());
            if self.broker.is_faulty && kills > 0 && self.chance.one_in(30) {
                kills -= 1;
                self.replicas[at].kill();
            } else {
                self.replicas[at].step(&mut self.broker, &self.items, &mut self.chance);
            }
            let rests = to_capture.is_empty() && self.broker.is_drained() && self.replicas.iter().all(Replica::is_idle);
            if step > FAULTY && rests {
                return self.judge();
            }
        }
        Err("it does not come to rest".into())
    }

    /// What a reader sees at the end.
    fn judge(&self) -> Result<(), String> {
        let mut ledger = Ledger::new(&pipeline());
        let mut seen: BTreeMap<(Id, &str), BTreeSet<String>> = BTreeMap::new();
        for item in &self.items {
            ledger.captured(item.id);
        }
        for ((stage, id), metas) in &self.broker.outcomes {
            let [meta] = &metas[..] else { return Err(format!("{} of {stage} for {id}", metas.len())) };
            ledger.outcome(&Outcome { root: meta.root, stage: meta.stage.clone(), part: meta.part.clone() });
            let stage = ["split", "last", "fold"].into_iter().find(|name| name == stage).unwrap_or_default();
            if !seen.entry((meta.root, stage)).or_default().insert(meta.part.to_string()) {
                return Err(format!("part {} of {} twice from {stage}", meta.part, meta.root));
            }
        }
        for item in &self.items {
            if !ledger.is_complete(item.id) {
                return Err(format!("{item:?} is not complete"));
            }
            let of = |stage| seen.get(&(item.id, stage)).map_or(0, BTreeSet::len);
            let parts = if item.is_poison { 0 } else { item.parts };
            let early = usize::from(parts == 0);
            if (of("split"), of("last"), of("fold")) != (early, parts, parts) {
                return Err(format!("{item:?} has {} early, {} and {}", of("split"), of("last"), of("fold")));
            }
            let kinds = self.broker.outcomes.get(&("split".into(), item.id));
            let is_dead = kinds.is_some_and(|metas| metas.iter().any(|meta| meta.kind == "dead.v1"));
            if is_dead != item.is_poison {
                return Err(format!("{item:?} is dead: {is_dead}"));
            }
        }
        let folded: BTreeSet<_> = self.broker.changelog.iter().collect();
        if folded.len() != self.broker.changelog.len() {
            return Err("an id is twice in the changelog".into());
        }
        Ok(())
    }
}

fn pipeline() -> Pipeline {
    use std::sync::OnceLock;
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    PIPELINE
        .get_or_init(|| {
            let text = "pipeline = \"p\"\n[stage.capture]\n[stage.split]\nuses = \"extract\"\nfrom = \"before\"\nmodel = \"sface\"\n\
                        [stage.before]\nuses = \"preprocess\"\nfrom = \"capture\"\nmodel = \"yunet\"\n\
                        [stage.last]\nuses = \"classify\"\nfrom = \"split\"\n[stage.fold]\nuses = \"cluster\"\nfrom = \"split\"\n";
            let dir = tempfile::tempdir().expect("a folder");
            let file = dir.path().join("p.toml");
            std::fs::write(&file, text).expect("it is written");
            Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"))
        })
        .clone()
}

/// The seeds that these variables ask for.
fn seeds() -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
    match number("CAUSEWAY_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CAUSEWAY_SEEDS").unwrap_or(SEEDS),
    }
}

#[test]
fn nothing_is_lost_and_nothing_counts_twice() {
    for seed in seeds() {
        if let Err(why) = World::new(seed, Broken::Not).run() {
            panic!("seed {seed}: {why}; again with CAUSEWAY_SEED={seed}");
        }
    }
}

#[test]
fn whatever_is_broken_is_noticed() {
    let all = [
        Broken::DrawsIds,
        Broken::AcksFirst,
        Broken::PutsAlways,
        Broken::SecondWriter,
        Broken::FoldForgets,
        Broken::NoMarks,
    ];
    for broken in all {
        let found = (0..2000).find_map(|seed| Some((seed, World::new(seed, broken).run().err()?)));
        let (seed, why) = found.unwrap_or_else(|| panic!("{broken:?} is not noticed"));
        eprintln!("{broken:?}: seed {seed}: {why}");
    }
}
