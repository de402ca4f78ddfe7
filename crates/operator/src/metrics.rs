//! What `up` and `agent` tell Prometheus, which no stage can see: streams, durables, replicas, restarts; and where the metrics
//! of the stages are (service discovery by file and by HTTP).

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use causeway_bus::{Bus, BusError, names};
use causeway_pipelines::Pipeline;
use causeway_stage::{Heartbeat, Placed, exposition, now_ns};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::home::{Home, Process};
use crate::layout;
use crate::placement::seen;

/// How often the list of replicas is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A replica that has said nothing for this long is not counted: it beats once a second.
const FRESH: Duration = Duration::from_secs(5);
/// A replica that nobody here supervises stays a target for this long after its last word.
const REMEMBERED: Duration = Duration::from_secs(30);

/// What is told of sites, and what it is made of.
pub(crate) struct Told {
    /// The sites, each with the pipeline as it is seen from there.
    sites: Vec<(Bus, Placed)>,
    /// `up` or `agent`.
    program: &'static str,
    /// What `up` supervises; `None`: somebody else does.
    supervised: Mutex<Option<Supervised>>,
    replicas: Mutex<Replicas>,
    /// Repair copies that were removed although their items have no outcome.
    pub(crate) given_up: AtomicU64,
    /// How often the broker had not what the pipeline wants, by what it was.
    drifted: Mutex<BTreeMap<&'static str, u64>>,
    looking: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Supervised {
    stages: Vec<String>,
    pids: Vec<u32>,
    restarts: HashMap<String, u32>,
}

/// The last word of each replica by site, stage and name, and when it was heard.
type Replicas = BTreeMap<(String, String, String), (Heartbeat, Instant)>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    /// The stage that fills it, `empty` or `dead`.
    stage: String,
    /// `capture`, `link` or `outcome`.
    sort: &'static str,
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurableLabels {
    /// The stage that takes, or `relay-SITE`.
    stage: String,
    /// The stage that gives.
    from: String,
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReplicaLabels {
    stage: String,
    /// `true` for a stage that ends when its source does.
    source: String,
    site: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriftLabels {
    /// `settings`, `missing`, `unfit`, `reset`, `removed`, `ahead`, `stalled`.
    sort: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: String,
}

impl Told {
    /// Of these sites, by `program`, `up` or `agent`.
    pub(crate) fn new(sites: Vec<(Bus, Placed)>, program: &'static str) -> Arc<Self> {
        Arc::new(Self {
            sites,
            program,
            supervised: Mutex::default(),
            replicas: Mutex::default(),
            given_up: AtomicU64::new(0),
            drifted: Mutex::default(),
            looking: Mutex::default(),
        })
    }

    /// The broker had not what the pipeline wants.
    pub(crate) fn drifted(&self, sort: &'static str) {
        *self.drifted.lock().expect("no holder of the counts panics").entry(sort).or_default() += 1;
    }

    /// What is supervised here, what of it runs now, and how often it was started again.
    pub(crate) fn supervise(
        &self,
        stages: &[String],
        processes: &[(String, Process)],
        restarts: &HashMap<String, u32>,
    ) {
        let pids = processes.iter().map(|(_, process)| process.pid).collect();
        *self.supervised.lock().expect("no holder of the list panics") =
            Some(Supervised { stages: stages.to_vec(), pids, restarts: restarts.clone() });
    }

    /// Serves /metrics and /targets until the process ends; gives where. With a home the targets are written there too.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        address: SocketAddr,
        home: Option<&Home>,
    ) -> anyhow::Result<SocketAddr> {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for Prometheus; choose another --metrics"))?;
        let address = listener.local_addr()?;
        let (metrics, targets) = (Arc::clone(self), Arc::clone(self));
        let routes = Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/metrics", get(move |asked: HeaderMap| async move { metrics.answer(&asked).await }))
            .route(
                "/targets",
                get(move || async move {
                    let body = targets.targets(address).to_string();
                    ([(header::CONTENT_TYPE, "application/json")], body)
                }),
            );
        tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                tracing::error!(%error, "Prometheus is not answered any more");
            }
        });
        let looking = tokio::spawn(Arc::clone(self).look(address, home.map(Home::targets)));
        *self.looking.lock().expect("no holder of the task panics") = Some(looking);
        Ok(address)
    }

    /// There is nothing to scrape any more.
    pub(crate) fn end(&self, home: &Home) {
        if let Some(looking) = self.looking.lock().expect("no holder of the task panics").take() {
            looking.abort();
            let _ = write_whole(&home.targets(), &json!([]));
        }
    }

    /// Follows who is there, and writes it down when it changes.
    async fn look(self: Arc<Self>, address: SocketAddr, file: Option<PathBuf>) {
        let mut written = Value::Null;
        let mut every = tokio::time::interval(LOOK_EVERY);
        loop {
            every.tick().await;
            if let Err(error) = self.hear().await {
                tracing::debug!(%error, "replicas not looked at");
            }
            let targets = self.targets(address);
            let Some(file) = file.as_ref().filter(|_| targets != written) else { continue };
            match write_whole(file, &targets) {
                Ok(()) => written = targets,
                Err(error) => tracing::warn!(%error, file = %file.display(), "targets not written"),
            }
        }
    }

    /// Takes in what the replicas say.
    async fn hear(&self) -> Result<(), BusError> {
        let mut entries = Vec::new();
        for (bus, pipeline) in &seen(&self.sites) {
            let there = bus.table_entries(names::REPLICAS).await?;
            entries.extend(there.into_iter().map(|entry| (pipeline.here.clone(), entry)));
        }
        let mut replicas = self.replicas.lock().expect("no holder of the list panics");
        for (site, entry) in entries {
            let Ok(beat) = serde_json::from_slice::<Heartbeat>(&entry.value) else { continue };
            // Relays of other sites say here too how they are.
            if !beat.site.is_empty() && beat.site != site {
                continue;
            }
            // What an earlier run said stays in the table for a while.
            let age = Duration::from_nanos(now_ns().saturating_sub(entry.stored_at));
            let key = (site, beat.stage.clone(), beat.replica.clone());
            if age < FRESH {
                replicas.insert(key, (beat, Instant::now().checked_sub(age).unwrap_or_else(Instant::now)));
            }
        }
        let supervised = self.supervised.lock().expect("no holder of the list panics");
        replicas.retain(|_, (beat, heard)| match &*supervised {
            Some(supervised) => supervised.pids.contains(&beat.pid) && beat.state != "ended",
            None => heard.elapsed() < REMEMBERED && !has_ended(beat),
        });
        Ok(())
    }

    /// Every endpoint with metrics, as Prometheus' `file_sd` and `http_sd` have it.
    fn targets(&self, own: SocketAddr) -> Value {
        let target = |address: &str, process: &str| json!({ "targets": [address], "labels": { "process": process } });
        let replicas = self.replicas.lock().expect("no holder of the list panics");
        let stages = replicas.values().map(|(beat, _)| target(&beat.health, &beat.stage));
        let mut targets: Vec<Value> = stages.collect();
        targets.push(target(&own.to_string(), self.program));
        targets.into()
    }

    async fn answer(&self, asked: &HeaderMap) -> Response {
        match self.registry().await {
            Ok(registry) => exposition::answer(&registry, asked).into_response(),
            // A scrape that fails shows as `up == 0`; half of the truth would not.
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
        }
    }

    /// All of it as it is now.
    async fn registry(&self) -> Result<Registry, BusError> {
        let name = self.sites.first().map_or(String::new(), |(_, placed)| placed.borrow().name.clone());
        let mut registry = Registry::with_labels([("pipeline".into(), name.into())].into_iter());
        self.streams(&mut registry).await?;
        self.durables(&mut registry).await?;
        self.processes(&mut registry);
        let removed = Counter::<u64>::default();
        removed.inc_by(self.given_up.load(Ordering::Relaxed));
        let help = "Captured items removed for want of space before they had all their outcomes";
        registry.register("causeway_repair_copies_removed", help, removed);
        let drift = Family::<DriftLabels, Counter>::default();
        for (&sort, &count) in &*self.drifted.lock().expect("no holder of the counts panics") {
            drift.get_or_create(&DriftLabels { sort }).inc_by(count);
        }
        registry.register("causeway_drift", "Times that the broker had not what the pipeline wants", drift);
        exposition::register_process(&mut registry);
        Ok(registry)
    }

    async fn streams(&self, registry: &mut Registry) -> Result<(), BusError> {
        let messages = Family::<StreamLabels, Gauge>::default();
        let size = Family::<StreamLabels, Gauge>::default();
        let limit = Family::<StreamLabels, Gauge>::default();
        let stored = Family::<StreamLabels, Counter>::default();
        for (bus, pipeline) in &seen(&self.sites) {
            for (stage, sort) in sorts(pipeline) {
                let Some(state) = bus.stream_state(&names::stream(&pipeline.name, stage)).await? else { continue };
                let labels = StreamLabels { stage: stage.into(), sort, site: pipeline.here.clone() };
                messages.get_or_create(&labels).set(state.messages as i64);
                size.get_or_create(&labels).set(state.bytes as i64);
                if let Some(bytes) = state.max_bytes {
                    limit.get_or_create(&labels).set(bytes as i64);
                }
                stored.get_or_create(&labels).inc_by(state.last_sequence);
            }
        }
        registry.register("causeway_stream_messages", "Messages in the stream", messages);
        registry.register_with_unit("causeway_stream_size", "Bytes in the stream", Unit::Bytes, size);
        registry.register_with_unit("causeway_stream_limit", "What the stream may hold", Unit::Bytes, limit);
        registry.register("causeway_stream_stored_messages", "Messages that were ever stored in the stream", stored);
        Ok(())
    }

    async fn durables(&self, registry: &mut Registry) -> Result<(), BusError> {
        let family = Family::<DurableLabels, Gauge>::default;
        let (pending, unacked, redelivered, floor, waiting) = (family(), family(), family(), family(), family());
        for (bus, pipeline) in &seen(&self.sites) {
            for stream in layout::streams(pipeline) {
                let from = layout::filled_by(pipeline, &stream.name);
                for taker in &stream.durables {
                    let Some(state) = bus.durable_state(&stream.name, &taker.name).await? else { continue };
                    let (stage, from, site) = (taker.name.clone(), from.to_owned(), pipeline.here.clone());
                    let labels = DurableLabels { stage, from, site };
                    pending.get_or_create(&labels).set(state.pending as i64);
                    unacked.get_or_create(&labels).set(state.unacked as i64);
                    redelivered.get_or_create(&labels).set(state.redelivered as i64);
                    floor.get_or_create(&labels).set(state.ack_floor as i64);
                    waiting.get_or_create(&labels).set(state.waiting as i64);
                }
            }
        }
        registry.register("causeway_durable_pending_messages", "Messages not delivered to the stage yet", pending);
        registry.register("causeway_durable_unacked_messages", "Messages delivered and not acked", unacked);
        let again = "Messages not acked that were delivered more than once";
        registry.register("causeway_durable_redelivered_messages", again, redelivered);
        registry.register("causeway_durable_ack_floor", "Sequence up to which every message is acked", floor);
        registry.register(
            "causeway_durable_waiting_pulls",
            "Pulls that wait: 0 while nobody is there to take",
            waiting,
        );
        Ok(())
    }

    fn processes(&self, registry: &mut Registry) {
        let replicas = Family::<ReplicaLabels, Gauge>::default();
        let known = self.replicas.lock().expect("no holder of the list panics");
        for (_, pipeline) in &seen(&self.sites) {
            let relay = pipeline.relay().filter(|relay| relay.runs_at(&pipeline.here));
            for stage in pipeline.stages_here().chain(&relay) {
                let is_its = |(site, name, _): &(String, String, String)| *site == pipeline.here && *name == stage.name;
                let alive = known
                    .iter()
                    .filter(|(key, (beat, heard))| is_its(key) && heard.elapsed() < FRESH && !has_ended(beat));
                let source = stage.is_source().to_string();
                let labels = ReplicaLabels { stage: stage.name.clone(), source, site: pipeline.here.clone() };
                replicas.get_or_create(&labels).set(alive.count() as i64);
            }
        }
        registry.register("causeway_replicas", "Replicas that said in the last 5 s that they live", replicas);
        if let Some(supervised) = &*self.supervised.lock().expect("no holder of the list panics") {
            let restarts = Family::<StageLabels, Counter>::default();
            for stage in &supervised.stages {
                let count = supervised.restarts.get(stage).copied().unwrap_or(0);
                restarts.get_or_create(&StageLabels { stage: stage.clone() }).inc_by(count.into());
            }
            registry.register("causeway_restarts", "Times that the stage died and was started again", restarts);
        }
    }
}

/// The streams of a pipeline, by what fills them, with their sort.
fn sorts(pipeline: &Pipeline) -> Vec<(&str, &'static str)> {
    let stages = pipeline.stages.iter().map(|stage| {
        let sort = if pipeline.captures_here(stage) {
            "capture"
        } else if pipeline.is_final(&stage.name) {
            "outcome"
        } else {
            "link"
        };
        (stage.name.as_str(), sort)
    });
    let receipts = pipeline.is_split().then_some((names::RECEIPT, "outcome"));
    stages.chain([(names::EMPTY, "outcome"), (names::DEAD, "outcome")]).chain(receipts).collect()
}

/// Whether it says that it has ended.
fn has_ended(beat: &Heartbeat) -> bool {
    beat.state == "ended" || beat.state.starts_with("failed")
}

/// Replaced whole: Prometheus reads it whenever it likes.
fn write_whole(file: &std::path::Path, targets: &Value) -> std::io::Result<()> {
    let next = file.with_extension("next");
    std::fs::write(&next, format!("{targets:#}\n"))?;
    std::fs::rename(&next, file)
}
