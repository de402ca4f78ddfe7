//! Where stages are now: what was moved, as the hub has written it down and relays have copied it.

use std::sync::Arc;

use causeway_bus::{Bus, BusError, Follow, LogBegin, names};
use causeway_pipelines::{Phase, Pipeline, Placement};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The key of the placement in its table.
pub const PLACEMENT_KEY: &str = "placement";

/// The pipeline as its stages are placed, whenever that changes.
pub type Placed = watch::Receiver<Arc<Pipeline>>;

/// The key of what a site says of a move.
pub fn report_key(site: &str) -> String {
    format!("site-{site}")
}

/// What a site says of its part in a move.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteReport {
    /// Of which move.
    pub epoch: u64,
    /// When that began: epochs begin anew where the hub has lost its store.
    pub since: u64,
    /// Of which phase of it.
    pub phase: Option<Phase>,
    /// Its part of the phase is done.
    pub done: bool,
    /// Of the first phase, where the stage will be: it could take over.
    #[serde(default)]
    pub ready: bool,
    /// Takers that have ended here: stream and durable.
    #[serde(default)]
    pub ended: Vec<(String, String)>,
    /// What it waits for, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// Of a stage with a state, where it was: what the other site needs of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogBegin>,
    /// The last change of its changelog, since it was shut there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<u64>,
    /// Where it will be: all of its state is there.
    #[serde(default)]
    pub has_state: bool,
}

impl SiteReport {
    /// Whether it is of the move that is under way.
    pub fn is_of_move(&self, placement: &Placement) -> bool {
        placement.moving.as_ref().is_some_and(|moving| (self.epoch, self.since) == (placement.epoch, moving.since))
    }

    /// Whether it is of the phase that the move is in.
    pub fn is_of(&self, placement: &Placement) -> bool {
        self.is_of_move(placement) && self.phase == placement.phase()
    }
}

/// What a site said last of a move, as it is known at the site of a bus.
pub async fn read_report(bus: &Bus, site: &str) -> Result<Option<SiteReport>, BusError> {
    let entry = bus.table_get(names::PLACEMENT, &report_key(site)).await?;
    Ok(entry.and_then(|entry| serde_json::from_slice(&entry.value).ok()))
}

/// The placement as it is known at the site of a bus, with its revision there; 0 where nothing was moved ever.
pub async fn read_placement(bus: &Bus) -> Result<(Placement, u64), BusError> {
    // A site that was never applied has no table.
    let table = names::stream_of_table(bus.pipeline(), names::PLACEMENT);
    if bus.stream_state(&table).await?.is_none() {
        return Ok((Placement::default(), 0));
    }
    let Some(entry) = bus.table_get(names::PLACEMENT, PLACEMENT_KEY).await? else {
        return Ok((Placement::default(), 0));
    };
    Ok((placement_of(&entry.value)?, entry.revision))
}

fn placement_of(value: &[u8]) -> Result<Placement, BusError> {
    serde_json::from_slice(value)
        .map_err(|error| BusError::Request { what: "read where stages were moved to".into(), why: error.to_string() })
}

/// Follows where stages are placed at the site that a pipeline is seen from, beginning with what is known there now.
pub async fn follow_placement(bus: &Bus, pipeline: &Pipeline) -> Placed {
    if !pipeline.is_split() {
        return watch::channel(Arc::new(pipeline.clone())).1;
    }
    let now = match read_placement(bus).await {
        Ok((placement, _)) => place(pipeline, &placement),
        Err(error) => {
            tracing::warn!(%error, "where stages were moved to is not known yet: they are where the file has them");
            None
        }
    };
    let (say, placed) = watch::channel(Arc::new(now.unwrap_or_else(|| pipeline.clone())));
    let (bus, pipeline) = (bus.clone(), pipeline.clone());
    let say = Arc::new(say);
    let says = Arc::clone(&say);
    tokio::spawn(async move {
        let follows = bus.follow_table(names::PLACEMENT, move |follow| {
            let Follow::Put(entry) = follow else { return };
            if entry.key != PLACEMENT_KEY {
                return;
            }
            match placement_of(&entry.value) {
                Ok(placement) if says.borrow().placement != placement => {
                    if let Some(placed) = place(&pipeline, &placement) {
                        let _ = says.send(Arc::new(placed));
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::error!(%error, "stages stay where they are"),
            }
        });
        tokio::select! {
            () = follows => {}
            // Nobody listens any more.
            () = say.closed() => {}
        }
    });
    placed
}

fn place(pipeline: &Pipeline, placement: &Placement) -> Option<Pipeline> {
    match pipeline.placed(placement) {
        Ok(placed) => Some(placed),
        Err(error) => {
            let epoch = placement.epoch;
            tracing::error!(epoch, %error, "the pipeline file does not fit where stages were moved to: they stay where they are");
            None
        }
    }
}

/// Comes when something was placed anew; never where that cannot be.
pub async fn is_placed_anew(placed: &mut Placed) {
    if placed.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
