//! Spans on their way to an OpenTelemetry collector: a bounded queue and one task behind it. A collector that is slow or away
//! costs spans, which are counted, and no stage a moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanKind, TraceId};
use opentelemetry_otlp::SpanExporter;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample as _, SpanData, SpanExporter as _};
use opentelemetry_semantic_conventions::attribute as name;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot};

/// Most spans that wait for the collector, some 1 KiB each: `OTEL_BSP_MAX_QUEUE_SIZE`. More than the SDKs' 2,048, since one
/// replica can give thousands a second.
const MAX_QUEUE: usize = 8192;
/// Most spans of one request: `OTEL_BSP_MAX_EXPORT_BATCH_SIZE`.
const MAX_BATCH: usize = 512;
/// How long spans wait for more of them, ms: `OTEL_BSP_SCHEDULE_DELAY`. Shorter than the SDKs' 5 s: what a killed replica had not
/// sent is lost.
const DELAY_MS: usize = 1000;
/// How long a stage that ends waits for the collector.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);

/// Whose spans they are.
pub(crate) struct Identity<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) stage: &'a str,
    pub(crate) site: &'a str,
    /// Host and process id.
    pub(crate) replica: &'a str,
    /// The address of the NATS server.
    pub(crate) nats: &'a str,
}

/// What became of spans.
#[derive(Debug, Clone, Default)]
pub(crate) struct SpanCounts {
    /// The collector has them.
    pub(crate) exported: Counter,
    /// The collector did not take them.
    pub(crate) failed: Counter,
    /// There was no room to wait for the collector.
    pub(crate) dropped: Counter,
}

/// Which traces are sampled.
#[derive(Debug, Clone)]
pub(crate) struct Sampling(Sampler);

/// The near end of the queue.
pub(crate) struct Export {
    queue: mpsc::UnboundedSender<Order>,
    /// Spans that wait: what bounds the queue.
    waiting: Arc<AtomicUsize>,
    max_queue: usize,
    counts: SpanCounts,
}

enum Order {
    /// All spans of one message in one stage: none of them goes without the others.
    Send(Vec<SpanData>),
    Flush(oneshot::Sender<()>),
}

impl Identity<'_> {
    /// Host and port of the (first) server, without what signs in.
    pub(crate) fn server(&self) -> Option<(String, u16)> {
        let first = self.nats.split(',').next()?.trim();
        let authority = first.split_once("://").map_or(first, |(_, rest)| rest).split('/').next()?;
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = authority.rsplit_once(':')?;
        Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
    }

    fn resource(&self) -> Resource {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        // `OTEL_RESOURCE_ATTRIBUTES` adds to these; `OTEL_SERVICE_NAME` names the service otherwise.
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
            resource = resource.with_service_name(format!("causeway-{}", self.stage));
        }
        resource
            .with_attributes([
                KeyValue::new(name::SERVICE_NAMESPACE, self.pipeline.to_owned()),
                KeyValue::new(name::SERVICE_INSTANCE_ID, self.replica.to_owned()),
                KeyValue::new(name::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
                KeyValue::new(name::HOST_NAME, host.trim().to_owned()),
                KeyValue::new(name::PROCESS_PID, i64::from(std::process::id())),
                KeyValue::new("causeway.site", self.site.to_owned()),
            ])
            .build()
    }
}

impl Sampling {
    /// `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`, by default all. What follows a captured item goes by what was decided
    /// there, so that those that differ in what they do with a parent are one here.
    pub(crate) fn of_environment() -> Self {
        let sampler = variable("OTEL_TRACES_SAMPLER");
        let ratio = variable("OTEL_TRACES_SAMPLER_ARG");
        Self::of(sampler.as_deref(), ratio.as_deref()).unwrap_or_else(|why| {
            tracing::warn!(why, "traces are all sampled");
            Self(Sampler::AlwaysOn)
        })
    }

    fn of(sampler: Option<&str>, ratio: Option<&str>) -> Result<Self, String> {
        let sampler = match sampler {
            None | Some("always_on" | "parentbased_always_on") => Sampler::AlwaysOn,
            Some("always_off" | "parentbased_always_off") => Sampler::AlwaysOff,
            Some("traceidratio" | "parentbased_traceidratio") => {
                let ratio = ratio.unwrap_or("1");
                match ratio.parse() {
                    Ok(share) if (0.0..=1.0).contains(&share) => Sampler::TraceIdRatioBased(share),
                    _ => {
                        return Err(format!(
                            "cannot sample traces by OTEL_TRACES_SAMPLER_ARG={ratio}: give a share from 0 to 1"
                        ));
                    }
                }
            }
            Some(other) => {
                return Err(format!(
                    "cannot sample traces by OTEL_TRACES_SAMPLER={other}: give always_on, always_off or traceidratio, alone or after \
                     parentbased_"
                ));
            }
        };
        Ok(Self(sampler))
    }

    /// Whether this trace is sampled: the same wherever it is asked.
    pub(crate) fn takes(&self, trace: TraceId) -> bool {
        let result = self.0.should_sample(None, trace, "", &SpanKind::Producer, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }
}

impl Export {
    /// Starts exporting to where the environment says; `None` where it names no collector.
    pub(crate) fn start(identity: &Identity<'_>, counts: SpanCounts) -> Option<Self> {
        if !is_wanted() {
            return None;
        }
        if let Some(protocol) =
            variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or(variable("OTEL_EXPORTER_OTLP_PROTOCOL"))
            && protocol != "grpc"
        {
            tracing::warn!(protocol, "spans are not exported: this program speaks OTLP over grpc only");
            return None;
        }
        let mut exporter = match SpanExporter::builder().with_tonic().build() {
            Ok(exporter) => exporter,
            Err(error) => {
                tracing::warn!(%error, "spans are not exported");
                return None;
            }
        };
        exporter.set_resource(&identity.resource());
        let (queue, orders) = mpsc::unbounded_channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let sending = Sending {
            exporter,
            waiting: Arc::clone(&waiting),
            counts: counts.clone(),
            max_batch: number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", MAX_BATCH),
            delay: Duration::from_millis(number("OTEL_BSP_SCHEDULE_DELAY", DELAY_MS) as u64),
        };
        tokio::spawn(sending.run(orders));
        Some(Self { queue, waiting, max_queue: number("OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE), counts })
    }

    /// Puts the spans of a message into the queue, all or none. Never waits.
    pub(crate) fn send(&self, spans: Vec<SpanData>) {
        let count = spans.len();
        if self.waiting.fetch_add(count, Ordering::Relaxed) + count > self.max_queue {
            self.waiting.fetch_sub(count, Ordering::Relaxed);
            self.counts.dropped.inc_by(count as u64);
            return;
        }
        let _ = self.queue.send(Order::Send(spans));
    }

    /// Sends what waits, if the collector takes it within `FLUSH_TIMEOUT`.
    pub(crate) async fn flush(&self) {
        let (done, is_done) = oneshot::channel();
        let _ = self.queue.send(Order::Flush(done));
        if tokio::time::timeout(FLUSH_TIMEOUT, is_done).await.is_err() {
            tracing::warn!("the collector did not take the last spans");
        }
    }
}

/// The far end of the queue.
struct Sending {
    exporter: SpanExporter,
    waiting: Arc<AtomicUsize>,
    counts: SpanCounts,
    max_batch: usize,
    delay: Duration,
}

impl Sending {
    async fn run(self, mut orders: mpsc::UnboundedReceiver<Order>) {
        let mut failing = false;
        let mut open = true;
        while open {
            let (mut batch, mut flushed) = (Vec::new(), None);
            let deadline = tokio::time::sleep(self.delay);
            tokio::pin!(deadline);
            while batch.len() < self.max_batch && flushed.is_none() {
                tokio::select! {
                    order = orders.recv() => match order {
                        Some(Order::Send(spans)) => batch.extend(spans),
                        Some(Order::Flush(done)) => flushed = Some(done),
                        None => {
                            open = false;
                            break;
                        }
                    },
                    () = &mut deadline => break,
                }
            }
            if !batch.is_empty() {
                failing = self.export(batch, failing).await;
            }
            drop(flushed);
        }
    }

    /// Exports a batch; said once when that fails, and once when it goes on. Gives whether it failed.
    async fn export(&self, batch: Vec<SpanData>, failing: bool) -> bool {
        let count = batch.len();
        let result = self.exporter.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        match result {
            Ok(()) => {
                self.counts.exported.inc_by(count as u64);
                if failing {
                    tracing::info!("the collector takes spans again");
                }
                false
            }
            Err(error) => {
                self.counts.failed.inc_by(count as u64);
                if failing {
                    tracing::debug!(%error, count, "spans not exported");
                } else {
                    tracing::warn!(%error, "the collector takes no spans; they are dropped and counted");
                }
                true
            }
        }
    }
}

/// Off unless a collector is named (<https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/>).
fn is_wanted() -> bool {
    let named = variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").or(variable("OTEL_EXPORTER_OTLP_ENDPOINT")).is_some();
    let disabled = variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let other = variable("OTEL_TRACES_EXPORTER").is_some_and(|value| value != "otlp");
    named && !disabled && !other
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str, otherwise: usize) -> usize {
    variable(name).and_then(|value| value.parse().ok()).filter(|&number| number > 0).unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(sampler: Option<&str>, ratio: Option<&str>) -> f64 {
        let sampling = Sampling::of(sampler, ratio).unwrap();
        let ids = (0..1000_u64).map(|item| causeway_schemas::Id::captured("s", &item.to_string()));
        let taken = ids.filter(|id| sampling.takes(TraceId::from_bytes(id.bits().to_be_bytes()))).count();
        taken as f64 / 1000.0
    }

    #[test]
    fn the_sampler_is_the_environments() {
        assert!((share(None, None) - 1.0).abs() < f64::EPSILON);
        assert!(share(Some("always_off"), None) < f64::EPSILON);
        assert!(share(Some("parentbased_traceidratio"), Some("0")) < f64::EPSILON);
        assert!((share(Some("traceidratio"), Some("0.25")) - 0.25).abs() < 0.05);
        for (sampler, ratio) in [("sometimes", None), ("traceidratio", Some("2")), ("traceidratio", Some("half"))] {
            let why = Sampling::of(Some(sampler), ratio).unwrap_err();
            assert!(why.starts_with("cannot sample"), "{why}");
        }
    }

    #[test]
    fn the_server_is_named_without_what_signs_in() {
        let server = |nats| Identity { pipeline: "", stage: "", site: "", replica: "", nats }.server();
        assert_eq!(server("nats://ann:secret@edge.example:4222"), Some(("edge.example".into(), 4222)));
        assert_eq!(server("127.0.0.1:4222,127.0.0.1:4223"), Some(("127.0.0.1".into(), 4222)));
        assert_eq!(server("tls://[::1]:4222/"), Some(("::1".into(), 4222)));
        assert_eq!(server("nowhere"), None);
    }
}
