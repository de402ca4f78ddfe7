//! The guard against poison: an input that came again is handled alone, with a mark raised before it and taken back with its
//! answer, whatever that is. A mark that stays says that the process did not survive the input; two of them, and it is set
//! aside without being run a third time. Only marks count, not deliveries: neighbours in a batch, cuts and restarts cost nobody.

use std::sync::{Arc, mpsc};

use causeway_bus::{BusError, names};
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use crate::env::{Env, RETRY_PAUSE};
use crate::held::Held;
use crate::inputs::Job;
use crate::protocol::{MAX_MARKS, begin};
use crate::stage_life::{Done, Verdict, finish};

/// Takes inputs that came again, one after the other; ends when there will be none.
pub(crate) async fn guard(env: Arc<Env>, mut again: tokio_mpsc::UnboundedReceiver<Arc<Held>>, work: mpsc::Sender<Job>) {
    while let Some(held) = again.recv().await {
        // By its place too: a message may be stored twice, and while one copy runs the other one is not to blame.
        let mark = names::token(&format!("{} {} {}", env.spec.name, held.id(), held.delivery.sequence));
        match raise(&env, &mark).await {
            Ok(true) => {
                let (alone, answered) = oneshot::channel();
                if work.send(Job { held, alone: Some(alone) }).is_err() {
                    return;
                }
                // Nothing is sent: it is dropped with the answer.
                let _ = answered.await;
            }
            Ok(false) => {
                let detail = format!("the stage's process ended {MAX_MARKS} times while it handled this message");
                finish(&env, Done { held, verdict: Verdict::Reject { reason: "killed", detail } }).await;
            }
            Err(error) => {
                tracing::debug!(%error, "mark not raised; the message comes again");
                held.retry_after(RETRY_PAUSE).await;
                continue;
            }
        }
        if let Err(error) = env.bus.table_remove(names::ATTEMPTS, &mark).await {
            tracing::debug!(%error, "mark not taken back");
        }
    }
}

/// Raises the mark of an input by one; `false` when it has as many as it may.
async fn raise(env: &Env, mark: &str) -> Result<bool, BusError> {
    loop {
        let now = env.bus.table_get(names::ATTEMPTS, mark).await?;
        let count =
            now.as_ref().and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse::<u32>().ok()).unwrap_or(0);
        let Some(begun) = begin(count) else { return Ok(false) };
        let revision = now.map_or(0, |entry| entry.revision);
        if env.bus.table_swap(names::ATTEMPTS, mark, begun.to_string().into(), revision).await?.is_some() {
            return Ok(true);
        }
    }
}
