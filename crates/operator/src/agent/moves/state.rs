//! The state of a fold on the move. Where it was, its changelog is shut once its input is handed over, so that no other change comes; a
//! relay takes it over meanwhile; where it will be, its writer begins once the last change is there.

use std::collections::BTreeMap;

use anyhow::Context as _;
use causeway_bus::{LogBegin, names};
use causeway_pipelines::{Placement, Who};
use causeway_stage::SiteReport;

use super::{Move, Part};
use crate::placement::{reports, streams_of};

impl Part {
    /// Where it is: says what the other site needs of it. Where it will be: makes room for it, and waits until most of it has come.
    pub(super) async fn prepare_state(
        &self,
        this: &Move<'_>,
        placement: &Placement,
        (from, to): (&str, &str),
        said: &mut SiteReport,
    ) -> anyhow::Result<()> {
        let (here, stage) = (self.file.here.as_str(), this.moving.stage.as_str());
        if here == from && said.log.is_none() {
            said.log = Some(self.bus.log_begin(stage).await?);
        }
        if here != to {
            return Ok(());
        }
        let others = reports(&self.bus, &self.file).await?;
        let Some(log) = others.get(from).filter(|other| other.is_of_move(placement)).and_then(|other| other.log) else {
            said.waits_for.get_or_insert_with(|| format!("{from} to say what the state of {stage} is"));
            return Ok(());
        };
        let (changelog, snapshots) = self.names_of_state(stage);
        let wish = |name: &str| {
            let wish = this.streams[1].iter().find(|wish| wish.name == name);
            wish.with_context(|| format!("no stream {name} is wanted here"))
        };
        self.bus.make_log(wish(&changelog)?, wish(&snapshots)?, log.begin).await?;
        if let Some(missing) = self.is_missing(stage, &log, log.last).await? {
            said.waits_for.get_or_insert(missing);
        }
        Ok(())
    }

    /// What of the state has not come here yet, up to this change.
    async fn is_missing(&self, stage: &str, log: &LogBegin, last: u64) -> anyhow::Result<Option<String>> {
        let (changelog, _) = self.names_of_state(stage);
        let there = self.bus.stream_state(&changelog).await?.map_or(0, |state| state.last_sequence);
        if there < last {
            return Ok(Some(format!("the state of {stage} to come over: change {there} of {last}")));
        }
        let Some(wanted) = log.snapshot else { return Ok(None) };
        let has = self.bus.snapshots(stage).await?.iter().any(|snapshot| snapshot.sequence >= wanted);
        Ok((!has).then(|| format!("the snapshot of {stage} to come over")))
    }

    /// Where it was: shuts the changelog once its input is taken elsewhere. Where it will be: says when all of it is there.
    pub(super) async fn hand_over_state(
        &self,
        this: &Move<'_>,
        others: &BTreeMap<String, SiteReport>,
        placement: &Placement,
        (from, to): (&str, &str),
        said: &mut SiteReport,
    ) -> anyhow::Result<()> {
        let (here, stage) = (self.file.here.as_str(), this.moving.stage.as_str());
        let other = |site: &str| others.get(site).filter(|other| other.is_of(placement));
        if here == from {
            let takers =
                this.handover.ends.iter().filter(|one| one.site == here && one.who == Who::Stage(stage.into()));
            let mut streams = takers.flat_map(|one| streams_of(&self.file, one.flow));
            let takes =
                streams.any(|stream| !said.ended.iter().any(|(ended, durable)| *ended == stream && durable == stage));
            if takes {
                return Ok(());
            }
            if said.sealed.is_none() {
                let last = self.bus.shut_stream(&self.names_of_state(stage).0).await?;
                tracing::info!(stage, last, "its changelog is shut: it goes on elsewhere");
                said.sealed = Some(last.unwrap_or(0));
            }
            if other(to).is_none_or(|other| !other.has_state) {
                said.waits_for.get_or_insert_with(|| format!("the state of {stage} to be at {to}"));
            }
        }
        if here == to && !said.has_state {
            let log = others.get(from).filter(|other| other.is_of_move(placement)).and_then(|other| other.log);
            let sealed = other(from).and_then(|other| other.sealed);
            let (Some(log), Some(sealed)) = (log, sealed) else {
                said.waits_for.get_or_insert_with(|| format!("the changelog of {stage} to be shut at {from}"));
                return Ok(());
            };
            match self.is_missing(stage, &log, sealed).await? {
                Some(missing) => drop(said.waits_for.get_or_insert(missing)),
                None => said.has_state = true,
            }
        }
        Ok(())
    }

    /// The streams of a fold's state: its changelog and its snapshots.
    fn names_of_state(&self, stage: &str) -> (String, String) {
        (names::changelog(&self.file.name, stage), names::snapshots(&self.file.name, stage))
    }
}
