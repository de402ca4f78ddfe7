use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use causeway_schemas::ModelRef;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::exemplar::HistogramWithExemplars;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::export::SpanCounts;
use crate::exposition;
use crate::held::Held;
use crate::relay_life::Carrying;
use crate::runs::Run;

/// What a replica counts and in which state it is: for `/metrics`, `/readyz`, the heartbeat and the log.
pub(crate) struct Status {
    registry: Registry,
    messages: Family<Labels, Counter>,
    redelivered: Counter,
    quarantine_deaths: Family<Deaths, Counter>,
    process: HistogramWithExemplars<Exemplar>,
    queue: Histogram,
    publish: Histogram,
    ack: Histogram,
    model_run: Family<ModelLabels, Histogram>,
    models: Family<ModelInfo, Gauge>,
    held: Gauge,
    blocked_gauge: Gauge,
    spans: SpanCounts,
    relay: RelayCounts,
    site: String,
    /// Of a relay: what it carries.
    carrying: Mutex<Vec<Carrying>>,
    busy_ns: AtomicU64,
    ready: AtomicBool,
    /// Who waits for it.
    is_ready: Notify,
    draining: AtomicBool,
    /// Why it takes nothing, though nothing is wrong: see `PARKED`, `STANDS_BY`.
    idle: Mutex<Option<&'static str>>,
    /// Of a relay: the tables that it has copied to its site.
    copied: Mutex<Vec<String>>,
    /// What it waits for, and when that was last so.
    blocked: Mutex<Option<(String, Instant)>>,
    /// Why an input could not be handled yet, and until when that is told.
    waits: Mutex<Option<(String, Instant)>>,
}

/// How much longer than its pause an input is told as waiting: it has to come again first.
const WAIT_GRACE: Duration = Duration::from_secs(2);

/// A stage that was not stopped for this long goes on: while a full link lets one message in now and then it still waits.
const UNBLOCKED_AFTER: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    /// What became of it: see `Count`.
    result: &'static str,
}

/// Which trace an observation comes from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exemplar {
    trace_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Deaths {
    /// `killed`, `hung`, `out-of-memory`.
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
    version: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelInfo {
    model: String,
    version: String,
    sha256: String,
}

/// Which stream a relay carries, and where.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CarryingLabels {
    stream: String,
    from: String,
    to: String,
}

/// What a relay counts, by stream.
#[derive(Default)]
struct RelayCounts {
    messages: Family<CarryingLabels, Counter>,
    bytes: Family<CarryingLabels, Counter>,
    again: Family<CarryingLabels, Counter>,
    held: Family<CarryingLabels, Gauge>,
    waiting: Family<CarryingLabels, Gauge>,
}

/// What is counted a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// An input was answered and acked.
    Handled,
    /// An output was stored.
    Given,
    /// An input gave nothing, rightly.
    Empty,
    /// An input was set aside.
    Dead,
    /// An input could not be handled now.
    Retried,
    /// A captured item was passed over: it has its outcomes.
    Skipped,
    /// A captured item was dropped: there was no room for it.
    Dropped,
}

impl Count {
    /// All, each of which shows as 0 from the start: an increase from nothing is none to Prometheus.
    const ALL: [Self; 7] =
        [Self::Handled, Self::Given, Self::Empty, Self::Dead, Self::Retried, Self::Skipped, Self::Dropped];

    fn label(self) -> Labels {
        Labels {
            result: match self {
                Self::Handled => "handled",
                Self::Given => "given",
                Self::Empty => "empty",
                Self::Dead => "dead",
                Self::Retried => "retried",
                Self::Skipped => "skipped",
                Self::Dropped => "dropped",
            },
        }
    }
}

/// What a replica says of itself on the bus once a second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The stage.
    pub stage: String,
    /// Which replica of it: its host and process id.
    pub replica: String,
    /// Where it runs.
    #[serde(default)]
    pub site: String,
    /// Its process id.
    pub pid: u32,
    /// Where /livez, /readyz and /metrics answer.
    pub health: String,
    /// `starting`, `running`, `draining`, `ended`, `parked` where its stage runs elsewhere, or what it waits for:
    /// `waiting: to take over` while its stage is on the move here.
    pub state: String,
    /// Inputs answered.
    pub handled: u64,
    /// Outputs stored.
    pub given: u64,
    /// Inputs that rightly gave nothing.
    pub empty: u64,
    /// Inputs set aside.
    pub dead: u64,
    /// Inputs that have to come again.
    pub retried: u64,
    /// Captured items passed over.
    pub skipped: u64,
    /// Captured items dropped for want of room.
    #[serde(default)]
    pub dropped: u64,
    /// Time spent in `process`, all workers together, seconds.
    pub busy_s: f64,
    /// Resident memory, bytes.
    pub rss: u64,
    /// Of a relay: what it carries.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub carrying: Vec<Carrying>,
    /// Of a relay: the tables of the hub that it has copied to its site.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
}

/// 0.5 ms to 16 s: calls of `process`, runs of a model, publishes.
fn work_times() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

/// The state of a replica that takes what comes.
const RUNNING: &str = "running";
/// How the state of a replica that waits begins; what it waits for follows.
const WAITING: &str = "waiting: ";

/// The state of a replica whose stage runs elsewhere: it has nothing loaded.
pub(crate) const PARKED: &str = "parked";
/// The state of a replica that has all it needs and takes nothing yet: its stage is on the move to its site.
pub(crate) const STANDS_BY: &str = "waiting: to take over";

/// What is said of a link that has no room; its name stands before.
pub(crate) const IS_FULL: &str = " is full";

impl Heartbeat {
    /// Whether it has begun to take what comes, and not ended.
    pub fn is_up(&self) -> bool {
        self.state == RUNNING || self.state.starts_with(WAITING)
    }

    /// Whether it waits for room on its link.
    pub fn waits_for_room(&self) -> bool {
        self.state.starts_with(WAITING) && self.state.ends_with(IS_FULL)
    }
}

impl Status {
    /// `limit` is the time that `process` may take for one message.
    pub(crate) fn new(pipeline: &str, stage: &str, site: &str, limit: Duration) -> Self {
        let labels = [("pipeline", pipeline.to_owned()), ("stage", stage.to_owned())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut registry = Registry::with_labels(labels);
        let status = Self {
            messages: Family::default(),
            redelivered: Counter::default(),
            quarantine_deaths: Family::default(),
            process: HistogramWithExemplars::new(exponential_buckets(0.0005, 2.0, 16)),
            // 1 ms to 9 h.
            queue: Histogram::new(exponential_buckets(0.001, 4.0, 13)),
            publish: work_times(),
            // 10 µs to 0.3 s.
            ack: Histogram::new(exponential_buckets(0.00001, 4.0, 8)),
            model_run: Family::new_with_constructor(work_times),
            models: Family::default(),
            held: Gauge::default(),
            blocked_gauge: Gauge::default(),
            spans: SpanCounts::default(),
            relay: RelayCounts::default(),
            site: site.into(),
            carrying: Mutex::default(),
            busy_ns: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            is_ready: Notify::new(),
            draining: AtomicBool::new(false),
            idle: Mutex::default(),
            copied: Mutex::default(),
            blocked: Mutex::new(None),
            waits: Mutex::new(None),
            registry: Registry::default(),
        };
        for count in Count::ALL {
            status.count(count, 0);
        }
        status.register(&mut registry, limit);
        Self { registry, ..status }
    }

    fn register(&self, registry: &mut Registry, limit: Duration) {
        let status = self;
        registry.register("causeway_stage_messages", "Messages by what became of them", status.messages.clone());
        registry.register(
            "causeway_stage_redelivered",
            "Deliveries that were not the first",
            status.redelivered.clone(),
        );
        registry.register(
            "causeway_stage_quarantine_deaths",
            "Messages tried alone that ended the process they were tried in",
            status.quarantine_deaths.clone(),
        );
        let process = "Time of process for one message: that of its batch, divided by its messages";
        registry.register_with_unit("causeway_stage_process", process, Unit::Seconds, status.process.clone());
        let queue = "Time from a message's storage by the broker to its delivery here";
        registry.register_with_unit("causeway_stage_queue", queue, Unit::Seconds, status.queue.clone());
        let publish = "Time until an output was stored, waits for a full link included";
        registry.register_with_unit("causeway_stage_publish", publish, Unit::Seconds, status.publish.clone());
        let ack = "Time until the client had taken an ack";
        registry.register_with_unit("causeway_stage_ack", ack, Unit::Seconds, status.ack.clone());
        let run = "Time of one run of a model";
        registry.register_with_unit("causeway_model_run", run, Unit::Seconds, status.model_run.clone());
        registry.register("causeway_model_info", "1 for each model that is loaded", status.models.clone());
        let limit_gauge = Gauge::<f64, AtomicU64>::default();
        limit_gauge.set(limit.as_secs_f64());
        let limit = "Time that process may take for one message (max_process_ms)";
        registry.register_with_unit("causeway_stage_process_limit", limit, Unit::Seconds, limit_gauge);
        registry.register("causeway_stage_held", "Messages taken and not answered yet", status.held.clone());
        registry.register("causeway_stage_blocked", "1 while a full link stops it", status.blocked_gauge.clone());
        let SpanCounts { exported, failed, dropped } = &status.spans;
        registry.register("causeway_spans_exported", "Spans that the collector took", exported.clone());
        registry.register("causeway_spans_failed", "Spans that the collector did not take", failed.clone());
        registry.register("causeway_spans_dropped", "Spans without room to wait for the collector", dropped.clone());
        let RelayCounts { messages, bytes, again, held, waiting } = &status.relay;
        registry.register("causeway_relay_messages", "Messages that are stored at the other site", messages.clone());
        let sent = "Bytes sent to another site or taken from it, what was sent twice included";
        registry.register_with_unit("causeway_relay_sent", sent, Unit::Bytes, bytes.clone());
        registry.register("causeway_relay_again", "Messages that were sent to another site again", again.clone());
        registry.register("causeway_relay_held", "Messages on their way to another site", held.clone());
        registry.register(
            "causeway_relay_waiting",
            "Messages that wait for their way to another site",
            waiting.clone(),
        );
        exposition::register_process(registry);
    }

    /// What a relay carries, as it is now.
    pub(crate) fn carries(&self, now: Vec<Carrying>) {
        let mut known = self.carrying.lock().expect("no holder of the list panics");
        for one in &now {
            let is_it = |before: &&Carrying| before.is_of(&one.stream, &one.from, &one.to);
            let before = known.iter().find(is_it).map_or((0, 0, 0), |it| (it.messages, it.bytes, it.again));
            let Carrying { stream, from, to, messages, bytes, again, held, waiting, .. } = one.clone();
            let labels = CarryingLabels { stream, from, to };
            // What is carried once more after a while counts from nothing.
            self.relay.messages.get_or_create(&labels).inc_by(messages.saturating_sub(before.0));
            self.relay.bytes.get_or_create(&labels).inc_by(bytes.saturating_sub(before.1));
            self.relay.again.get_or_create(&labels).inc_by(again.saturating_sub(before.2));
            self.relay.held.get_or_create(&labels).set(held as i64);
            self.relay.waiting.get_or_create(&labels).set(waiting as i64);
        }
        for gone in
            known.iter().filter(|before| !now.iter().any(|one| one.is_of(&before.stream, &before.from, &before.to)))
        {
            let Carrying { stream, from, to, .. } = gone.clone();
            let labels = CarryingLabels { stream, from, to };
            self.relay.held.get_or_create(&labels).set(0);
            self.relay.waiting.get_or_create(&labels).set(0);
        }
        *known = now;
    }

    /// A relay has copied a table, all of it, to its site.
    pub(crate) fn has_copied(&self, table: &str) {
        let mut copied = self.copied.lock().expect("no holder of the list panics");
        if !copied.iter().any(|known| known == table) {
            copied.push(table.into());
        }
    }

    /// Why it takes nothing, though nothing is wrong; `None`: it takes.
    pub(crate) fn set_idle(&self, idle: Option<&'static str>) {
        let before = std::mem::replace(&mut *self.idle.lock().expect("no holder of the state panics"), idle);
        if before != idle {
            self.is_ready.notify_one();
        }
    }

    /// What becomes of spans is counted here.
    pub(crate) fn spans(&self) -> SpanCounts {
        self.spans.clone()
    }

    pub(crate) fn count(&self, count: Count, by: u64) {
        self.messages.get_or_create(&count.label()).inc_by(by);
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.messages.get_or_create(&count.label()).get()
    }

    /// A message was delivered that lay in its stream for `queued`.
    pub(crate) fn taken(&self, again: bool, queued: Duration) {
        self.held.inc();
        self.queue.observe(queued.as_secs_f64());
        if again {
            self.redelivered.inc();
        }
    }

    pub(crate) fn released(&self) {
        self.held.dec();
    }

    /// An output was stored.
    pub(crate) fn published(&self, took: Duration) {
        self.publish.observe(took.as_secs_f64());
    }

    /// A message tried alone ended the quarantine.
    pub(crate) fn quarantine_died(&self, reason: &str) {
        self.quarantine_deaths.get_or_create(&Deaths { reason: reason.into() }).inc();
    }

    /// An input was acked or refused.
    pub(crate) fn settled(&self, took: Duration) {
        self.ack.observe(took.as_secs_f64());
    }

    /// `process` took this long for these messages (none: a source's one).
    pub(crate) fn processed(&self, took: Duration, held: &[Arc<Held>]) {
        let each = took.as_secs_f64() / held.len().max(1) as f64;
        for place in 0..held.len().max(1) {
            let trace_id = held.get(place).and_then(|held| held.trace()?.exemplar());
            self.process.observe(each, trace_id.map(|trace_id| Exemplar { trace_id }), None);
        }
        self.busy_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    /// Models ran.
    pub(crate) fn model_runs(&self, runs: &[Run]) {
        for run in runs {
            let labels = ModelLabels { model: run.model.clone(), version: run.version.clone() };
            self.model_run.get_or_create(&labels).observe(run.took.as_secs_f64());
        }
    }

    /// These models are loaded.
    pub(crate) fn models(&self, models: &[ModelRef]) {
        for ModelRef { name, version, sha256 } in models {
            let info = ModelInfo { model: name.clone(), version: version.clone(), sha256: sha256.clone() };
            self.models.get_or_create(&info).set(1);
        }
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
        self.is_ready.notify_one();
    }

    /// Comes back when it becomes ready.
    pub(crate) async fn becomes_ready(&self) {
        self.is_ready.notified().await;
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Whether its stage runs elsewhere.
    pub(crate) fn is_parked(&self) -> bool {
        *self.idle.lock().expect("no holder of the state panics") == Some(PARKED)
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.draining.load(Ordering::Acquire)
    }

    /// It cannot store what it has, and tries again after `pause`: said once, until it can.
    pub(crate) fn blocked(&self, why: &str, pause: Duration) {
        let mut blocked = self.blocked.lock().expect("no holder of the state panics");
        if blocked.as_ref().is_none_or(|(known, _)| known != why) {
            tracing::warn!(why, "waiting");
            self.blocked_gauge.set(1);
        }
        *blocked = Some((why.to_owned(), Instant::now() + pause + UNBLOCKED_AFTER));
    }

    /// An input cannot be handled yet and comes again after `pause`.
    pub(crate) fn waits(&self, why: &str, pause: Duration) {
        let until = Instant::now() + pause + WAIT_GRACE;
        *self.waits.lock().expect("no holder of the state panics") = Some((why.to_owned(), until));
    }

    /// What `waits` said is over.
    pub(crate) fn goes_on(&self) {
        *self.waits.lock().expect("no holder of the state panics") = None;
    }

    /// Called now and then: takes back what `blocked` said once it is over.
    pub(crate) fn settle(&self) {
        let mut blocked = self.blocked.lock().expect("no holder of the state panics");
        if let Some((why, _)) = blocked.take_if(|(_, until)| *until < Instant::now()) {
            tracing::info!(why, "going on");
            self.blocked_gauge.set(0);
        }
        self.waits.lock().expect("no holder of the state panics").take_if(|(_, until)| *until < Instant::now());
    }

    pub(crate) fn state(&self) -> String {
        if let Some((why, _)) = self.blocked.lock().expect("no holder of the state panics").as_ref() {
            return format!("{WAITING}{why}");
        }
        if let Some((why, _)) = self.waits.lock().expect("no holder of the state panics").as_ref() {
            return format!("{WAITING}{why}");
        }
        let idle = *self.idle.lock().expect("no holder of the state panics");
        if self.draining.load(Ordering::Acquire) {
            "draining".into()
        } else if let Some(idle) = idle {
            idle.into()
        } else if self.ready.load(Ordering::Acquire) {
            RUNNING.into()
        } else {
            "starting".into()
        }
    }

    pub(crate) fn heartbeat(&self, stage: &str, replica: &str, health: &str) -> Heartbeat {
        Heartbeat {
            stage: stage.into(),
            replica: replica.into(),
            site: self.site.clone(),
            pid: std::process::id(),
            health: health.into(),
            state: self.state(),
            handled: self.get(Count::Handled),
            given: self.get(Count::Given),
            empty: self.get(Count::Empty),
            dead: self.get(Count::Dead),
            retried: self.get(Count::Retried),
            skipped: self.get(Count::Skipped),
            dropped: self.get(Count::Dropped),
            busy_s: self.busy_ns.load(Ordering::Relaxed) as f64 / 1e9,
            rss: exposition::rss().unwrap_or(0),
            carrying: self.carrying.lock().expect("no holder of the list panics").clone(),
            tables: self.copied.lock().expect("no holder of the list panics").clone(),
        }
    }

    /// What Prometheus reads.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }
}
