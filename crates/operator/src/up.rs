//! `causeway up`: the stages of a pipeline, watched until they are drained or told to stop.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, BusError, names};
use causeway_pipelines::{Input, Phase, Pipeline, RELAY, StageSpec};
use causeway_stage::{Heartbeat, Placed, is_placed_anew};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::agent;
use crate::kept;
use crate::metrics::Told;
use crate::progress::Progress;
use crate::reconcile::run_lost_again;
use crate::session::{OpenSite, Session, start_server};
use crate::supervisor::{Event, Run, Supervisor, name_at};
use crate::terminal::count;

/// Pause before what a fold has lost is run again once more.
const MEND_PAUSE: Duration = Duration::from_secs(1);
/// How often the links are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(150);
/// How often it is looked whether the server can write.
const DISK_EVERY: Duration = Duration::from_secs(1);
/// Room that a disk has to have before a server that could not write is started anew, bytes.
const ROOM: usize = 4 << 20;
/// Pause before a server that died is started again, and how often in a row.
const SERVER_RESTART: (Duration, u32) = (Duration::from_millis(200), 20);

/// What a run was like.
#[derive(Debug, Default)]
pub(crate) struct RunStats {
    /// From the start of the stages until they were drained or stopped.
    pub(crate) took: Duration,
    /// Whether it was told to stop before it was drained.
    pub(crate) interrupted: bool,
    /// The last that each replica said of itself.
    pub(crate) replicas: Vec<Heartbeat>,
    /// How often each stage was started again.
    pub(crate) restarts: HashMap<String, u32>,
}

/// What crossed from a site to another in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Crossed {
    /// The stage whose messages they are.
    pub(crate) stream: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) messages: u64,
    /// With headers and what was sent twice.
    pub(crate) bytes: u64,
}

impl RunStats {
    /// What the replicas of a stage counted together.
    pub(crate) fn total(&self, stage: &str, count: impl Fn(&Heartbeat) -> u64) -> u64 {
        self.of(stage).map(count).sum()
    }

    /// Time that the replicas of a stage spent in `process`, seconds.
    pub(crate) fn busy_s(&self, stage: &str) -> f64 {
        self.of(stage).map(|beat| beat.busy_s).sum()
    }

    /// Resident memory of a stage's largest replica, bytes.
    pub(crate) fn rss(&self, stage: &str) -> u64 {
        self.of(stage).map(|beat| beat.rss).max().unwrap_or(0)
    }

    /// What crossed between sites.
    pub(crate) fn crossed(&self) -> Vec<Crossed> {
        let mut crossed: BTreeMap<(&str, &str, &str), (u64, u64)> = BTreeMap::new();
        for one in self.of(RELAY).flat_map(|beat| &beat.carrying) {
            let (messages, bytes) = crossed.entry((&one.from, &one.to, &one.stream)).or_default();
            (*messages, *bytes) = (*messages + one.messages, *bytes + one.bytes);
        }
        let crossed = crossed.into_iter().filter(|(_, (messages, _))| *messages > 0);
        let told = crossed.map(|((from, to, stream), (messages, bytes))| {
            let [from, to, stream] = [from, to, stream].map(ToOwned::to_owned);
            Crossed { stream, from, to, messages, bytes }
        });
        told.collect()
    }

    /// How often a stage was started again.
    pub(crate) fn restarts(&self, stage: &str) -> u32 {
        let is_its = |name: &str| name.split('@').next() == Some(stage);
        self.restarts.iter().filter(|(name, _)| is_its(name)).map(|(_, times)| times).sum()
    }

    fn of(&self, stage: &str) -> impl Iterator<Item = &Heartbeat> {
        self.replicas.iter().filter(move |beat| beat.stage == stage)
    }
}

/// How a run goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunOptions {
    /// `--set STAGE.KEY=VALUE`, for every stage.
    pub(crate) overrides: Vec<String>,
    /// Ends when the sources have ended and nothing is under way; else when told to stop.
    pub(crate) until_drained: bool,
    /// Says nothing of its progress.
    pub(crate) quiet: bool,
    /// Forgets the results of earlier runs and runs everything again.
    pub(crate) again: bool,
    /// The name of an isolated run: its inputs are there already.
    pub(crate) replay: Option<String>,
    /// Where Prometheus is answered, if it is.
    pub(crate) metrics: Option<SocketAddr>,
}

/// Runs the stages of an open session.
pub(crate) async fn run(session: &mut Session, options: &RunOptions) -> anyhow::Result<RunStats> {
    let sites = session.seen();
    if sites.len() < session.pipeline.sites.len() && (options.until_drained || options.again) {
        bail!(
            "cannot tell at one of several sites when all has its outcomes, nor forget them everywhere: leave out --site, or \
             --until-drained and --again"
        );
    }
    let generation = if options.again { forget_all(&sites).await? } else { 0 };
    // What replicas of the last run said stays for a while: it is not of this run.
    let earlier: HashSet<String> = heartbeats(&sites).await?.into_iter().map(|beat| beat.replica).collect();
    let began = Instant::now();
    let run = Run { overrides: &options.overrides, generation, replay: options.replay.as_deref() };
    let mut supervisor = Supervisor::start(session, &run)?;
    let mut progress = Progress::start(session.placed(), options.quiet).await?;
    let told = Told::new(session.placed(), "up");
    if let Some(address) = options.metrics {
        told.supervise(&supervisor.names(), &[], &HashMap::new());
        told.serve(address, Some(&session.home)).await?;
    }
    let mut agents = JoinSet::new();
    for site in &session.sites {
        let (bus, placed) = (site.bus.clone(), site.placed.clone());
        agents.spawn(agent::work(bus, site.pipeline.clone(), placed, Arc::clone(&told)));
    }
    let watched = watch(session, &mut supervisor, &mut progress, &run, options, &told).await;
    drop(agents);
    told.end(&session.home);
    let restarts = std::mem::take(&mut supervisor.restarts);
    supervisor.stop().await;
    // Where the broker is gone it is looked at when it is met again.
    let sites = session.seen();
    for (bus, pipeline) in &sites {
        let _ = kept::look(bus, pipeline, false).await;
    }
    let took = progress.drained_at().unwrap_or_else(Instant::now) - began;
    progress.end();
    let drained = watched?;
    let replicas = heartbeats(&sites).await?;
    let seen = progress.into_replicas();
    let mut replicas = merge(seen, replicas);
    replicas.retain(|beat| !earlier.contains(&beat.replica));
    Ok(RunStats { took, interrupted: !drained, replicas, restarts })
}

/// The last beat of each replica, whether it is still on the bus or was only seen in passing.
fn merge(mut seen: HashMap<String, Heartbeat>, last: Vec<Heartbeat>) -> Vec<Heartbeat> {
    seen.extend(last.into_iter().map(|beat| (beat.replica.clone() + &beat.stage, beat)));
    seen.into_values().collect()
}

/// What every replica at these sites last said of itself.
pub(crate) async fn heartbeats(sites: &[(Bus, Pipeline)]) -> Result<Vec<Heartbeat>, BusError> {
    let mut beats = Vec::new();
    for (bus, _) in sites {
        beats.extend(heartbeats_at(bus).await?);
    }
    Ok(beats)
}

/// What every replica at the site of a bus last said of itself.
pub(crate) async fn heartbeats_at(bus: &Bus) -> Result<Vec<Heartbeat>, BusError> {
    let entries = bus.table_entries(names::REPLICAS).await?;
    Ok(entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect())
}

/// Watches until everything is drained (`true`, if that is asked for) or until it is told to stop (`false`).
async fn watch(
    session: &mut Session,
    supervisor: &mut Supervisor,
    progress: &mut Progress,
    run: &Run<'_>,
    options: &RunOptions,
    told: &Told,
) -> anyhow::Result<bool> {
    let mut sources = if options.replay.is_some() { Vec::new() } else { sources_of(session) };
    let (all_sources, mut failed) = (sources.len(), Vec::new());
    let mut look = tokio::time::interval(LOOK_EVERY);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut disk = tokio::time::interval(DISK_EVERY);
    disk.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The sites whose server cannot write.
    let mut cannot_write = HashSet::new();
    let stop = session.told_to_stop();
    tokio::pin!(stop);
    let mut placed: Vec<Placed> = session.sites.iter().map(|site| site.placed.clone()).collect();
    // Folds that have failed, while what they lost is run again.
    let mut mending = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = &mut stop => return Ok(false),
            event = supervisor.next(), if !supervisor.is_empty() => {
              told.supervise(&supervisor.names(), &supervisor.processes(), &supervisor.restarts);
              match event {
                Some(Event::Ended { stage }) => {
                    if !options.until_drained {
                        progress.say(&format!("{stage} has read all there is; the next `up` reads what is new. Ctrl-C stops."));
                    }
                    sources.retain(|source| *source != stage);
                }
                Some(Event::Started { .. }) => session.say(&supervisor.processes())?,
                Some(Event::Said { stage, line }) => progress.say(&format!("{stage}: {line}")),
                Some(Event::Restarting { stage, why }) => progress.say(&format!("{stage} ended ({why}); starting it again")),
                Some(Event::Failed { stage, why }) => {
                    if is_on_its_way(session, &stage) {
                        progress.say(&format!("{stage} cannot get ready where it is moved to ({why}); `causeway move --back` calls the move off"));
                        continue;
                    }
                    if let Some(sites) = sites_of_fold(session, &stage) {
                        mending.push(lost_again(sites, stage, why));
                        continue;
                    }
                    let was_source = sources.contains(&stage);
                    sources.retain(|source| *source != stage);
                    failed.push(format!("cannot run [stage.{stage}]: {why}"));
                    // One source of several: the rest goes on, and the end tells it again.
                    if !was_source || failed.len() == all_sources {
                        bail!("{}", failed.join("; "));
                    }
                    progress.say(&failed[failed.len() - 1]);
                }
                None => bail!("no stage runs"),
              }
            }
            () = anything_is_placed_anew(&mut placed) => {
                supervisor.place(session, run)?;
                session.say(&supervisor.processes())?;
                told.supervise(&supervisor.names(), &supervisor.processes(), &supervisor.restarts);
            }
            Some((stage, why, items)) = mending.next() => {
                let Some(items) = items else { bail!("cannot run [stage.{stage}]: {why}") };
                progress.say(&why);
                progress.say(&format!("all that [stage.{stage}] has lost is kept: {} run again", count(items, "item")));
                supervisor.start_again(&stage);
            }
            (place, why) = server_ended(&mut session.sites) => restart_server(session, place, supervisor, &why, progress).await?,
            _ = disk.tick() => {
                for (place, site) in session.sites.iter_mut().enumerate() {
                    let Some(server) = &mut site.server else { continue };
                    if let Some(why) = server.write_error() && cannot_write.insert(place) {
                        progress.say(&format!("nats-server cannot write: {why}; what is not stored waits in its stage"));
                    }
                    if cannot_write.contains(&place) && has_room(&session.home.site(&site.pipeline.here)) {
                        progress.say("there is room to write again; nats-server does not try by itself and is started anew");
                        cannot_write.remove(&place);
                        server.terminate();
                    }
                }
            }
            _ = look.tick() => {
                // A look at a server that died would wait for its answer: the server comes first.
                let looked = tokio::select! {
                    biased;
                    (place, why) = server_ended(&mut session.sites) => {
                        restart_server(session, place, supervisor, &why, progress).await?;
                        continue;
                    }
                    looked = progress.look() => looked,
                };
                let drained = match looked {
                    Ok(drained) => drained && sources.is_empty(),
                    Err(error) => {
                        tracing::debug!(%error, "cannot look at the links; trying again");
                        false
                    }
                };
                if drained && options.until_drained && folds_are_restored(session, supervisor).await {
                    if !failed.is_empty() {
                        bail!("everything else has its results, but {}", failed.join("; "));
                    }
                    return Ok(true);
                }
            }
        }
    }
}

/// What the sources are called that run here.
fn sources_of(session: &Session) -> Vec<String> {
    let at_sites = session.sites.iter().flat_map(|site| {
        let sources = site.pipeline.stages_here().filter(|stage| stage.is_source());
        sources.map(|stage| name_at(stage, &site.pipeline.here))
    });
    at_sites.collect()
}

/// All sites that are open, the one first where a stage folds; `None` where it does not.
fn sites_of_fold(session: &Session, stage: &str) -> Option<Vec<(Bus, Pipeline)>> {
    let folds_there = |(_, pipeline): &(Bus, Pipeline)| {
        let (name, site) = stage.split_once('@').unwrap_or((stage, &pipeline.here));
        site == pipeline.here && pipeline.stages_here().any(|known| known.folds && known.name == name)
    };
    let mut sites = session.seen();
    let place = sites.iter().position(folds_there)?;
    sites.swap(0, place);
    Some(sites)
}

/// Comes when a stage was placed elsewhere at one of these sites.
async fn anything_is_placed_anew(placed: &mut [Placed]) {
    let mut changes: FuturesUnordered<_> = placed.iter_mut().map(is_placed_anew).collect();
    changes.next().await;
}

/// Whether a stage of this name only gets ready to take over.
fn is_on_its_way(session: &Session, stage: &str) -> bool {
    let (name, site) = stage.split_once('@').unwrap_or((stage, ""));
    let placement = session.sites.iter().map(|site| site.placed.borrow().placement.clone()).max_by_key(|one| one.epoch);
    let moving = placement.and_then(|placement| placement.moving);
    moving.is_some_and(|moving| {
        moving.stage == name && moving.phase != Phase::HandOver && moving.to.iter().any(|to| to == site)
    })
}

/// Runs again what a fold has lost of its changelog and therefore stopped, where nothing is lost by that; tried until the broker
/// answers. Gives how many items, with the fold and what it said.
async fn lost_again(sites: Vec<(Bus, Pipeline)>, fold: String, why: String) -> (String, String, Option<usize>) {
    loop {
        let stage = fold.split('@').next().unwrap_or(&fold);
        match run_lost_again(&sites, stage).await {
            Ok(items) => return (fold, why, items),
            Err(error) => {
                tracing::warn!(stage = fold, error = format!("{error:#}"), "what it has lost is not run again yet");
            }
        }
        tokio::time::sleep(MEND_PAUSE).await;
    }
}

/// Whether every fold of this run has its state: one that finds its changelog damaged says so before it takes anything.
async fn folds_are_restored(session: &Session, supervisor: &Supervisor) -> bool {
    let sites = session.seen();
    let Ok(beats) = heartbeats(&sites).await else { return false };
    let processes = supervisor.processes();
    let is_restored = |fold: &StageSpec| {
        let runs = |pid| processes.iter().any(|(_, process)| process.pid == pid);
        beats.iter().any(|beat| beat.stage == fold.name && runs(beat.pid) && beat.is_up())
    };
    sites.iter().flat_map(|(_, pipeline)| pipeline.stages_here()).filter(|stage| stage.folds).all(is_restored)
}

/// Whether something can be written to a folder.
fn has_room(dir: &Path) -> bool {
    let file = tempfile::tempfile_in(dir);
    file.and_then(|mut file| file.write_all(&vec![0; ROOM])).is_ok()
}

/// The place of the site whose server has ended, and how.
async fn server_ended(sites: &mut [OpenSite]) -> (usize, String) {
    let servers = sites.iter_mut().enumerate().filter_map(|(place, site)| Some((place, site.server.as_mut()?)));
    let mut ended: FuturesUnordered<_> =
        servers.map(|(place, server)| async move { (place, server.ended().await) }).collect();
    match ended.next().await {
        Some(ended) => ended,
        None => std::future::pending().await,
    }
}

/// The store and the port stay the same: clients find it again by themselves.
async fn restart_server(
    session: &mut Session,
    place: usize,
    supervisor: &Supervisor,
    why: &str,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    progress.say(&format!("nats-server ended ({why}); starting it again"));
    let Some(old) = session.sites[place].server.take() else { return Ok(()) };
    let port = old.port();
    drop(old);
    let mut last = None;
    for _ in 0..SERVER_RESTART.1 {
        let OpenSite { pipeline, credentials, .. } = &session.sites[place];
        match start_server(pipeline, &session.home, credentials.as_deref(), Some(port)).await {
            Ok(server) => {
                session.sites[place].server = Some(server);
                return session.say(&supervisor.processes());
            }
            Err(error) => last = Some(error),
        }
        tokio::time::sleep(SERVER_RESTART.0).await;
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no attempt"))).context("cannot start nats-server again")
}

/// Empties what earlier runs gave, at all these sites, and gives a generation that none of them has had.
async fn forget_all(sites: &[(Bus, Pipeline)]) -> anyhow::Result<u32> {
    let mut generation = 0;
    for (bus, pipeline) in sites {
        generation = generation.max(forget_results(bus, pipeline).await?);
    }
    Ok(generation)
}

/// Empties what earlier runs gave (outcomes, changelogs, captured items) and gives the next generation.
async fn forget_results(bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<u32> {
    let mut of_folds = Vec::new();
    for fold in pipeline.stages_here().filter(|stage| stage.folds) {
        let (changelog, snapshots) =
            (names::changelog(&pipeline.name, &fold.name), names::snapshots(&pipeline.name, &fold.name));
        let last = bus.stream_state(&changelog).await?.map_or(0, |changelog| changelog.last_sequence);
        if last > 0 {
            // First: a fold that finds neither a beginning nor this stops.
            let base = bus.store_snapshot(&fold.name, last, None, Vec::new()).await?;
            for (stream, begin) in [(&changelog, last + 1), (&snapshots, base)] {
                kept::purged(bus, stream, begin).await?;
                bus.purge_below(stream, begin).await?;
            }
        }
        of_folds.extend([changelog, snapshots]);
    }
    for wish in crate::layout::streams(pipeline).iter().filter(|wish| !of_folds.contains(&wish.name)) {
        if let Some(state) = bus.stream_state(&wish.name).await? {
            kept::purged(bus, &wish.name, state.last_sequence + 1).await?;
        }
        bus.purge(&wish.name).await?;
    }
    Ok(crate::generation::next(bus).await?)
}

/// The `--set` that points a pipeline's one folder source at `input`.
pub(crate) fn input_override(file: &std::path::Path, input: &std::path::Path) -> anyhow::Result<String> {
    let written = Pipeline::load(file);
    let pipeline = written.map_err(anyhow::Error::new)?;
    let sources: Vec<_> = pipeline.stages.iter().filter(|stage| stage.uses == "capture").collect();
    let [source] = &sources[..] else {
        bail!(
            "cannot tell which source --input is for: {} has {} of them; use --set STAGE.input=DIR",
            file.display(),
            sources.len()
        );
    };
    let input: PathBuf = match Input::of(input)? {
        Input::Path(path) => crate::session::absolute(path)?,
        Input::Device(device) => device.into(),
        Input::Stdin => "-".into(),
        Input::Url(url) => crate::input::hide_password(url)?.into(),
    };
    let path = input.to_str().with_context(|| format!("cannot use {}: its path is not UTF-8", input.display()))?;
    // An absolute path, a URL and `-` are no TOML value, and so a text whatever they hold.
    Ok(format!("{}.input={path}", source.name))
}
