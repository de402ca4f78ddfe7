//! The life of a relay: it carries what crosses between its site and the hub, either way.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use causeway_bus::{Budget, Carried, Carrier, Credentials, End, First, Keys, Line, Way, names};
use causeway_pipelines::{Crossing, Pipeline, RELAY, SiteSpec};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::env::{self, Apart, Env, Unfit};
use crate::metrics::Count;
use crate::once::Work;
use crate::outcomes::links_of;
use crate::placed::{is_placed_anew, report_key};
use crate::quarantine::inside;

/// What the `main` of the relay says.
pub fn relay_main() -> ExitCode {
    env::main(RELAY, live, Apart { once, quarantine: inside::none })
}

/// How often it is looked what was carried.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often the hub is told how it is here.
const SAY_EVERY: Duration = Duration::from_secs(2);
/// Pause between attempts to reach the hub for the first time, and how long one may take.
const REACH: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));

/// One stream on its way to another site, as a relay says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carrying {
    /// The stage whose messages they are; `empty`, `receipt`.
    pub stream: String,
    /// From this site.
    pub from: String,
    /// To that one.
    pub to: String,
    /// Messages that are stored there, since the relay started.
    pub messages: u64,
    /// Bytes that were sent for it, what was sent twice included.
    pub bytes: u64,
    /// Messages that were sent again.
    pub again: u64,
    /// Messages that are held now.
    pub held: u64,
    /// Messages that wait behind those.
    pub waiting: u64,
    /// Why nothing goes on, if so.
    pub trouble: Option<String>,
}

impl Carrying {
    /// Whether it is this stream on this way.
    pub(crate) fn is_of(&self, stream: &str, from: &str, to: &str) -> bool {
        self.stream == stream && self.from == from && self.to == to
    }
}

/// A stream with what has become of it.
struct Carriage {
    told: Carrying,
    carried: Arc<Carried>,
    stop: CancellationToken,
}

/// What a relay has under way.
struct Relay {
    env: Arc<Env>,
    here: SiteSpec,
    line: Arc<Line>,
    /// All that goes up shares one budget.
    up: Arc<Budget>,
    down: Arc<Budget>,
    carriages: Vec<Carriage>,
    carriers: JoinSet<()>,
    /// The tables that are copied here.
    tables: BTreeSet<String>,
    /// The fold whose state is taken over.
    state: Option<(String, CancellationToken)>,
    copies: JoinSet<()>,
}

fn once(work: &Work<'_>) -> anyhow::Result<()> {
    bail!("[stage.{}] carries messages between sites: it has nothing to try without them", work.spec.name)
}

async fn live(env: Arc<Env>) -> anyhow::Result<()> {
    let pipeline = &env.pipeline;
    let Some(here) = pipeline.site(&pipeline.here) else { bail!("cannot find the site {}", pipeline.here) };
    let hub = pipeline.hub();
    let Some(address) = env.args.hub.clone().or_else(|| hub.address.clone()) else {
        let why = format!("no address of {} is known: say it with --hub, or as [site.{0}] address", hub.name);
        return Err(anyhow!(why).context(Unfit));
    };
    let Some(line) = reach(&env, hub, &address).await else { return Ok(()) };
    let mut relay = Relay {
        up: Arc::new(Budget::new(here.bytes_per_s)),
        down: Arc::new(Budget::new(None)),
        here: here.clone(),
        line: Arc::clone(&line),
        carriages: Vec::new(),
        carriers: JoinSet::new(),
        tables: BTreeSet::new(),
        state: None,
        copies: JoinSet::new(),
        env: Arc::clone(&env),
    };
    relay.says_what_it_did();
    relay.says_how_it_is();
    let name = hub.name.clone();
    relay.copies.spawn(async move {
        line.watch(|answers| {
            if answers {
                tracing::info!(hub = name, "the hub answers again");
            } else {
                tracing::warn!(hub = name, "the hub does not answer; what goes there waits here");
            }
        })
        .await;
    });
    let mut placed = env.placed.clone();
    relay.carry(&placed.borrow_and_update().clone());
    env.status.set_ready();
    let mut every = tokio::time::interval(LOOK_EVERY);
    while !env.stop.is_cancelled() {
        tokio::select! {
            () = env.stop.cancelled() => break,
            _ = every.tick() => relay.look(),
            () = is_placed_anew(&mut placed) => relay.carry(&placed.borrow_and_update().clone()),
            Some(ended) = relay.carriers.join_next() => ended.context("what carries ended")?,
            Some(ended) = relay.copies.join_next() => ended.context("what copies ended")?,
        }
    }
    env.status.set_draining();
    let drained = async { while relay.carriers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(env.args.drain, drained).await;
    relay.look();
    Ok(())
}

/// Connects to the hub, however long that takes; `None`: it was told to stop before.
async fn reach(env: &Env, hub: &SiteSpec, address: &str) -> Option<Arc<Line>> {
    let written = || hub.credentials.as_ref().map(|file| env.ctx.path(file)).filter(|file| file.is_file());
    // Where everybody has a key of his own, it is the same at the hub as here.
    let named = env.args.hub_credentials.clone().or_else(written).or_else(|| env.args.credentials.clone());
    let (credentials, pipeline) = (Credentials::of(named.as_deref(), RELAY), &env.pipeline.name);
    let name = format!("{pipeline}/{RELAY}@{}", env.pipeline.here);
    loop {
        tokio::select! {
            () = env.stop.cancelled() => return None,
            reached = Line::connect(address, &credentials, pipeline, &name) => match reached {
                Ok(line) => return Some(line),
                Err(error) => {
                    env.status.blocked(&format!("{} is not reached: {error}", hub.name), REACH.0 + REACH.1);
                }
            },
        }
        tokio::select! {
            () = env.stop.cancelled() => return None,
            () = tokio::time::sleep(REACH.0) => {}
        }
    }
}

impl Relay {
    /// Carries what crosses now, and ends to carry what does not any more; copies the tables that are read here.
    fn carry(&mut self, now: &Pipeline) {
        let (plan, here) = (now.plan(), self.here.name.clone());
        let mut wanted = Vec::new();
        for Crossing { flow, from, to, captured } in plan.crossings(&here) {
            wanted.extend(links_of(flow).into_iter().map(|stream| (stream, from, to, captured.clone())));
        }
        self.carriages.retain(|carriage| {
            let stays = wanted.iter().any(|(stream, from, to, _)| carriage.told.is_of(stream, from, to));
            if !stays {
                carriage.stop.cancel();
            }
            stays
        });
        for (stream, from, to, captured) in &wanted {
            if !self.carriages.iter().any(|carriage| carriage.told.is_of(stream, from, to)) {
                self.carry_one(&now.name, stream, (from, to), captured.clone());
            }
        }
        for carriage in &self.carriages {
            let Carrying { stream, from, to, .. } = &carriage.told;
            let back = wanted.iter().any(|one| one.0 == stream && one.1 == to && one.2 == from);
            carriage.carried.set_one_way(!back);
        }
        for table in now.tables_at(&here) {
            self.copy(table, Keys::All);
        }
        self.copy(names::PLACEMENT, Keys::AllBut(report_key(&here)));
        self.copy_state(now);
    }

    /// Takes the state of a fold over that is on the move between here and the hub.
    fn copy_state(&mut self, now: &Pipeline) {
        let (here, hub) = (&self.here.name, &now.hub().name);
        let moving = now.stages.iter().find(|stage| stage.folds && !stage.moves_to.is_empty());
        let way = moving.map(|stage| (&stage.name, &stage.sites[0], &stage.moves_to[0]));
        let way = way.filter(|&(_, from, to)| (from == here && to == hub) || (from == hub && to == here));
        if let Some((_, stop)) = self.state.take_if(|(stage, _)| way.is_none_or(|(name, ..)| name != stage)) {
            stop.cancel();
        }
        let Some((stage, from, _)) = way.filter(|_| self.state.is_none()) else { return };
        let (stop, there) = (self.env.stop.child_token(), from == here);
        self.state = Some((stage.clone(), stop.clone()));
        let (line, env, stage) = (Arc::clone(&self.line), Arc::clone(&self.env), stage.clone());
        self.copies.spawn(async move {
            let copies = Box::pin(line.copy_log(&env.bus, &stage, there));
            tokio::select! {
                () = stop.cancelled() => {}
                () = copies => {}
            }
        });
    }

    fn carry_one(&mut self, pipeline: &str, stream: &str, (from, to): (&str, &str), captured: Vec<String>) {
        let (mine, hub) = (End::here(&self.env.bus), End::Across(Arc::clone(&self.line)));
        let is_up = from == self.here.name;
        let first = match self.here.first {
            causeway_pipelines::First::Newest if is_up => First::Newest,
            _ => First::Oldest,
        };
        let way = Way {
            stream: names::stream(pipeline, stream),
            durable: names::relay(to),
            sites: (from.into(), to.into()),
            captured,
            first,
        };
        let carrier =
            if is_up { Carrier::new(&mine, &hub, &way, &self.up) } else { Carrier::new(&hub, &mine, &way, &self.down) };
        let told = Carrying { stream: stream.into(), from: from.into(), to: to.into(), ..Carrying::default() };
        let stop = self.env.stop.child_token();
        self.carriages.push(Carriage { told, carried: carrier.carried(), stop: stop.clone() });
        self.carriers.spawn(carrier.run(async move { stop.cancelled().await }));
    }

    /// Copies a table of the hub, from now on for ever.
    fn copy(&mut self, table: &str, keys: Keys) {
        if !self.tables.insert(table.into()) {
            return;
        }
        let (line, env, table) = (Arc::clone(&self.line), Arc::clone(&self.env), table.to_owned());
        self.copies.spawn(async move {
            Box::pin(line.copy_table(&env.bus, &table, &keys, || env.status.has_copied(&table))).await;
        });
    }

    /// What this site says of a move the hub has to know.
    fn says_what_it_did(&mut self) {
        let (line, env, keys) =
            (Arc::clone(&self.line), Arc::clone(&self.env), Keys::Only(report_key(&self.here.name)));
        self.copies.spawn(async move {
            Box::pin(line.copy_table_there(&env.bus, names::PLACEMENT, &keys)).await;
        });
    }

    /// Says at the hub how it is, as it does here: so the hub knows which sites are there.
    fn says_how_it_is(&mut self) {
        let (line, env) = (Arc::clone(&self.line), Arc::clone(&self.env));
        let name = format!("{RELAY}@{}", self.here.name);
        self.copies.spawn(async move {
            let mut every = tokio::time::interval(SAY_EVERY);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                let replica = env::replica();
                let (key, value) = env::entry_of(&name, &replica, &env.status.heartbeat(RELAY, &replica, ""));
                let said = tokio::time::timeout(SAY_EVERY, line.table_put(names::REPLICAS, &key, value)).await;
                if !matches!(said, Ok(Ok(_))) {
                    tracing::debug!("the hub was not told how it is here");
                }
            }
        });
    }

    /// Says what was carried since the last look.
    fn look(&mut self) {
        let status = &self.env.status;
        for Carriage { told, carried, .. } in &mut self.carriages {
            let messages = carried.messages();
            status.count(Count::Handled, messages - told.messages);
            told.messages = messages;
            (told.bytes, told.again) = (carried.bytes(), carried.again());
            (told.held, told.waiting, told.trouble) = (carried.held(), carried.waiting(), carried.trouble());
        }
        let carrying: Vec<Carrying> = self.carriages.iter().map(|carriage| carriage.told.clone()).collect();
        // A link that is cut is the same trouble to all.
        let troubled = carrying.iter().find_map(|told| Some((told, told.trouble.as_ref()?)));
        if let Some((told, trouble)) = troubled {
            status.blocked(&format!("{} to {}: {trouble}", told.stream, told.to), LOOK_EVERY);
        }
        status.carries(carrying);
    }
}
