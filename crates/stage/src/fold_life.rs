mod known;
mod restore;
mod snapshots;
mod state;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_bus::{Delivery, PublishError, Pull, names};
use causeway_pipelines::{Phase, Pipeline};
use causeway_schemas::{Codec, Id, Message, encode};
use futures::{FutureExt as _, StreamExt as _};
use tokio_util::task::TaskTracker;

use crate::env::{self, Apart, Env, RETRY_PAUSE};
use crate::guard::tried;
use crate::held::{Held, Holding};
use crate::metrics::{PARKED, STANDS_BY};
use crate::once;
use crate::outcomes;
use crate::placed::{is_placed_anew, read_placement, read_report};
use crate::protocol::{Way, way};
use crate::quarantine::{Quarantine, inside};
use crate::stage_life::{Done, Verdict, failed, finish, hold, read};
use crate::trace::Work;
use crate::unfolded::Unfolded;
use crate::{Failure, Fold};
use known::Known;
use snapshots::Snapshots;
use state::State;

/// What a `main` of a fold says.
pub fn fold_main<F: Fold>() -> ExitCode {
    env::main(F::NAME, live::<F>, Apart { once: once::fold::<F>, quarantine: inside::fold::<F> })
}

/// Changes that are asked for at once.
const AT_ONCE: usize = 16;
/// A change that is known and not given for this long is lost.
const COPY_BEHIND: Duration = Duration::from_secs(10);

/// What inputs changed that come again.
type Before<F> = HashMap<Id, Result<<F as Fold>::Change, Verdict>>;

/// What the changelog has where a change is known to be.
enum Was<F: Fold> {
    Change(F::Change),
    /// The broker has lost it: what becomes of its input.
    Lost(Verdict),
    /// It was purged meanwhile: its input counts as a new one.
    Forgotten,
    /// That of another input, or none yet: it has lost its end since.
    Another,
}

/// How often it is looked whether the state is here, while it is on the move.
const STATE_EVERY: Duration = Duration::from_millis(100);
/// Fewest messages that the writer holds at once.
const PINNED_HELD: usize = 64;
/// After this long without an append another writer may have been at work: the changelog is looked at first.
const FRESH: Duration = Duration::from_millis(200);

/// One writer: restores its state from the changelog, then appends each batch of changes before it acks their inputs. Every
/// append names the sequence before it, so that a second writer, or one that slept, is refused by the server.
async fn live<F: Fold>(env: Arc<Env>) -> anyhow::Result<()> {
    let mut writer = Writer::<F>::start(&env).await?;
    env.load_tables().await?;
    if !has_state(&env).await? {
        return Ok(());
    }
    writer.restore().await?;
    let holding = Holding::new(&env);
    let [from] = &env.spec.from[..] else {
        anyhow::bail!("a fold takes from one stage; [stage.{}] takes from {}", env.spec.name, env.spec.from.len());
    };
    let held = PINNED_HELD.max(2 * env.spec.batch.max);
    let mut pull = Pull::pinned(&env.bus, &names::stream(&env.pipeline.name, from), &env.spec.name, held);
    pull.check().await?;
    let alive = tokio::spawn(Arc::clone(&holding).keep_alive());
    tokio::spawn(ends_with_its_move(Arc::clone(&env)));
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
            // Told to stop, it may have a state whose last changes are not stored.
            if env.stop.is_cancelled() {
                break;
            }
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

/// Where a fold is on the move.
#[derive(PartialEq, Eq)]
enum Where {
    /// Its state is here.
    Here,
    /// It is on its way here.
    Comes,
    /// It goes elsewhere: its changelog is shut, or its stage was moved away.
    Gone,
}

/// Where it is, by what is followed here.
async fn whereabouts(env: &Env) -> anyhow::Result<Where> {
    let now = env.placed.borrow().clone();
    whereabouts_by(env, &now).await
}

/// Whether its state goes on elsewhere, asked of the broker: what is followed may be behind.
async fn goes_on_elsewhere(env: &Env) -> anyhow::Result<bool> {
    if !env.pipeline.is_split() {
        return Ok(false);
    }
    let (placement, _) = read_placement(&env.bus).await?;
    Ok(whereabouts_by(env, &env.pipeline.placed(&placement)?).await? == Where::Gone)
}

async fn whereabouts_by(env: &Env, now: &Pipeline) -> anyhow::Result<Where> {
    let (placement, here) = (&now.placement, &now.here);
    let Some(spec) = now.stage(&env.spec.name) else { return Ok(Where::Gone) };
    if !spec.runs_at(here) {
        return Ok(Where::Gone);
    }
    let is_here = spec.sites.contains(here);
    if spec.moves_to.is_empty() || placement.phase() != Some(Phase::HandOver) {
        return Ok(if is_here { Where::Here } else { Where::Comes });
    }
    let said = read_report(&env.bus, here).await?.filter(|said| said.is_of(placement)).unwrap_or_default();
    Ok(match (is_here, said.sealed.is_some(), said.has_state) {
        (true, true, _) => Where::Gone,
        (true, false, _) | (false, _, true) => Where::Here,
        (false, _, false) => Where::Comes,
    })
}

/// Waits until all of the state is here; `false`: it was told to stop before.
async fn has_state(env: &Env) -> anyhow::Result<bool> {
    let mut placed = env.placed.clone();
    loop {
        placed.mark_unchanged();
        let idle = match whereabouts(env).await {
            Ok(Where::Here) => {
                env.status.set_idle(None);
                return Ok(true);
            }
            Ok(Where::Comes) => STANDS_BY,
            Ok(Where::Gone) => PARKED,
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "where its state is is not known");
                STANDS_BY
            }
        };
        env.status.set_idle(Some(idle));
        tokio::select! {
            () = env.stop.cancelled() => return Ok(false),
            () = is_placed_anew(&mut placed) => {}
            () = tokio::time::sleep(STATE_EVERY) => {}
        }
    }
}

/// Stops it once its state goes on elsewhere.
async fn ends_with_its_move(env: Arc<Env>) {
    let mut placed = env.placed.clone();
    loop {
        let moves = {
            let now = placed.borrow_and_update();
            now.stage(&env.spec.name).is_none_or(|spec| !spec.moves_to.is_empty() || !spec.runs_at(&now.here))
        };
        if moves && matches!(whereabouts(&env).await, Ok(Where::Gone)) {
            tracing::info!("its state goes on elsewhere: it ends here");
            return env.stop.cancel();
        }
        tokio::select! {
            () = is_placed_anew(&mut placed) => {}
            () = tokio::time::sleep(STATE_EVERY), if moves => {}
        }
    }
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
    /// The last sequence of the changelog that the state knows, and what is there.
    last: u64,
    last_change: Option<Bytes>,
    /// The inputs that it had.
    known: Known,
    snapshots: Snapshots,
    /// What the outcomes tell of inputs whose change is lost, by input.
    told: Arc<HashMap<Id, F::Output>>,
    appended_at: Instant,
    quarantine: Quarantine,
    /// Inputs whose change is appended and whose output is being stored.
    finishing: TaskTracker,
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
            last_change: None,
            known: Known::default(),
            snapshots: Snapshots::default(),
            told: Arc::default(),
            appended_at: Instant::now(),
            quarantine: Quarantine::new(env),
            finishing,
        })
    }

    /// An input that came again is handled only if the quarantine, which has the same state, survives it.
    async fn handle_again(&mut self, held: Arc<Held>) -> anyhow::Result<()> {
        if self.appended_at.elapsed() > FRESH {
            self.look_again().await?;
        }
        // It was survived before its change was appended.
        if self.known.get(held.id()).is_some() {
            return self.handle(vec![held]).await;
        }
        let (state, last) = (self.state.clone(), self.last);
        self.quarantine.begin_with(Box::new(move || {
            let state = state.clone();
            async move { Ok((last, state.run(|fold| fold.snapshot()).await?)) }.boxed()
        }));
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
            self.look_again().await?;
        }
        loop {
            let Some(before) = self.changed_before(&held).await else {
                tracing::warn!("the changelog has other changes than this state; it is restored");
                self.restore().await?;
                continue;
            };
            let decided = self.decide(held.clone(), before).await?;
            let Err(error) = self.append(&decided).await else {
                self.made_again(&decided).await;
                for one in decided {
                    let (env, done) = (Arc::clone(&self.env), self.done(one));
                    self.finishing.spawn(async move { finish(&env, done).await });
                }
                return self.snapshot_if_due().await;
            };
            // The state has changes that the changelog has not: it is made anew. Known inputs are only answered again.
            tracing::warn!(%error, "changes not appended; the state is restored from the changelog");
            if !matches!(error, PublishError::Fenced { .. }) {
                tokio::select! {
                    () = self.env.stop.cancelled() => {}
                    () = tokio::time::sleep(RETRY_PAUSE) => {}
                }
            }
            if !self.env.stop.is_cancelled() {
                self.restore().await?;
            }
            if self.env.stop.is_cancelled() {
                return Ok(());
            }
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

    /// The changes of those inputs that made theirs before, out of the changelog. `None`: it is not the one that the state is of.
    async fn changed_before(&self, held: &[Arc<Held>]) -> Option<Before<F>> {
        let places = held.iter().filter_map(|held| Some((held.id(), self.known.get(held.id())?)));
        let changes = places.map(|(input, sequence)| async move { (input, self.change_at(input, sequence).await) });
        let mut changes = futures::stream::iter(changes).buffer_unordered(AT_ONCE);
        let mut before = HashMap::new();
        while let Some((input, change)) = changes.next().await {
            match change {
                Was::Change(change) => drop(before.insert(input, Ok(change))),
                Was::Lost(verdict) => drop(before.insert(input, Err(verdict))),
                Was::Forgotten => {}
                Was::Another => return None,
            }
        }
        Some(before)
    }

    /// What `input` changed; asked for until the broker answers.
    async fn change_at(&self, input: Id, sequence: u64) -> Was<F> {
        let stream = names::changelog(&self.env.pipeline.name, &self.env.spec.name);
        let lost = |why: String| {
            let detail = format!("its change {sequence} of {stream} is not to be had: {why}");
            Was::Lost(Verdict::Reject { reason: "change-lost".into(), detail })
        };
        let began = Instant::now();
        loop {
            match self.env.bus.message_at(&stream, sequence).await {
                Ok(Some(record)) => {
                    return match restore::change_of::<F>(&record.body) {
                        Ok(change) if F::input_of(&change) == input => Was::Change(change),
                        Ok(_) => Was::Another,
                        Err(why) => lost(why),
                    };
                }
                Ok(None) => match self.env.bus.stream_state(&stream).await {
                    Ok(Some(state)) if state.first_sequence > sequence => return Was::Forgotten,
                    Ok(Some(state)) if state.last_sequence < sequence => return Was::Another,
                    // A copy of the stream may be behind.
                    Ok(Some(_)) if began.elapsed() > COPY_BEHIND => return lost("the broker does not give it".into()),
                    _ => {}
                },
                Err(error) => tracing::warn!(%error, "a change is not read; trying again"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// Decides and applies each input in turn, since the next decision needs the state that this one makes.
    async fn decide(&mut self, held: Vec<Arc<Held>>, before: Before<F>) -> anyhow::Result<Vec<Decided<F>>> {
        let began = Instant::now();
        let (all, told) = (held.clone(), Arc::clone(&self.told));
        let decide = move |fold: &mut F| {
            let mut decided: Vec<Decided<F>> = Vec::with_capacity(held.len());
            for held in held {
                // One that is there twice in a batch is decided once.
                let twin = decided.iter().find(|one| one.held.id() == held.id() && one.change.is_ok());
                let twin = twin.and_then(|one| Some(Ok(one.change.as_ref().ok()?.clone())));
                let known = twin.or_else(|| before.get(&held.id()).cloned());
                let told = told.get(&held.id());
                decided.push(decide_one(fold, held, known, told));
            }
            decided
        };
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
        let (inputs, changes): (Vec<Id>, Vec<Bytes>) =
            changes.map(|change| (F::input_of(change), encode(change, Codec::Bincode).into())).unzip();
        if !changes.is_empty() {
            let before = self.last;
            self.last = self.env.bus.append(&self.env.spec.name, before, changes.clone()).await?;
            self.appended_at = Instant::now();
            for (sequence, (input, change)) in (before + 1..).zip(inputs.into_iter().zip(&changes)) {
                self.known.insert(input, sequence);
                self.snapshots.tail += change.len() as u64;
                self.quarantine.change(sequence, change).await;
            }
            self.last_change = changes.last().cloned();
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

/// `known`: its change, where it made one before. `told`: the output that it had, where its change was lost.
fn decide_one<F: Fold>(
    fold: &mut F,
    held: Arc<Held>,
    known: Option<Result<F::Change, Verdict>>,
    told: Option<&F::Output>,
) -> Decided<F> {
    let is_known = known.is_some();
    let change = known.unwrap_or_else(|| {
        let input = read::<F::Input>(&held)?;
        change_of(fold, held.id(), &input, told).map_err(failed)
    });
    let output = change.as_ref().ok().map(|change| fold.output(change));
    Decided { held, change, known: is_known, output }
}

/// The change of a new input, applied. `told`: the output that it had, where its change was lost.
pub(crate) fn change_of<F: Fold>(
    fold: &mut F,
    id: Id,
    input: &F::Input,
    told: Option<&F::Output>,
) -> Result<F::Change, Failure> {
    let change = told.map_or_else(|| fold.decide(id, input), |output| fold.recall(id, input, output))?;
    fold.apply(&change);
    Ok(change)
}
