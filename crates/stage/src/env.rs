use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::Bytes;
use causeway_bus::{Bus, Outgoing, PublishError, Stored, names};
use causeway_pipelines::{Pipeline, RELAY, StageSpec};
use causeway_schemas::{DeadLetter, Meta};
use clap::{CommandFactory as _, FromArgMatches as _};
use tokio_util::sync::CancellationToken;

use crate::export::Identity;
use crate::held::Held;
use crate::memory::keep_memory;
use crate::metrics::{Count, Heartbeat, IS_FULL, PARKED, Status};
use crate::once::{self, Work};
use crate::outcomes::{Place, link_of, meta_of_unreadable, now_ns, set_aside};
use crate::pace::Pace;
use crate::placed::{Placed, follow_placement, is_placed_anew};
use crate::probe::{self, HealthArgs};
use crate::protocol;
use crate::quarantine::inside::{self, Inside};
use crate::telemetry::start_log;
use crate::trace::{Published, TraceContext, Tracer, Wrong};
use crate::{Args, Context, health};

/// The pipeline file is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_PIPELINE: u8 = 64;
/// The stage cannot be built: its options, its model or its input are wrong (`EX_CONFIG` of sysexits.h). Starting it again
/// does not mend that.
pub const EXIT_UNFIT: u8 = 78;
/// A message took longer than `max_process_ms`: the process ends itself, since a thread cannot be stopped.
pub const EXIT_HUNG: u8 = 86;

/// A task of the runtime panicked: what Rust gives for a panic.
const EXIT_LOST_TASK: i32 = 101;

/// Marks an error of a stage's `new`, which no restart mends.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be started")]
pub(crate) struct Unfit;

/// Marks an error of a source that ended too early, which no restart mends.
#[derive(Debug, thiserror::Error)]
#[error("its source ended before its end")]
pub(crate) struct Broken;

/// What a stage's program does without a bus.
pub(crate) struct Apart<O, Q> {
    /// `--once` and `--open`.
    pub(crate) once: O,
    /// `--quarantine`.
    pub(crate) quarantine: Q,
}

/// What a running stage has at hand.
pub(crate) struct Env {
    pub(crate) args: Args,
    /// As the file has it, at the site where this runs.
    pub(crate) pipeline: Pipeline,
    /// The same as its stages are placed now.
    pub(crate) placed: Placed,
    pub(crate) spec: StageSpec,
    pub(crate) bus: Bus,
    pub(crate) ctx: Context,
    pub(crate) status: Arc<Status>,
    pub(crate) tracer: Tracer,
    /// How fast its workers are, which says how much to hold.
    pub(crate) pace: Pace,
    pub(crate) stop: CancellationToken,
}

/// First and longest pause before a publish that failed is tried again.
const STORE_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long a publish may go unanswered until the stage says so; the next attempt may take as long.
const UNANSWERED: Duration = Duration::from_secs(5);
/// Pause before an input that could not be handled now comes again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a table may take to be loaded for the first time.
const TABLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a replica says how it is.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// How long the last word of a stage may take.
const FAREWELL: Duration = Duration::from_secs(3);

/// Parses the arguments, reads the pipeline, connects, and runs `life` until it ends.
/// Where the arguments ask for it, one of `apart` instead.
pub(crate) fn main(
    uses: &str,
    life: impl AsyncFnOnce(Arc<Env>) -> anyhow::Result<()>,
    apart: Apart<impl FnOnce(&Work<'_>) -> anyhow::Result<()>, impl FnOnce(Inside<'_>) -> anyhow::Result<()>>,
) -> ExitCode {
    let args = match parse(uses) {
        Asked::Run(args) => *args,
        Asked::Health(args) => return probe::main(&args),
    };
    let pipeline = match load(&args, uses) {
        Ok(pipeline) => pipeline,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_PIPELINE);
        }
    };
    if args.once || args.open {
        return once::main(uses, &args, &pipeline, apart.once);
    }
    if args.quarantine {
        return inside::main(uses, &args, &pipeline, apart.quarantine);
    }
    keep_memory();
    end_with_a_lost_task();
    // One async thread: the work is on threads of its own, and what is left waits for the broker.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(uses, args, pipeline, life)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stage ended");
            if error.is::<Unfit>() || error.is::<Broken>() { ExitCode::from(EXIT_UNFIT) } else { ExitCode::FAILURE }
        }
    }
}

/// Reads the pipeline, as it is seen from the site where the stage runs.
fn load(args: &Args, uses: &str) -> anyhow::Result<Pipeline> {
    let pipeline = Pipeline::load_with(&args.pipeline, &args.overrides)?;
    let only = || match &spec_of(args, &pipeline, uses).ok()?.sites[..] {
        [one] => Some(one.clone()),
        _ => None,
    };
    let pipeline = match args.site.clone().or_else(only) {
        Some(site) => pipeline.at(&site)?,
        None => pipeline,
    };
    Ok(match &args.run {
        Some(run) => pipeline.of_run(run),
        None => pipeline,
    })
}

/// Ends the process when a task panics on this thread, the async one: what it did nobody would do any more. The connection's task
/// panics at headers that it cannot read; another process goes on from what is stored.
fn end_with_a_lost_task() {
    let (here, told) = (std::thread::current().id(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        told(panic);
        if std::thread::current().id() == here {
            std::process::exit(EXIT_LOST_TASK);
        }
    }));
}

/// What a stage's program is asked to do.
enum Asked {
    Run(Box<Args>),
    Health(HealthArgs),
}

/// Ends the process where the arguments are wrong, or help is all that is wanted.
fn parse(uses: &str) -> Asked {
    let program = format!("causeway-{uses}");
    let command = Args::command().display_name(program.clone()).bin_name(program).subcommand_negates_reqs(true);
    let mut command = command.subcommand(HealthArgs::command());
    let matches = command.get_matches_mut();
    let asked = match matches.subcommand() {
        Some((_, matches)) => HealthArgs::from_arg_matches(matches).map(Asked::Health),
        None => Args::from_arg_matches(&matches).map(|args| Asked::Run(Box::new(args))),
    };
    asked.unwrap_or_else(|error| error.format(&mut command).exit())
}

async fn run(
    uses: &str,
    args: Args,
    pipeline: Pipeline,
    life: impl AsyncFnOnce(Arc<Env>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = args.stage.clone().unwrap_or_else(|| uses.into());
    start_log(args.log_format, "info");
    let spec = spec_of(&args, &pipeline, uses)?;
    // What is no source may be moved here.
    let is_fixed = spec.is_source() || uses == RELAY;
    if (is_fixed && !spec.runs_at(&pipeline.here)) || (args.site.is_none() && spec.sites.len() > 1) {
        let sites = spec.sites.join(", ");
        let why = if args.site.is_some() { "it does not run there" } else { "say at which site with --site" };
        return Err(anyhow!("[stage.{name}] runs at {sites}: {why}").context(Unfit));
    }
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let status = Arc::new(Status::new(&pipeline.name, &name, &pipeline.here, spec.max_process));
    let health = health::serve(args.health, Arc::clone(&status)).await?.to_string();
    let bus = Bus::connect(&args.nats, &args.credentials(&name), &pipeline.name, &format!("{}/{name}", pipeline.name))
        .await?
        .without_consumers();
    let ctx = Context::new(&spec, args.pipeline_dir(), &args.models, args.threads).at(&spec, &pipeline.here);
    let site = &pipeline.here;
    let identity = Identity { pipeline: &pipeline.name, stage: &name, site, replica: &replica(), nats: &args.nats };
    let tracer = Tracer::start(&identity, status.spans());
    let placed = follow_placement(&bus, &pipeline).await;
    let env = Arc::new(Env { args, pipeline, placed, spec, bus, ctx, status, tracer, pace: Pace::default(), stop });
    let beats = tokio::spawn(heartbeats(Arc::clone(&env), health.clone()));
    tracing::info!(stage = name, health, "stage starts");
    let result = if is_fixed || env.is_placed_here().await { life(Arc::clone(&env)).await } else { Ok(()) };
    beats.abort();
    let farewell = async {
        env.beat(&health, Some(&result)).await;
        env.bus.flush().await;
    };
    // Where the broker went first, as when all containers are stopped at once, nobody hears it.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    env.tracer.end().await;
    tracing::info!(stage = name, handled = env.status.get(Count::Handled), "stage ends");
    result
}

/// The stage that the arguments name.
pub(crate) fn spec_of(args: &Args, pipeline: &Pipeline, uses: &str) -> anyhow::Result<StageSpec> {
    let name = args.stage.as_deref().unwrap_or(uses);
    if uses == RELAY {
        let only = || format!("{} has one site: nothing crosses", args.pipeline.display());
        return pipeline.relay().with_context(only);
    }
    let Some(spec) = pipeline.stage(name).cloned() else {
        bail!("cannot find [stage.{name}] in {}", args.pipeline.display());
    };
    if spec.uses != uses {
        bail!("cannot run [stage.{name}]: it uses `{}`, this program is `{uses}`", spec.uses);
    }
    Ok(spec)
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}

async fn heartbeats(env: Arc<Env>, health: String) {
    let mut every = tokio::time::interval(HEARTBEAT_EVERY);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            // Somebody may wait for that.
            () = env.status.becomes_ready() => {}
        }
        env.status.settle();
        env.status.models(&env.ctx.models_used());
        env.beat(&health, None).await;
    }
}

/// What a replica says, as an entry of their table.
pub(crate) fn entry_of(name: &str, replica: &str, beat: &Heartbeat) -> (String, Bytes) {
    let key = format!("{}.{}", names::token(name), names::token(replica));
    (key, causeway_schemas::encode(beat, causeway_schemas::Codec::Json).into())
}

/// What a replica is called: its host and its process.
pub(crate) fn replica() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

impl Env {
    /// Waits until its stage is placed here, or on the move here; `false`: it was told to stop before.
    async fn is_placed_here(&self) -> bool {
        let mut placed = self.placed.clone();
        loop {
            let here = &self.pipeline.here;
            if placed.borrow_and_update().stage(&self.spec.name).is_none_or(|spec| spec.runs_at(here)) {
                self.status.set_idle(None);
                return true;
            }
            tracing::info!(site = here, "parked: its stage runs elsewhere");
            self.status.set_idle(Some(PARKED));
            tokio::select! {
                () = self.stop.cancelled() => return false,
                () = is_placed_anew(&mut placed) => {}
            }
        }
    }

    async fn beat(&self, health: &str, ended: Option<&anyhow::Result<()>>) {
        let replica = replica();
        let mut beat = self.status.heartbeat(&self.spec.name, &replica, health);
        match ended {
            None => {}
            Some(Ok(())) => beat.state = "ended".into(),
            Some(Err(error)) => beat.state = format!("failed: {error:#}"),
        }
        let (key, value) = entry_of(&self.spec.name, &replica, &beat);
        if let Err(error) = self.bus.table_put(names::REPLICAS, &key, value).await {
            tracing::debug!(%error, "heartbeat not stored");
        }
    }

    /// Stores a message, however long the way there is full or cut.
    pub(crate) async fn store(&self, outgoing: &Outgoing) -> Published {
        let began = Instant::now();
        let stored = self.stored(outgoing).await;
        let ended = Instant::now();
        self.status.published(ended - began);
        Published { began, ended, stored }
    }

    async fn stored(&self, outgoing: &Outgoing) -> Stored {
        let (began, mut pause) = (Instant::now(), STORE_PAUSE.0);
        loop {
            let published = self.bus.publish(outgoing).await;
            if let Some(stored) = protocol::stored(&published) {
                return stored;
            }
            match published {
                Ok(_) => {}
                Err(PublishError::Full { subject }) => self.status.blocked(&(link_of(&subject) + IS_FULL), pause),
                Err(PublishError::NoStream { subject }) => {
                    let why = format!("no stream takes {}; run `causeway apply`", link_of(&subject));
                    self.status.blocked(&why, pause);
                }
                Err(error) => {
                    tracing::debug!(error = %error, "not stored; trying again");
                    // A broker that is just coming back is no news; one that takes messages and does not store them is.
                    if began.elapsed() > UNANSWERED {
                        let why =
                            link_of(&outgoing.subject) + " is not stored: the broker does not answer, or cannot write";
                        self.status.blocked(&why, pause + UNANSWERED);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(STORE_PAUSE.1);
        }
    }

    /// Where what is captured here goes.
    pub(crate) fn place(&self) -> Place {
        Place { site: self.pipeline.here.clone(), key: names::token(&self.spec.name) }
    }

    /// What is stored of an input that is set aside.
    pub(crate) fn set_aside(&self, held: &Held, reason: &str, detail: &str) -> Vec<Outgoing> {
        let mut meta = held.meta.as_ref().cloned().unwrap_or_else(|_| meta_of_unreadable(held.id()));
        if let Some(trace) = held.trace() {
            meta.traceparent = Some(trace.output().failed().traceparent());
        }
        let letter = DeadLetter {
            stage: self.spec.name.clone(),
            reason: reason.into(),
            detail: detail.into(),
            attempts: held.delivery.delivered,
            models: self.ctx.models_used(),
            at: now_ns(),
            subject: held.delivery.subject.clone(),
            headers: held.delivery.headers.to_pairs(),
            body: held.body.to_vec(),
        };
        tracing::warn!(id = %meta.id, reason, detail, "message set aside");
        set_aside(&self.pipeline, &held.place, &meta, &letter)
    }

    /// A captured item that is no message: a dead letter of the source.
    pub(crate) async fn set_aside_captured(&self, trace: TraceContext, meta: &Meta, letter: DeadLetter) {
        tracing::warn!(id = %meta.id, item = letter.subject, reason = letter.reason, detail = letter.detail, "item set aside");
        let stored = set_aside(&self.pipeline, &self.place(), meta, &letter);
        let wrong = Wrong { kind: &letter.reason, detail: &letter.detail };
        let mut published = Vec::new();
        for one in &stored {
            published.push(self.store(one).await);
        }
        if let (Some(dead), Some(published)) = (stored.first(), published.into_iter().next()) {
            self.tracer.captured(trace, dead, published, Some(wrong));
        }
        self.status.count(Count::Dead, 1);
    }

    /// Follows the tables that the stage asked for; returns once each was loaded for the first time.
    pub(crate) async fn load_tables(&self) -> anyhow::Result<()> {
        for (name, table) in self.ctx.tables() {
            let (loaded, is_loaded) = tokio::sync::oneshot::channel();
            let mut loaded = Some(loaded);
            let bus = self.bus.clone();
            let followed = name.clone();
            tokio::spawn(async move {
                bus.follow_table(&followed, move |follow| {
                    if !table.tell(&follow)
                        && let Some(loaded) = loaded.take()
                    {
                        let _ = loaded.send(());
                    }
                })
                .await;
            });
            tokio::time::timeout(TABLE_TIMEOUT, is_loaded)
                .await
                .with_context(|| format!("cannot load the table `{name}` within {TABLE_TIMEOUT:?}"))??;
        }
        Ok(())
    }
}
