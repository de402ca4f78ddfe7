//! Snapshots of the state: so that a restart reads the newest changes alone, and older ones may go.

use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use causeway_bus::names;
use tokio::task::JoinHandle;

use super::Writer;
use crate::Fold;
use crate::env::Env;

/// A snapshot is made when this part of all changes that are kept came since the last one, or as many bytes as that has.
const SHARE: u64 = 16;

/// How far the snapshots are behind.
#[derive(Default)]
pub(super) struct Snapshots {
    /// Bytes of changes since the last one.
    pub(super) tail: u64,
    /// Bytes of the last one: a large state is stored more seldom, so that it costs no more than its changes do.
    pub(super) size: u64,
    storing: Option<JoinHandle<()>>,
}

impl<F: Fold> Writer<F> {
    /// Stores the state once enough changes came since it was stored last. It is stored beside what is handled.
    pub(super) async fn snapshot_if_due(&mut self) -> anyhow::Result<()> {
        let env = Arc::clone(&self.env);
        let Env { bus, pipeline, spec, .. } = &*env;
        let due = (pipeline.keep_changes / SHARE).max(self.snapshots.size);
        if self.snapshots.tail < due || self.snapshots.storing.as_ref().is_some_and(|storing| !storing.is_finished()) {
            return Ok(());
        }
        if let Ok(Some(changelog)) = bus.stream_state(&names::changelog(&pipeline.name, &spec.name)).await {
            self.known.forget_before(changelog.first_sequence);
        }
        let state = self.state.run(|fold| fold.snapshot()).await?;
        let (known, change) = (self.known.to_bytes(), self.last);
        let bytes: Bytes = [&(known.len() as u64).to_le_bytes()[..], &known, &state].concat().into();
        (self.snapshots.tail, self.snapshots.size) = (0, bytes.len() as u64);
        let (env, last_change) = (Arc::clone(&env), self.last_change.clone());
        self.snapshots.storing = Some(tokio::spawn(async move {
            let length = bytes.len();
            match env.bus.store_snapshot(&env.spec.name, change, last_change.as_ref(), bytes).await {
                Ok(_) => tracing::info!(change, bytes = length, "snapshot of the state stored"),
                Err(error) => tracing::warn!(%error, "no snapshot of the state stored; the next is tried in its time"),
            }
        }));
        Ok(())
    }
}

/// Which inputs are known, and the state.
pub(super) fn parts_of(bytes: &Bytes) -> anyhow::Result<(Bytes, Bytes)> {
    let too_short = || format!("its {} bytes are too few", bytes.len());
    let (length, rest) = bytes.split_first_chunk().with_context(too_short)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok();
    let (known, state) = length.and_then(|length| rest.split_at_checked(length)).with_context(too_short)?;
    Ok((bytes.slice_ref(known), bytes.slice_ref(state)))
}
