use std::collections::HashSet;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use causeway_bus::{BusError, Stored, names};
use causeway_schemas::{DeadLetter, Id, Message, Meta};
use tokio::sync::mpsc;

use crate::done;
use crate::env::{self, Apart, Broken, Env, Unfit};
use crate::memory::give_back_memory;
use crate::metrics::Count;
use crate::once;
use crate::outcomes::{self, now_ns};
use crate::quarantine::inside;
use crate::stage_life::panic_text;
use crate::{Captured, Context, Reporter, Source};

/// What a `main` of a source says.
pub fn source_main<S: Source>() -> ExitCode {
    env::main(S::NAME, live::<S>, Apart { once: once::source::<S>, quarantine: inside::none })
}

/// Items that are read ahead of the one that is being stored.
const READ_AHEAD: usize = 4;
/// Items that are being stored at once.
const STORING: usize = 8;

/// Reads the source and stores what it gives, in order; ends when the source ends.
async fn live<S: Source>(env: Arc<Env>) -> anyhow::Result<()> {
    env.load_tables().await?;
    let (item, mut items) = mpsc::channel::<Captured<S::Output>>(READ_AHEAD);
    let ctx = env.ctx.clone().of_run(next_epoch(&env).await?, Reporter::of(&env.status));
    let reader = Arc::clone(&env);
    let reading = std::thread::Builder::new().name(S::NAME.into()).spawn(move || read::<S>(&reader, &ctx, &item))?;
    env.status.set_ready();
    let storing = Arc::new(tokio::sync::Semaphore::new(STORING));
    let mut done = None;
    loop {
        let captured = tokio::select! {
            biased;
            () = env.stop.cancelled() => break,
            item = items.recv() => item,
        };
        let Some(captured) = captured else { break };
        let is_done = tokio::select! {
            biased;
            () = env.stop.cancelled() => break,
            is_done = is_done(&env, &mut done, &captured) => is_done,
        };
        if is_done {
            env.status.count(Count::Skipped, 1);
            continue;
        }
        let slot = Arc::clone(&storing).acquire_owned().await?;
        let env = Arc::clone(&env);
        tokio::spawn(async move {
            store(&env, captured).await;
            drop(slot);
        });
    }
    env.status.set_draining();
    // All slots back: everything is stored.
    let stored = storing.acquire_many(STORING as u32);
    if tokio::time::timeout(env.args.drain, stored).await.is_err() && !env.stop.is_cancelled() {
        // The source has ended and its link is full: that is no reason to lose the last items.
        storing.acquire_many(STORING as u32).await?.forget();
    }
    if env.stop.is_cancelled() {
        // The reader may wait for a camera: the process ends without it.
        return Ok(());
    }
    reading.join().map_err(|panic| anyhow!("the source ended: {}", panic_text(panic.as_ref())))?
}

fn read<S: Source>(env: &Env, ctx: &Context, items: &mpsc::Sender<Captured<S::Output>>) -> anyhow::Result<()> {
    let options = env.spec.options::<S::Options>().map_err(|why| anyhow!(why))?;
    let mut source = S::new(options, ctx).context(Unfit)?;
    let began = std::time::Instant::now();
    let mut last = began;
    while let Some(captured) = source.next() {
        env.status.processed(last.elapsed(), &[]);
        if items.blocking_send(captured).is_err() {
            return Ok(());
        }
        last = std::time::Instant::now();
    }
    source.end().context(Broken)
}

/// The key of a source's epoch, in the table of what the pipeline agrees on.
pub fn epoch_key(source: &str) -> String {
    format!("epoch.{}", names::token(source))
}

/// The epoch of this start of the source: no two starts have the same, whichever replica they are of. It is the second of the start,
/// or the one after the last epoch: a table that a power failure set back must not give an epoch again, whose frames would be taken
/// for those of the first.
async fn next_epoch(env: &Env) -> Result<u64, BusError> {
    let key = epoch_key(env.ctx.source());
    loop {
        let now = env.bus.table_get(names::CONTROL, &key).await?;
        let last = now.as_ref().and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse::<u64>().ok());
        let next = (last.unwrap_or(0) + 1).max(now_ns() / 1_000_000_000);
        let revision = now.map_or(0, |entry| entry.revision);
        if env.bus.table_swap(names::CONTROL, &key, next.to_string().into(), revision).await?.is_some() {
            return Ok(next);
        }
    }
}

/// Whether the item has all its outcomes already and no run anew is asked for. Which have is asked for the first that may, and
/// forgotten with the first that cannot: a camera, even a simulated one, runs for months.
async fn is_done<O>(env: &Env, done: &mut Option<HashSet<Id>>, captured: &Captured<O>) -> bool {
    if !captured.repeats || env.args.generation > 0 {
        if done.take().is_some() {
            give_back_memory();
        }
        return false;
    }
    let done = match done {
        Some(done) => done,
        None => done.insert(done::ask(env).await),
    };
    done.contains(&captured.id)
}

async fn store<O: Message>(env: &Env, captured: Captured<O>) {
    let stage = &env.spec.name;
    let generation = env.args.generation;
    match captured.message {
        Ok(message) => {
            let trace = env.tracer.capture(captured.id, generation);
            let meta = Meta {
                traceparent: Some(trace.traceparent()),
                ..Meta::captured(captured.id, stage, O::kind(), generation)
            };
            let place = env.place();
            let outgoing = outcomes::output(&env.pipeline, stage, &env.spec.link, &place, &meta, &message);
            let published = env.store(&outgoing).await;
            if published.stored == Stored::Already {
                tracing::debug!(id = %captured.id, "captured before");
            }
            env.tracer.captured(trace, &outgoing, published, None);
            env.status.count(Count::Given, 1);
        }
        Err(unreadable) => {
            let trace = env.tracer.capture(captured.id, generation).failed();
            let meta = Meta {
                traceparent: Some(trace.traceparent()),
                ..Meta::captured(captured.id, stage, DeadLetter::KIND.into(), generation)
            };
            let letter = DeadLetter {
                stage: stage.clone(),
                reason: unreadable.reason.into(),
                detail: unreadable.detail,
                attempts: 1,
                models: Vec::new(),
                at: now_ns(),
                subject: unreadable.item,
                headers: Vec::new(),
                body: unreadable.body,
            };
            env.set_aside_captured(trace, &meta, letter).await;
        }
    }
    env.status.count(Count::Handled, 1);
}
