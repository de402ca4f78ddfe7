//! What was stored, as it was last seen. A broker whose files were damaged goes on with what is left and says so to nobody: what
//! is missing shows only to somebody who remembers.

use std::collections::BTreeMap;

use causeway_bus::{Bus, BusError, names};
use causeway_pipelines::Pipeline;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use crate::layout;
use crate::terminal::count;

/// The key of it in the table of what the pipeline agrees on.
const KEY: &str = "kept";

/// A stream as it was last seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Sequence of its last message.
    last: u64,
    /// Below this it was purged by us.
    #[serde(default)]
    begin: u64,
    /// First and last of what was removed by us behind `begin`, or is gone and was told.
    #[serde(default)]
    gone: Vec<(u64, u64)>,
    /// First and last of what its end has lost and `reconcile` has not told yet: later messages may have these numbers again.
    #[serde(default)]
    lost: Vec<(u64, u64)>,
    /// Of a table: its entries.
    #[serde(default)]
    entries: u64,
}

/// By stream.
type All = BTreeMap<String, Kept>;

async fn read(bus: &Bus) -> Result<(All, u64), BusError> {
    let entry = bus.table_get(names::CONTROL, KEY).await?;
    let all = entry.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok()).unwrap_or_default();
    Ok((all, entry.map_or(0, |entry| entry.revision)))
}

/// Changes it, whoever else does at the same time.
async fn change<T>(bus: &Bus, mut how: impl FnMut(&mut All) -> T) -> Result<T, BusError> {
    loop {
        let (before, revision) = read(bus).await?;
        let mut all = before.clone();
        let done = how(&mut all);
        if all == before {
            return Ok(done);
        }
        let text = serde_json::to_vec(&all)
            .map_err(|error| BusError::Request { what: "write down what is stored".into(), why: error.to_string() })?;
        if bus.table_swap(names::CONTROL, KEY, text.into(), revision).await?.is_some() {
            return Ok(done);
        }
    }
}

/// Looks at the streams of a pipeline, or only at those of its sources: gives those that have lost their end since they were last
/// seen with what to say of it. Remembers how they are, and how many people are enrolled.
pub(crate) async fn look(bus: &Bus, pipeline: &Pipeline, sources: bool) -> Result<Vec<(String, String)>, BusError> {
    let is_source = |stream: &str| {
        let mut captures = pipeline.stages_here().filter(|stage| stage.is_source());
        captures.any(|stage| names::stream(&pipeline.name, &stage.name) == stream)
    };
    let mut seen = Vec::new();
    for wish in layout::streams(pipeline) {
        if (!sources || is_source(&wish.name))
            && let Some(state) = bus.stream_state(&wish.name).await?
        {
            seen.push((wish.name, state));
        }
    }
    // What is known of the sources does not wait for a table that does not answer.
    let people = names::stream_of_table(&pipeline.name, names::PEOPLE);
    let state = bus.stream_state(&people).await.unwrap_or_else(|error| {
        tracing::debug!(%error, "who is enrolled is not looked at");
        None
    });
    let people = state.map(|state| (people, state.messages));
    change(bus, |all| {
        if let Some((stream, messages)) = &people {
            let kept = all.entry(stream.clone()).or_default();
            kept.entries = kept.entries.max(*messages);
        }
        let mut found = Vec::new();
        for (stream, state) in &seen {
            let new = || Kept { begin: state.first_sequence, ..Kept::default() };
            let kept = all.entry(stream.clone()).or_insert_with(new);
            if state.last_sequence < kept.last {
                // Snapshots are made anew of what the changelog has.
                if !stream.ends_with(names::SNAPSHOTS) {
                    found.push((stream.clone(), ended_before(kept.last, state.last_sequence)));
                }
                if is_source(stream) {
                    kept.lost.push((kept.begin.max(state.last_sequence + 1), kept.last));
                }
                kept.begin = kept.begin.min(state.first_sequence);
                kept.gone.retain(|&(first, _)| first <= state.last_sequence);
            }
            kept.last = state.last_sequence;
        }
        found
    })
    .await
}

fn ended_before(last: u64, now: u64) -> String {
    let lost = match now {
        0 => format!("it held messages up to {last} and is empty, as if it were new"),
        now => format!("its last message was {last} and is {now}"),
    };
    lost + ": the broker lost its files, or somebody removed them; `causeway reconcile` runs again what it can"
}

/// Looks whether a table gives all entries that it had: with those that cannot be read it is counted, and not given.
pub(crate) async fn look_at_table(bus: &Bus, table: &str) -> Result<Option<(String, String)>, BusError> {
    let stream = names::stream_of_table(bus.pipeline(), table);
    let Some(state) = bus.stream_state(&stream).await? else { return Ok(None) };
    let mut given = 0;
    let mut records = bus.scan(&stream, 1, true).await?;
    while let Some(record) = records.next().await {
        record?;
        given += 1;
    }
    // Where somebody was removed a mark stays, so that it never becomes less.
    let before = change(bus, |all| {
        let kept = all.entry(stream.clone()).or_default();
        std::mem::replace(&mut kept.entries, given)
    })
    .await?
    // Those that cannot be read are counted.
    .max(state.messages);
    let detail = format!(
        "the table {table} had {} and gives {given}: the broker lost the others, or cannot read them; what is missing has to be set anew",
        count(before as usize, "message"),
    );
    Ok((given < before).then_some((stream, detail)))
}

/// Looks whether a changelog gives all its changes. Snapshots know what it does not give; where there is none, its fold stops.
pub(crate) async fn look_at_changelog(bus: &Bus, fold: &str) -> Result<Option<(String, String)>, BusError> {
    let stream = names::changelog(bus.pipeline(), fold);
    let Some(before) = bus.stream_state(&stream).await?.filter(|state| state.messages > 0) else { return Ok(None) };
    let mut given = Vec::new();
    let mut records = bus.scan(&stream, 1, true).await?;
    while let Some(record) = records.next().await {
        given.push(record?.sequence);
    }
    // What was purged meanwhile is not missing.
    let begin = bus.stream_state(&stream).await?.map_or(before.first_sequence, |state| state.first_sequence);
    let missing = Kept { begin, ..Kept::default() }.gone_of(&given, before.last_sequence);
    let count_of = |gaps: &[(u64, u64)]| gaps.iter().map(|(first, last)| last - first + 1).sum::<u64>();
    Ok(missing.first().map(|(first, last)| {
        let changes = count(count_of(&missing) as usize, "change");
        let what = format!(
            "{changes} of the changelog cannot be read, {first} to {last} the first: its fold goes on where a snapshot knows them"
        );
        (stream, what)
    }))
}

/// We purge a stream below `begin`; to be said before it is done.
pub(crate) async fn purged(bus: &Bus, stream: &str, begin: u64) -> Result<(), BusError> {
    change(bus, |all| {
        let kept = all.entry(stream.into()).or_default();
        kept.begin = kept.begin.max(begin);
        kept.gone.retain(|&(_, last)| last >= begin);
    })
    .await
}

/// We remove a stream: it is not missed, and one of its name begins anew.
pub(crate) async fn forgotten(bus: &Bus, stream: &str) -> Result<(), BusError> {
    change(bus, |all| drop(all.remove(stream))).await
}

/// We remove messages of a stream.
pub(crate) async fn removed(bus: &Bus, stream: &str, gone: &[(u64, u64)]) -> Result<(), BusError> {
    change(bus, |all| all.entry(stream.into()).or_default().forget(gone)).await
}

/// What is missing was told: it is not told again.
pub(crate) async fn told(bus: &Bus, stream: &str, gone: &[(u64, u64)]) -> Result<(), BusError> {
    change(bus, |all| {
        let kept = all.entry(stream.into()).or_default();
        kept.forget(gone);
        kept.lost.clear();
    })
    .await
}

/// The last message of a capture stream that was ever seen: to be asked for before it is read.
pub(crate) async fn last(bus: &Bus, stream: &str) -> Result<u64, BusError> {
    Ok(read(bus).await?.0.get(stream).map_or(0, |kept| kept.last))
}

/// What is missing of a capture stream by what was found in it, in order: first and last of each gap. To be asked for behind it.
pub(crate) async fn gone(bus: &Bus, stream: &str, found: &[u64], last: u64) -> Result<Vec<(u64, u64)>, BusError> {
    // Where nobody has looked before it begins with what there is.
    Ok(read(bus).await?.0.get(stream).map_or_else(Vec::new, |kept| kept.gone_of(found, last)))
}

impl Kept {
    /// These are not missed.
    fn forget(&mut self, gone: &[(u64, u64)]) {
        self.gone.extend(gone);
        self.gone.sort_unstable();
        self.gone.dedup_by(|next, before| {
            let touch = next.0 <= before.1 + 1;
            if touch {
                before.1 = before.1.max(next.1);
            }
            touch
        });
    }

    fn gone_of(&self, found: &[u64], last: u64) -> Vec<(u64, u64)> {
        let known = self.gone.iter().copied();
        let mut there: Vec<(u64, u64)> = found.iter().map(|&one| (one, one)).chain(known).collect();
        there.sort_unstable();
        let mut gone = self.lost.clone();
        let mut next = self.begin.max(1);
        for (from, to) in there.into_iter().chain([(last + 1, last)]) {
            if from > next {
                gone.push((next, from - 1));
            }
            next = next.max(to + 1);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_there_or_gone() {
        let kept = |begin, gone: &[(u64, u64)]| Kept { begin, gone: gone.to_vec(), ..Kept::default() };
        let ranges = |kept: Kept, found: &[u64], last| kept.gone_of(found, last);
        assert_eq!(ranges(kept(1, &[]), &[1, 2, 3], 3), []);
        assert_eq!(ranges(kept(0, &[]), &[], 0), []);
        assert_eq!(ranges(kept(1, &[]), &[2, 5], 7), [(1, 1), (3, 4), (6, 7)]);
        assert_eq!(ranges(kept(4, &[]), &[5], 5), [(4, 4)], "what was purged is not missed");
        assert_eq!(ranges(kept(1, &[(3, 4), (6, 9)]), &[1, 2, 5], 9), [], "what was told is not told again");
        assert_eq!(ranges(kept(1, &[]), &[1, 2, 3], 2), [], "what came since is there");
        assert_eq!(ranges(Kept { lost: vec![(4, 6)], ..kept(1, &[]) }, &[1], 2), [(4, 6), (2, 2)]);
    }

    #[test]
    fn the_end_is_told() {
        assert!(ended_before(9, 0).contains("empty, as if it were new"));
        assert!(ended_before(9, 4).contains("its last message was 9 and is 4"));
    }
}
