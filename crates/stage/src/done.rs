//! Which items have all their outcomes: a source does not read outcomes, which tell of persons, but asks the agent of its site.

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
/// Pause before it is asked for again.
const PAUSE: Duration = Duration::from_millis(50);

/// The ids of all items that have their outcomes.
pub(crate) async fn ask(env: &Env) -> HashSet<Id> {
    let subject = names::done(&env.pipeline.name, &env.pipeline.here);
    let (mut done, mut after) = (HashSet::new(), Bytes::new());
    let mut alone_since: Option<Instant> = None;
    loop {
        match env.bus.ask(&subject, after.clone()).await {
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

/// Answers sources that ask which items have their outcomes, as an agent does, for ever.
pub async fn answer_done(bus: Bus, placed: Placed) {
    let subject = {
        let pipeline = placed.borrow();
        names::done(&pipeline.name, &pipeline.here)
    };
    loop {
        match bus.questions(&subject).await {
            Ok(mut questions) => {
                // Of the ledger that the first question was answered from, for those that go on.
                let mut known: Vec<Id> = Vec::new();
                while let Some(question) = questions.next().await {
                    let after = id_of(&question.body);
                    if after.is_none() || known.is_empty() {
                        let pipeline = placed.borrow().clone();
                        match read_ledger(&bus, &pipeline).await {
                            Ok(ledger) => known = ledger.complete().collect(),
                            Err(error) => {
                                tracing::warn!(%error, "outcomes not read; a source asks again");
                                continue;
                            }
                        }
                        known.sort_unstable();
                    }
                    let begin = after.map_or(0, |after| known.partition_point(|&id| id <= after));
                    let page = &known[begin..known.len().min(begin + PAGE)];
                    let mut body = BytesMut::with_capacity(16 * page.len());
                    for id in page {
                        body.put_u128(id.bits());
                    }
                    let is_last = page.is_empty();
                    question.answer(body.freeze()).await;
                    if is_last {
                        known = Vec::new();
                        crate::give_back_memory();
                    }
                }
            }
            Err(error) => tracing::warn!(%error, "sources are not answered; trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

fn id_of(bytes: &[u8]) -> Option<Id> {
    Some(Id::from_bits(u128::from_be_bytes(bytes.try_into().ok()?)))
}
