//! The configuration of a site's NATS server, for a server that somebody else starts.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use causeway_bus::server::{MAX_PAYLOAD, sync_interval};
use causeway_bus::{host_of, is_local};
use causeway_pipelines::Pipeline;
use serde_json::json;

use crate::cli::{PipelineArgs, beside};
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

/// The port of clients, and the one of the servers of a cluster.
const PORTS: (u16, u16) = (4222, 6222);

pub(super) fn write(args: &NatsArgs) -> anyhow::Result<Vec<String>> {
    let pipeline = args.pipeline.load()?;
    let site = args.site.clone().unwrap_or_else(|| pipeline.hub().name.clone());
    ensure!(
        args.site.is_some() || !pipeline.is_split(),
        "say the server of which site, with --site: {} has {}",
        pipeline.file.display(),
        pipeline.site_names()
    );
    let pipeline = pipeline.at(&site)?;
    let spec = pipeline.site(&site).context("a site")?;
    let keys = args.keys.clone().or_else(|| spec.credentials.as_ref().map(|at| beside(&pipeline, at)));
    let Some(keys) = keys.filter(|at| at.is_dir()) else {
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
    let copies: Vec<(PathBuf, PathBuf)> =
        SERVER.into_iter().chain([CA]).map(|name| (keys.join(name), args.out.join(name))).collect();
    // What lies beside a configuration of ours is ours.
    let is_ours = configs.iter().any(|(name, _)| args.out.join(name).exists());
    if let Some((_, there)) = copies.iter().find(|(_, to)| to.exists() && !is_ours) {
        bail!(
            "cannot write {}: it is there, and not written by `causeway deploy`; choose another --out, a folder of its own",
            there.display()
        );
    }
    super::write(&args.out, MARK, &configs)?;
    for (from, to) in copies {
        // With its mode: the key is for its owner alone.
        std::fs::copy(&from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    }
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
    let port = address.and_then(|address| address.rsplit_once(':')?.1.parse().ok()).unwrap_or(PORTS.0);
    let is_dialled = address.is_some_and(|address| !is_local(address));
    let listen = args.listen.unwrap_or_else(|| {
        let host = if is_dialled { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
        SocketAddr::from((host, port))
    });
    let [certificate, key] = SERVER;
    let name = cluster.map_or_else(|| site.clone(), |(host, _)| format!("{site}-{host}"));
    let mut parts = vec![
        format!("{MARK} for the site {site} of {}: run it again rather than change this.", pipeline.name),
        format!("server_name: {}", json!(name)),
        format!("listen: {}", json!(listen.to_string())),
        format!("max_payload: {MAX_PAYLOAD}"),
        format!(
            "jetstream: {}",
            json!({ "store_dir": args.store, "sync_interval": sync_interval(pipeline.sync.every()) })
        ),
    ];
    if !listen.ip().is_loopback() {
        let tls = json!({ "cert_file": certificate, "key_file": key });
        parts.push(format!("# Nobody is talked to in plain text.\ntls: {tls}"));
    }
    if let Some((_, hosts)) = cluster {
        let routes: Vec<String> = hosts.iter().map(|host| format!("tls://{host}:{}", PORTS.1)).collect();
        let tls = json!({ "cert_file": certificate, "key_file": key, "ca_file": CA, "verify": true });
        let cluster = json!({ "name": site, "listen": format!("0.0.0.0:{}", PORTS.1), "routes": routes, "tls": tls });
        parts.push(format!(
            "# Its servers know each other by certificates of the same authority.\ncluster: {cluster:#}"
        ));
    }
    let accounts = accounts_here(pipeline, keys)?;
    parts.push(format!(
        "# An account for each who signs in, with what it may ask of the pipeline's and hear from it.\naccounts: {accounts:#}\n"
    ));
    Ok(parts.join("\n"))
}
