//! What a person sees while a pipeline runs: how many messages are through which stage.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use causeway_bus::{Bus, BusError, names};
use causeway_pipelines::Pipeline;
use causeway_stage::Heartbeat;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::up::heartbeats;

/// How often replicas are asked how they are.
const BEATS_EVERY: Duration = Duration::from_millis(900);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

pub(crate) struct Progress {
    bars: MultiProgress,
    /// A line for every stage that takes something, in graph order: name, bar, messages that were there before this run.
    lines: Vec<(String, ProgressBar, u64)>,
    plain: bool,
    quiet: bool,
    replicas: HashMap<String, Heartbeat>,
    beats_at: Instant,
    line_at: Instant,
    last_line: String,
    drained_at: Option<Instant>,
}

/// How far a link is through its takers.
struct Flow {
    taken: u64,
    all: u64,
}

impl Progress {
    pub(crate) async fn start(bus: &Bus, pipeline: &Pipeline, quiet: bool) -> Result<Self, BusError> {
        let bars = MultiProgress::new();
        let plain = !std::io::stderr().is_terminal();
        let width = pipeline.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
        let style = ProgressStyle::with_template("  {prefix} {bar:24} {pos:>5}/{len:<5} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ");
        let mut lines = Vec::new();
        for stage in pipeline.stages.iter().filter(|stage| !stage.is_source()) {
            let bar = if quiet || plain { ProgressBar::hidden() } else { bars.add(ProgressBar::new(0)) };
            bar.set_style(style.clone());
            bar.set_prefix(format!("{:width$}", stage.name));
            let before = flow(bus, pipeline, &stage.name).await?;
            lines.push((stage.name.clone(), bar, before.map_or(0, |flow| flow.taken)));
        }
        let now = Instant::now();
        Ok(Self {
            bars,
            lines,
            plain,
            quiet,
            replicas: HashMap::new(),
            beats_at: now,
            line_at: now,
            last_line: String::new(),
            drained_at: None,
        })
    }

    /// Looks at every link in graph order; says whether nothing is pending nor unacked on any. (With the sources ended, a link
    /// that was empty stays so once all before it were.)
    pub(crate) async fn look(&mut self, bus: &Bus, pipeline: &Pipeline) -> Result<bool, BusError> {
        let mut drained = true;
        let mut line = Vec::new();
        for (name, bar, before) in &self.lines {
            let Some(flow) = flow(bus, pipeline, name).await? else {
                drained = false;
                continue;
            };
            drained &= flow.taken == flow.all;
            let (taken, all) = (flow.taken.saturating_sub(*before), flow.all.saturating_sub(*before));
            bar.set_length(all);
            bar.set_position(taken);
            line.push(format!("{name} {taken}/{all}"));
        }
        if self.beats_at.elapsed() > BEATS_EVERY {
            self.beats_at = Instant::now();
            for beat in heartbeats(bus).await? {
                self.replicas.insert(beat.replica.clone() + &beat.stage, beat);
            }
            for (name, bar, _) in &self.lines {
                let waiting =
                    self.replicas.values().find(|beat| beat.stage == *name && beat.state.starts_with("waiting"));
                bar.set_message(waiting.map_or(String::new(), |beat| beat.state.clone()));
            }
        }
        let line = line.join(" · ");
        if self.plain && !self.quiet && self.line_at.elapsed() > LINE_EVERY && line != self.last_line {
            self.line_at = Instant::now();
            eprintln!("  {line}");
            self.last_line = line;
        }
        self.drained_at = drained.then(|| self.drained_at.unwrap_or_else(Instant::now));
        Ok(drained)
    }

    /// Writes a line above the bars.
    pub(crate) fn say(&self, line: &str) {
        if self.quiet {
            return;
        }
        if self.plain {
            eprintln!("  {line}");
        } else {
            let _ = self.bars.println(format!("  {line}"));
        }
    }

    /// Since when nothing is under way.
    pub(crate) fn drained_at(&self) -> Option<Instant> {
        self.drained_at
    }

    pub(crate) fn end(&self) {
        for (_, bar, _) in &self.lines {
            bar.abandon();
        }
        if !self.plain && !self.quiet {
            // The bars stay, the cursor behind the last of them.
            eprintln!();
        }
    }

    pub(crate) fn into_replicas(self) -> HashMap<String, Heartbeat> {
        self.replicas
    }
}

/// How far `stage` is through all that it takes.
async fn flow(bus: &Bus, pipeline: &Pipeline, stage: &str) -> Result<Option<Flow>, BusError> {
    let Some(spec) = pipeline.stage(stage) else { return Ok(None) };
    let mut total = Flow { taken: 0, all: 0 };
    for from in &spec.from {
        let stream = names::stream(&pipeline.name, from);
        // The durable first: what is stored in between counts as not taken yet.
        let Some(durable) = bus.durable_state(&stream, stage).await? else { return Ok(None) };
        let all = durable.delivered + durable.pending;
        total.all += all;
        total.taken += all.saturating_sub(durable.pending + durable.unacked);
    }
    Ok(Some(total))
}
