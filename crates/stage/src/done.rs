//! What a stage asks of the agent of its site, since it may not do or read it by itself: which items have all their outcomes, and that a dead
//! letter is removed whose message was sent again.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use bytes::{BufMut as _, Bytes, BytesMut};
use causeway_bus::{Bus, names};
use causeway_schemas::Id;
use futures::StreamExt as _;

use crate::env::{Env, RETRY_PAUSE};
use crate::outcomes::read_ledger;
use crate::placed::Placed;

/// Ids in an answer, 16 bytes each in ascending order: 256 KiB.
const PAGE: usize = 16 << 10;
/// How long an agent may be away before everything is captured: what has its outcomes is run again then, and ends on the same ids.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long an answer may take: all outcomes are read for the first.
const ANSWER: Duration = Duration::from_mins(5);
/// Pause before it is asked for again.
const PAUSE: Duration = Duration::from_millis(50);
/// What was read for one question answers those that come within this time.
const KNOWN_FOR: Duration = Duration::from_secs(10);

/// The ids of all items that have their outcomes.
pub(crate) async fn ask(env: &Env) -> HashSet<Id> {
    let subject = names::done(&env.pipeline.name, &env.pipeline.here);
    let (mut done, mut after) = (HashSet::new(), Bytes::new());
    let mut alone_since: Option<Instant> = None;
    loop {
        match env.bus.ask(&subject, after.clone(), ANSWER).await {
            Ok(Some(page)) => {
                alone_since = None;
                let ids = page.chunks_exact(16);
                let Some(last) = ids.clone().next_back() else { return done };
                after = page.slice_ref(last);
                done.extend(ids.filter_map(id_of));
            }
            Ok(None) => {
                let since = *alone_since.get_or_insert_with(Instant::now);
                if since.elapsed() > PATIENCE {
                    tracing::warn!(
                        site = env.pipeline.here,
                        "no agent says which items have their outcomes: all are captured"
                    );
                    return done;
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => {
                tracing::warn!(%error, "which items have their outcomes is not known yet; asking again");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

/// Answers stages as an agent does, for ever.
pub async fn answer_stages(bus: Bus, placed: Placed) {
    tokio::join!(answer_done(&bus, &placed), answer_letters(&bus, &placed));
}

async fn answer_done(bus: &Bus, placed: &Placed) {
    let subject = {
        let pipeline = placed.borrow();
        names::done(&pipeline.name, &pipeline.here)
    };
    loop {
        match bus.questions(&subject).await {
            Ok(mut questions) => {
                let mut known: Option<(Instant, Vec<Id>)> = None;
                loop {
                    let Ok(question) = tokio::time::timeout(KNOWN_FOR, questions.next()).await else {
                        if known.take().is_some() {
                            crate::give_back_memory();
                        }
                        continue;
                    };
                    let Some(question) = question else { break };
                    let after = id_of(&question.body);
                    if after.is_none() {
                        known.take_if(|(read, _)| read.elapsed() > KNOWN_FOR);
                    }
                    let (_, ids) = match &mut known {
                        Some(known) => known,
                        none => none.insert((Instant::now(), done_now(bus, placed).await)),
                    };
                    let begin = after.map_or(0, |after| ids.partition_point(|&id| id <= after));
                    let page = &ids[begin..ids.len().min(begin + PAGE)];
                    let mut body = BytesMut::with_capacity(16 * page.len());
                    for id in page {
                        body.put_u128(id.bits());
                    }
                    question.answer(body.freeze()).await;
                }
            }
            Err(error) => tracing::warn!(%error, "sources are not answered; trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// What has all its outcomes, in ascending order; read until the broker gives it.
async fn done_now(bus: &Bus, placed: &Placed) -> Vec<Id> {
    loop {
        let pipeline = placed.borrow().clone();
        match read_ledger(bus, &pipeline).await {
            Ok(ledger) => {
                let mut ids: Vec<Id> = ledger.complete().collect();
                ids.sort_unstable();
                return ids;
            }
            Err(error) => tracing::warn!(%error, "outcomes not read for a source; trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn id_of(bytes: &[u8]) -> Option<Id> {
    Some(Id::from_bits(u128::from_be_bytes(bytes.try_into().ok()?)))
}

/// Has the dead letter at a place removed that tells of a message of this stage; `false`: nobody is there to do so.
pub(crate) async fn remove_letter(env: &Env, place: u64, id: &str) -> Result<bool, causeway_bus::BusError> {
    let subject = names::letter(&env.pipeline.name, &env.pipeline.here, &env.spec.name);
    let answer = env.bus.ask(&subject, format!("{place} {id}").into(), ANSWER).await?;
    Ok(answer.is_some_and(|answer| answer == REMOVED))
}

/// The answer to a question for a letter that is gone now.
const REMOVED: &str = "removed";

/// The subject says of which stage it is, so that nobody has another's letters removed.
async fn answer_letters(bus: &Bus, placed: &Placed) {
    let subject = {
        let pipeline = placed.borrow();
        names::letter(&pipeline.name, &pipeline.here, "*")
    };
    loop {
        match bus.questions(&subject).await {
            Ok(mut questions) => {
                while let Some(question) = questions.next().await {
                    let asked = std::str::from_utf8(&question.body).ok().and_then(|asked| asked.split_once(' '));
                    let asked = asked.and_then(|(place, id)| Some((place.parse().ok()?, id)));
                    let (Some((place, id)), Some(stage)) = (asked, question.subject.rsplit('.').next()) else {
                        continue;
                    };
                    match bus.delete_letter(place, stage, id).await {
                        Ok(_) => question.answer(REMOVED.into()).await,
                        Err(error) => tracing::debug!(%error, "dead letter not removed; it is asked for again"),
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "stages are not answered; trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
