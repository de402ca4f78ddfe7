//! `causeway chaos`: does harm to a running pipeline, and looks whether it kept its promise.

mod plan;
mod told;
mod watch;

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, BusError, names};
use causeway_pipelines::{Pipeline, RELAY, StageSpec};
use causeway_schemas::{Id, header};
use futures::StreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cli::{PipelineArgs, PlaceArgs};
use crate::home::{Home, Process, Running};
use crate::layout;
use crate::reached::Reached;
use crate::reconcile::{Look, is_home};
use crate::up::heartbeats_at;
use plan::{Fault, Sort, Whom, plan};
use told::{Recovery, Told};
use watch::Watch;

/// How often something is asked for that has to come about.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What `--help` says.
pub(crate) const LONG: &str = "\
Do harm to a pipeline that `causeway up` runs, at random and repeatably, and look whether it keeps its promise: everything that \
was captured has all its outcomes, each of them once, and what a killed replica held has them soon.

Before each fault it is noted what the stage holds; the time until all of that has its outcomes is the recovery. The next fault \
waits for it, unless --overlap is given. At the end everything that was captured has to have its outcomes.

Of a pipeline with several sites all that run here are harmed, relays too, one server after the other; an item has its outcomes when \
they are where it was captured.

It reads only what any reader of the pipeline's subjects could read. It signals only processes that `up` says are its own.

Exit code 0: nothing is missing and nothing there twice; 1: something is, or the pipeline did not recover.";

/// The arguments of `chaos`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway chaos\n  causeway chaos --faults stage --stage extract --count 20\n  causeway chaos --seed 7 --count 100 --json | jq .missing"
)]
pub(crate) struct ChaosArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Which sorts of faults, in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "stage,server,pause")]
    faults: Vec<Sort>,
    /// Do harm to these stages only; all of them otherwise
    #[arg(long, value_name = "NAME")]
    stage: Vec<String>,
    /// How many faults
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// End after this long, however many faults are left, seconds
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    lasts: Option<f64>,
    /// Mean pause before a fault, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    every: f64,
    /// How long what is stopped stays stopped, seconds; the ack wait is 1
    #[arg(long, value_name = "SECONDS", default_value_t = 3.0, value_parser = seconds)]
    pause: f64,
    /// How long a recovery may take, and the end without an outcome, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = seconds)]
    settle: f64,
    /// Do not wait for recoveries: faults may meet, and no times are measured
    #[arg(long)]
    overlap: bool,
    /// The same faults again; drawn and told otherwise
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse::<f64>().ok().filter(|value| (0.01..=86_400.0).contains(value));
    value.ok_or_else(|| "a number of seconds, 0.01 to 86400".into())
}

pub(crate) async fn chaos(args: ChaosArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    let home = args.place.home();
    let running = home.running().filter(|running| Process::of(running.pid).is_alive());
    let Some(running) = running else {
        bail!(
            "nothing runs in {}: start `causeway up` there first, or name its folder with --home",
            args.place.home.display()
        );
    };
    if running.pipeline != pipeline.name {
        bail!("{} runs there, not {}: name its file", running.file.display(), pipeline.name);
    }
    let servers = servers(&running);
    if servers.is_empty() && args.faults.iter().any(|sort| matches!(sort, Sort::Server | Sort::PauseServer)) {
        bail!(
            "cannot harm the server {}: it is not one that `up` started; leave `server` out of --faults",
            running.nats
        );
    }
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000));
    let reached = Reached::here(&pipeline, &args.place).await?;
    let done = async {
        let sites = reached.sites().await?;
        if !sites.iter().any(|(_, seen)| seen.captures()) {
            bail!(
                "cannot judge {}: nothing is captured at {}, and what became of an item shows where it was captured",
                pipeline.name,
                reached.names()
            );
        }
        let stages = stages(&sites, &args.stage)?;
        let whom = Whom { stages: &stages, servers: &servers };
        let faults = plan(seed, args.count as usize, Duration::from_secs_f64(args.every), &args.faults, &whom);
        eprintln!("chaos with --seed {seed}: {} faults on {}", faults.len(), pipeline.name);
        let watch = Watch::start(&sites);
        let mut chaos = Chaos { args: &args, sites, home, watch, told: Told::new(seed) };
        chaos.run(&faults).await?;
        Ok(chaos.told)
    }
    .await;
    reached.close().await;
    let told = done?;
    told.print(args.json)?;
    Ok(if told.is_well() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The stages that harm is done to, of those that run here; a relay is one of them.
fn stages(sites: &[(Bus, Pipeline)], wanted: &[String]) -> anyhow::Result<Vec<String>> {
    let is_here = |stage: &StageSpec| sites.iter().any(|(_, seen)| stage.runs_at(&seen.here));
    let pipeline = &sites[0].1;
    let here = pipeline.stages.iter().cloned().chain(pipeline.relay()).filter(is_here);
    let known: Vec<String> = here.map(|stage| stage.name).collect();
    if let Some(strange) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("cannot find [stage.{strange}] of {} here: it has {}", pipeline.name, known.join(", "));
    }
    Ok(known.into_iter().filter(|name| wanted.is_empty() || wanted.contains(name)).collect())
}

/// The sites whose servers `up` has started.
fn servers(running: &Running) -> Vec<String> {
    running.sites.iter().filter(|site| site.server.is_some()).map(|site| site.name.clone()).collect()
}

struct Chaos<'a> {
    args: &'a ChaosArgs,
    /// All sites that run here, each with the pipeline as it is placed there.
    sites: Vec<(Bus, Pipeline)>,
    home: Home,
    watch: Watch,
    told: Told,
}

/// Places in a stream, behind the ack floor of who takes there and up to what was delivered to him.
struct Span {
    bus: Bus,
    stream: String,
    first: u64,
    last: u64,
}

/// What is harmed.
struct Victims {
    processes: Vec<Process>,
    /// Whether another replica of each stage lives that can go on at once.
    is_warm: bool,
}

impl Chaos<'_> {
    async fn run(&mut self, faults: &[Fault]) -> anyhow::Result<()> {
        let ends = self.args.lasts.map(|lasts| Instant::now() + Duration::from_secs_f64(lasts));
        for (number, fault) in faults.iter().enumerate() {
            if ends.is_some_and(|ends| Instant::now() + fault.after > ends) {
                break;
            }
            tokio::time::sleep(fault.after).await;
            let Some(victims) = self.victims(fault).await? else {
                eprintln!("  {}/{} {}: it has ended, passed over", number + 1, faults.len(), fault.name());
                continue;
            };
            let recovered = self.strike(fault, &victims).await?;
            let took = match recovered {
                Recovery::Took(took) => format!(", recovered in {:.2} s", took.as_secs_f64()),
                Recovery::Never => format!(", not recovered in {} s", self.args.settle),
                Recovery::Unknown => String::new(),
            };
            eprintln!("  {}/{} {}{took}", number + 1, faults.len(), fault.name());
            self.told.note(fault, victims.is_warm, recovered);
        }
        self.judge().await
    }

    /// Those that a fault is done to, once they run. `None`: a source that has given all it has.
    async fn victims(&self, fault: &Fault) -> anyhow::Result<Option<Victims>> {
        let deadline = Instant::now() + self.settle();
        loop {
            let running = self.running()?;
            if let Some(processes) = self.processes(fault, &running) {
                if processes.is_empty() {
                    return Ok(None);
                }
                let is_warm = matches!(fault.sort, Sort::Stage | Sort::Pause) && self.is_warm(&fault.stages[0]).await;
                return Ok(Some(Victims { processes, is_warm }));
            }
            if Instant::now() > deadline {
                bail!(
                    "cannot {}: it does not run, after {} s; see the logs in {}",
                    fault.name(),
                    self.args.settle,
                    self.home.logs().display()
                );
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// What a fault is done to; `None` while it does not run.
    fn processes(&self, fault: &Fault, running: &Running) -> Option<Vec<Process>> {
        if let Some(site) = &fault.server {
            let server = running.sites.iter().find(|one| one.name == *site)?.server;
            return server.filter(|server| server.is_alive()).map(|server| vec![server]);
        }
        let mut processes = Vec::new();
        for name in &fault.stages {
            // At several sites it is called after each.
            let is_its = |called: &str| called.split('@').next() == Some(name);
            let its = running.stages.iter().filter(|(called, _)| is_its(called)).map(|(_, process)| *process);
            let its: Vec<Process> = its.collect();
            let is_source = self.sites[0].1.stage(name).is_some_and(StageSpec::is_source);
            // A source that has ended is listed no more.
            if (its.is_empty() && !is_source) || !its.iter().all(|process| process.is_alive()) {
                return None;
            }
            processes.extend(its);
        }
        Some(processes)
    }

    fn running(&self) -> anyhow::Result<Running> {
        let running = self.home.running().filter(|running| Process::of(running.pid).is_alive());
        running.context("`causeway up` has ended: run it without --until-drained, and see why it did")
    }

    /// More replicas than one say that they live, wherever it is.
    async fn is_warm(&self, stage: &str) -> bool {
        let alive = |pid: u32| Process::of(pid).is_alive();
        let mut fewest = None;
        for (bus, _) in &self.sites {
            let beats = heartbeats_at(bus).await.unwrap_or_default();
            let of_it = beats.iter().filter(|beat| beat.stage == stage && beat.state == "running" && alive(beat.pid));
            let replicas = Some(of_it.count()).filter(|&replicas| replicas > 0);
            fewest = fewest.into_iter().chain(replicas).min();
        }
        fewest > Some(1)
    }

    async fn strike(&self, fault: &Fault, victims: &Victims) -> anyhow::Result<Recovery> {
        let is_server = fault.server.is_some();
        // The server is asked before it is harmed; a stage's durable when the stage can take no more: what it asked for before it
        // was stopped comes to it all the same.
        let before = if is_server { Some(self.spans(&fault.stages).await?) } else { None };
        let at = Instant::now();
        if fault.sort.is_kill() {
            signal(victims, Signal::SIGKILL);
        } else {
            signal(victims, Signal::SIGSTOP);
        }
        if !fault.sort.is_kill() {
            tokio::time::sleep(Duration::from_secs_f64(self.args.pause)).await;
        }
        let spans = match before {
            Some(spans) => Ok(spans),
            None => self.spans(&fault.stages).await,
        };
        if !fault.sort.is_kill() {
            signal(victims, Signal::SIGCONT);
        }
        let spans = spans?;
        if self.args.overlap {
            return Ok(Recovery::Unknown);
        }
        let held = self.held(&spans, at + self.settle()).await?;
        if held.is_empty() {
            return Ok(Recovery::Unknown);
        }
        while Instant::now() < at + self.settle() {
            if let Some(complete) = self.watch.complete_at(&held) {
                return Ok(Recovery::Took(complete.saturating_duration_since(at)));
            }
            tokio::time::sleep(LOOK_EVERY).await;
            self.running()?;
        }
        Ok(Recovery::Never)
    }

    /// What the stages may hold.
    async fn spans(&self, stages: &[String]) -> Result<Vec<Span>, BusError> {
        let is_its = |durable: &str| {
            let mut stages = stages.iter();
            stages.any(|stage| stage == durable || (stage == RELAY && durable.starts_with(&names::relay(""))))
        };
        let mut spans = Vec::new();
        for (bus, seen) in &self.sites {
            for wish in layout::streams(seen) {
                for durable in wish.durables.iter().filter(|durable| is_its(&durable.name)) {
                    if let Some(state) = bus.durable_state(&wish.name, &durable.name).await?
                        && state.unacked > 0
                    {
                        let (first, last) = (state.ack_floor + 1, state.delivered);
                        spans.push(Span { bus: bus.clone(), stream: wish.name.clone(), first, last });
                    }
                }
            }
        }
        Ok(spans)
    }

    /// The captured ids of what is there; asked until the broker answers.
    async fn held(&self, spans: &[Span], deadline: Instant) -> anyhow::Result<HashSet<Id>> {
        let mut held = HashSet::new();
        for span in spans {
            while let Err(error) = span.roots(&self.sites, &mut held).await {
                if Instant::now() > deadline {
                    return Err(error.into());
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(held)
    }

    /// Waits until everything that was captured has its outcomes, as long as outcomes come, and says what has not.
    async fn judge(&mut self) -> anyhow::Result<()> {
        let began = Instant::now();
        // What a camera captures from now on is not waited for.
        let captured: HashSet<Id> = self.look(began).await?.captured.keys().copied().collect();
        loop {
            let look = self.look(began).await?;
            let judged = |id: &&Id| captured.contains(id) && look.is_judged(&look.captured[id]);
            let open: Vec<Id> =
                look.captured.keys().filter(judged).filter(|id| !look.ledger.is_complete(**id)).copied().collect();
            let quiet = self.watch.last().max(began).elapsed();
            if open.is_empty() || quiet > self.settle() {
                self.told.end(captured.len(), open, self.watch.doubled());
                return Ok(());
            }
            self.running()?;
            tokio::time::sleep(LOOK_EVERY.max(quiet / 10)).await;
        }
    }

    /// A look that a broker which is just coming back may answer later.
    async fn look(&self, began: Instant) -> anyhow::Result<Look> {
        loop {
            match Look::at(&self.sites).await {
                Err(error) if began.elapsed() > self.settle() => return Err(error),
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
                looked => return looked,
            }
        }
    }

    fn settle(&self) -> Duration {
        Duration::from_secs_f64(self.args.settle)
    }
}

impl Span {
    async fn roots(&self, sites: &[(Bus, Pipeline)], held: &mut HashSet<Id>) -> Result<(), BusError> {
        let Self { bus, stream, first, last } = self;
        let mut records = bus.scan(stream, *first, true).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            if record.sequence > *last {
                break;
            }
            // What was captured elsewhere has its outcomes there.
            if sites[0].1.is_split() && !sites.iter().any(|(_, seen)| is_home(&record.subject, seen)) {
                continue;
            }
            let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(stream, record.sequence));
            held.insert(record.headers.id(header::ROOT).unwrap_or(id));
        }
        Ok(())
    }
}

fn signal(victims: &Victims, signal: Signal) {
    for victim in &victims.processes {
        // One that has ended meanwhile has been harmed enough.
        let _ = kill(Pid::from_raw(victim.pid as i32), signal);
    }
}
