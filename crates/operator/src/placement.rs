//! Where stages are: what the hub has written down, and what each site says of its part in a move.

use std::collections::BTreeMap;

use anyhow::Context as _;
use causeway_bus::{Bus, BusError, names};
use causeway_pipelines::{Flow, Pipeline, Placement};
use causeway_stage::{PLACEMENT_KEY, Placed, SiteReport, links_of, read_placement, report_key};

/// What the sites say, by site, as far as it is known at the site of a bus.
pub(crate) async fn reports(bus: &Bus, pipeline: &Pipeline) -> Result<BTreeMap<String, SiteReport>, BusError> {
    let entries = bus.table_entries(names::PLACEMENT).await?;
    let report_of = |site: &str| {
        let entry = entries.iter().find(|entry| entry.key == report_key(site))?;
        serde_json::from_slice(&entry.value).ok()
    };
    let sites = pipeline.sites.iter().map(|site| site.name.clone());
    Ok(sites.filter_map(|site| Some((site.clone(), report_of(&site)?))).collect())
}

/// Says what the site of a bus has done.
pub(crate) async fn report(bus: &Bus, site: &str, report: &SiteReport) -> anyhow::Result<()> {
    bus.table_put(names::PLACEMENT, &report_key(site), serde_json::to_vec(report)?.into()).await?;
    Ok(())
}

/// Writes a placement down at the hub, in place of the one with this revision. `false`: somebody else was first.
pub(crate) async fn write(hub: &Bus, placement: &Placement, revision: u64) -> anyhow::Result<bool> {
    let text = serde_json::to_vec(placement)?;
    Ok(hub.table_swap(names::PLACEMENT, PLACEMENT_KEY, text.into(), revision).await?.is_some())
}

/// The pipeline as its stages are placed at the site of a bus.
pub(crate) async fn placed(bus: &Bus, pipeline: &Pipeline) -> anyhow::Result<Pipeline> {
    if !pipeline.is_split() {
        return Ok(pipeline.clone());
    }
    let (placement, _) = read_placement(bus).await?;
    pipeline.placed(&placement).with_context(|| {
        format!(
            "cannot place the stages of {} as `causeway move` has (epoch {}): the file does not fit that any more",
            pipeline.file.display(),
            placement.epoch
        )
    })
}

/// As all of it is placed now.
pub(crate) fn seen(sites: &[(Bus, Placed)]) -> Vec<(Bus, Pipeline)> {
    sites.iter().map(|(bus, placed)| (bus.clone(), Pipeline::clone(&placed.borrow()))).collect()
}

/// The streams of a flow.
pub(crate) fn streams_of(pipeline: &Pipeline, flow: Flow<'_>) -> Vec<String> {
    links_of(flow).into_iter().map(|link| names::stream(&pipeline.name, link)).collect()
}
