//! A pipeline brought up: the servers of its sites, its streams, and the buses to them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use causeway_bus::server::{Server, Start};
use causeway_bus::{Bus, BusError, Credentials};
use causeway_pipelines::{Manifest, Pipeline};
use causeway_stage::{Placed, follow_placement};

use crate::cli::PlaceArgs;
use crate::home::{Home, Lock, Process, Running, RunningSite};
use crate::rights::{AGENT, accounts_here};
use crate::stop::Stop;
use crate::{layout, placement};

/// An open pipeline. Close it: what it started is stopped.
pub(crate) struct Session {
    /// As it is seen from the hub, or from the one site that is open.
    pub(crate) pipeline: Pipeline,
    /// The bus there.
    pub(crate) bus: Bus,
    /// Where its server is.
    pub(crate) nats: String,
    /// All sites that are open.
    pub(crate) sites: Vec<OpenSite>,
    pub(crate) home: Home,
    pub(crate) models: PathBuf,
    /// Whether it was told to stop; `None` where a signal ends the process at once.
    stop: Option<Stop>,
    _lock: Lock,
}

/// A site that is open.
pub(crate) struct OpenSite {
    /// As the file has it, seen from there.
    pub(crate) pipeline: Pipeline,
    /// The same as its stages are placed now.
    pub(crate) placed: Placed,
    pub(crate) bus: Bus,
    /// Where its server is.
    pub(crate) nats: String,
    /// The credentials of everybody there, a file or a folder.
    pub(crate) credentials: Option<PathBuf>,
    /// The server, where it is ours.
    pub(crate) server: Option<Server>,
}

/// Where the servers of sites are.
pub(crate) struct Where<'a> {
    /// The one site that is meant; all otherwise.
    pub(crate) site: Option<&'a str>,
    /// The server of that site, or of the only one.
    pub(crate) nats: Option<&'a str>,
    /// The credentials for it, a file or a folder.
    pub(crate) credentials: Option<&'a Path>,
}

impl<'a> Where<'a> {
    /// As the arguments say.
    pub(crate) fn of(place: &'a PlaceArgs) -> Self {
        Self { site: place.site.as_deref(), nats: place.nats.as_deref(), credentials: place.credentials.as_deref() }
    }
}

impl Session {
    /// Takes the home folder, starts a server for each site that names none, connects, and applies the pipeline.
    pub(crate) async fn open(
        pipeline: Pipeline,
        home: &Path,
        models: &Path,
        place: &Where<'_>,
    ) -> anyhow::Result<Self> {
        check_models(&pipeline, models, place.site)?;
        check_hub(&pipeline, place.site)?;
        let home = Home::new(home);
        let lock = home.lock()?;
        home.end_leftovers();
        let mut session = Self::start(pipeline, home, lock, models, place).await?;
        // Before anybody can read which process to end.
        session.stop = Some(Stop::on_signals()?);
        session.say(&[])?;
        Ok(session)
    }

    /// Opens what an earlier run stored at the site that the pipeline is seen from; where nothing is stored yet, an error unless
    /// `create`.
    pub(crate) async fn open_store(pipeline: Pipeline, home: &Path, create: bool) -> anyhow::Result<Self> {
        let home = Home::new(home);
        let store = home.site(&pipeline.here);
        if !store.is_dir() && !create {
            bail!(
                "nothing runs here, and no results are stored in {}; run `causeway up` first, or name a server with --nats",
                store.display()
            );
        }
        let lock = home.lock()?;
        home.end_leftovers();
        let here = pipeline.here.clone();
        let place = Where { site: Some(&here), nats: None, credentials: None };
        let session = Self::start(pipeline, home, lock, Path::new(""), &place).await?;
        session.say(&[])?;
        Ok(session)
    }

    async fn start(
        pipeline: Pipeline,
        home: Home,
        lock: Lock,
        models: &Path,
        place: &Where<'_>,
    ) -> anyhow::Result<Self> {
        if place.nats.is_some() && place.site.is_none() && pipeline.is_split() {
            bail!("cannot tell which site's server --nats is: say it with --site, or as address of each [site.NAME]");
        }
        let names: Vec<String> = match place.site {
            Some(site) => vec![site.to_owned()],
            None => pipeline.sites.iter().map(|site| site.name.clone()).collect(),
        };
        let mut sites = Vec::new();
        for name in names {
            sites.push(OpenSite::open(pipeline.clone().at(&name)?, &home, place).await?);
        }
        let hub = &pipeline.hub().name;
        let main = sites.iter().find(|site| site.pipeline.here == *hub).unwrap_or(&sites[0]);
        let (pipeline, bus, nats) = (main.pipeline.clone(), main.bus.clone(), main.nats.clone());
        let models = std::path::absolute(models).unwrap_or_default();
        Ok(Self { pipeline, bus, nats, sites, home, models, stop: None, _lock: lock })
    }

    /// The site of this name, if it is open.
    pub(crate) fn site(&self, name: &str) -> Option<&OpenSite> {
        self.sites.iter().find(|site| site.pipeline.here == name)
    }

    /// The bus of every site that is open, with the pipeline as it is placed there; that of `bus` first.
    pub(crate) fn placed(&self) -> Vec<(Bus, Placed)> {
        let is_main = |site: &&OpenSite| site.pipeline.here == self.pipeline.here;
        let (main, others): (Vec<&OpenSite>, Vec<_>) = self.sites.iter().partition(is_main);
        main.into_iter().chain(others).map(|site| (site.bus.clone(), site.placed.clone())).collect()
    }

    /// The same as it is now.
    pub(crate) fn seen(&self) -> Vec<(Bus, Pipeline)> {
        placement::seen(&self.placed())
    }

    /// When it is told to stop.
    pub(crate) fn told_to_stop(&self) -> impl Future<Output = ()> + use<> {
        let stop = self.stop.clone();
        async move {
            match stop {
                Some(stop) => stop.told().await,
                None => std::future::pending().await,
            }
        }
    }

    /// Tells where other programs read what comes out.
    pub(crate) fn say_readers(&self) {
        let Pipeline { name, stages, .. } = &self.pipeline;
        let finals = stages.iter().filter(|stage| self.pipeline.is_final(&stage.name));
        let subjects: Vec<String> = finals.map(|stage| causeway_bus::names::link(name, &stage.link)).collect();
        let keyed = self.site(&self.pipeline.here).is_some_and(OpenSite::is_keyed);
        let who = if keyed { "a NATS client with a reader's key" } else { "any NATS client" };
        eprintln!("{name} runs; {who} reads its results: {} on {}", subjects.join(" and "), self.nats);
    }

    /// Writes down what runs here.
    pub(crate) fn say(&self, stages: &[(String, Process)]) -> anyhow::Result<()> {
        let sites = self.sites.iter().map(|site| RunningSite {
            name: site.pipeline.here.clone(),
            nats: site.nats.clone(),
            server: site.server.as_ref().and_then(Server::pid).map(Process::of),
        });
        let sites: Vec<RunningSite> = sites.collect();
        let main = sites.iter().find(|site| site.name == self.pipeline.here);
        self.home.say(&Running {
            pid: std::process::id(),
            pipeline: self.pipeline.name.clone(),
            file: absolute(&self.pipeline.file)?,
            nats: self.nats.clone(),
            server: main.and_then(|site| site.server),
            sites,
            stages: stages.to_vec(),
        })
    }

    /// Stops the servers.
    pub(crate) async fn close(self) {
        for site in self.sites {
            drop(site.placed);
            site.bus.close().await;
            if let Some(server) = site.server {
                server.stop().await;
            }
        }
        self.home.say_ended();
    }
}

impl OpenSite {
    /// Whether everybody there has a key of his own.
    pub(crate) fn is_keyed(&self) -> bool {
        self.credentials.as_ref().is_some_and(|at| at.is_dir())
    }

    async fn open(pipeline: Pipeline, home: &Home, place: &Where<'_>) -> anyhow::Result<Self> {
        let Some(site) = pipeline.site(&pipeline.here).cloned() else { bail!("no site {}", pipeline.here) };
        let address = place.nats.map(ToOwned::to_owned).or(site.address);
        let named = place.credentials.filter(|_| place.site.is_some() || !pipeline.is_split()).map(Path::to_owned);
        let written = || site.credentials.map(|file| crate::cli::beside(&pipeline, &file));
        // A server of our own knows no users but those of `causeway keys`.
        let credentials = named.or_else(written).filter(|at| address.is_some() || at.is_dir());
        let (server, nats) = if let Some(address) = address {
            (None, address)
        } else {
            let server = start_server(&pipeline, home, credentials.as_deref(), None).await?;
            let address = server.address();
            (Some(server), address)
        };
        let agent = Credentials::of(credentials.as_deref(), AGENT);
        let bus = Bus::connect(&nats, &agent, &pipeline.name, "causeway up").await?;
        let now = placement::placed(&bus, &pipeline).await?;
        apply(&bus, &now, server.as_ref()).await?;
        crate::drift::lost(&bus, &now).await?;
        let placed = follow_placement(&bus, &pipeline).await;
        Ok(Self { pipeline, placed, bus, nats, credentials, server })
    }
}

/// Starts the server of the site that a pipeline is seen from, with an account for each whose key is in the folder; on the port of the one
/// before, if there was one.
pub(crate) async fn start_server(
    pipeline: &Pipeline,
    home: &Home,
    keys: Option<&Path>,
    port: Option<u16>,
) -> anyhow::Result<Server> {
    let dir = absolute(&home.site(&pipeline.here))?;
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
    let accounts = keys.map(|keys| accounts_here(pipeline, keys)).transpose()?;
    Ok(Server::start(&pipeline.here, &dir, Start { port, sync: pipeline.sync.every(), accounts }).await?)
}

/// Applies a pipeline; of a server of our own, what it cannot read of a durable is removed.
async fn apply(bus: &Bus, pipeline: &Pipeline, server: Option<&Server>) -> anyhow::Result<()> {
    while let Err(error) = layout::apply(bus, pipeline).await {
        // Each once, since what was removed is not there to be removed again.
        let forgotten = match (&error, server) {
            (BusError::DurableState { stream, durable }, Some(server)) => {
                server.forget_durable(stream, durable).is_ok()
            }
            _ => false,
        };
        if !forgotten {
            return Err(error.into());
        }
        tracing::warn!(%error, "done; the durable is made anew");
    }
    Ok(())
}

/// Every model that a stage of the site (of all of them) names is there, before anything starts.
fn check_models(pipeline: &Pipeline, models: &Path, site: Option<&str>) -> anyhow::Result<()> {
    for stage in pipeline.stages.iter().filter(|stage| site.is_none_or(|site| stage.runs_at(site))) {
        if let Some(model) = stage.model() {
            Manifest::load(models, model).with_context(|| format!("cannot start [stage.{}]", stage.name))?;
        }
    }
    Ok(())
}

/// The relay of an edge that is run alone has somebody to dial.
fn check_hub(pipeline: &Pipeline, site: Option<&str>) -> anyhow::Result<()> {
    let hub = pipeline.hub();
    let dials = site.and_then(|site| pipeline.site(site)).is_some_and(|site| !site.is_hub);
    if dials && hub.address.is_none() && std::env::var_os(HUB).is_none() {
        bail!(
            "cannot tell where the hub is: no address of {0} is known; write address = \"nats://HOST:4222\" under [site.{0}], or set {HUB}",
            hub.name
        );
    }
    Ok(())
}

/// The environment variable that says where the hub is.
pub(crate) const HUB: &str = "CAUSEWAY_HUB";

pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}
