//! A pipeline brought up: its server, its streams, and the bus to it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use causeway_bus::server::{Server, Start};
use causeway_bus::{Bus, BusError, Credentials};
use causeway_pipelines::{Manifest, Pipeline};

use crate::home::{Home, Lock, Process, Running};
use crate::layout;
use crate::stop::Stop;

/// An open pipeline. Close it: what it started is stopped.
pub(crate) struct Session {
    pub(crate) pipeline: Pipeline,
    pub(crate) bus: Bus,
    pub(crate) home: Home,
    pub(crate) models: PathBuf,
    pub(crate) nats: String,
    pub(crate) server: Option<Server>,
    /// Whether it was told to stop; `None` where a signal ends the process at once.
    stop: Option<Stop>,
    _lock: Lock,
}

impl Session {
    /// Takes the home folder, starts a server unless `nats` names one, connects, and applies the pipeline.
    pub(crate) async fn open(
        pipeline: Pipeline,
        home: &Path,
        models: &Path,
        nats: Option<&str>,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        check_models(&pipeline, models)?;
        let home = Home::new(home);
        let lock = home.lock()?;
        home.end_leftovers();
        let mut session = Self::start(pipeline, home, lock, models, nats, credentials).await?;
        // Before anybody can read which process to end.
        session.stop = Some(Stop::on_signals()?);
        session.say(&[])?;
        Ok(session)
    }

    /// Opens what an earlier run stored; where nothing is stored yet, an error unless `create`.
    pub(crate) async fn open_store(pipeline: Pipeline, home: &Path, create: bool) -> anyhow::Result<Self> {
        let home = Home::new(home);
        let store = home.site(pipeline.sites.first().map_or("edge", String::as_str));
        if !store.is_dir() && !create {
            bail!(
                "nothing runs here, and no results are stored in {}; run `causeway up` first, or name a server with --nats",
                store.display()
            );
        }
        let lock = home.lock()?;
        home.end_leftovers();
        let session = Self::start(pipeline, home, lock, Path::new(""), None, &Credentials::default()).await?;
        session.say(&[])?;
        Ok(session)
    }

    async fn start(
        pipeline: Pipeline,
        home: Home,
        lock: Lock,
        models: &Path,
        nats: Option<&str>,
        credentials: &Credentials,
    ) -> anyhow::Result<Self> {
        let (server, nats) = if let Some(address) = nats {
            (None, address.to_owned())
        } else {
            let site = pipeline.sites.first().map_or("edge", String::as_str);
            let dir = absolute(&home.site(site))?;
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make the folder {}", dir.display()))?;
            let start = Start { port: None, sync: pipeline.sync.every() };
            let server = Server::start(site, &dir, start).await?;
            let address = server.address();
            (Some(server), address)
        };
        let bus = Bus::connect(&nats, credentials, &pipeline.name, "causeway up").await?;
        apply(&bus, &pipeline, server.as_ref()).await?;
        crate::drift::lost(&bus, &pipeline).await?;
        let models = std::path::absolute(models).unwrap_or_default();
        Ok(Self { pipeline, bus, home, models, nats, server, stop: None, _lock: lock })
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
        eprintln!("{name} runs; any NATS client reads its results: {} on {}", subjects.join(" and "), self.nats);
    }

    /// Writes down what runs here.
    pub(crate) fn say(&self, stages: &[(String, Process)]) -> anyhow::Result<()> {
        self.home.say(&Running {
            pid: std::process::id(),
            pipeline: self.pipeline.name.clone(),
            file: absolute(&self.pipeline.file)?,
            nats: self.nats.clone(),
            server: self.server.as_ref().and_then(Server::pid).map(Process::of),
            stages: stages.to_vec(),
        })
    }

    /// Stops the server.
    pub(crate) async fn close(self) {
        self.bus.close().await;
        if let Some(server) = self.server {
            server.stop().await;
        }
        self.home.say_ended();
    }
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

/// Every model that a stage names is there, before anything starts.
fn check_models(pipeline: &Pipeline, models: &Path) -> anyhow::Result<()> {
    for stage in &pipeline.stages {
        if let Some(model) = stage.model() {
            Manifest::load(models, model).with_context(|| format!("cannot start [stage.{}]", stage.name))?;
        }
    }
    Ok(())
}

pub(crate) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot tell where {} is", path.display()))
}
