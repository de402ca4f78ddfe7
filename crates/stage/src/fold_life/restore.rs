//! The state as it was: a snapshot, and the changes since. What is missing stops the stage, since a state made of the rest would
//! give other clusters, ids and merges than the outcomes tell.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use causeway_bus::{BusError, CHANGE, Snapshot, names};
use causeway_schemas::{Codec, Id, decode, decode_body};
use futures::StreamExt as _;

use super::known::Known;
use super::snapshots::parts_of;
use super::state::State;
use super::{Writer, goes_on_elsewhere};
use crate::Fold;
use crate::env::{Env, RETRY_PAUSE, Unfit};
use crate::unfolded::Unfolded;

/// How many of the newest outcomes are held against the changelog at the start.
const ANSWERS: u64 = 1000;

/// The changelog is not what it was.
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

/// An outcome of the fold.
struct Answered {
    /// What it answers.
    input: Id,
    root: Id,
    sequence: u64,
}

impl<F: Fold> Writer<F> {
    /// The state that the changelog says, if it is whole, or what it lost was seen to. Where its state goes on elsewhere it is told to stop.
    pub(super) async fn restore(&mut self) -> anyhow::Result<()> {
        // Before the changelog: a change is there before its outcome.
        let newest = self.answered(ANSWERS).await?;
        self.begin_with_snapshot().await?;
        self.catch_up().await?;
        self.told = Arc::default();
        let Env { bus, spec, .. } = &*Arc::clone(&self.env);
        let before = Unfolded::read(bus, &spec.name).await?;
        if newest.iter().all(|answer| self.known.get(answer.input).is_some()) && before == Unfolded::default() {
            return Ok(());
        }
        // Seldom: so all of them are looked at.
        let all = self.answered(u64::MAX).await?;
        self.catch_up().await?;
        let lost = self.unknown(all);
        if !lost.is_empty() && goes_on_elsewhere(&self.env).await? {
            // The writer there has answered what this changelog, which is shut, knows nothing of: nothing is lost.
            tracing::info!("its state goes on elsewhere: it ends here");
            self.env.stop.cancel();
            return Ok(());
        }
        let now = before.with(lost.iter().map(|answer| (answer.root, answer.sequence)));
        if now != before {
            now.store(bus, &spec.name).await?;
        }
        if lost.is_empty() {
            return Ok(());
        }
        let count = lost.len();
        if let Some(first) = lost.iter().find(|answer| !now.is_settled(answer.sequence)) {
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
        let stream = names::stream(&self.env.pipeline.name, &spec.name);
        let mut told = HashMap::new();
        for Answered { input, sequence, .. } in lost {
            let Some(record) = bus.message_at(&stream, sequence).await? else { continue };
            let body = bus.body(&record.headers, record.body.clone()).await?;
            let output = decode::<F::Output>(record.headers.kind(), record.headers.codec(), &body);
            // One that does not read is decided like a new one.
            told.extend(output.ok().map(|output| (input, output)));
        }
        self.told = told.into();
        Ok(())
    }

    /// Of all outcomes, the ones whose changes are lost. Those whose changes were forgotten are the oldest, and those that a
    /// changelog without its end has lost the newest.
    fn unknown(&self, mut answered: Vec<Answered>) -> Vec<Answered> {
        let is_known = |answer: &Answered| self.known.get(answer.input).is_some();
        if self.known.forgot() {
            // Outcomes come in nearly the order of their changes.
            let known = answered.iter().rev().filter(|answer| is_known(answer)).take(ANSWERS as usize);
            let begin = known.last().map_or(0, |answer| answer.sequence);
            answered.retain(|answer| answer.sequence > begin);
        }
        answered.retain(|answer| !is_known(answer));
        answered
    }

    /// The newest outcomes, at most so many, where the output is an outcome; asked for until the broker answers.
    async fn answered(&self, most: u64) -> anyhow::Result<Vec<Answered>> {
        let Env { pipeline, spec, .. } = &*self.env;
        if !pipeline.is_final(&spec.name) {
            return Ok(Vec::new());
        }
        let stream = names::stream(&pipeline.name, &spec.name);
        Ok(until_answered("outcomes not read", async || self.newest_answers(&stream, most).await).await)
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

    /// The state of the newest snapshot that reads, the empty one where there is none; asked for until the broker answers.
    async fn begin_with_snapshot(&mut self) -> anyhow::Result<()> {
        let env = Arc::clone(&self.env);
        self.quarantine.end();
        self.state = State::start(&env).await?;
        (self.last, self.last_change, self.known) = (0, None, Known::default());
        (self.snapshots.tail, self.snapshots.size) = (0, 0);
        let ask = async || env.bus.snapshots(&env.spec.name).await;
        let snapshots = until_answered("snapshots not looked at", ask).await;
        for snapshot in snapshots {
            match self.take(&snapshot).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        change = snapshot.sequence,
                        error,
                        "a snapshot of the state does not read; an older one is taken"
                    );
                    self.state = State::start(&env).await?;
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let Env { bus, spec, .. } = &*Arc::clone(&self.env);
        let ask = async || bus.snapshot_bytes(&spec.name, snapshot).await;
        let bytes = until_answered("a snapshot is not read", ask).await.context("it is not what was stored")?;
        if !bytes.is_empty() {
            let (known, state) = parts_of(&bytes.into())?;
            self.state.run(move |fold| fold.restore(&state)).await??;
            self.known = Known::from_bytes(&known)?;
        }
        let changelog = names::changelog(&self.env.pipeline.name, &spec.name);
        self.last_change = bus.message_at(&changelog, snapshot.sequence).await.ok().flatten().map(|record| record.body);
        self.last = snapshot.sequence;
        self.snapshots.size = snapshot.bytes;
        tracing::info!(change = snapshot.sequence, bytes = snapshot.bytes, "state restored from a snapshot");
        Ok(())
    }

    /// Whether there are no outcomes of the fold, where its output is one.
    async fn is_unanswered(&self) -> anyhow::Result<bool> {
        Ok(self.env.pipeline.is_final(&self.env.spec.name) && self.answered(1).await?.is_empty())
    }

    /// The same for one who has been at work: where the changelog has not what it had, since its broker came back with less, all is
    /// restored and held against the outcomes.
    pub(super) async fn look_again(&mut self) -> anyhow::Result<()> {
        if until_answered("changelog not read", async || self.was_set_back().await).await {
            tracing::warn!(last = self.last, "the changelog has not what it had; the state is restored from it");
            return self.restore().await;
        }
        self.catch_up().await
    }

    async fn was_set_back(&self) -> Result<bool, BusError> {
        let Some(change) = &self.last_change else { return Ok(false) };
        let Env { bus, pipeline, spec, .. } = &*self.env;
        let stream = names::changelog(&pipeline.name, &spec.name);
        Ok(match bus.message_at(&stream, self.last).await? {
            Some(stored) => stored.body != *change,
            // One that is not there may be purged, after a long sleep: what comes next tells.
            None => bus.stream_state(&stream).await?.is_none_or(|state| state.last_sequence < self.last),
        })
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
        let mut count = 0_u64;
        if before.first_sequence > self.last + 1 {
            // A standby, or one that slept: what it knows is older than what is kept, and a snapshot has the rest.
            self.begin_with_snapshot().await?;
        }
        let mut next = self.last + 1;
        if before.first_sequence > next && before.messages == 0 && self.is_unanswered().await? {
            // `up --again` emptied it, and what it wrote down of that was lost with the power.
            tracing::warn!(stream, "the changelog is empty, and there are no outcomes: the state begins anew");
            self.env.bus.store_snapshot(&self.env.spec.name, before.last_sequence, None, Bytes::new()).await?;
            self.last = before.last_sequence;
            next = self.last + 1;
        }
        if before.first_sequence > next {
            let snapshots = names::snapshots(&self.env.pipeline.name, &self.env.spec.name);
            let what = format!(
                "{stream} begins with change {}, and {snapshots} has no snapshot that reads of what was before; changes {next} to {} are missing",
                before.first_sequence,
                before.first_sequence - 1
            );
            return Err(self.damaged(what, ""));
        }
        let mut records = self.env.bus.scan(&stream, next, false).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            if record.sequence > next {
                // Purged since the state was asked for, or lost.
                let now = self.env.bus.stream_state(&stream).await?.unwrap_or_default();
                if now.first_sequence > next {
                    return Box::pin(self.read_changelog()).await;
                }
                return Err(
                    self.damaged(format!("changes {next} to {} of {stream} are missing", record.sequence - 1), "")
                );
            }
            next = record.sequence + 1;
            if record.headers.kind() != Some(CHANGE) {
                tracing::warn!(stream, sequence = record.sequence, "not a change of ours; passed over");
                (self.last, self.last_change) = (record.sequence, Some(record.body));
                continue;
            }
            let change = change_of::<F>(&record.body).map_err(|why| {
                self.damaged(format!("change {} of {stream} does not read: {why}", record.sequence), "")
            })?;
            self.known.insert(F::input_of(&change), record.sequence);
            self.state.run(move |fold| fold.apply(&change)).await?;
            self.quarantine.change(record.sequence, &record.body).await;
            (self.last, self.last_change) = (record.sequence, Some(record.body));
            self.snapshots.tail += record.size;
            count += 1;
        }
        if next <= before.last_sequence {
            return Err(self.damaged(format!("changes {next} to {} of {stream} are missing", before.last_sequence), ""));
        }
        if count > 0 {
            tracing::info!(changes = count, last = self.last, "state restored");
        }
        Ok(())
    }
}

/// A change as the changelog has it.
pub(super) fn change_of<F: Fold>(body: &Bytes) -> Result<F::Change, String> {
    decode_body(body, Codec::Bincode)
}

/// Asks until the broker answers.
async fn until_answered<T>(else_said: &str, ask: impl AsyncFn() -> Result<T, BusError>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => tracing::warn!(%error, "{else_said}; trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
