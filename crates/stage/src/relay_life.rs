//! The life of a relay: it carries what crosses between its site and the hub, either way.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use causeway_bus::{Budget, Carried, Carrier, Credentials, End, First, Line, Way, names};
use causeway_pipelines::{Crossing, Flow, RELAY, SiteSpec};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::env::{self, Apart, Env, Unfit};
use crate::metrics::Count;
use crate::once::Work;
use crate::quarantine::inside;

/// What the `main` of the relay says.
pub fn relay_main() -> ExitCode {
    env::main(RELAY, live, Apart { once, quarantine: inside::none })
}

/// How often it is looked what was carried.
const LOOK_EVERY: Duration = Duration::from_millis(500);
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

/// A stream with what has become of it.
struct Carriage {
    told: Carrying,
    carried: Arc<Carried>,
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
    let mut carriers = JoinSet::new();
    let mut carriages = carry(&env, here, &line, &mut carriers);
    let mut others = JoinSet::new();
    for table in pipeline.tables_at(&here.name) {
        let (line, bus) = (Arc::clone(&line), env.bus.clone());
        others.spawn(async move { Box::pin(line.copy_table(&bus, table)).await });
    }
    let name = hub.name.clone();
    others.spawn(async move {
        line.watch(|answers| {
            if answers {
                tracing::info!(hub = name, "the hub answers again");
            } else {
                tracing::warn!(hub = name, "the hub does not answer; what goes there waits here");
            }
        })
        .await;
    });
    env.status.set_ready();
    let mut every = tokio::time::interval(LOOK_EVERY);
    while !env.stop.is_cancelled() {
        tokio::select! {
            () = env.stop.cancelled() => break,
            _ = every.tick() => look(&env, &mut carriages),
            Some(ended) = carriers.join_next() => ended.context("what carries ended")?,
            Some(ended) = others.join_next() => ended.context("what copies ended")?,
        }
    }
    env.status.set_draining();
    let drained = async { while carriers.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(env.args.drain, drained).await;
    look(&env, &mut carriages);
    Ok(())
}

/// Connects to the hub, however long that takes; `None`: it was told to stop before.
async fn reach(env: &Env, hub: &SiteSpec, address: &str) -> Option<Arc<Line>> {
    let file = env.args.hub_credentials.clone();
    let file = file.or_else(|| hub.credentials.as_ref().map(|file| env.ctx.path(file)));
    let (credentials, pipeline) = (Credentials { file }, &env.pipeline.name);
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

/// Starts what carries each stream that crosses.
fn carry(env: &Arc<Env>, here: &SiteSpec, line: &Arc<Line>, carriers: &mut JoinSet<()>) -> Vec<Carriage> {
    let (mine, hub) = (End::here(&env.bus), End::Across(Arc::clone(line)));
    // All that goes up shares one budget.
    let (up, down) = (Arc::new(Budget::new(here.bytes_per_s)), Arc::new(Budget::new(None)));
    let mut carriages = Vec::new();
    let plan = env.pipeline.plan();
    for Crossing { flow, from, to, captured } in plan.crossings(&here.name) {
        for stream in streams(flow) {
            let is_up = from == here.name;
            let first = match here.first {
                causeway_pipelines::First::Newest if is_up => First::Newest,
                _ => First::Oldest,
            };
            let way = Way {
                stream: names::stream(&env.pipeline.name, stream),
                durable: names::relay(to),
                sites: (from.into(), to.into()),
                captured: captured.clone(),
                first,
            };
            let carrier =
                if is_up { Carrier::new(&mine, &hub, &way, &up) } else { Carrier::new(&hub, &mine, &way, &down) };
            let (stream, from, to) = (stream.into(), from.into(), to.into());
            let told = Carrying { stream, from, to, ..Carrying::default() };
            carriages.push(Carriage { told, carried: carrier.carried() });
            let stop = env.stop.clone();
            carriers.spawn(carrier.run(async move { stop.cancelled().await }));
        }
    }
    carriages
}

fn streams(flow: Flow<'_>) -> Vec<&str> {
    match flow {
        Flow::Stage(name) => vec![name],
        Flow::Ends => vec![names::EMPTY, names::RECEIPT],
    }
}

/// Says what was carried since the last look.
fn look(env: &Env, carriages: &mut [Carriage]) {
    for Carriage { told, carried } in carriages.iter_mut() {
        let messages = carried.messages();
        env.status.count(Count::Handled, messages - told.messages);
        told.messages = messages;
        (told.bytes, told.again) = (carried.bytes(), carried.again());
        (told.held, told.waiting, told.trouble) = (carried.held(), carried.waiting(), carried.trouble());
    }
    let carrying: Vec<Carrying> = carriages.iter().map(|carriage| carriage.told.clone()).collect();
    // A link that is cut is the same trouble to all.
    let troubled = carrying.iter().find_map(|told| Some((told, told.trouble.as_ref()?)));
    if let Some((told, trouble)) = troubled {
        env.status.blocked(&format!("{} to {}: {trouble}", told.stream, told.to), LOOK_EVERY);
    }
    env.status.carries(carrying);
}
