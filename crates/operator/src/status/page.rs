use causeway_pipelines::{Phase, Placement};
use causeway_stage::Carrying;

use crate::drift::Drift;
use crate::status::gather::{FoldStatus, Gathered, PlacementStatus, Replica, StageStatus, StreamStatus};
use crate::terminal::{Paint, age, bytes, count, date_time, one_line, table};

/// What stands where there is nothing to say.
const NOTHING: &str = "-";
/// Most characters of what drifted.
const MAX_DETAIL: usize = 300;
/// Most characters of a name that a replica says.
const MAX_NAME: usize = 64;

impl Gathered {
    /// For a terminal.
    pub(crate) fn page(&self) -> String {
        let running = match (self.up, &self.nats) {
            (Some(pid), Some(nats)) => format!("{}: pid {pid}, server {nats}", Paint::Green.on("up runs")),
            (None, Some(nats)) => format!("server {nats}"),
            _ => format!("{}: this is what is stored", Paint::Yellow.on("nothing runs here")),
        };
        let head =
            ["STAGE", "STATE", "REPLICAS", "HANDLED", "GIVEN", "EMPTY", "DEAD", "PENDING", "UNACKED", "AGAIN", "RSS"];
        let stages = table(&head, &[2, 3, 4, 5, 6, 7, 8, 9, 10], self.stages.iter().map(stage_row).collect());
        let streams = self.streams.iter().map(stream_row).collect();
        let streams = table(&["STREAM", "MESSAGES", "BYTES", "OF AT MOST", "KEPT"], &[1, 2, 3], streams);
        let people = match self.people {
            0 => "nobody enrolled".into(),
            1 => format!("1 person enrolled ({})", count(self.vectors, "vector")),
            people => format!("{people} people enrolled ({})", count(self.vectors, "vector")),
        };
        let dead = count(self.dead_letters as usize, "dead letter");
        let dead = if self.dead_letters > 0 {
            Paint::Red.on(&dead) + &format!(" (causeway dlq ls {})", self.file)
        } else {
            dead
        };
        let dropped: String = self.stages.iter().filter_map(dropped_line).collect();
        let at = self.site.as_ref().map_or(String::new(), |site| format!(" at {site}"));
        let (pipeline, file) = (Paint::Bold.on(&(self.pipeline.clone() + &at)), &self.file);
        let edges = self.edges();
        let (crossing, moved) = (self.crossing(), self.placement.as_ref().map_or(String::new(), placement_lines));
        let drift: String = self.drift.iter().map(drift_line).collect();
        let folds: String = self.folds.iter().map(fold_line).collect();
        format!(
            "{pipeline} ({file}), {running}\n\n{stages}{dropped}\n{streams}{edges}{crossing}{drift}\n{moved}{folds}{people}, {dead}\n"
        )
    }
}

impl Gathered {
    /// The sites that dial this one; nothing where it is not the hub of several.
    fn edges(&self) -> String {
        let row = |(site, relay): &(String, Option<Replica>)| {
            let Some(relay) = relay else {
                return vec![site.clone(), "not heard of".into(), NOTHING.into(), NOTHING.into()];
            };
            let waiting: u64 = relay.beat.carrying.iter().map(|one| one.waiting.saturating_add(one.held)).sum();
            let state = one_line(&relay.beat.state, MAX_DETAIL);
            vec![site.clone(), state, format!("{} ago", age(relay.silent)), waiting.to_string()]
        };
        if self.edges.is_empty() {
            return String::new();
        }
        format!("\n{}", table(&["SITE", "STATE", "HEARD", "WAITING"], &[3], self.edges.iter().map(row).collect()))
    }

    /// What a relay here carries; nothing where there is none.
    fn crossing(&self) -> String {
        let row = |one: &Carrying| {
            let Carrying { stream, from, to, messages, bytes: sent, again, held, waiting, trouble } = one;
            let way = format!("{} to {}", one_line(from, MAX_NAME), one_line(to, MAX_NAME));
            let trouble = trouble.as_ref().map_or(NOTHING.into(), |trouble| one_line(trouble, MAX_DETAIL));
            let counts = [*messages, *again, *held, *waiting].map(|count| count.to_string());
            let [messages, again, held, waiting] = counts;
            vec![one_line(stream, MAX_NAME), way, messages, bytes(*sent), again, held, waiting, trouble]
        };
        if self.carrying.is_empty() {
            return String::new();
        }
        let head = ["CROSSES", "WAY", "MESSAGES", "BYTES", "AGAIN", "HELD", "WAITING", "TROUBLE"];
        let rows = self.carrying.iter().map(row).collect();
        format!("\n{}", table(&head, &[2, 3, 4, 5, 6], rows))
    }
}

/// Which stages were moved, and how far the one is that is on the move.
fn placement_lines(status: &PlacementStatus) -> String {
    let Placement { epoch, sites, moving } = &status.placement;
    let moved: Vec<String> = sites.iter().map(|(stage, sites)| format!("{stage} to {}", sites.join(", "))).collect();
    let moved = if moved.is_empty() {
        "all stages are where the file has them".into()
    } else {
        format!("moved: {}", moved.join("; "))
    };
    let mut lines = format!("placement {epoch}: {moved}\n");
    if let Some(moving) = moving {
        let phase = match moving.phase {
            Phase::Prepare => "is getting ready",
            Phase::HandOver => "is handed over",
            Phase::Back => "is called off",
        };
        let waits = status.waits_for.iter().map(|what| one_line(what, MAX_DETAIL)).collect::<Vec<_>>().join(", ");
        let waits = if waits.is_empty() { String::new() } else { format!("; waits for {waits}") };
        let line = format!("{} on its way to {}: it {phase}{waits}", moving.stage, moving.to.join(", "));
        lines += &(Paint::Yellow.on(&line) + "\n");
    }
    lines
}

/// Nothing where nothing was dropped.
fn dropped_line(stage: &StageStatus) -> Option<String> {
    let dropped = stage.sum(|beat| beat.dropped);
    let line =
        || format!("{} has dropped {}: there was no room for them\n", stage.name, count(dropped as usize, "frame"));
    (dropped > 0).then(|| Paint::Yellow.on(&line()))
}

/// What a restart reads of its state.
fn fold_line(fold: &FoldStatus) -> String {
    let FoldStatus { stage, behind, snapshot } = fold;
    let behind = count(*behind as usize, "change");
    match snapshot {
        Some((length, ago)) => {
            format!("{stage}: a snapshot of {}, {} old, and {behind} since\n", bytes(*length), age(*ago))
        }
        None => format!("{stage}: no snapshot yet, {behind}\n"),
    }
}

/// When, what, and whether it is mended.
fn drift_line(drift: &Drift) -> String {
    let Drift { at, stream, detail, mended, .. } = drift;
    let (stream, detail) = (one_line(stream, MAX_DETAIL), one_line(detail, MAX_DETAIL));
    let line = format!("{} UTC: {stream}: {detail}", date_time(*at));
    if *mended { format!("{line}: mended\n") } else { Paint::Red.on(&line) + "\n" }
}

fn stage_row(stage: &StageStatus) -> Vec<String> {
    let counted = |sum: u64| if stage.replicas.is_empty() { NOTHING.into() } else { sum.to_string() };
    let waiting = |sum: Option<u64>| sum.map_or(NOTHING.into(), |sum| sum.to_string());
    let stale = stage.replicas.iter().filter(|replica| replica.is_stale()).count();
    let there = stage.replicas.iter().filter(|replica| !replica.has_ended()).count();
    let replicas = match (there, stale) {
        (0, _) => NOTHING.into(),
        (all, 0) => all.to_string(),
        (all, stale) => format!("{all} ({stale} stale)"),
    };
    let rss = stage.sum(|beat| beat.rss);
    vec![
        stage.name.clone(),
        stage.state(),
        replicas,
        counted(stage.sum(|beat| beat.handled)),
        counted(stage.sum(|beat| beat.given)),
        counted(stage.sum(|beat| beat.empty)),
        counted(stage.sum(|beat| beat.dead)),
        waiting(stage.waiting(|durable| durable.pending)),
        waiting(stage.waiting(|durable| durable.unacked)),
        waiting(stage.waiting(|durable| durable.redelivered)),
        if rss == 0 { NOTHING.into() } else { bytes(rss) },
    ]
}

fn stream_row(stream: &StreamStatus) -> Vec<String> {
    let kept = match (stream.is_link, stream.kept) {
        (true, _) => "until taken".into(),
        (false, Some(kept)) => age(kept),
        (false, None) => NOTHING.into(),
    };
    let Some(state) = &stream.state else {
        return vec![stream.name.clone(), "not there".into(), NOTHING.into(), NOTHING.into(), kept];
    };
    let most = state.max_bytes.map_or("no bound".into(), bytes);
    vec![stream.name.clone(), state.messages.to_string(), bytes(state.bytes), most, kept]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use causeway_bus::StreamState;

    use super::*;
    use crate::status::gather::tests::{replica, stage};

    #[test]
    fn a_page() {
        let state = StreamState { messages: 4, bytes: 2048, max_bytes: Some(1 << 28), ..StreamState::default() };
        let stream = |name: &str, is_link, state| StreamStatus {
            name: name.into(),
            is_link,
            kept: (!is_link).then_some(Duration::from_hours(720)),
            state,
        };
        let gathered = Gathered {
            pipeline: "faces".into(),
            site: None,
            file: "faces.toml".into(),
            up: Some(7),
            nats: Some("nats://127.0.0.1:4222".into()),
            stages: vec![stage(vec![replica("running", 0), replica("running", 9)])],
            streams: vec![stream("extract", true, Some(state)), stream("dead", false, None)],
            folds: vec![
                FoldStatus { stage: "cluster".into(), behind: 1, snapshot: Some((1 << 20, Duration::from_mins(5))) },
                FoldStatus { stage: "groups".into(), behind: 7, snapshot: None },
            ],
            placement: None,
            edges: Vec::new(),
            carrying: Vec::new(),
            people: 1,
            vectors: 2,
            dead_letters: 0,
            drift: vec![Drift {
                at: 1_769_879_109_000_000_000,
                stream: "faces_extract".into(),
                sort: "settings".into(),
                detail: "its greatest age is 1s, wanted is 0ns".into(),
                mended: true,
            }],
        };
        let expected = "\
faces (faces.toml), up runs: pid 7, server nats://127.0.0.1:4222

STAGE     STATE       REPLICAS  HANDLED  GIVEN  EMPTY  DEAD  PENDING  UNACKED  AGAIN       RSS
classify  running  2 (1 stale)       14     14      0     0       12        3      0  100.0 MB

STREAM    MESSAGES   BYTES  OF AT MOST  KEPT
extract          4  2.0 kB    268.4 MB  until taken
dead     not there       -           -  30 d
2026-01-31 17:05:09 UTC: faces_extract: its greatest age is 1s, wanted is 0ns: mended

cluster: a snapshot of 1.0 MB, 5 min old, and 1 change since
groups: no snapshot yet, 7 changes
1 person enrolled (2 vectors), 0 dead letters
";
        assert_eq!(gathered.page(), expected);
    }
}
