use std::time::Duration;

use causeway_bus::{Bus, DurableState, Snapshot, StreamState, names};
use causeway_pipelines::{Flow, Pipeline, Placement, RELAY, StageSpec};
use causeway_stage::{Carrying, Heartbeat, now_ns};
use serde_json::{Value, json};

use crate::drift::Drift;
use crate::home::Running;
use crate::people::read_people;
use crate::placement::reports;
use crate::terminal::one_line;

/// A replica says how it is once a second; one that has not for this long is marked.
const STALE: Duration = Duration::from_secs(3);

/// Most characters of what a replica says of itself.
const MAX_STATE: usize = 200;

/// What the agent found is shown for this long.
const DRIFT_SHOWN: Duration = Duration::from_hours(1);

/// Everything that `status` shows, as it was at one moment.
#[derive(Debug)]
pub(crate) struct Gathered {
    pub(crate) pipeline: String,
    /// Where it was looked, if there are several sites.
    pub(crate) site: Option<String>,
    pub(crate) file: String,
    /// Process id of the `up` whose folder this is.
    pub(crate) up: Option<u32>,
    pub(crate) nats: Option<String>,
    pub(crate) stages: Vec<StageStatus>,
    pub(crate) streams: Vec<StreamStatus>,
    pub(crate) folds: Vec<FoldStatus>,
    /// Which stages were moved, and which is on the move; nothing where none ever was.
    pub(crate) placement: Option<PlacementStatus>,
    /// At the hub: the sites that dial it, each with what its relay says.
    pub(crate) edges: Vec<(String, Option<Replica>)>,
    /// What crosses to and from this site.
    pub(crate) carrying: Vec<Carrying>,
    pub(crate) people: usize,
    pub(crate) vectors: usize,
    pub(crate) dead_letters: u64,
    /// What the agent found otherwise than it should be, of late.
    pub(crate) drift: Vec<Drift>,
}

/// Where stages are that were moved.
#[derive(Debug)]
pub(crate) struct PlacementStatus {
    pub(crate) placement: Placement,
    /// Of a move that is under way: what it waits for.
    pub(crate) waits_for: Vec<String>,
}

impl PlacementStatus {
    async fn read(bus: &Bus, pipeline: &Pipeline) -> Option<Self> {
        let placement = pipeline.placement.clone();
        if placement.epoch == 0 {
            return None;
        }
        let reports = reports(bus, pipeline).await.unwrap_or_default();
        let under_way = reports.into_values().filter(|report| placement.moving.is_some() && report.is_of(&placement));
        let waits_for = under_way.filter_map(|report| report.waits_for).collect();
        Some(Self { placement, waits_for })
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut object = json!(self.placement);
        object["waits_for"] = json!(self.waits_for);
        object
    }
}

/// One stage of the pipeline.
#[derive(Debug)]
pub(crate) struct StageStatus {
    pub(crate) name: String,
    pub(crate) replicas: Vec<Replica>,
    /// Its durable at each stage that it takes from; nothing where that is not on the server.
    pub(crate) takes: Vec<(String, Option<DurableState>)>,
}

/// A process of a stage, by what it last said.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) beat: Heartbeat,
    /// How long ago that was.
    pub(crate) silent: Duration,
}

/// One stream of the pipeline.
#[derive(Debug)]
pub(crate) struct StreamStatus {
    pub(crate) name: String,
    /// Whether messages go as soon as they are taken.
    pub(crate) is_link: bool,
    pub(crate) kept: Option<Duration>,
    pub(crate) state: Option<StreamState>,
}

/// What a stage that folds has of its state; what of it a restart reads.
#[derive(Debug)]
pub(crate) struct FoldStatus {
    pub(crate) stage: String,
    /// Changes that the newest snapshot does not know.
    pub(crate) behind: u64,
    /// The length of that snapshot, and how long ago it was stored.
    pub(crate) snapshot: Option<(u64, Duration)>,
}

impl Replica {
    /// Whether it has not said how it is, though nothing says that it ended.
    pub(crate) fn is_stale(&self) -> bool {
        self.silent > STALE && !self.has_ended()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.beat.state == "ended" || self.beat.state.starts_with("failed")
    }
}

impl FoldStatus {
    fn of(stage: &str, changelog: StreamState, newest: Option<&Snapshot>) -> Self {
        let known = newest.map_or(0, |snapshot| snapshot.sequence).max(changelog.first_sequence.saturating_sub(1));
        let ago = |snapshot: &Snapshot| Duration::from_nanos(now_ns().saturating_sub(snapshot.stored_at));
        Self {
            stage: stage.into(),
            behind: changelog.last_sequence.saturating_sub(known),
            // One of no bytes says that everything was forgotten.
            snapshot: newest.filter(|snapshot| snapshot.bytes > 0).map(|snapshot| (snapshot.bytes, ago(snapshot))),
        }
    }
}

impl StageStatus {
    /// In one word or a short sentence: the worst of what its replicas say. Anybody may say anything: it is one line.
    pub(crate) fn state(&self) -> String {
        one_line(&self.said(), MAX_STATE)
    }

    fn said(&self) -> String {
        let alive = || self.replicas.iter().filter(|replica| !replica.is_stale() && !replica.has_ended());
        let troubled = alive().find(|replica| replica.beat.state != "running");
        if let Some(replica) = troubled.or_else(|| alive().next()) {
            return replica.beat.state.clone();
        }
        // None is alive: one that did not end is the worse news.
        match self.replicas.iter().find(|replica| replica.is_stale()).or(self.replicas.first()) {
            Some(stale) if stale.is_stale() => format!("silent for {}", crate::terminal::age(stale.silent)),
            Some(ended) => ended.beat.state.clone(),
            None => "-".into(),
        }
    }

    pub(crate) fn sum(&self, count: impl Fn(&Heartbeat) -> u64) -> u64 {
        // Anybody may say anything.
        self.replicas.iter().fold(0, |sum, replica| sum.saturating_add(count(&replica.beat)))
    }

    pub(crate) fn waiting(&self, count: impl Fn(&DurableState) -> u64) -> Option<u64> {
        let durables: Vec<_> = self.takes.iter().filter_map(|(_, durable)| durable.as_ref()).collect();
        (!durables.is_empty()).then(|| durables.into_iter().map(count).sum())
    }
}

impl Gathered {
    pub(crate) async fn read(
        bus: &Bus,
        pipeline: &Pipeline,
        running: Option<&Running>,
        nats: Option<&str>,
    ) -> anyhow::Result<Self> {
        let mut replicas = replicas(bus).await?;
        let (mut stages, mut streams) = (Vec::new(), Vec::new());
        let plan = pipeline.plan();
        let relay = pipeline.relay().filter(|relay| relay.runs_at(&pipeline.here));
        for spec in pipeline.stages_here().chain(&relay) {
            stages.push(stage(bus, pipeline, spec, &mut replicas).await?);
        }
        let edges = edges(pipeline, &mut replicas);
        let lives = |replica: &&Replica| !replica.is_stale() && !replica.has_ended();
        let said = stages.iter().flat_map(|stage| &stage.replicas).filter(lives);
        let carrying = said.flat_map(|replica| replica.beat.carrying.clone()).collect();
        for spec in &pipeline.stages {
            if plan.share(Flow::Stage(&spec.name), &pipeline.here).is_some() {
                streams.push(stream_of(bus, pipeline, spec).await?);
            }
        }
        let mut folds = Vec::new();
        for spec in pipeline.stages_here().filter(|spec| spec.folds) {
            let changelog = names::changelog(&pipeline.name, &spec.name);
            // Of these the agent keeps the bound, not the server.
            let changelog = own_stream(bus, pipeline, &changelog, Some(pipeline.keep_changes)).await?;
            let snapshots = own_stream(bus, pipeline, &names::snapshots(&pipeline.name, &spec.name), None).await?;
            if let (Some(state), Some(_)) = (changelog.state, snapshots.state) {
                folds.push(FoldStatus::of(&spec.name, state, bus.snapshots(&spec.name).await?.first()));
            }
            streams.extend([changelog, snapshots]);
        }
        let receipts = pipeline.is_split().then_some(names::RECEIPT);
        for link in [names::EMPTY].into_iter().chain(receipts).chain([names::DEAD]) {
            streams.push(stream(bus, pipeline, link, false, Some(pipeline.keep_outcomes.age)).await?);
        }
        let dead_letters = streams.last().and_then(|dead| dead.state).map_or(0, |state| state.messages);
        // The table is not there before the pipeline was applied: nobody is known.
        let people = read_people(bus).await.unwrap_or_default();
        Ok(Self {
            pipeline: pipeline.name.clone(),
            site: pipeline.is_split().then(|| pipeline.here.clone()),
            file: pipeline.file.display().to_string(),
            up: running.filter(|running| running.pid != std::process::id()).map(|running| running.pid),
            nats: nats.map(Into::into),
            stages,
            streams,
            folds,
            placement: PlacementStatus::read(bus, pipeline).await,
            edges,
            carrying,
            people: people.len(),
            vectors: people.iter().map(|person| person.vectors.len()).sum(),
            dead_letters,
            drift: drift(bus).await,
        })
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "pipeline": self.pipeline,
            "site": self.site,
            "file": self.file,
            "up": self.up,
            "nats": self.nats,
            "placement": self.placement.as_ref().map(PlacementStatus::to_json),
            "edges": self.edges.iter().map(edge_json).collect::<Vec<_>>(),
            "carrying": self.carrying,
            "stages": self.stages.iter().map(stage_json).collect::<Vec<_>>(),
            "streams": self.streams.iter().map(stream_json).collect::<Vec<_>>(),
            "folds": self.folds.iter().map(fold_json).collect::<Vec<_>>(),
            "people": self.people,
            "vectors": self.vectors,
            "dead_letters": self.dead_letters,
            "drift": self.drift,
        })
    }
}

/// What the agent found in the last hour.
async fn drift(bus: &Bus) -> Vec<Drift> {
    let mut findings = crate::drift::findings(bus).await;
    let since = now_ns().saturating_sub(DRIFT_SHOWN.as_nanos() as u64);
    findings.retain(|drift| drift.at >= since);
    findings
}

/// The replicas of all stages.
async fn replicas(bus: &Bus) -> anyhow::Result<Vec<Replica>> {
    let entries = bus.table_entries(names::REPLICAS).await.unwrap_or_default();
    let now = now_ns();
    let replica = |entry: &causeway_bus::Entry| {
        let silent = Duration::from_nanos(now.saturating_sub(entry.stored_at));
        Some(Replica { beat: serde_json::from_slice(&entry.value).ok()?, silent })
    };
    Ok(entries.iter().filter_map(replica).collect())
}

/// The sites that dial this one, if it is the hub, each with its relay as it says itself.
fn edges(pipeline: &Pipeline, replicas: &mut Vec<Replica>) -> Vec<(String, Option<Replica>)> {
    if pipeline.hub().name != pipeline.here {
        return Vec::new();
    }
    let mut take = |site: &str| {
        let place = replicas.iter().position(|replica| replica.beat.stage == RELAY && replica.beat.site == site);
        place.map(|place| replicas.swap_remove(place))
    };
    pipeline.edges().map(|site| (site.name.clone(), take(&site.name))).collect()
}

fn edge_json((site, relay): &(String, Option<Replica>)) -> Value {
    json!({
        "site": site,
        "state": relay.as_ref().map(|relay| relay.beat.state.clone()),
        "silent_s": relay.as_ref().map(|relay| relay.silent.as_secs_f64()),
        "waiting": relay.as_ref().map(|relay| relay.beat.carrying.iter().map(|one| one.waiting + one.held).sum::<u64>()),
    })
}

async fn stage(
    bus: &Bus,
    pipeline: &Pipeline,
    spec: &StageSpec,
    replicas: &mut Vec<Replica>,
) -> anyhow::Result<StageStatus> {
    let mut takes = Vec::new();
    for from in &spec.from {
        let stream = names::stream(&pipeline.name, from);
        let there = bus.stream_state(&stream).await?.is_some();
        let durable = if there { bus.durable_state(&stream, &spec.name).await? } else { None };
        takes.push((from.clone(), durable));
    }
    let (mut own, others): (Vec<_>, Vec<_>) =
        std::mem::take(replicas).into_iter().partition(|replica| replica.beat.stage == spec.name);
    *replicas = others;
    own.sort_by(|a, b| a.beat.replica.cmp(&b.beat.replica));
    Ok(StageStatus { name: spec.name.clone(), replicas: own, takes })
}

async fn stream_of(bus: &Bus, pipeline: &Pipeline, spec: &StageSpec) -> anyhow::Result<StreamStatus> {
    let is_capture = pipeline.captures_here(spec);
    let is_link = !is_capture && !pipeline.is_final(&spec.name);
    let kept = if is_link {
        None
    } else if is_capture {
        Some(pipeline.keep_captured.age)
    } else {
        Some(pipeline.keep_outcomes.age)
    };
    stream(bus, pipeline, &spec.name, is_link, kept).await
}

async fn stream(
    bus: &Bus,
    pipeline: &Pipeline,
    name: &str,
    is_link: bool,
    kept: Option<Duration>,
) -> anyhow::Result<StreamStatus> {
    let state = bus.stream_state(&names::stream(&pipeline.name, name)).await?;
    Ok(StreamStatus { name: name.into(), is_link, kept, state })
}

/// A stream of the runtime's own, by its whole name, with the bound that the agent keeps.
async fn own_stream(
    bus: &Bus,
    pipeline: &Pipeline,
    whole: &str,
    max_bytes: Option<u64>,
) -> anyhow::Result<StreamStatus> {
    let name = crate::layout::filled_by(pipeline, whole);
    let status = stream(bus, pipeline, name, false, None).await?;
    Ok(StreamStatus { state: status.state.map(|state| StreamState { max_bytes, ..state }), ..status })
}

fn stage_json(stage: &StageStatus) -> Value {
    let replicas = stage.replicas.iter().map(|replica| {
        let mut object = json!(replica.beat);
        object["silent_s"] = json!(replica.silent.as_secs_f64());
        object["stale"] = json!(replica.is_stale());
        object
    });
    let takes = stage.takes.iter().map(|(from, durable)| {
        let count = |count: fn(&DurableState) -> u64| durable.as_ref().map(count);
        json!({
            "from": from,
            "pending": count(|durable| durable.pending),
            "unacked": count(|durable| durable.unacked),
            "redelivered": count(|durable| durable.redelivered),
            "pulls_waiting": count(|durable| durable.waiting),
        })
    });
    json!({
        "name": stage.name,
        "state": stage.state(),
        "handled": stage.sum(|beat| beat.handled),
        "given": stage.sum(|beat| beat.given),
        "empty": stage.sum(|beat| beat.empty),
        "dead": stage.sum(|beat| beat.dead),
        "retried": stage.sum(|beat| beat.retried),
        "skipped": stage.sum(|beat| beat.skipped),
        "dropped": stage.sum(|beat| beat.dropped),
        "rss": stage.sum(|beat| beat.rss),
        "replicas": replicas.collect::<Vec<_>>(),
        "takes": takes.collect::<Vec<_>>(),
    })
}

fn fold_json(fold: &FoldStatus) -> Value {
    json!({
        "stage": fold.stage,
        "changes_behind_snapshot": fold.behind,
        "snapshot_bytes": fold.snapshot.map(|(bytes, _)| bytes),
        "snapshot_age_s": fold.snapshot.map(|(_, age)| age.as_secs_f64()),
    })
}

fn stream_json(stream: &StreamStatus) -> Value {
    let state = stream.state.as_ref();
    json!({
        "name": stream.name,
        "messages": state.map(|state| state.messages),
        "bytes": state.map(|state| state.bytes),
        "max_bytes": state.and_then(|state| state.max_bytes),
        "kept_s": stream.kept.map(|kept| kept.as_secs()),
        "until_taken": stream.is_link,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn replica(state: &str, silent_s: u64) -> Replica {
        let beat = Heartbeat {
            stage: "classify".into(),
            replica: "host-1".into(),
            site: "edge".into(),
            pid: 1,
            health: String::new(),
            state: state.into(),
            handled: 7,
            given: 7,
            empty: 0,
            dead: 0,
            retried: 0,
            skipped: 0,
            dropped: 0,
            busy_s: 0.5,
            rss: 50_000_000,
            carrying: Vec::new(),
            tables: Vec::new(),
        };
        Replica { beat, silent: Duration::from_secs(silent_s) }
    }

    pub(crate) fn stage(replicas: Vec<Replica>) -> StageStatus {
        let durable = DurableState { pending: 12, unacked: 3, ..DurableState::default() };
        StageStatus { name: "classify".into(), replicas, takes: vec![("extract".into(), Some(durable))] }
    }

    #[test]
    fn sums_end_somewhere() {
        assert_eq!(stage(vec![replica("running", 0), replica("running", 0)]).sum(|_| u64::MAX), u64::MAX);
    }

    #[test]
    fn the_worst_of_the_replicas_is_told() {
        let state = |replicas| stage(replicas).state();
        assert_eq!(state(vec![]), "-");
        assert_eq!(state(vec![replica("running", 0), replica("running", 9)]), "running");
        assert_eq!(
            state(vec![replica("running", 0), replica("waiting: faces.frame is full", 0)]),
            "waiting: faces.frame is full"
        );
        assert_eq!(state(vec![replica("running", 9)]), "silent for 9 s");
        assert_eq!(state(vec![replica("\x1b[2J\nrunning", 0)]), "\\u{1b}[2J\\nrunning");
        assert_eq!(state(vec![replica("ended", 9)]), "ended");
        assert_eq!(state(vec![replica("ended", 9), replica("running", 0)]), "running");
    }
}
