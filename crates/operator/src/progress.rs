//! What a person sees while a pipeline runs: how many messages are through which stage.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use causeway_bus::{Bus, BusError, DurableWish, TakerSort};
use causeway_pipelines::{Pipeline, RELAY};
use causeway_stage::{Heartbeat, Placed};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::layout;
use crate::placement::seen;
use crate::up::heartbeats;

/// How often replicas are asked how they are.
const BEATS_EVERY: Duration = Duration::from_millis(900);
/// How often a line is written where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);

pub(crate) struct Progress {
    sites: Vec<(Bus, Placed)>,
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

/// How far takers are through what they take.
#[derive(Clone, Copy, Default)]
struct Flow {
    taken: u64,
    all: u64,
}

impl Progress {
    pub(crate) async fn start(placed: Vec<(Bus, Placed)>, quiet: bool) -> Result<Self, BusError> {
        let sites = seen(&placed);
        let bars = MultiProgress::new();
        let plain = !std::io::stderr().is_terminal();
        let pipeline = sites.first().map(|(_, pipeline)| pipeline);
        let stages = pipeline.into_iter().flat_map(|pipeline| &pipeline.stages).filter(|stage| !stage.is_source());
        let here = |stage: &&causeway_pipelines::StageSpec| sites.iter().any(|(_, at)| stage.runs_at(&at.here));
        let mut names: Vec<String> = stages.filter(here).map(|stage| stage.name.clone()).collect();
        if in_order(&sites).iter().any(|(.., durable)| durable.taker == TakerSort::Relay) {
            names.push(RELAY.into());
        }
        let width = names.iter().map(String::len).max().unwrap_or(0);
        let style = ProgressStyle::with_template("  {prefix} {bar:24} {pos:>5}/{len:<5} {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ");
        let flows = flows(&sites).await?;
        let mut lines = Vec::new();
        for name in names {
            let bar = if quiet || plain { ProgressBar::hidden() } else { bars.add(ProgressBar::new(0)) };
            bar.set_style(style.clone());
            bar.set_prefix(format!("{name:width$}"));
            let before = flows.get(&name).map_or(0, |flow| flow.taken);
            lines.push((name, bar, before));
        }
        let now = Instant::now();
        Ok(Self {
            sites: placed,
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
    pub(crate) async fn look(&mut self) -> Result<bool, BusError> {
        let sites = seen(&self.sites);
        let flows = flows(&sites).await?;
        let mut drained = true;
        let mut line = Vec::new();
        for (name, bar, before) in &self.lines {
            let Some(flow) = flows.get(name) else {
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
            for beat in heartbeats(&sites).await? {
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

/// How far stages are through what they take at all these sites, and relays all together. One whose durables are not all there is left
/// out.
async fn flows(sites: &[(Bus, Pipeline)]) -> Result<HashMap<String, Flow>, BusError> {
    let mut flows: HashMap<String, Flow> = HashMap::new();
    let mut missing = Vec::new();
    for (bus, stream, durable) in in_order(sites) {
        let name = if durable.taker == TakerSort::Relay { RELAY.to_owned() } else { durable.name.clone() };
        match bus.durable_state(&stream, &durable.name).await? {
            // The durable first: what is stored in between counts as not taken yet.
            Some(state) => {
                let all = state.delivered + state.pending;
                let flow = flows.entry(name).or_default();
                flow.all += all;
                flow.taken += all.saturating_sub(state.pending + state.unacked);
            }
            None if durable.ends => {}
            None => missing.push(name),
        }
    }
    for name in missing {
        flows.remove(&name);
    }
    Ok(flows)
}

/// Every durable in the order in which messages pass them: link by link, and of a link those at the edges from which it is carried,
/// then the hub's, then those of the edges that it is carried to.
fn in_order(sites: &[(Bus, Pipeline)]) -> Vec<(&Bus, String, DurableWish)> {
    let mut found = Vec::new();
    for (bus, pipeline) in sites {
        let is_hub = pipeline.hub().name == pipeline.here;
        for stream in layout::streams(pipeline) {
            let filled_by = layout::filled_by(pipeline, &stream.name);
            let link = pipeline.stages.iter().position(|stage| stage.name == filled_by);
            // What is no stage's is behind all that is.
            let link = link.unwrap_or(pipeline.stages.len());
            for durable in stream.durables {
                let stop = match (is_hub, durable.taker) {
                    (false, TakerSort::Relay) => 0,
                    (true, _) => 1,
                    (false, _) => 2,
                };
                found.push(((link, stop), (bus, stream.name.clone(), durable)));
            }
        }
    }
    found.sort_by_key(|(place, _)| *place);
    found.into_iter().map(|(_, durable)| durable).collect()
}
