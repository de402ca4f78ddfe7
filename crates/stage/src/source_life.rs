use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use causeway_bus::{Stored, names};
use causeway_pipelines::Ledger;
use causeway_schemas::{DeadLetter, Message, Meta};
use tokio::sync::mpsc;

use crate::env::{self, Env, Unfit};
use crate::metrics::Count;
use crate::once;
use crate::outcomes::{self, Place, now_ns};
use crate::stage_life::panic_text;
use crate::{Captured, Source, trace};

/// What a `main` of a source says.
pub fn source_main<S: Source>() -> ExitCode {
    env::main(S::NAME, live::<S>, once::source::<S>)
}

/// Items that are read ahead of the one that is being stored.
const READ_AHEAD: usize = 4;
/// Items that are being stored at once.
const STORING: usize = 8;

/// Reads the source and stores what it gives, in order; ends when the source ends.
async fn live<S: Source>(env: Arc<Env>) -> anyhow::Result<()> {
    let done = outcomes::read_ledger(&env.bus, &env.pipeline).await?;
    env.load_tables().await?;
    let (item, mut items) = mpsc::channel::<Captured<S::Output>>(READ_AHEAD);
    let reader = Arc::clone(&env);
    let reading = std::thread::Builder::new().name(S::NAME.into()).spawn(move || read::<S>(&reader, &item))?;
    env.status.set_ready();
    let storing = Arc::new(tokio::sync::Semaphore::new(STORING));
    loop {
        let captured = tokio::select! {
            biased;
            () = env.stop.cancelled() => break,
            item = items.recv() => item,
        };
        let Some(captured) = captured else { break };
        if is_done(&env, &done, &captured) {
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

fn read<S: Source>(env: &Env, items: &mpsc::Sender<Captured<S::Output>>) -> anyhow::Result<()> {
    let options = env.spec.options::<S::Options>().map_err(|why| anyhow!(why))?;
    let mut source = S::new(options, &env.ctx).context(Unfit)?;
    let began = std::time::Instant::now();
    let mut last = began;
    while let Some(captured) = source.next() {
        env.status.processed(last.elapsed());
        if items.blocking_send(captured).is_err() {
            break;
        }
        last = std::time::Instant::now();
    }
    Ok(())
}

/// Whether the item has all its outcomes already and no run anew is asked for.
fn is_done<O>(env: &Env, done: &Ledger, captured: &Captured<O>) -> bool {
    env.args.generation == 0 && done.is_complete(captured.id)
}

async fn store<O: Message>(env: &Env, captured: Captured<O>) {
    let stage = &env.spec.name;
    let generation = env.args.generation;
    match captured.message {
        Ok(message) => {
            let span = trace::process(stage, &env.spec.link, &captured.id.to_string(), None);
            let meta = Meta {
                traceparent: trace::traceparent(&span).or_else(|| Some(trace_of(captured.id))),
                ..Meta::captured(captured.id, stage, O::kind(), generation)
            };
            let place = Place { site: env.spec.site.clone(), key: names::token(env.ctx.source()) };
            let outgoing = outcomes::output(&env.pipeline, stage, &env.spec.link, &place, &meta, &message);
            if env.store(&outgoing).await == Stored::Already {
                tracing::debug!(id = %captured.id, "captured before");
            }
            env.status.count(Count::Given, 1);
        }
        Err(unreadable) => {
            let meta = Meta::captured(captured.id, stage, DeadLetter::KIND.into(), generation);
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
            env.set_aside_captured(&meta, letter).await;
        }
    }
    env.status.count(Count::Handled, 1);
}

/// W3C trace context of a captured item: the trace id is the item's own id, so that a trace is found by it. (Where spans are
/// exported the exporter draws the ids.)
fn trace_of(id: causeway_schemas::Id) -> String {
    let (trace, span) = (id.bits(), id.derived("trace", 0).bits() as u64);
    format!("00-{trace:032x}-{span:016x}-01")
}
