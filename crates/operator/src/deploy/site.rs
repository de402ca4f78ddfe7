//! A site as it is deployed: what runs there, whose keys go with it, and where its broker is.

use std::fs::Permissions;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use causeway_bus::is_local;
use causeway_pipelines::{CaptureOptions, Pipeline, RELAY, StageSpec};

use crate::cli::{PipelineArgs, beside};
use crate::input::has_password;
use crate::keys::{CA, IN_CONTAINERS, SERVER};
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
    /// Beside the stages, at this port of the machine; whether other machines dial it.
    Beside { port: u16, is_dialled: bool },
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
    let written = || pipeline.site(&pipeline.here)?.credentials.as_ref().map(|at| beside(pipeline, at));
    let Some(folder) = given.map(Path::to_owned).or_else(written) else { return Ok(None) };
    ensure!(
        folder.is_dir(),
        "cannot read {} as the folder of keys of {}: `causeway keys` makes it",
        folder.display(),
        pipeline.here
    );
    Ok(Some(folder))
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
        check_secrets(&pipeline)?;
        let address = pipeline.site(&here).and_then(|site| site.address.as_deref());
        // Several, as a person writes them.
        let address = address.map(|address| address.split(',').map(str::trim).collect::<Vec<_>>().join(","));
        let broker = match address {
            Some(address) if no_nats || address.contains(',') => Broker::Elsewhere(address),
            None if no_nats => {
                bail!(
                    "cannot tell where the server of {here} is: write it as [site.{here}] address, or leave --no-nats"
                )
            }
            Some(address) => Broker::Beside { port: port_of(&address), is_dialled: !is_local(&address) },
            None => Broker::Beside { port: PORT, is_dialled: false },
        };
        ensure!(
            keys.is_some() || !matches!(broker, Broker::Beside { is_dialled: true, .. }),
            "cannot open a server at the address of {here} to everybody: make keys with `causeway keys` and name their folder as \
             [site.{here}] credentials or with --keys; where the server there is somebody else's, say --no-nats"
        );
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
        let server = SERVER.iter().filter(|_| self.has_broker()).map(|name| (*name).to_owned());
        keys.chain([CA.to_owned()]).chain(server).collect()
    }

    /// Whether everybody there has a key of his own.
    pub(super) fn is_keyed(&self) -> bool {
        self.keys.is_some()
    }

    /// No stage is called like a service that every deployment has.
    pub(super) fn check_names(&self) -> anyhow::Result<()> {
        if let Some(stage) = self.pipeline.stages.iter().find(|stage| OURS.contains(&stage.name.as_str())) {
            bail!(
                "cannot deploy [stage.{0}]: `{0}` is a service that every deployment has; call the stage another name",
                stage.name
            );
        }
        Ok(())
    }

    /// The copy of the pipeline file, whose text is `text`: its name, and what is in it.
    pub(super) fn file_copy(&self, mark: &str, text: &str) -> (String, String) {
        let written = self.pipeline.file.display();
        (self.file_name(), format!("{mark} from {written}: change that, and write anew.\n{text}"))
    }

    /// What the copy of the pipeline file is called.
    pub(super) fn file_name(&self) -> String {
        format!("{}.toml", self.pipeline.name)
    }

    /// Whether its broker is deployed with it.
    pub(super) fn has_broker(&self) -> bool {
        matches!(self.broker, Broker::Beside { .. })
    }

    /// What is copied into `to` of the folder of keys.
    pub(super) fn copies(&self, to: &Path, is_ours: bool) -> anyhow::Result<Copies> {
        match &self.keys {
            Some(folder) => Copies::new(folder, self.key_files(), to, is_ours),
            None => Ok(Copies::default()),
        }
    }
}

/// What of a folder of keys is copied, once it is known that it may be.
#[derive(Debug, Default)]
pub(super) struct Copies {
    from: PathBuf,
    to: PathBuf,
    names: Vec<String>,
}

impl Copies {
    /// `is_ours`: what is there was written by us.
    pub(super) fn new(from: &Path, names: Vec<String>, to: &Path, is_ours: bool) -> anyhow::Result<Self> {
        let is_same = to.canonicalize().is_ok_and(|to| from.canonicalize().is_ok_and(|from| from == to));
        let there = names.iter().map(|name| to.join(name)).find(|there| there.exists() && !is_ours);
        if let Some(there) = there.or_else(|| is_same.then(|| to.to_owned())) {
            bail!(
                "cannot write {}: it is there, and not written by `causeway deploy`; choose another --out, a folder of its own",
                there.display()
            );
        }
        Ok(Self { from: from.to_owned(), to: to.to_owned(), names })
    }

    /// Copies them, each for its owner alone. With an `owner` (user and group), for that one, and for members of that group, to read: only
    /// root may give files away, and `false` says that they are still whose they were.
    pub(super) fn write(&self, owner: Option<(u32, u32)>) -> anyhow::Result<bool> {
        if self.names.is_empty() {
            return Ok(true);
        }
        let Self { from, to, names } = self;
        let give = |at: &Path, mode: u32| -> std::io::Result<bool> {
            let Some((user, group)) = owner else { return Ok(true) };
            if std::os::unix::fs::chown(at, Some(user), Some(group)).is_err() {
                return Ok(false);
            }
            std::fs::set_permissions(at, Permissions::from_mode(mode))?;
            Ok(true)
        };
        if !to.is_dir() {
            let made = std::fs::DirBuilder::new().recursive(true).mode(OWN).create(to);
            made.with_context(|| format!("cannot make the folder {}", to.display()))?;
        }
        let mut is_given = give(to, FOLDER).with_context(|| format!("cannot open the folder {}", to.display()))?;
        for name in names {
            let (from, to) = (from.join(name), to.join(name));
            // With its mode: a secret is for its owner alone from the first byte on.
            let copied = std::fs::copy(&from, &to).and_then(|_| give(&to, KEY));
            is_given &= copied.with_context(|| {
                format!(
                    "cannot copy {} to {} (where that belongs to the containers' user: as root, or remove the folder first)",
                    from.display(),
                    to.display()
                )
            })?;
        }
        Ok(is_given)
    }
}

/// What is copied to a machine holds no password of the pipeline file's.
fn check_secrets(pipeline: &Pipeline) -> anyhow::Result<()> {
    let file = pipeline.file.display();
    let has = |address: &str| address.split(',').any(|one| has_password(one.trim()));
    if let Some(site) = pipeline.sites.iter().find(|site| site.address.as_deref().is_some_and(has)) {
        bail!("cannot copy {file}: the address of [site.{}] has a password; make keys with `causeway keys`", site.name);
    }
    for stage in pipeline.stages.iter().filter(|stage| stage.uses == "capture") {
        let input = stage.options::<CaptureOptions>().map_err(anyhow::Error::msg)?.input;
        if input.is_some_and(|input| has_password(&input.to_string_lossy())) {
            bail!(
                "cannot copy {file}: the input of [stage.{}] has a password; write ${{CAMERA_PASSWORD}} in its place, and set that \
                 variable where the stage is started",
                stage.name
            );
        }
    }
    Ok(())
}

/// The services beside the stages.
pub(super) const APPLY: &str = "apply";
const OURS: [&str; 3] = [IN_CONTAINERS, APPLY, AGENT];
/// The folder of keys beside what is written.
pub(super) const KEYS: &str = "keys";
/// The configuration of the broker there.
pub(super) const NATS_CONF: &str = "nats-server.conf";
/// More than the 10 s that a stage takes to drain before it leaves what it holds to others.
pub(super) const STOP_S: u32 = 20;
/// How long `apply` waits for the broker, which first reads its store.
pub(super) const WAIT_S: u32 = 120;

/// The file of a key.
pub(super) fn key_file(name: &str) -> String {
    format!("{name}.nk")
}

/// Who may read a copy that was given to another: that one, and the group of those who read it as somebody else.
const KEY: u32 = 0o640;
const FOLDER: u32 = 0o750;
/// For its owner alone.
const OWN: u32 = 0o700;

/// The port of an address that others dial.
pub(super) fn port_of(address: &str) -> u16 {
    address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(PORT)
}

/// The port of NATS.
pub(super) const PORT: u16 = 4222;

/// The only site of a pipeline with this text, without keys, and with the file's name as it is written.
#[cfg(test)]
pub(super) fn deployed_alone(text: &str) -> Deployed {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("door.toml");
    std::fs::write(&file, text).unwrap();
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let mut deployed = Deployed::of(pipeline, None, None, false).unwrap();
    deployed.pipeline.file = "door.toml".into();
    deployed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(dir: &Path, sites: &str) -> Pipeline {
        let file = dir.join("door.toml");
        std::fs::write(&file, format!("pipeline = \"door\"\n{sites}[stage.capture]\ninput = \"/photos\"\n")).unwrap();
        Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_server_is_not_opened_to_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let of = |sites: &str, no_nats| {
            Deployed::of(pipeline(dir.path(), sites), None, None, no_nats).map_err(|error| error.to_string())
        };
        let dialled = "[site.box]\naddress = \"nats://10.0.0.5:4300\"\n";
        assert!(of(dialled, false).err().unwrap().contains("to everybody"));
        assert_eq!(of(dialled, true).unwrap().broker, Broker::Elsewhere("nats://10.0.0.5:4300".into()));
        let own = of("[site.box]\naddress = \"nats://127.0.0.1:4300\"\n", false).unwrap().broker;
        assert_eq!(own, Broker::Beside { port: 4300, is_dialled: false });
        let error = of("[site.box]\ncredentials = \"keys/bx\"\n", false).err().unwrap();
        assert!(
            error.contains("keys/bx as the folder of keys"),
            "a folder that is not there is no folder too few: {error}"
        );
        let error = of("[site.box]\naddress = \"nats://me:s3cret@10.0.0.5\"\n", true).err().unwrap();
        assert!(error.contains("[site.box] has a password") && !error.contains("s3cret"), "{error}");
    }

    #[test]
    fn keys_are_copied_over_our_own_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("keys"), dir.path().join("out"));
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join("a.nk"), "seed").unwrap();
        std::fs::set_permissions(from.join("a.nk"), Permissions::from_mode(0o600)).unwrap();
        let names = || vec!["a.nk".to_owned()];
        for is_ours in [false, true] {
            assert!(Copies::new(&from, names(), &from, is_ours).is_err(), "onto themselves they would be empty");
            Copies::new(&from, names(), &to, is_ours).unwrap().write(None).unwrap();
            let mode = |at: &Path| at.metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&to), mode(&to.join("a.nk"))), (0o700, 0o600));
        }
        assert!(Copies::new(&from, names(), &to, false).unwrap_err().to_string().contains("out/a.nk: it is there"));
        assert_eq!(std::fs::read_to_string(from.join("a.nk")).unwrap(), "seed");
    }
}
