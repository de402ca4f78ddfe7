use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use bytes::Bytes;
use causeway_bus::{BusError, CHANGE, Delivery, PublishError, Pull, names};
use causeway_schemas::{Codec, Id, Message, decode, decode_body, encode};
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::env::{self, Apart, Env, RETRY_PAUSE, Unfit};
use crate::guard::tried;
use crate::held::{Held, Holding};
use crate::once;
use crate::outcomes;
use crate::protocol::{Way, way};
use crate::quarantine::{Quarantine, inside};
use crate::stage_life::{Done, Verdict, failed, finish, hold, read};
use crate::trace::Work;
use crate::unfolded::Unfolded;
use crate::{Failure, Fold};

/// What a `main` of a fold says.
pub fn fold_main<F: Fold>() -> ExitCode {
    env::main(F::NAME, live::<F>, Apart { once: once::fold::<F>, quarantine: inside::fold::<F> })
}

/// Fewest messages that the writer holds at once.
const PINNED_HELD: usize = 64;
/// After this long without an append another writer may have been at work: the changelog is looked at first.
const FRESH: Duration = Duration::from_millis(200);

/// How many of the newest outcomes are held against the changelog at the start.
const ANSWERS: u64 = 1000;

/// The changelog is not what it was: a state made of it would give other clusters, ids and merges than the outcomes tell.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot restore [stage.{stage}]: {what}; the broker lost it, or somebody removed it. Bring {stream} back from a backup, {or}or run \
     everything anew: `causeway up --again`"
)]
struct Damaged {
    stage: String,
    stream: String,
    what: String,
    /// What else can be done.
    or: &'static str,
}

/// What mends a changelog that has lost its end.
const RECONCILE: &str = "or let `causeway reconcile` run again what is kept of it, ";

/// One writer: restores its state from the changelog, then appends each batch of changes before it acks their inputs. Every
/// append names the sequence before it, so that a second writer, or one that slept, is refused by the server.
async fn live<F: Fold>(env: Arc<Env>) -> anyhow::Result<()> {
    let mut writer = Writer::<F>::start(&env).await?;
    env.load_tables().await?;
    writer.restore().await?;
    let holding = Holding::new(&env);
    let [from] = &env.spec.from[..] else {
        anyhow::bail!("a fold takes from one stage; [stage.{}] takes from {}", env.spec.name, env.spec.from.len());
    };
    let held = PINNED_HELD.max(2 * env.spec.batch.max);
    let mut pull = Pull::pinned(&env.bus, &names::stream(&env.pipeline.name, from), &env.spec.name, held);
    pull.check().await?;
    let alive = tokio::spawn(Arc::clone(&holding).keep_alive());
    env.status.set_ready();
    loop {
        let batch = tokio::select! {
            biased;
            () = env.stop.cancelled() => break,
            batch = next_batch(&env, &mut pull) => batch,
        };
        let (mut first, mut again) = (Vec::with_capacity(batch.len()), Vec::new());
        for delivery in batch {
            let way = way(delivery.delivered);
            let held = hold(&env, &holding, delivery).await;
            match way {
                Way::Batch => first.extend(held),
                Way::Alone => again.extend(held),
            }
        }
        if !first.is_empty() {
            writer.handle(first).await?;
        }
        for held in again {
            writer.handle_again(held).await?;
        }
    }
    env.status.set_draining();
    writer.finishing.close();
    if tokio::time::timeout(env.args.drain, writer.finishing.wait()).await.is_err() {
        tracing::warn!(deadline = ?env.args.drain, "not drained in time; what is held comes again elsewhere");
    }
    alive.abort();
    Ok(())
}

/// The first delivery as soon as there is one, with what is there already and more as it comes within the batch's wait.
async fn next_batch(env: &Env, pull: &mut Pull) -> Vec<Delivery> {
    let mut batch = vec![pull.next().await];
    let deadline = Instant::now() + env.spec.batch.wait;
    while batch.len() < env.spec.batch.max {
        // Both ways leave the pull as it was when nothing comes.
        let next = match pull.next().now_or_never() {
            None if env.spec.batch.wait.is_zero() => None,
            None => tokio::time::timeout_at(deadline.into(), pull.next()).await.ok(),
            some => some,
        };
        let Some(delivery) = next else { break };
        batch.push(delivery);
    }
    batch
}

struct Writer<F: Fold> {
    env: Arc<Env>,
    state: State<F>,
    /// The last sequence of the changelog that the state knows.
    last: u64,
    /// What the outcomes tell of inputs whose change is lost, by input.
    told: Arc<HashMap<Id, F::Output>>,
    appended_at: Instant,
    quarantine: Quarantine,
    /// Inputs whose change is appended and whose output is being stored.
    finishing: TaskTracker,
}

/// An outcome of the fold.
struct Answered {
    /// What it answers.
    input: Id,
    root: Id,
    sequence: u64,
}

/// An input with the change it makes, or why it makes none.
struct Decided<F: Fold> {
    held: Arc<Held>,
    change: Result<F::Change, Verdict>,
    /// Whether the change was there before.
    known: bool,
    output: Option<F::Output>,
}

impl<F: Fold> Writer<F> {
    async fn start(env: &Arc<Env>) -> anyhow::Result<Self> {
        let state = State::start(env).await?;
        let finishing = TaskTracker::new();
        Ok(Self {
            env: Arc::clone(env),
            state,
            last: 0,
            told: Arc::default(),
            appended_at: Instant::now(),
            quarantine: Quarantine::new(env),
            finishing,
        })
    }

    /// The state that the changelog says, if it is whole, or `causeway reconcile` has seen to what it lost.
    async fn restore(&mut self) -> anyhow::Result<()> {
        // Before the changelog: a change is there before its outcome.
        let newest = self.answered(ANSWERS).await?;
        self.catch_up().await?;
        self.told = Arc::default();
        let Env { bus, spec, .. } = &*Arc::clone(&self.env);
        let before = Unfolded::read(bus, &spec.name).await?;
        if self.unknown(newest).await?.is_empty() && before == Unfolded::default() {
            return Ok(());
        }
        // Seldom: so all of them are looked at.
        let all = self.answered(u64::MAX).await?;
        self.catch_up().await?;
        let lost = self.unknown(all).await?;
        let now = before.with(lost.iter().map(|answer| answer.root));
        if now != before {
            now.store(bus, &spec.name).await?;
        }
        if lost.is_empty() {
            return Ok(());
        }
        let count = lost.len();
        if let Some(first) = lost.iter().find(|answer| !now.settled.contains(&answer.root)) {
            let what = format!(
                "its outcomes tell of {count} that it knows nothing of, {} the first; the changelog ends at {}",
                first.input, self.last
            );
            return Err(self.damaged(what, if now.open.is_empty() { "" } else { RECONCILE }));
        }
        tracing::warn!(
            lost = count,
            "the changelog has lost changes; they are made again as outcomes tell them, as far as their inputs come again"
        );
        let mut told = HashMap::new();
        for Answered { input, sequence, .. } in lost {
            let stream = names::stream(&self.env.pipeline.name, &spec.name);
            let Some(record) = bus.message_at(&stream, sequence).await? else { continue };
            let body = bus.body(&record.headers, record.body.clone()).await?;
            let output = decode::<F::Output>(record.headers.kind(), record.headers.codec(), &body);
            // One that does not read is decided like a new one.
            told.extend(output.ok().map(|output| (input, output)));
        }
        self.told = told.into();
        Ok(())
    }

    /// Of these, the ones that the state knows nothing of.
    async fn unknown(&self, mut answered: Vec<Answered>) -> anyhow::Result<Vec<Answered>> {
        let unknown = move |fold: &mut F| {
            answered.retain(|answer| fold.known(answer.input).is_none());
            answered
        };
        self.state.run(unknown).await
    }

    /// The newest outcomes, at most so many, where the output is an outcome; asked for until the broker answers.
    async fn answered(&self, most: u64) -> anyhow::Result<Vec<Answered>> {
        let Env { pipeline, spec, .. } = &*self.env;
        if !pipeline.is_final(&spec.name) {
            return Ok(Vec::new());
        }
        loop {
            match self.newest_answers(&names::stream(&pipeline.name, &spec.name), most).await {
                Ok(answered) => return Ok(answered),
                Err(error) => tracing::warn!(%error, "outcomes not read; trying again"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn newest_answers(&self, stream: &str, most: u64) -> Result<Vec<Answered>, BusError> {
        let last = self.env.bus.stream_state(stream).await?.map_or(0, |state| state.last_sequence);
        let mut records = self.env.bus.scan(stream, (last + 1).saturating_sub(most).max(1), true).await?;
        let mut answered = Vec::new();
        while let Some(record) = records.next().await {
            let record = record?;
            let meta = record.headers.meta().ok();
            // What a stranger put there has no parent.
            answered.extend(
                meta.and_then(|meta| {
                    Some(Answered { input: meta.parent?, root: meta.root, sequence: record.sequence })
                }),
            );
        }
        Ok(answered)
    }

    fn damaged(&self, what: String, or: &'static str) -> anyhow::Error {
        let Env { pipeline, spec, .. } = &*self.env;
        let stream = names::changelog(&pipeline.name, &spec.name);
        anyhow::Error::new(Damaged { stage: spec.name.clone(), stream, what, or }).context(Unfit)
    }

    /// Applies what the changelog has beyond what the state knows, however long the broker is away.
    async fn catch_up(&mut self) -> anyhow::Result<()> {
        while let Err(error) = self.read_changelog().await {
            match error.downcast_ref::<BusError>() {
                Some(_) => tracing::warn!(error = format!("{error:#}"), "changelog not read; trying again"),
                None => return Err(error),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }

    async fn read_changelog(&mut self) -> anyhow::Result<()> {
        let stream = names::changelog(&self.env.pipeline.name, &self.env.spec.name);
        let before = self.env.bus.stream_state(&stream).await?;
        let before = before.with_context(|| format!("cannot find the changelog {stream}; run `causeway apply`"))?;
        let mut records = self.env.bus.scan(&stream, self.last + 1, false).await?;
        let mut count = 0_u64;
        // One that was emptied begins where it ended.
        let mut next = before.first_sequence.max(self.last + 1);
        while let Some(record) = records.next().await {
            let record = record?;
            if record.sequence > next {
                return Err(
                    self.damaged(format!("changes {next} to {} of {stream} are missing", record.sequence - 1), "")
                );
            }
            next = record.sequence + 1;
            if record.headers.kind() != Some(CHANGE) {
                tracing::warn!(stream, sequence = record.sequence, "not a change of ours; passed over");
                continue;
            }
            let change: F::Change = decode_body(&record.body, Codec::Bincode).map_err(|why| {
                self.damaged(format!("change {} of {stream} does not read: {why}", record.sequence), "")
            })?;
            self.state.run(move |fold| fold.apply(&change)).await?;
            self.quarantine.change(record.sequence, &record.body).await;
            self.last = record.sequence;
            count += 1;
        }
        if next <= before.last_sequence && before.messages > 0 {
            return Err(self.damaged(format!("changes {next} to {} of {stream} are missing", before.last_sequence), ""));
        }
        // A changelog that was emptied goes on from its old number.
        self.last = self.last.max(before.last_sequence);
        if count > 0 {
            tracing::info!(changes = count, last = self.last, "state restored");
        }
        Ok(())
    }

    /// An input that came again is handled only if the quarantine, which has the same state, survives it.
    async fn handle_again(&mut self, held: Arc<Held>) -> anyhow::Result<()> {
        if self.appended_at.elapsed() > FRESH {
            self.catch_up().await?;
        }
        let env = Arc::clone(&self.env);
        let (verdict, mark) = tried::<F::Output>(&env, &mut self.quarantine, &held).await;
        match verdict {
            // Marked until the writer has survived it too: the quarantine may have more memory, or another hour.
            Verdict::Outputs { .. } => self.handle(vec![held]).await?,
            verdict => {
                let env = Arc::clone(&env);
                self.finishing.spawn(async move { finish(&env, Done { held, verdict }).await });
            }
        }
        mark.take_back(&env).await;
        Ok(())
    }

    async fn handle(&mut self, held: Vec<Arc<Held>>) -> anyhow::Result<()> {
        if self.appended_at.elapsed() > FRESH {
            self.catch_up().await?;
        }
        loop {
            let decided = self.decide(held.clone()).await?;
            let Err(error) = self.append(&decided).await else {
                self.made_again(&decided).await;
                for one in decided {
                    let (env, done) = (Arc::clone(&self.env), self.done(one));
                    self.finishing.spawn(async move { finish(&env, done).await });
                }
                return Ok(());
            };
            // The state has changes that the changelog has not: it is made anew. Known inputs are only answered again.
            tracing::warn!(%error, "changes not appended; the state is restored from the changelog");
            self.state = State::start(&self.env).await?;
            self.quarantine.end();
            self.last = 0;
            self.restore().await?;
        }
    }

    /// What was told is in the changelog again; with the last of it, it may be lost another time.
    async fn made_again(&mut self, decided: &[Decided<F>]) {
        if self.told.is_empty() {
            return;
        }
        let told = Arc::make_mut(&mut self.told);
        decided.iter().filter(|one| one.change.is_ok()).for_each(|one| {
            told.remove(&one.held.id());
        });
        if told.is_empty() {
            tracing::info!("all that the changelog had lost is in it again");
            if let Err(error) = Unfolded::default().store(&self.env.bus, &self.env.spec.name).await {
                tracing::warn!(%error, "not written down that the changelog is whole again");
            }
        }
    }

    /// Decides and applies each input in turn, since the next decision needs the state that this one makes.
    async fn decide(&mut self, held: Vec<Arc<Held>>) -> anyhow::Result<Vec<Decided<F>>> {
        let began = Instant::now();
        let (all, told) = (held.clone(), Arc::clone(&self.told));
        let decide = move |fold: &mut F| held.into_iter().map(|held| decide_one(fold, held, &told)).collect();
        let decided = self.state.run(decide).await;
        self.env.status.processed(began.elapsed(), &all);
        let work = Arc::new(Work { began, count: all.len(), runs: Vec::new() });
        for held in &all {
            held.worked(&work);
        }
        decided
    }

    async fn append(&mut self, decided: &[Decided<F>]) -> Result<(), PublishError> {
        let new = decided.iter().filter(|one| !one.known);
        let changes = new.filter_map(|one| one.change.as_ref().ok());
        let changes: Vec<Bytes> = changes.map(|change| encode(change, Codec::Bincode).into()).collect();
        if !changes.is_empty() {
            let before = self.last;
            self.last = self.env.bus.append(&self.env.spec.name, before, changes.clone()).await?;
            self.appended_at = Instant::now();
            for (sequence, change) in (before + 1..).zip(&changes) {
                self.quarantine.change(sequence, change).await;
            }
        }
        Ok(())
    }

    fn done(&self, decided: Decided<F>) -> Done {
        let Decided { held, change, output, .. } = decided;
        let Env { pipeline, spec, .. } = &*self.env;
        let verdict = match (change, output, &held.meta) {
            (Err(verdict), _, _) => verdict,
            (Ok(_), Some(output), Ok(parent)) => {
                let meta = held.child_meta(parent, &spec.name, F::Output::kind(), 0, 1);
                let output = outcomes::output(pipeline, &spec.name, &spec.link, &held.place, &meta, &output);
                Verdict::Outputs { outputs: vec![output], empty: false }
            }
            _ => Verdict::Reject { reason: "unanswered".into(), detail: "the fold gave no output".into() },
        };
        Done { held, verdict }
    }
}

fn decide_one<F: Fold>(fold: &mut F, held: Arc<Held>, told: &HashMap<Id, F::Output>) -> Decided<F> {
    let input = match read::<F::Input>(&held) {
        Ok(input) => input,
        Err(verdict) => return Decided { held, change: Err(verdict), known: false, output: None },
    };
    let id: Id = held.id();
    match change_of(fold, id, &input, told.get(&id)) {
        Ok((change, known)) => {
            let output = Some(fold.output(&change));
            Decided { held, change: Ok(change), known, output }
        }
        Err(failure) => Decided { held, change: Err(failed(failure)), known: false, output: None },
    }
}

/// The change of an input, and whether it was made before; a new one is applied. `told`: the output that it had, where its change
/// was lost.
pub(crate) fn change_of<F: Fold>(
    fold: &mut F,
    id: Id,
    input: &F::Input,
    told: Option<&F::Output>,
) -> Result<(F::Change, bool), Failure> {
    if let Some(change) = fold.known(id) {
        return Ok((change, true));
    }
    let change = told.map_or_else(|| fold.decide(id, input), |output| fold.recall(id, input, output))?;
    fold.apply(&change);
    Ok((change, false))
}

/// The fold on a thread of its own.
struct State<F> {
    calls: mpsc::Sender<Call<F>>,
}

type Call<F> = Box<dyn FnOnce(&mut F) + Send>;

impl<F: Fold> State<F> {
    async fn start(env: &Arc<Env>) -> anyhow::Result<Self> {
        let (calls, called) = mpsc::channel::<Call<F>>();
        let (built, is_built) = oneshot::channel();
        let env = Arc::clone(env);
        std::thread::Builder::new().name(F::NAME.into()).spawn(move || {
            let options = env.spec.options::<F::Options>().map_err(|why| anyhow!(why));
            match options.and_then(|options| F::new(options, &env.ctx).context(Unfit)) {
                Ok(mut fold) => {
                    let _ = built.send(Ok(()));
                    for call in called {
                        call(&mut fold);
                    }
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            }
        })?;
        is_built.await??;
        Ok(Self { calls })
    }

    async fn run<T: Send + 'static>(&self, call: impl FnOnce(&mut F) -> T + Send + 'static) -> anyhow::Result<T> {
        let (answer, answered) = oneshot::channel();
        let call = move |fold: &mut F| {
            let _ = answer.send(call(fold));
        };
        self.calls.send(Box::new(call)).map_err(|_| anyhow!("the fold's thread has ended"))?;
        answered.await.map_err(|_| anyhow!("the fold panicked"))
    }
}
