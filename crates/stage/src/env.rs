use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, Outgoing, PublishError, Stored, names};
use causeway_pipelines::{Pipeline, StageSpec};
use causeway_schemas::{DeadLetter, Meta};
use clap::Parser as _;
use tokio_util::sync::CancellationToken;

use crate::held::Held;
use crate::metrics::{Count, Status};
use crate::outcomes::{dead, meta_of_unreadable, now_ns};
use crate::telemetry::Telemetry;
use crate::{Args, Context, health};

/// The pipeline file is wrong (`EX_USAGE` of sysexits.h).
pub const EXIT_PIPELINE: u8 = 64;
/// The stage cannot be built: its options, its model or its input are wrong (`EX_CONFIG` of sysexits.h). Starting it again
/// does not mend that.
pub const EXIT_UNFIT: u8 = 78;
/// A message took longer than `max_process_ms`: the process ends itself, since a thread cannot be stopped.
pub const EXIT_HUNG: u8 = 86;

/// Marks an error of a stage's `new`, which no restart mends.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be started")]
pub(crate) struct Unfit;

/// What a running stage has at hand.
pub(crate) struct Env {
    pub(crate) args: Args,
    pub(crate) pipeline: Pipeline,
    pub(crate) spec: StageSpec,
    pub(crate) bus: Bus,
    pub(crate) ctx: Context,
    pub(crate) status: Arc<Status>,
    pub(crate) stop: CancellationToken,
}

/// First and longest pause before a publish that failed is tried again.
const STORE_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// Pause before an input that could not be handled now comes again.
pub(crate) const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long a table may take to be loaded for the first time.
const TABLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a replica says how it is.
const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// Parses the arguments, reads the pipeline, connects, and runs `life` until it ends.
pub(crate) fn main(uses: &str, life: impl AsyncFnOnce(Arc<Env>) -> anyhow::Result<()>) -> ExitCode {
    let args = Args::parse();
    let pipeline = match Pipeline::load_with(&args.pipeline, &args.overrides) {
        Ok(pipeline) => pipeline,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(EXIT_PIPELINE);
        }
    };
    // One async thread: the work is on threads of its own, and what is left waits for the broker. A second one only took
    // turns with it (docs/benchmark.md).
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(run(uses, args, pipeline, life)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "stage ended");
            if error.is::<Unfit>() { ExitCode::from(EXIT_UNFIT) } else { ExitCode::FAILURE }
        }
    }
}

async fn run(
    uses: &str,
    args: Args,
    pipeline: Pipeline,
    life: impl AsyncFnOnce(Arc<Env>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let name = args.stage.clone().unwrap_or_else(|| uses.into());
    let _telemetry = Telemetry::start(&format!("causeway-{name}"), args.log_format, "info");
    let Some(spec) = pipeline.stage(&name).cloned() else {
        bail!("cannot find [stage.{name}] in {}", args.pipeline.display());
    };
    if spec.uses != uses {
        bail!("cannot run [stage.{name}]: it uses `{}`, this program is `{uses}`", spec.uses);
    }
    let stop = CancellationToken::new();
    stop_on_signals(&stop)?;
    let status = Arc::new(Status::new(&pipeline.name, &name));
    let health = health::serve(args.health, Arc::clone(&status)).await?.to_string();
    let bus =
        Bus::connect(&args.nats, &args.credentials(), &pipeline.name, &format!("{}/{name}", pipeline.name)).await?;
    let dir = args.pipeline.parent().unwrap_or(Path::new("."));
    let ctx = Context::new(&spec, dir, &args.models, args.threads);
    let env = Arc::new(Env { args, pipeline, spec, bus, ctx, status, stop });
    let beats = tokio::spawn(heartbeats(Arc::clone(&env), health.clone()));
    tracing::info!(stage = name, health, "stage starts");
    let result = life(Arc::clone(&env)).await;
    beats.abort();
    env.beat(&health, Some(&result)).await;
    env.bus.flush().await;
    tracing::info!(stage = name, handled = env.status.get(Count::Handled), "stage ends");
    result
}

/// The pipeline and the link of a subject.
fn link_of(subject: &str) -> String {
    subject.split('.').take(2).collect::<Vec<_>>().join(".")
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
        every.tick().await;
        env.status.settle();
        env.beat(&health, None).await;
    }
}

impl Env {
    async fn beat(&self, health: &str, ended: Option<&anyhow::Result<()>>) {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let replica = format!("{}-{}", host.trim(), std::process::id());
        let mut beat = self.status.heartbeat(&self.spec.name, &replica, health);
        match ended {
            None => {}
            Some(Ok(())) => beat.state = "ended".into(),
            Some(Err(error)) => beat.state = format!("failed: {error:#}"),
        }
        let key = names::token(&format!("{} {replica}", self.spec.name));
        let value = causeway_schemas::encode(&beat, causeway_schemas::Codec::Json);
        if let Err(error) = self.bus.table_put(names::REPLICAS, &key, value.into()).await {
            tracing::debug!(%error, "heartbeat not stored");
        }
    }

    /// Stores a message, however long the way there is full or cut.
    pub(crate) async fn store(&self, outgoing: &Outgoing) -> Stored {
        let mut pause = STORE_PAUSE.0;
        loop {
            match self.bus.publish(outgoing).await {
                Ok(stored) => return stored,
                Err(PublishError::Full { subject }) => self.status.blocked(&format!("{} is full", link_of(&subject))),
                Err(PublishError::NoStream { subject }) => {
                    let why = format!("no stream takes {}; run `causeway apply`", link_of(&subject));
                    self.status.blocked(&why);
                }
                Err(error) => tracing::debug!(error = %error, "not stored; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(STORE_PAUSE.1);
        }
    }

    /// Sets an input aside as a dead letter, then acks it.
    pub(crate) async fn set_aside(&self, held: &Held, reason: &str, detail: String) {
        let meta = held.meta.as_ref().cloned().unwrap_or_else(|_| meta_of_unreadable(held.id()));
        let letter = DeadLetter {
            stage: self.spec.name.clone(),
            reason: reason.into(),
            detail,
            attempts: held.delivery.delivered,
            models: self.ctx.models_used(),
            at: now_ns(),
            subject: held.delivery.subject.clone(),
            headers: held.delivery.headers.to_pairs(),
            body: held.body.to_vec(),
        };
        tracing::warn!(id = %meta.id, reason, detail = letter.detail, "message set aside");
        self.store(&dead(&self.pipeline.name, &held.place, &meta, &letter)).await;
        held.ack().await;
        self.status.count(Count::Dead, 1);
    }

    /// A captured item that is no message: a dead letter of the source.
    pub(crate) async fn set_aside_captured(&self, meta: &Meta, letter: DeadLetter) {
        let place = crate::outcomes::Place { site: self.spec.site.clone(), key: names::token(self.ctx.source()) };
        tracing::warn!(id = %meta.id, item = letter.subject, reason = letter.reason, detail = letter.detail, "item set aside");
        self.store(&dead(&self.pipeline.name, &place, meta, &letter)).await;
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
