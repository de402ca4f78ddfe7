use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_bus::Credentials;
use causeway_pipelines::Override;
use clap::{Parser, ValueEnum};

/// Runs one stage of a pipeline until it is told to stop (SIGTERM, Ctrl-C), then drains.
///
/// `causeway up` starts stages with the right arguments; a container or a systemd unit gives the same.
#[derive(Debug, Clone, Parser)]
#[command(version, max_term_width = 100)]
pub struct Args {
    /// The pipeline file.
    #[arg(long, env = "CAUSEWAY_PIPELINE", value_name = "FILE")]
    pub pipeline: PathBuf,
    /// Which stage of it; by default the one named like this program.
    #[arg(long, env = "CAUSEWAY_STAGE", value_name = "NAME")]
    pub stage: Option<String>,
    /// The NATS server of this site.
    #[arg(
        long,
        env = "CAUSEWAY_NATS",
        value_name = "URL",
        default_value = "nats://127.0.0.1:4222",
        hide_env_values = true
    )]
    pub nats: String,
    /// A file with NATS credentials, or a folder that has a key for each stage (`causeway keys`).
    #[arg(long, env = "CAUSEWAY_CREDENTIALS", value_name = "FILE")]
    pub credentials: Option<PathBuf>,
    /// The site it runs at; by default the only one that its stage has.
    #[arg(long, env = "CAUSEWAY_SITE", value_name = "SITE")]
    pub site: Option<String>,
    /// The NATS server of the hub; by default the address in the pipeline file (relays only).
    #[arg(long, env = "CAUSEWAY_HUB", value_name = "URL", hide_env_values = true)]
    pub hub: Option<String>,
    /// A NATS credentials file for the hub; by default that in the pipeline file (relays only).
    #[arg(long, env = "CAUSEWAY_HUB_CREDENTIALS", value_name = "FILE")]
    pub hub_credentials: Option<PathBuf>,
    /// The folder of models and their manifests.
    #[arg(long, env = "CAUSEWAY_MODELS", value_name = "DIR", default_value = ".tools/models")]
    pub models: PathBuf,
    /// Where /livez, /readyz and /metrics answer; port 0 takes a free one and logs it.
    #[arg(long, env = "CAUSEWAY_HEALTH", value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub health: SocketAddr,
    /// Model threads a worker.
    #[arg(long, env = "CAUSEWAY_THREADS", value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Sets a key of a stage's table over what the file says.
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub overrides: Vec<Override>,
    /// Which run this is: raised to run again what was run before (sources only).
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub generation: u32,
    /// The isolated run that it is part of: its streams, subjects and tables carry that name. For `causeway replay`.
    #[arg(long, value_name = "RUN", hide = true)]
    pub run: Option<String>,
    /// How long a drain may take before what is held is left to others.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub drain: Duration,
    /// Without a bus: answers on stdout what stands on stdin, a JSON object a line, and ends. For `causeway test`.
    #[arg(long, hide = true)]
    pub once: bool,
    /// Without a bus: opens its model or its input, and ends. For `causeway validate --connect`.
    #[arg(long, hide = true)]
    pub open: bool,
    /// As the quarantine of a stage, which alone starts it so.
    #[arg(long, hide = true)]
    pub quarantine: bool,
    /// How logs look.
    #[arg(long, env = "CAUSEWAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,
}

/// How logs look; `CAUSEWAY_LOG` says which (`info`, `debug`, …).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for a person.
    Human,
    /// An object a line.
    Json,
}

impl Args {
    /// The folder of the pipeline file, which its paths are relative to.
    pub(crate) fn pipeline_dir(&self) -> &Path {
        self.pipeline.parent().unwrap_or(Path::new("."))
    }

    /// The credentials of a stage.
    pub(crate) fn credentials(&self, name: &str) -> Credentials {
        Credentials::of(self.credentials.as_deref(), name)
    }
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("`{text}` is not a number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
