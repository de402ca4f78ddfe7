//! The workload `plumbing`: the same five stages with nothing to do, so that what is measured is the runtime.

use std::fmt;

use causeway_stand_in::link;
use causeway_stand_in::script::{BYTES, ITEMS};
use tempfile::TempDir;

use crate::Args;
use crate::figures::Figures;
use crate::latency::tail;
use crate::ours::{self, Run};
use crate::peers::{self, Peer, Spec};
use crate::place::Place;
use crate::rounds::{Round, Rounds};
use crate::server_rate;

/// The pipeline of stand-ins.
const PIPELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/plumbing.toml");
/// Bodies, bytes.
const SMALL: usize = 2_000;
const LARGE: usize = 40_000;
/// How often a message is taken on its way: by preprocess, extract, classify and cluster.
pub(crate) const HOPS: f64 = 4.0;
/// Messages a second at which the latency of an idle pipeline is measured.
const IDLE_RATE: f64 = 100.0;
/// Publishes of the windowed peer that wait at once.
const WINDOW: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Ours(usize),
    Redis(usize),
    Nats(usize),
    NatsWindowed(usize),
    Server(usize),
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (who, bytes) = match self {
            Self::Ours(bytes) => ("ours", bytes),
            Self::Redis(bytes) => ("Redis lists", bytes),
            Self::Nats(bytes) => ("nats-py", bytes),
            Self::NatsWindowed(bytes) => ("nats-py, windowed", bytes),
            Self::Server(bytes) => ("server", bytes),
        };
        write!(f, "{who} {} KB", bytes / 1000)
    }
}

struct Work<'a> {
    place: &'a Place,
    quick: bool,
    /// The programs: `causeway`, and stand-ins under the names of its stages.
    bin: TempDir,
}

pub(crate) async fn measure(place: &Place, args: &Args, figures: &mut Figures) -> anyhow::Result<()> {
    let work = Work { place, quick: args.quick, bin: place.fresh()? };
    link(&place.bin, work.bin.path())?;
    let mut contenders = Vec::new();
    for bytes in [SMALL, LARGE] {
        contenders.push(Contender::Ours(bytes));
        if peers::missing(place).is_none() {
            contenders.extend([Contender::Redis(bytes), Contender::Nats(bytes), Contender::NatsWindowed(bytes)]);
        }
        contenders.push(Contender::Server(bytes));
    }
    if args.quick {
        // Those that the figures are made of.
        contenders.retain(|who| match who {
            Contender::Ours(_) => true,
            Contender::Redis(bytes) | Contender::Nats(bytes) => *bytes == SMALL,
            Contender::NatsWindowed(_) => false,
            Contender::Server(bytes) => *bytes == LARGE,
        });
    }
    if let Some(why) = peers::missing(place) {
        figures.note(format!("peers skipped: {why}"));
    }
    figures.plumbing_rounds =
        Rounds::run("plumbing", args.rounds(), &contenders, async |who| work.round(who).await).await?;
    let items = if args.quick { 30 } else { 1000 };
    let ran = ours::run(place, &work.run_of(SMALL, items, Some(IDLE_RATE)), false).await?;
    figures.idle = Some(tail(&ran.latencies_ms)?);
    Ok(())
}

impl Work<'_> {
    /// How many messages a round has: some seconds for each.
    fn items(&self, who: Contender) -> usize {
        let full = match who {
            Contender::Ours(SMALL) => 20_000,
            Contender::Ours(_) | Contender::Redis(SMALL) => 8_000,
            Contender::Redis(_) | Contender::NatsWindowed(_) => 4_000,
            Contender::Nats(_) => 1_500,
            Contender::Server(SMALL) => 60_000,
            Contender::Server(_) => 20_000,
        };
        if self.quick { full / 50 } else { full }
    }

    async fn round(&self, who: Contender) -> anyhow::Result<Round> {
        let items = self.items(who);
        let peer = async |peer, bytes| {
            let nowhere = self.bin.path().to_owned();
            let spec = Spec {
                workload: "plumbing",
                photos: nowhere.clone(),
                models: nowhere.clone(),
                people: nowhere,
                items,
                bytes,
                outcomes: 2 * items as u64,
                extracts: 1,
            };
            anyhow::Ok(peers::run(self.place, peer, &spec).await?.0)
        };
        match who {
            Contender::Ours(bytes) => Ok(ours::run(self.place, &self.run_of(bytes, items, None), false).await?.round),
            Contender::Redis(bytes) => peer(Peer::Redis, bytes).await,
            Contender::Nats(bytes) => peer(Peer::Nats { window: 1 }, bytes).await,
            Contender::NatsWindowed(bytes) => peer(Peer::Nats { window: WINDOW }, bytes).await,
            Contender::Server(bytes) => server_rate::run(self.place, items, bytes).await,
        }
    }

    fn run_of(&self, bytes: usize, items: usize, rate: Option<f64>) -> Run<'_> {
        Run {
            bin: self.bin.path(),
            pipeline: PIPELINE.as_ref(),
            set: Vec::new(),
            env: vec![(ITEMS, items.to_string()), (BYTES, bytes.to_string())],
            people: &[],
            items,
            outcomes: 2 * items as u64,
            rate,
        }
    }
}
