//! The sites of a pipeline that a command reaches from where it runs.

use anyhow::bail;
use causeway_bus::Bus;
use causeway_pipelines::Pipeline;

use crate::cli::{Connection, PlaceArgs, connect};
use crate::placement::placed;
use crate::session::HUB;

/// Connects to the hub of a pipeline with several sites: where it runs here, else by its address in the file or in `CAUSEWAY_HUB`, with the
/// credentials that the file names.
pub(crate) async fn connect_hub(pipeline: &Pipeline, place: &PlaceArgs) -> anyhow::Result<Connection> {
    let hub = pipeline.hub().name.clone();
    let seen = pipeline.clone().at(&hub)?;
    // What is said for the site that is meant is not for the hub.
    let is_here = place.home().address_if_running(&hub).is_some();
    let (nats, credentials) = (std::env::var(HUB).ok().filter(|_| !is_here), None);
    let place = PlaceArgs { site: Some(hub), nats, credentials, ..place.clone() };
    if place.address(&seen).is_none() {
        bail!("its address is not known here; {HUB} says it");
    }
    connect(&seen, &place).await
}

/// Connections to sites of a pipeline. Close it.
pub(crate) struct Reached {
    /// Each with the pipeline as it is seen from there.
    connections: Vec<(Connection, Pipeline)>,
    /// A site that could not be, and why.
    not_reached: Option<(String, String)>,
}

impl Reached {
    /// All sites that run here; the one that is meant where one is, or where nothing runs here.
    pub(crate) async fn here(pipeline: &Pipeline, place: &PlaceArgs) -> anyhow::Result<Self> {
        let is_meant = place.site.is_some() || place.nats.is_some();
        let running = place.home().alive().filter(|_| !is_meant);
        let here = running.iter().flat_map(|running| &running.sites);
        let mut sites: Vec<Pipeline> = here.filter_map(|site| pipeline.clone().at(&site.name).ok()).collect();
        if sites.is_empty() {
            sites.push(pipeline.clone());
        }
        let mut reached = Self { connections: Vec::new(), not_reached: None };
        for site in sites {
            match connect(&site, place).await {
                Ok(connection) => reached.connections.push((connection, site)),
                Err(error) => {
                    reached.close().await;
                    return Err(error);
                }
            }
        }
        Ok(reached)
    }

    /// The same, and the hub too, where it can be reached: from an edge by its address in the file, or `CAUSEWAY_HUB`, with the credentials
    /// that the file names.
    pub(crate) async fn with_hub(pipeline: &Pipeline, place: &PlaceArgs) -> anyhow::Result<Self> {
        let mut reached = Self::here(pipeline, place).await?;
        let hub = pipeline.hub().name.clone();
        if !pipeline.is_split() || reached.connections.iter().any(|(_, seen)| seen.here == hub) {
            return Ok(reached);
        }
        match connect_hub(pipeline, place).await {
            Ok(connection) => reached.connections.push((connection, pipeline.clone().at(&hub)?)),
            Err(error) => reached.not_reached = Some((hub, format!("{error:#}"))),
        }
        Ok(reached)
    }

    /// Of a pipeline with several sites an error where nothing runs: what is stored at one of them tells of a part.
    pub(crate) fn check_runs(&self, what: &str) -> anyhow::Result<()> {
        if self.connections.iter().any(|(connection, seen)| seen.is_split() && connection.is_store_only()) {
            bail!(
                "cannot {what}: nothing runs here, and it has several sites; start `causeway up` first, or name a server with --nats"
            );
        }
        Ok(())
    }

    /// The connections, each with the pipeline as it is seen from there.
    pub(crate) fn connections(&self) -> &[(Connection, Pipeline)] {
        &self.connections
    }

    /// Whether nothing runs: servers are only there to look at what is stored.
    pub(crate) fn is_store_only(&self) -> bool {
        self.connections.iter().all(|(connection, _)| connection.is_store_only())
    }

    /// The bus of each site, with the pipeline as it is placed there now.
    pub(crate) async fn sites(&self) -> anyhow::Result<Vec<(Bus, Pipeline)>> {
        let mut sites = Vec::new();
        for (connection, seen) in &self.connections {
            sites.push((connection.bus.clone(), placed(&connection.bus, seen).await?));
        }
        Ok(sites)
    }

    /// The names of the sites, for a person.
    pub(crate) fn names(&self) -> String {
        self.connections.iter().map(|(_, seen)| seen.here.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The site that was not reached, and why.
    pub(crate) fn not_reached(&self) -> Option<&(String, String)> {
        self.not_reached.as_ref()
    }

    pub(crate) async fn close(self) {
        for (connection, _) in self.connections {
            connection.close().await;
        }
    }
}
