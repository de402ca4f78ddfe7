use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::LogFormat;

/// Starts the log on stderr: as `CAUSEWAY_LOG` says, else from `default_level` on. Call once; a second start (tests in one
/// process) keeps the first.
pub fn start_log(format: LogFormat, default_level: &str) {
    let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| {
        let quiet = "async_nats=error,ort=warn,h2=warn,tonic=warn,opentelemetry=warn,opentelemetry_sdk=warn,opentelemetry-otlp=warn";
        EnvFilter::new(format!("{default_level},{quiet}"))
    });
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    let lines = match format {
        LogFormat::Human => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(crate::runs::layer()).try_init();
}
