use std::any::Any;
use std::borrow::Cow;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use causeway_bus::{BusError, Delivery, Outgoing, Pull, names};
use causeway_pipelines::{Phase, Pipeline};
use causeway_schemas::{Capture, DecodeError, Message, MetaError, decode};
use futures::future::join_all;
use tokio::sync::mpsc as tokio_mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::again::is_for_another;
use crate::env::{self, Apart, EXIT_HUNG, Env, RETRY_PAUSE, Unfit};
use crate::guard::guard;
use crate::held::{Held, Holding};
use crate::inputs::Inputs;
use crate::memory::give_back_memory;
use crate::metrics::{Count, STANDS_BY};
use crate::once;
use crate::outcomes;
use crate::placed::is_placed_anew;
use crate::protocol::{Step, TOO_MUCH, Way as How, steps, too_much, way};
use crate::quarantine::inside;
use crate::runs;
use crate::trace::{Work, Wrong};
use crate::{Answer, Failure, Stage};

/// What a `main` of a stage says.
pub fn stage_main<S: Stage>() -> ExitCode {
    env::main(S::NAME, live::<S>, Apart { once: once::stage::<S>, quarantine: inside::stage::<S> })
}

/// Pause before a message that needs a newer reader is looked at again.
const NEWER_PAUSE: Duration = Duration::from_secs(30);

/// How often it is looked whether a batch takes too long.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// What became of one input.
pub(crate) struct Done {
    pub(crate) held: Arc<Held>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone)]
pub(crate) enum Verdict {
    /// Store these, then ack.
    Outputs {
        outputs: Vec<Outgoing>,
        empty: bool,
    },
    Reject {
        reason: Cow<'static, str>,
        detail: String,
    },
    Retry {
        why: String,
        pause: Duration,
    },
}

/// Pull, process, publish, ack, drain.
async fn live<S: Stage>(env: Arc<Env>) -> anyhow::Result<()> {
    let holding = Holding::new(&env);
    let (work, worked) = mpsc::channel::<Arc<Held>>();
    let (again, came_again) = tokio_mpsc::unbounded_channel::<Arc<Held>>();
    let (done, mut finished) = tokio_mpsc::unbounded_channel::<Done>();
    let workers = start_workers::<S>(&env, worked, &done).await?;
    drop(done);
    env.load_tables().await?;
    let now = env.placed.borrow().clone();
    // While it is handed over some of them may be gone already.
    if now.placement.phase() != Some(Phase::HandOver) {
        for stream in taken(&env, &now) {
            pull_of(&env, &stream).check().await?;
        }
    }
    let alive = tokio::spawn(Arc::clone(&holding).keep_alive());
    tokio::spawn(take(Arc::clone(&env), Arc::clone(&holding), Ways { work, again }));
    let finishing = TaskTracker::new();
    let guarding = tokio::spawn(guard::<S::Output>(Arc::clone(&env), came_again, finishing.clone()));
    env.status.set_ready();

    let drained = async {
        // Ends when every fetcher has stopped (the workers' channel closes), and with it every worker.
        while let Some(done) = finished.recv().await {
            let env = Arc::clone(&env);
            finishing.spawn(async move { finish(&env, done).await });
        }
        if env.stop.is_cancelled() {
            let _ = guarding.await;
        }
        finishing.close();
        finishing.wait().await;
    };
    tokio::pin!(drained);
    tokio::select! {
        () = &mut drained => {}
        () = env.stop.cancelled() => {
            env.status.set_draining();
            if tokio::time::timeout(env.args.drain, &mut drained).await.is_err() {
                tracing::warn!(deadline = ?env.args.drain, "not drained in time; what is held comes again elsewhere");
            }
        }
    }
    alive.abort();
    // A worker that ended of its own accord ended by an error that nobody else would tell.
    if !env.stop.is_cancelled() {
        for worker in workers {
            worker.join().map_err(|panic| anyhow!("a worker ended: {}", panic_text(panic.as_ref())))??;
        }
        bail!("the workers ended");
    }
    Ok(())
}

/// The streams that the stage takes from here.
fn taken(env: &Env, now: &Pipeline) -> Vec<String> {
    let Some(spec) = now.stage(&env.spec.name) else { return Vec::new() };
    now.plan().taken_here(spec).into_iter().map(|from| names::stream(&now.name, from)).collect()
}

fn pull_of(env: &Env, stream: &str) -> Pull {
    Pull::shared(&env.bus, stream, &env.spec.name, env.pace.held(&env.spec))
}

/// Takes from all that it takes from here, until it is stopped. A move changes what that is; where its stage is no more, it ends.
async fn take(env: Arc<Env>, holding: Arc<Holding>, ways: Ways) {
    let (fetching, mut placed) = (TaskTracker::new(), env.placed.clone());
    let mut fetchers: HashMap<String, CancellationToken> = HashMap::new();
    while !env.stop.is_cancelled() {
        let now = placed.borrow_and_update().clone();
        let streams = taken(&env, &now);
        fetchers.retain(|stream, stop| {
            let stays = streams.contains(stream);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for stream in &streams {
            if !fetchers.contains_key(stream) {
                let stop = env.stop.child_token();
                fetching.spawn(fetch(
                    Arc::clone(&env),
                    pull_of(&env, stream),
                    Arc::clone(&holding),
                    ways.clone(),
                    stop.clone(),
                ));
                fetchers.insert(stream.clone(), stop);
            }
        }
        env.status.set_idle(streams.is_empty().then_some(STANDS_BY));
        if now.stage(&env.spec.name).is_some_and(|spec| !spec.runs_at(&now.here)) {
            tracing::info!(site = now.here, "its stage was moved: it ends here");
            env.stop.cancel();
        }
        tokio::select! {
            () = env.stop.cancelled() => {}
            () = is_placed_anew(&mut placed) => {}
        }
    }
    fetching.close();
    fetching.wait().await;
}

/// Where inputs go: those that come for the first time into batches, others through the guard.
#[derive(Clone)]
struct Ways {
    work: mpsc::Sender<Arc<Held>>,
    again: tokio_mpsc::UnboundedSender<Arc<Held>>,
}

async fn fetch(env: Arc<Env>, mut pull: Pull, holding: Arc<Holding>, ways: Ways, stop: CancellationToken) {
    loop {
        pull.set_held(env.pace.held(&env.spec));
        let delivery = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            delivery = pull.next() => delivery,
        };
        let Some(held) = hold(&env, &holding, delivery).await else { continue };
        let sent = match way(held.delivery.delivered) {
            How::Alone => ways.again.send(held).is_ok(),
            How::Batch => ways.work.send(held).is_ok(),
        };
        if !sent {
            return;
        }
    }
}

/// Holds a delivery with its whole body. `None`: it is meant for another stage; or the body is not there, and the message was
/// set aside or comes again.
pub(crate) async fn hold(env: &Env, holding: &Arc<Holding>, delivery: Delivery) -> Option<Arc<Held>> {
    let received = Instant::now();
    if is_for_another(&delivery, &env.spec) {
        delivery.ack().await;
        return None;
    }
    match env.bus.body(&delivery.headers, delivery.body.clone()).await {
        Ok(body) => Some(holding.hold(delivery, body, received, &env.pipeline.here)),
        Err(error @ BusError::NoBody(_)) => {
            let body = delivery.body.clone();
            let held = holding.hold(delivery, body, received, &env.pipeline.here);
            let verdict = Verdict::Reject { reason: "body-missing".into(), detail: error.to_string() };
            finish(env, Done { held, verdict }).await;
            None
        }
        Err(error) => {
            tracing::warn!(%error, "body not fetched; the message comes again");
            delivery.retry_after(RETRY_PAUSE).await;
            None
        }
    }
}

type WorkerHandle = std::thread::JoinHandle<anyhow::Result<()>>;

/// Starts the workers; returns when each has built its stage.
async fn start_workers<S: Stage>(
    env: &Arc<Env>,
    worked: mpsc::Receiver<Arc<Held>>,
    done: &tokio_mpsc::UnboundedSender<Done>,
) -> anyhow::Result<Vec<WorkerHandle>> {
    let inputs = Arc::new(Mutex::new(Inputs::new(worked, env.spec.workers)));
    let mut workers = Vec::new();
    for number in 0..env.spec.workers {
        let (built, is_built) = tokio::sync::oneshot::channel();
        let watch = Watch::default();
        tokio::spawn(watch.clone().watch(env.spec.name.clone()));
        let (env, inputs, done) = (Arc::clone(env), Arc::clone(&inputs), done.clone());
        let worker = std::thread::Builder::new().name(format!("{}-{number}", S::NAME)).spawn(move || {
            let stage = match build::<S>(&env) {
                Ok(stage) => {
                    let _ = built.send(Ok(()));
                    stage
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                    return Ok(());
                }
            };
            Worker { env, stage, watch }.work(&inputs, &done)
        })?;
        is_built.await??;
        workers.push(worker);
    }
    Ok(workers)
}

fn build<S: Stage>(env: &Env) -> anyhow::Result<S> {
    let options = env.spec.options::<S::Options>().map_err(|why| anyhow!(why))?;
    let built = S::new(options, &env.ctx).context(Unfit);
    give_back_memory();
    built
}

/// One instance of a stage on its thread.
struct Worker<S> {
    env: Arc<Env>,
    stage: S,
    watch: Watch,
}

impl<S: Stage> Worker<S> {
    fn work(mut self, inputs: &Mutex<Inputs>, done: &tokio_mpsc::UnboundedSender<Done>) -> anyhow::Result<()> {
        loop {
            let batch = {
                let mut inputs = inputs.lock().map_err(|_| anyhow!("another worker ended while it waited"))?;
                inputs.next_batch(self.env.spec.batch.max, self.env.spec.batch.wait)
            };
            let Some(batch) = batch else { return Ok(()) };
            for one in self.handle(batch)? {
                let _ = done.send(one);
            }
        }
    }

    fn handle(&mut self, batch: Vec<Arc<Held>>) -> anyhow::Result<Vec<Done>> {
        let mut done = Vec::with_capacity(batch.len());
        let (mut ready, mut inputs) = (Vec::new(), Vec::new());
        for held in batch {
            match read::<S::Input>(&held) {
                Ok(input) => {
                    ready.push(held);
                    inputs.push(input);
                }
                Err(verdict) => done.push(Done { held, verdict }),
            }
        }
        if inputs.is_empty() {
            return Ok(done);
        }
        let count = inputs.len();
        match self.process(&ready, inputs) {
            Ok(replies) => {
                let verdicts =
                    ready.iter().zip(replies).map(|(held, reply)| verdict(&self.env, held, reply)).collect::<Vec<_>>();
                done.extend(ready.into_iter().zip(verdicts).map(|(held, verdict)| Done { held, verdict }));
            }
            Err(panic) if count == 1 => {
                self.stage = build::<S>(&self.env)?;
                let verdict = Verdict::Reject { reason: PANICKED.into(), detail: panic };
                done.extend(ready.into_iter().map(|held| Done { held, verdict: verdict.clone() }));
            }
            Err(panic) => {
                tracing::error!(panic, count, "a batch panicked; each message of it is tried alone");
                self.stage = build::<S>(&self.env)?;
                for held in ready {
                    done.extend(self.handle(vec![held])?);
                }
            }
        }
        Ok(done)
    }

    /// Runs `process`; an error is the text of a panic.
    fn process(&mut self, held: &[Arc<Held>], inputs: Vec<S::Input>) -> Result<Vec<Reply<S::Output>>, String> {
        let captures: Vec<_> = inputs.iter().map(|input| input.capture().clone()).collect();
        let count = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        let began = Instant::now();
        self.watch.set(Some(began + self.env.spec.max_process * count));
        let (answers, runs) = runs::noted(|| catch_unwind(AssertUnwindSafe(|| self.stage.process(inputs))));
        self.watch.set(None);
        let took = began.elapsed();
        self.env.pace.measured(took, held.len());
        self.env.status.processed(took, held);
        self.env.status.model_runs(&runs);
        let work = Arc::new(Work { began, count: held.len(), runs });
        for held in held {
            held.worked(&work);
        }
        let mut answers = answers.map_err(|panic| panic_text(panic.as_ref()))?.into_iter();
        Ok(captures.into_iter().map(|capture| Reply { capture, answer: answers.next() }).collect())
    }
}

/// What `process` said of one input.
struct Reply<O> {
    capture: Capture,
    /// None when it said less than it was asked.
    answer: Option<Result<Answer<O>, Failure>>,
}

/// The reason of an input at which its stage panics, alone.
pub(crate) const PANICKED: &str = "panicked";

/// What a reply asks of the broker.
fn verdict<O: Message>(env: &Env, held: &Held, reply: Reply<O>) -> Verdict {
    let Reply { capture, answer } = reply;
    match answer {
        None => no_answer(),
        Some(Ok(Answer::Nothing { reason, detail })) => nothing(env, held, capture, reason, detail),
        Some(Ok(Answer::Messages(messages))) => outputs_of(env, held, capture, &messages),
        Some(Err(failure)) => failed(failure),
    }
}

/// What an input asks of the broker at which its stage failed.
pub(crate) fn failed(failure: Failure) -> Verdict {
    match failure {
        Failure::Reject { reason, detail } => Verdict::Reject { reason: reason.into(), detail },
        Failure::Retry(why) => Verdict::Retry { why, pause: RETRY_PAUSE },
    }
}

/// What an input asks of the broker that rightly gave nothing.
pub(crate) fn nothing(env: &Env, held: &Held, capture: Capture, reason: &str, detail: String) -> Verdict {
    let Ok(parent) = &held.meta else { return no_answer() };
    let mut meta = parent.clone();
    meta.traceparent = held.trace().map(|trace| trace.output().traceparent()).or(meta.traceparent);
    let empty = outcomes::empty(&env.pipeline, &env.spec.name, &held.place, &meta, capture, reason, detail);
    Verdict::Outputs { outputs: vec![empty], empty: true }
}

/// What an input asks of the broker that gave these.
pub(crate) fn outputs_of<O: Message>(env: &Env, held: &Held, capture: Capture, messages: &[O]) -> Verdict {
    let Env { pipeline, spec, .. } = env;
    let Ok(parent) = &held.meta else { return no_answer() };
    let reject = |detail| Verdict::Reject { reason: TOO_MUCH.into(), detail };
    let count = messages.len();
    if count == 0 {
        return nothing(env, held, capture, "nothing", String::new());
    }
    if let Some(detail) = too_much(count, 0) {
        return reject(detail);
    }
    let outputs = messages.iter().enumerate().map(|(index, message)| {
        let meta = held.child_meta(parent, &spec.name, O::kind(), index, count);
        outcomes::output(pipeline, &spec.name, &spec.link, &held.place, &meta, message)
    });
    let outputs: Vec<_> = outputs.collect();
    if let Some(detail) = too_much(count, outputs.iter().map(|output| output.body.len()).sum()) {
        return reject(detail);
    }
    Verdict::Outputs { outputs, empty: false }
}

pub(crate) fn no_answer() -> Verdict {
    Verdict::Reject { reason: "unanswered".into(), detail: "the stage gave no result for this input".into() }
}

/// What becomes of an input whose headers do not read.
pub(crate) fn unreadable(error: &MetaError) -> Verdict {
    Verdict::Reject { reason: "bad-headers".into(), detail: error.to_string() }
}

/// Pause before an input comes again whose body does not read: `None` where it never will.
pub(crate) fn comes_again(error: &DecodeError) -> Option<Duration> {
    matches!(error, DecodeError::Newer { .. }).then_some(NEWER_PAUSE)
}

/// The message in an input, or what becomes of an input that holds none.
pub(crate) fn read<M: Message>(held: &Held) -> Result<M, Verdict> {
    if let Err(error) = &held.meta {
        return Err(unreadable(error));
    }
    let headers = &held.delivery.headers;
    decode(headers.kind(), headers.codec(), &held.body).map_err(|error| match comes_again(&error) {
        Some(pause) => Verdict::Retry { why: error.to_string(), pause },
        None => Verdict::Reject { reason: error.reason().into(), detail: error.to_string() },
    })
}

/// Does with an answer what the contract asks, step by step.
pub(crate) async fn finish(env: &Env, done: Done) {
    let Done { held, verdict } = done;
    let stores = match &verdict {
        Verdict::Outputs { outputs, .. } => outputs.clone(),
        Verdict::Reject { reason, detail } => env.set_aside(&held, reason, detail),
        Verdict::Retry { why, pause } => {
            tracing::warn!(id = %held.id(), why, ?pause, "message comes again");
            env.status.waits(why, *pause);
            Vec::new()
        }
    };
    let (mut published, mut settled) = (Vec::new(), None);
    for step in steps(&verdict) {
        match (step, &verdict) {
            (Step::Store, _) => published = join_all(stores.iter().map(|one| env.store(one))).await,
            (Step::CloseLetter, _) => env.close_letter(&held).await,
            (Step::Ack, _) => settled = Some(held.ack().await),
            (Step::Later, Verdict::Retry { pause, .. }) => settled = Some(held.retry_after(*pause).await),
            (Step::Later, _) => settled = Some(held.retry_after(RETRY_PAUSE).await),
        }
    }
    let (wrong, counts) = match &verdict {
        Verdict::Outputs { empty, .. } => {
            let kind = if *empty { Count::Empty } else { Count::Given };
            (None, [(Count::Handled, 1), (kind, stores.len() as u64)])
        }
        Verdict::Reject { reason, detail } => {
            (Some(Wrong { kind: reason, detail }), [(Count::Dead, 1), (Count::Retried, 0)])
        }
        Verdict::Retry { why, .. } => {
            (Some(Wrong { kind: "retry", detail: why }), [(Count::Dead, 0), (Count::Retried, 1)])
        }
    };
    if let Some(settled) = settled {
        let published: Vec<_> = stores.iter().zip(published).collect();
        held.traced(&published, settled, wrong);
    }
    for (count, by) in counts {
        env.status.count(count, by);
    }
}

/// Ends the process when a batch takes longer than it may: a thread cannot be stopped, and its messages must go elsewhere.
#[derive(Clone, Default)]
struct Watch(Arc<Mutex<Option<Instant>>>);

impl Watch {
    /// A batch begins and has to end by `deadline`; `None`: it has ended.
    fn set(&self, deadline: Option<Instant>) {
        *self.0.lock().expect("no holder of a deadline panics") = deadline;
    }

    async fn watch(self, stage: String) {
        let mut every = tokio::time::interval(WATCH_EVERY);
        loop {
            every.tick().await;
            let deadline = *self.0.lock().expect("no holder of a deadline panics");
            if deadline.is_some_and(|deadline| Instant::now() > deadline) {
                tracing::error!(stage, "a batch takes longer than max_process_ms allows; the process ends");
                std::process::exit(i32::from(EXIT_HUNG));
            }
        }
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a text".into())
}
