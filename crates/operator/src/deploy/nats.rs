//! The configuration of a site's NATS server, for a server that somebody else starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use causeway_bus::server::{MAX_PAYLOAD, sync_interval};
use causeway_bus::{host_of, is_local};
use causeway_pipelines::Pipeline;
use serde_json::json;

use super::site::{Copies, PORT, keys_of, port_of, site_of};
use crate::cli::PipelineArgs;
use crate::keys::{CA, SERVER};
use crate::rights::accounts_here;

/// How each file begins that this command wrote and may write over.
pub(super) const MARK: &str = "# Written by `causeway deploy nats`";

const EXAMPLES: &str = "\
Examples:
  causeway keys faces.toml --out keys
  causeway deploy nats faces.toml --site cloud --out cloud-nats
  cd cloud-nats && nats-server -c nats-server.conf

Writes nats-server.conf, and copies of the server's certificate and its key, into DIR; the configuration names them, and the store,
relative to the folder that nats-server is started in. Where the site's `address` names several servers each of them has a file,
nats-server-HOST.conf, and they are a cluster: start each with its own on its machine.

Every identity has an account of its own there, with what `causeway keys` gives it and nothing else. Run this again after
`causeway keys` made another key, and tell the server: nats-server --signal reload.";

/// The arguments of `deploy nats`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct NatsArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The site whose server it is; not needed where there is one
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// The folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(super) out: PathBuf,
    /// Where it listens [default: of a site that is dialled, 0.0.0.0 and the port of its address; otherwise 127.0.0.1:4222]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// The site's folder of keys [default: `credentials` of the site in the pipeline file]
    #[arg(long, value_name = "KEYS/SITE")]
    keys: Option<PathBuf>,
    /// Where it keeps its streams
    #[arg(long, value_name = "DIR", default_value = "store")]
    store: PathBuf,
}

/// The port that the servers of a cluster have for each other.
const CLUSTER_PORT: u16 = 6222;

/// A server as it is configured.
pub(super) struct Config<'a> {
    /// The line that says who wrote it.
    pub(super) mark: &'a str,
    pub(super) name: &'a str,
    pub(super) listen: SocketAddr,
    pub(super) store: &'a Path,
    /// Where its certificate and its key are, and the authority.
    pub(super) certificates: &'a Path,
    /// The site's folder of keys; without one whoever reaches it may do everything.
    pub(super) keys: Option<&'a Path>,
    /// The hosts of its cluster.
    pub(super) cluster: &'a [&'a str],
}

pub(super) fn write(args: &NatsArgs) -> anyhow::Result<Vec<String>> {
    let pipeline = site_of(args.pipeline.load()?, args.site.as_deref())?;
    let site = pipeline.here.clone();
    let spec = pipeline.site(&site).context("a site")?;
    let Some(keys) = keys_of(&pipeline, args.keys.as_deref())? else {
        bail!(
            "cannot find the keys of {site}: make them with `causeway keys`, and name their folder as [site.{site}] credentials or with --keys"
        );
    };
    let servers: Vec<&str> = spec.address.iter().flat_map(|address| address.split(',')).map(str::trim).collect();
    let configs: Vec<(String, String)> = match &servers[..] {
        many @ [_, _, ..] => {
            let hosts: Vec<&str> = many.iter().filter_map(|address| host_of(address)).collect();
            let of = |(&address, &host): (&&str, &&str)| {
                let text = configuration(&pipeline, args, &keys, Some(address), Some((host, &hosts)))?;
                Ok((format!("nats-server-{host}.conf"), text))
            };
            many.iter().zip(&hosts).map(of).collect::<anyhow::Result<_>>()?
        }
        one => vec![("nats-server.conf".into(), configuration(&pipeline, args, &keys, one.first().copied(), None)?)],
    };
    // What lies beside a configuration of ours is ours.
    let is_ours = configs.iter().any(|(name, _)| args.out.join(name).exists());
    let names = SERVER.into_iter().chain([CA]).map(ToOwned::to_owned).collect();
    let copies = Copies::new(&keys, names, &args.out, is_ours)?;
    super::write(&args.out, MARK, &configs)?;
    copies.write(None)?;
    Ok(configs.into_iter().map(|(name, _)| name).collect())
}

fn configuration(
    pipeline: &Pipeline,
    args: &NatsArgs,
    keys: &Path,
    address: Option<&str>,
    cluster: Option<(&str, &[&str])>,
) -> anyhow::Result<String> {
    let site = &pipeline.here;
    let is_dialled = address.is_some_and(|address| !is_local(address));
    let listen = args.listen.unwrap_or_else(|| {
        let host = if is_dialled { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
        SocketAddr::from((host, address.map_or(PORT, port_of)))
    });
    let name = cluster.map_or_else(|| site.clone(), |(host, _)| format!("{site}-{host}"));
    let cluster = cluster.map(|(_, hosts)| hosts).unwrap_or_default();
    let (store, certificates) = (args.store.as_path(), Path::new(""));
    Config { mark: MARK, name: &name, listen, store, certificates, keys: Some(keys), cluster }.text(pipeline)
}

impl Config<'_> {
    /// The text of its file.
    pub(super) fn text(&self, pipeline: &Pipeline) -> anyhow::Result<String> {
        let site = &pipeline.here;
        let [certificate, key] = SERVER.map(|name| self.certificates.join(name));
        let sync = sync_interval(pipeline.sync.every());
        let mut parts = vec![
            format!("{} for the site {site} of {}: run it again rather than change this.", self.mark, pipeline.name),
            format!("server_name: {}", json!(self.name)),
            format!("listen: {}", json!(self.listen.to_string())),
            "# The advised ceiling of NATS, bytes: a picture of a few megabytes is one message.".into(),
            format!("max_payload: {MAX_PAYLOAD}"),
            format!("jetstream: {}", json!({ "store_dir": self.store, "sync_interval": sync })),
        ];
        if self.keys.is_some() && !self.listen.ip().is_loopback() {
            let tls = json!({ "cert_file": certificate, "key_file": key });
            parts.push(format!("# Nobody is talked to in plain text.\ntls: {tls}"));
        }
        if !self.cluster.is_empty() {
            let routes: Vec<String> = self.cluster.iter().map(|host| format!("tls://{host}:{CLUSTER_PORT}")).collect();
            let ca = self.certificates.join(CA);
            let tls = json!({ "cert_file": certificate, "key_file": key, "ca_file": ca, "verify": true });
            let listen = format!("0.0.0.0:{CLUSTER_PORT}");
            let cluster = json!({ "name": site, "listen": listen, "routes": routes, "tls": tls });
            parts.push(format!(
                "# Its servers know each other by certificates of the same authority.\ncluster: {cluster:#}"
            ));
        }
        if let Some(keys) = self.keys {
            let accounts = accounts_here(pipeline, keys)?;
            parts.push(format!(
                "# An account for each who signs in, with what it may ask of the pipeline's and hear from it.\naccounts: {accounts:#}"
            ));
        }
        Ok(format!("{}\n", parts.join("\n")))
    }
}
