//! `causeway keys`: a key for everybody who signs in at a pipeline's sites, and certificates for the sites' servers.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use causeway_bus::host_of;
use causeway_pipelines::{Pipeline, RELAY, SiteSpec};
use nkeys::KeyPair;
use serde::{Deserialize, Serialize};

use self::certificates::{Authority, Server};
use crate::cli::PipelineArgs;
use crate::rights::{AGENT, identities};
use crate::terminal::print_line;

mod certificates;
mod show;

/// Which keys of a site's folder sign in at its server.
pub(crate) const USERS: &str = "users.json";
/// The certificate of who vouches for the servers.
pub(crate) const CA: &str = "ca.pem";
/// The secret key of the same: it stays where the keys are made.
const CA_KEY: &str = "ca.key";
/// The certificate of a site's server, and its secret key.
pub(crate) const SERVER: [&str; 2] = ["server.pem", "server.key"];

/// What a site's server is called on the network of its containers (`causeway deploy compose`).
pub(crate) const IN_CONTAINERS: &str = "nats";

/// The arguments of `keys`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway keys faces.toml --out keys                                  what is missing\n  causeway keys faces.toml --out keys --reader dashboard --site cloud  for a program that reads results\n  causeway keys faces.toml --out keys --rotate extract --site edge     another key for one of them\n  causeway keys faces.toml --show                                      what each key opens\n\nKEYS/SITE/ is for that site's machine, and nothing of it for another one. KEYS/ca.key stays here."
)]
pub(crate) struct KeysArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The folder of the keys; what is there stays
    #[arg(long, value_name = "KEYS", default_value = "keys")]
    out: PathBuf,
    /// The site that is meant; by default all
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// Make a key for a reader of results
    #[arg(long, value_name = "NAME", requires = "site")]
    reader: Vec<String>,
    /// Make another key in place of one: a stage, `relay`, `agent`, a reader, `server` (the site's certificate), `ca`, or `all`
    #[arg(long, value_name = "NAME")]
    rotate: Vec<String>,
    /// A further name or address that a site's server is reached by
    #[arg(long, value_name = "HOST", requires = "site")]
    host: Vec<String>,
    /// Make nothing, and show what each key opens
    #[arg(long, conflicts_with_all = ["rotate", "host", "reader"])]
    show: bool,
    /// With --show: as JSON
    #[arg(long, requires = "show")]
    json: bool,
    /// How long the certificates of servers hold
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

/// Who signs in at a site, by their public keys: what its server has to know, and no secret.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Users {
    /// Of the pipeline's own.
    pub(crate) keys: BTreeMap<String, String>,
    /// Of those who read results.
    #[serde(default)]
    pub(crate) readers: BTreeMap<String, String>,
    /// Names and addresses that its server is reached by, besides those in the pipeline file.
    #[serde(default)]
    pub(crate) hosts: Vec<String>,
}

impl Users {
    /// Those in a site's folder.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let file = folder.join(USERS);
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}: make keys with `causeway keys`", file.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot read {} as the users of a site", file.display()))
    }

    /// All of them by name.
    pub(crate) fn all(&self) -> BTreeMap<String, String> {
        self.keys.iter().chain(&self.readers).map(|(name, key)| (name.clone(), key.clone())).collect()
    }
}

pub(crate) fn run(args: &KeysArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load()?;
    let site = args.site.as_deref().map(|site| pipeline.clone().at(site).map(|_| site)).transpose()?;
    for reader in &args.reader {
        check_reader(&pipeline, reader)?;
    }
    if args.show {
        return show(args, &pipeline, site);
    }
    let taken = [AGENT, "server", "ca", "all"];
    if let Some(stage) = pipeline.stages.iter().find(|stage| taken.contains(&stage.name.as_str())) {
        bail!(
            "cannot make a key for [stage.{0}]: `{0}` is called something else here; call the stage another name",
            stage.name
        );
    }
    folder(&args.out)?;
    let mut maker = Maker { args, rotated: Vec::new() };
    let authority = maker.authority(&pipeline)?;
    let is_meant = |name: &str| site.is_none_or(|site| site == name);
    // Edges first: the hub has to know the keys of their relays.
    let sites = pipeline.edges().chain([pipeline.hub()]);
    let mut relays = BTreeMap::new();
    for SiteSpec { name, .. } in sites {
        maker.site(&pipeline, name, is_meant(name), &authority, &mut relays)?;
    }
    for name in &args.rotate {
        ensure!(
            name == "all" || maker.rotated.iter().any(|rotated| rotated == name),
            "cannot rotate `{name}`: nobody is called so at {}",
            site.unwrap_or("any site")
        );
    }
    print_line(format_args!(
        "\n{out}/SITE/ is for that site's machine alone; {out}/{CA_KEY} stays here. Say where they are as [site.NAME] credentials, and give \
         the servers their part: `causeway deploy nats`.",
        out = args.out.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Shows what keys open, at one site or at all.
fn show(args: &KeysArgs, pipeline: &Pipeline, site: Option<&str>) -> anyhow::Result<ExitCode> {
    let mut told = Vec::new();
    for SiteSpec { name, .. } in pipeline.sites.iter().filter(|known| site.is_none_or(|site| site == known.name)) {
        let seen = pipeline.clone().at(name)?;
        let readers = Users::read(&args.out.join(name)).map(|users| users.readers.into_keys().collect::<Vec<_>>());
        let readers = readers.unwrap_or_default();
        if args.json {
            told.push(show::told(&seen, &readers));
        } else {
            print_line(format_args!("{name}\n{}\n", show::shown(&seen, &readers)))?;
        }
    }
    if args.json {
        print_line(serde_json::Value::Array(told))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check_reader(pipeline: &Pipeline, reader: &str) -> anyhow::Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    ensure!(
        !reader.is_empty() && reader.len() <= 64 && reader.chars().all(good),
        "cannot make a key for the reader `{reader}`: its name has a-z, 0-9, `-` and `_`"
    );
    ensure!(
        pipeline.stage(reader).is_none() && ![AGENT, RELAY, "server", "ca", "all"].contains(&reader),
        "cannot make a key for the reader `{reader}`: something else is called so"
    );
    Ok(())
}

/// Makes keys, and says which.
struct Maker<'a> {
    args: &'a KeysArgs,
    /// What was to be rotated and was.
    rotated: Vec<String>,
}

impl Maker<'_> {
    fn authority(&mut self, pipeline: &Pipeline) -> anyhow::Result<Authority> {
        let (certificate, key) = (self.args.out.join(CA), self.args.out.join(CA_KEY));
        if certificate.exists() && !self.is_rotated("ca") {
            let secret = std::fs::read_to_string(&key)
                .with_context(|| format!("cannot read {}: certificates are made where it is", key.display()))?;
            return Authority::of(&pipeline.name, &secret);
        }
        let authority = Authority::new(&pipeline.name)?;
        write(&key, &authority.secret(), SECRET)?;
        write(&certificate, &authority.certificate()?, PUBLIC)?;
        print_line(format_args!("made {CA} and {CA_KEY}, who vouch for the servers"))?;
        Ok(authority)
    }

    /// The keys of a site; of its relay the hub has the public one.
    fn site(
        &mut self,
        pipeline: &Pipeline,
        site: &str,
        is_meant: bool,
        authority: &Authority,
        relays: &mut BTreeMap<String, String>,
    ) -> anyhow::Result<()> {
        let at = self.args.out.join(site);
        if !is_meant && !at.join(USERS).exists() {
            return Ok(());
        }
        folder(&at)?;
        let before = if at.join(USERS).exists() { Users::read(&at)? } else { Users::default() };
        let mut users = Users { hosts: before.hosts.clone(), ..Users::default() };
        let mut readers: Vec<String> = before.readers.keys().cloned().collect();
        if is_meant {
            readers.extend(self.args.reader.iter().filter(|name| !before.readers.contains_key(*name)).cloned());
            let new = self.args.host.iter().filter(|host| !before.hosts.contains(host));
            users.hosts.extend(new.cloned());
        }
        let seen = pipeline.clone().at(site)?;
        for identity in identities(&seen, &readers) {
            let is_reader = readers.contains(&identity.name);
            let public = if identity.site == site {
                self.key(&at, &identity.name, is_meant)?
            } else {
                relays.get(&identity.site).cloned()
            };
            let Some(public) = public else { continue };
            if identity.name == RELAY {
                relays.insert(site.into(), public.clone());
            }
            let kept = if is_reader { &mut users.readers } else { &mut users.keys };
            kept.insert(identity.name, public);
        }
        let vouched = self.args.out.join(CA);
        std::fs::copy(&vouched, at.join(CA)).with_context(|| format!("cannot copy {}", vouched.display()))?;
        self.certificate(&seen, &at, &users.hosts, is_meant, before.hosts != users.hosts, authority)?;
        if users != before {
            write(&at.join(USERS), &format!("{}\n", serde_json::to_string_pretty(&users)?), PUBLIC)?;
        }
        Ok(())
    }

    /// The public key of one; made where it is not there, or is to be another.
    fn key(&mut self, at: &Path, name: &str, is_meant: bool) -> anyhow::Result<Option<String>> {
        let file = at.join(format!("{name}.nk"));
        let is_there = file.exists();
        if is_there && !(is_meant && self.is_rotated(name)) {
            let seed = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let pair = KeyPair::from_seed(seed.trim())
                .map_err(|error| anyhow::anyhow!("cannot read {} as a key: {error}", file.display()))?;
            return Ok(Some(pair.public_key()));
        }
        if !is_meant {
            return Ok(None);
        }
        let pair = KeyPair::new_user();
        write(&file, &format!("{}\n", pair.seed()?), SECRET)?;
        print_line(format_args!("{} {}", if is_there { "made anew" } else { "made" }, shown(&file, &self.args.out)))?;
        Ok(Some(pair.public_key()))
    }

    fn certificate(
        &mut self,
        pipeline: &Pipeline,
        at: &Path,
        hosts: &[String],
        is_meant: bool,
        is_changed: bool,
        authority: &Authority,
    ) -> anyhow::Result<()> {
        let [certificate, key] = SERVER.map(|file| at.join(file));
        let anew = self.is_rotated("ca") || (is_meant && (self.is_rotated("server") || is_changed));
        if certificate.exists() && !anew {
            return Ok(());
        }
        let named = pipeline.site(&pipeline.here).and_then(|site| site.address.as_deref()).unwrap_or_default();
        let named: Vec<String> = named.split(',').filter_map(host_of).map(ToOwned::to_owned).collect();
        // Of no other site: whoever has its key would be a server among those of the cluster.
        let is_peer = named.len() > 1;
        let local = ["localhost", "127.0.0.1", IN_CONTAINERS].map(ToOwned::to_owned);
        let mut names: Vec<String> = named.into_iter().chain(hosts.iter().cloned()).chain(local).collect();
        let mut seen = std::collections::BTreeSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let Server { certificate: text, secret } = authority.server(&pipeline.here, &names, self.args.days, is_peer)?;
        write(&key, &secret, SECRET)?;
        write(&certificate, &text, PUBLIC)?;
        print_line(format_args!(
            "made {} for {}, good for {} days",
            shown(&certificate, &self.args.out),
            names.join(", "),
            self.args.days
        ))?;
        Ok(())
    }

    fn is_rotated(&mut self, name: &str) -> bool {
        let is_said = self.args.rotate.iter().any(|said| said == name || (said == "all" && name != "ca"));
        if is_said {
            self.rotated.push(name.into());
        }
        is_said
    }
}

fn shown(file: &Path, out: &Path) -> String {
    file.strip_prefix(out).unwrap_or(file).display().to_string()
}

/// Who may read a file.
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// A folder for the owner alone.
fn folder(at: &Path) -> anyhow::Result<()> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(at);
    made.with_context(|| format!("cannot make the folder {}", at.display()))
}

/// Writes a file whole or not at all, with its mode from the first byte on.
fn write(file: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let Some(name) = file.file_name() else { bail!("cannot write {}", file.display()) };
    let beside = file.with_file_name(format!(".{}.new", name.display()));
    let written = || -> std::io::Result<()> {
        let _ = std::fs::remove_file(&beside);
        let mut open = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        open.write_all(text.as_bytes())?;
        open.sync_all()?;
        std::fs::rename(&beside, file)
    };
    written().with_context(|| format!("cannot write {}", file.display()))
}
