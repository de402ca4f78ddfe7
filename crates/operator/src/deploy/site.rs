//! A site as it is deployed: what runs there, whose keys go with it, and where its broker is.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use causeway_bus::is_local;
use causeway_pipelines::{Pipeline, RELAY, StageSpec};

use crate::cli::{PipelineArgs, beside};
use crate::keys::{CA, SERVER};
use crate::rights::{AGENT, may_run_at};

/// Which site of which pipeline.
#[derive(Debug, clap::Args)]
pub(super) struct SiteArgs {
    #[command(flatten)]
    pub(super) pipeline: PipelineArgs,
    /// The site that is deployed; not needed where there is one
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// The site's folder of keys [default: `credentials` of the site in the pipeline file]
    #[arg(long, value_name = "KEYS/SITE")]
    keys: Option<PathBuf>,
    /// Without a NATS server: the one at the site's `address` is somebody else's
    #[arg(long)]
    no_nats: bool,
}

/// A site that is deployed.
pub(super) struct Deployed {
    /// As it is seen from there.
    pub(super) pipeline: Pipeline,
    /// Its folder of keys.
    pub(super) keys: Option<PathBuf>,
    pub(super) broker: Broker,
}

/// Where the broker of a site is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broker {
    /// Beside the stages; with the port that other machines dial, if they do.
    Beside(Option<u16>),
    /// At this address, and nothing of this deployment.
    Elsewhere(String),
}

impl SiteArgs {
    pub(super) fn deployed(&self) -> anyhow::Result<Deployed> {
        Deployed::of(self.pipeline.load()?, self.site.as_deref(), self.keys.as_deref(), self.no_nats)
    }
}

/// The site of a pipeline that is meant: the one that is named, or the only one.
pub(super) fn site_of(pipeline: Pipeline, named: Option<&str>) -> anyhow::Result<Pipeline> {
    ensure!(
        named.is_some() || !pipeline.is_split(),
        "say which site, with --site: {} has {}",
        pipeline.file.display(),
        pipeline.site_names()
    );
    let site = named.map_or_else(|| pipeline.hub().name.clone(), ToOwned::to_owned);
    Ok(pipeline.at(&site)?)
}

/// The folder of keys of the site that a pipeline is seen from, if there is one.
pub(super) fn keys_of(pipeline: &Pipeline, given: Option<&Path>) -> anyhow::Result<Option<PathBuf>> {
    if let Some(given) = given {
        ensure!(given.is_dir(), "cannot read {} as a folder of keys: `causeway keys` makes them", given.display());
        return Ok(Some(given.to_owned()));
    }
    let written = pipeline.site(&pipeline.here).and_then(|site| site.credentials.as_ref());
    Ok(written.map(|at| beside(pipeline, at)).filter(|at| at.is_dir()))
}

impl Deployed {
    pub(super) fn of(
        pipeline: Pipeline,
        site: Option<&str>,
        keys: Option<&Path>,
        no_nats: bool,
    ) -> anyhow::Result<Self> {
        let pipeline = site_of(pipeline, site)?;
        let here = pipeline.here.clone();
        let keys = keys_of(&pipeline, keys)?;
        ensure!(
            keys.is_some() || !pipeline.is_split(),
            "cannot deploy {here} without keys, since what crosses between sites is for those who may read it: make them with \
             `causeway keys`, and name their folder as [site.{here}] credentials or with --keys"
        );
        let address = pipeline.site(&here).and_then(|site| site.address.clone());
        let broker = match address {
            Some(address) if no_nats || address.contains(',') => Broker::Elsewhere(address),
            None if no_nats => {
                bail!(
                    "cannot tell where the server of {here} is: write it as [site.{here}] address, or leave --no-nats"
                )
            }
            Some(address) if !is_local(&address) => Broker::Beside(Some(port_of(&address))),
            _ => Broker::Beside(None),
        };
        let deployed = Self { pipeline, keys, broker };
        if deployed.has_relay() {
            let hub = deployed.pipeline.hub();
            ensure!(
                hub.address.as_deref().is_some_and(|address| !is_local(address)),
                "cannot deploy {here}: its relay has to reach {0} from another machine; write where that is as [site.{0}] address = \
                 \"tls://HOST:4222\"",
                hub.name
            );
        }
        if let Some(folder) = &deployed.keys {
            let missing = deployed.key_files().into_iter().find(|name| !folder.join(name).is_file());
            if let Some(missing) = missing {
                bail!("cannot find {}: `causeway keys` makes what is missing", folder.join(missing).display());
            }
        }
        Ok(deployed)
    }

    /// The stages that run there, and those that may be moved there: they wait, parked.
    pub(super) fn stages(&self) -> impl Iterator<Item = &StageSpec> {
        self.pipeline.stages.iter().filter(|stage| may_run_at(stage, &self.pipeline.here))
    }

    /// Whether something there carries to the hub and back.
    pub(super) fn has_relay(&self) -> bool {
        self.pipeline.is_split() && self.pipeline.hub().name != self.pipeline.here
    }

    /// What goes with it of the folder of keys.
    fn key_files(&self) -> Vec<String> {
        let relay = self.has_relay().then_some(RELAY);
        let stages = self.stages().map(|stage| stage.name.as_str());
        let keys = stages.chain([AGENT]).chain(relay).map(key_file);
        let server = SERVER.iter().filter(|_| matches!(self.broker, Broker::Beside(_))).map(|name| (*name).to_owned());
        keys.chain([CA.to_owned()]).chain(server).collect()
    }

    /// Copies into `to` what goes with it of the folder of keys; see `copy`.
    pub(super) fn copy_keys(&self, to: &Path, owner: Option<(u32, u32)>, is_ours: bool) -> anyhow::Result<bool> {
        let Some(folder) = &self.keys else { return Ok(true) };
        copy(folder, &self.key_files(), to, owner, is_ours)
    }
}

/// Copies files of a folder of keys, for `owner` (user and group) to read and for nobody else; for whoever runs this where none is named.
/// `is_ours`: what is there was written by us. `false`: the copies belong to whoever runs this, since only root may give them to another.
pub(super) fn copy(
    folder: &Path,
    names: &[String],
    to: &Path,
    owner: Option<(u32, u32)>,
    is_ours: bool,
) -> anyhow::Result<bool> {
    if let Some(there) = names.iter().map(|name| to.join(name)).find(|there| there.exists() && !is_ours) {
        bail!(
            "cannot write {}: it is there, and not written by `causeway deploy`; choose another --out, a folder of its own",
            there.display()
        );
    }
    std::fs::create_dir_all(to).with_context(|| format!("cannot make the folder {}", to.display()))?;
    let give = |at: &Path, mode: u32| -> std::io::Result<bool> {
        let Some((user, group)) = owner else { return Ok(true) };
        let is_given = std::os::unix::fs::chown(at, Some(user), Some(group)).is_ok();
        std::fs::set_permissions(at, PermissionsExt::from_mode(mode))?;
        Ok(is_given)
    };
    let mut is_given = give(to, FOLDER).with_context(|| format!("cannot close the folder {}", to.display()))?;
    for name in names {
        let (from, to) = (folder.join(name), to.join(name));
        // With its mode: a secret is for its owner alone from the first byte on.
        let copied = std::fs::copy(&from, &to).and_then(|_| give(&to, KEY));
        is_given &= copied.with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
    Ok(is_given)
}

/// The file of a key.
pub(super) fn key_file(name: &str) -> String {
    format!("{name}.nk")
}

/// Who may read a copy that was given to another: that one, and the group of those who read it as somebody else.
const KEY: u32 = 0o640;
const FOLDER: u32 = 0o750;

/// The port of an address that others dial.
pub(super) fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(PORT)
}

/// The port of NATS.
pub(super) const PORT: u16 = 4222;
