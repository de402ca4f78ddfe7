//! The guard against poison: an input that came again is tried alone, in the quarantine, with a mark raised before it and taken
//! back with its answer, whatever that is. A mark that stays says how the run ended: with the quarantine, which is the input's
//! doing, or unseen, since the stage's process was killed meanwhile. Only marks count, not deliveries: neighbours in a batch,
//! cuts and restarts cost nobody.

use std::sync::Arc;

use causeway_bus::{BusError, names};
use causeway_schemas::{Codec, Message, decode_body, encode};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::env::{Env, RETRY_PAUSE};
use crate::held::Held;
use crate::protocol::{MAX_UNSEEN, Marks};
use crate::quarantine::{Quarantine, Ran};
use crate::stage_life::{Done, Verdict, finish, unreadable};

/// Takes inputs that came again, one after the other; ends when there will be none. What is to be done with an answer is done
/// beside the next one.
pub(crate) async fn guard<O: Message>(
    env: Arc<Env>,
    mut again: mpsc::UnboundedReceiver<Arc<Held>>,
    finishing: TaskTracker,
) {
    let mut quarantine = Quarantine::new(&env);
    while let Some(held) = again.recv().await {
        let (verdict, mark) = tried::<O>(&env, &mut quarantine, &held).await;
        mark.take_back(&env).await;
        let env = Arc::clone(&env);
        finishing.spawn(async move { finish(&env, Done { held, verdict }).await });
    }
}

/// The marks of an input that has its answer: to be taken back when nothing more is done that it could end the process by.
pub(crate) struct Mark(Option<String>);

impl Mark {
    pub(crate) async fn take_back(self, env: &Env) {
        if let Some(key) = self.0
            && let Err(error) = env.bus.table_remove(names::ATTEMPTS, &key).await
        {
            tracing::debug!(%error, "mark not taken back");
        }
    }
}

/// Tries an input, again while it ends the quarantine and may be tried again.
pub(crate) async fn tried<O: Message>(
    env: &Arc<Env>,
    quarantine: &mut Quarantine,
    held: &Arc<Held>,
) -> (Verdict, Mark) {
    if let Err(error) = &held.meta {
        return (unreadable(error), Mark(None));
    }
    if let Err(error) = quarantine.ready().await {
        let why = format!("its quarantine does not start: {error:#}");
        return (Verdict::Retry { why, pause: RETRY_PAUSE }, Mark(None));
    }
    // By its place too: a message may be stored twice, and while one copy runs the other one is not to blame.
    let key = format!("{}.{}-{}", env.spec.name, held.id(), held.delivery.sequence);
    match try_it::<O>(env, quarantine, held, &key).await {
        Ok(Some(verdict)) => (verdict, Mark(Some(key))),
        // The marks stay: somebody else has to know them.
        Ok(None) => (Verdict::Retry { why: "the stage stops".into(), pause: std::time::Duration::ZERO }, Mark(None)),
        Err(error) => {
            let why = format!("its quarantine or its marks are not to be had: {error:#}");
            (Verdict::Retry { why, pause: RETRY_PAUSE }, Mark(None))
        }
    }
}

/// Its verdict, whose marks are to be taken back. `None`: the stage stops.
async fn try_it<O: Message>(
    env: &Arc<Env>,
    quarantine: &mut Quarantine,
    held: &Arc<Held>,
    key: &str,
) -> anyhow::Result<Option<Verdict>> {
    loop {
        let marks = match changed(env, key, Marks::begin).await? {
            Ok(marks) => marks,
            Err(marks) => {
                let (reason, detail) = marks.verdict();
                return Ok(Some(Verdict::Reject { reason: reason.into(), detail }));
            }
        };
        if marks.unseen > 1 {
            tracing::info!(id = %held.id(), unseen = marks.unseen, of = MAX_UNSEEN, "tried again: nobody saw the end of the last run");
        }
        match quarantine.run::<O>(held).await {
            Ran::Answered(verdict) => return Ok(Some(verdict)),
            Ran::Stopped => return Ok(None),
            Ran::Died(death) => {
                let _ = changed(env, key, |marks| Some(marks.fatal(death.clone()))).await?;
                quarantine.ready().await?;
            }
        }
    }
}

/// Changes the marks of an input by compare-and-set; the inner error has them as they are where `change` gives none.
async fn changed(
    env: &Env,
    key: &str,
    change: impl Fn(&Marks) -> Option<Marks>,
) -> Result<Result<Marks, Marks>, BusError> {
    loop {
        let now = env.bus.table_get(names::ATTEMPTS, key).await?;
        let marks = now.as_ref().and_then(|entry| decode_body::<Marks>(&entry.value, Codec::Json).ok());
        let marks = marks.unwrap_or_default();
        let Some(changed) = change(&marks) else { return Ok(Err(marks)) };
        let revision = now.map_or(0, |entry| entry.revision);
        let value = encode(&changed, Codec::Json).into();
        if env.bus.table_swap(names::ATTEMPTS, key, value, revision).await?.is_some() {
            return Ok(Ok(changed));
        }
    }
}
