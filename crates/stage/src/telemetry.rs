use std::io::IsTerminal as _;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use crate::LogFormat;

/// Logs to stderr and, where `OTEL_EXPORTER_OTLP_ENDPOINT` is set, spans to an OpenTelemetry collector. Flushes when dropped.
pub struct Telemetry {
    spans: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts both. Call once, inside the runtime.
    pub fn start(service: &str, format: LogFormat, default_level: &str) -> Self {
        let filter = EnvFilter::try_from_env("CAUSEWAY_LOG").unwrap_or_else(|_| {
            EnvFilter::new(format!("{default_level},async_nats=error,ort=warn,h2=warn,tonic=warn"))
        });
        let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
        let lines = match format {
            LogFormat::Human => lines.with_target(false).boxed(),
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
        };
        let spans = exporter(service);
        if spans.is_some() {
            crate::trace::export();
        }
        let export = spans.as_ref().map(|spans| {
            // Ours alone: the model engine has spans of its own for everything it loads.
            let ours = Targets::new().with_target(env!("CARGO_CRATE_NAME"), tracing::Level::INFO);
            tracing_opentelemetry::layer().with_tracer(spans.tracer("causeway")).with_filter(ours)
        });
        // A second start (tests in one process) keeps the first.
        let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(export).try_init();
        Self { spans }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(spans) = &self.spans {
            let _ = spans.shutdown();
        }
    }
}

fn exporter(service: &str) -> Option<SdkTracerProvider> {
    std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT")?;
    let exporter = match SpanExporter::builder().with_tonic().build() {
        Ok(exporter) => exporter,
        Err(error) => {
            eprintln!("spans are not exported: {error}");
            return None;
        }
    };
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    Some(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}
