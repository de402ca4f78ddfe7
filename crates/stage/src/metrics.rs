use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};

/// What a replica counts and in which state it is: for `/metrics`, `/readyz`, the heartbeat and the log.
pub(crate) struct Status {
    registry: Registry,
    messages: Family<Labels, Counter>,
    redelivered: Counter,
    process: Histogram,
    held: Gauge,
    blocked_gauge: Gauge,
    busy_ns: AtomicU64,
    ready: AtomicBool,
    draining: AtomicBool,
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
    /// Its process id.
    pub pid: u32,
    /// Where /livez, /readyz and /metrics answer.
    pub health: String,
    /// `starting`, `running`, `draining`, `ended`, or what it waits for.
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
}

impl Status {
    pub(crate) fn new(pipeline: &str, stage: &str) -> Self {
        let labels = [("pipeline", pipeline.to_owned()), ("stage", stage.to_owned())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let mut registry = Registry::with_labels(labels);
        let messages = Family::<Labels, Counter>::default();
        let redelivered = Counter::default();
        // 0.5 ms to 16 s.
        let process = Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let (held, blocked_gauge) = (Gauge::default(), Gauge::default());
        registry.register("causeway_stage_messages", "Messages by what became of them", messages.clone());
        registry.register("causeway_stage_redelivered", "Deliveries that were not the first", redelivered.clone());
        registry.register_with_unit("causeway_stage_process", "Time of one batch", Unit::Seconds, process.clone());
        registry.register("causeway_stage_held", "Messages taken and not answered yet", held.clone());
        registry.register("causeway_stage_blocked", "1 while a full link stops it", blocked_gauge.clone());
        Self {
            registry,
            messages,
            redelivered,
            process,
            held,
            blocked_gauge,
            busy_ns: AtomicU64::new(0),
            ready: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            blocked: Mutex::new(None),
            waits: Mutex::new(None),
        }
    }

    pub(crate) fn count(&self, count: Count, by: u64) {
        self.messages.get_or_create(&count.label()).inc_by(by);
    }

    pub(crate) fn get(&self, count: Count) -> u64 {
        self.messages.get_or_create(&count.label()).get()
    }

    pub(crate) fn taken(&self, again: bool) {
        self.held.inc();
        if again {
            self.redelivered.inc();
        }
    }

    pub(crate) fn released(&self) {
        self.held.dec();
    }

    pub(crate) fn processed(&self, took: Duration) {
        self.process.observe(took.as_secs_f64());
        self.busy_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Release);
    }

    pub(crate) fn set_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.draining.load(Ordering::Acquire)
    }

    /// It cannot store what it has: said once, until it can again.
    pub(crate) fn blocked(&self, why: &str) {
        let mut blocked = self.blocked.lock().expect("no holder of the state panics");
        if blocked.as_ref().is_none_or(|(known, _)| known != why) {
            tracing::warn!(why, "waiting");
            self.blocked_gauge.set(1);
        }
        *blocked = Some((why.to_owned(), Instant::now()));
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
        if let Some((why, _)) = blocked.take_if(|(_, last)| last.elapsed() > UNBLOCKED_AFTER) {
            tracing::info!(why, "going on");
            self.blocked_gauge.set(0);
        }
        self.waits.lock().expect("no holder of the state panics").take_if(|(_, until)| *until < Instant::now());
    }

    pub(crate) fn state(&self) -> String {
        if let Some((why, _)) = self.blocked.lock().expect("no holder of the state panics").as_ref() {
            return format!("waiting: {why}");
        }
        if let Some((why, _)) = self.waits.lock().expect("no holder of the state panics").as_ref() {
            return format!("waiting: {why}");
        }
        if self.draining.load(Ordering::Acquire) {
            "draining".into()
        } else if self.ready.load(Ordering::Acquire) {
            "running".into()
        } else {
            "starting".into()
        }
    }

    pub(crate) fn heartbeat(&self, stage: &str, replica: &str, health: &str) -> Heartbeat {
        Heartbeat {
            stage: stage.into(),
            replica: replica.into(),
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
            rss: rss().unwrap_or(0),
        }
    }

    /// The OpenMetrics text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}

/// Resident memory of this process, bytes: the second number of /proc/self/statm, in pages of 4 KiB.
fn rss() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}
