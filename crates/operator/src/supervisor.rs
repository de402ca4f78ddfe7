//! Starts the stages of a pipeline, restarts what dies, and stops them in graph order.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use causeway_bus::Credentials;
use causeway_pipelines::{RELAY, StageSpec};
use causeway_stage::EXIT_UNFIT;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::home::Process;
use crate::rights::AGENT;
use crate::session::{HUB, OpenSite, Session, absolute};

/// First and longest pause before a stage that died is started again.
const RESTART_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A stage that lived for this long starts anew with the first pause.
const SETTLED: Duration = Duration::from_secs(2);
/// A stage that dies of its own this often in a row without having lived for `LIVED` has a fault that a restart does not mend. (A
/// message that kills its stage is set aside after its third death; a few of them may come together.)
const MAX_QUICK_DEATHS: u32 = 20;
const LIVED: Duration = Duration::from_secs(10);
/// How long a stage may take to drain before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Last lines of a stage's log that are kept to tell why it died.
const LAST_LINES: usize = 4;

/// How the line of a stage begins, after its time, that says why it ends (see `causeway_stage`).
const LAST_WORD: &str = "ERROR stage ended error=\"";

/// What happened to a stage.
#[derive(Debug)]
pub(crate) enum Event {
    /// It runs, as this process.
    Started { stage: String, pid: u32 },
    /// A source has given all it has.
    Ended { stage: String },
    /// It died and is started again.
    Restarting { stage: String, why: String },
    /// It cannot run.
    Failed { stage: String, why: String },
    /// It says something that a person should read.
    Said { stage: String, line: String },
}

/// The stages of a running pipeline. One that runs at several sites, or is on the move, is called `STAGE@SITE` at each.
pub(crate) struct Supervisor {
    kept: Vec<Kept>,
    /// What was moved away, while it ends.
    going: Vec<JoinHandle<()>>,
    /// Of the tasks that keep stages running: with the last of them the events end.
    say: mpsc::WeakUnboundedSender<Event>,
    /// But where a stage may be moved to.
    _goes_on: Option<mpsc::UnboundedSender<Event>>,
    events: mpsc::UnboundedReceiver<Event>,
    pids: HashMap<String, u32>,
    /// How often each stage was started again.
    pub(crate) restarts: HashMap<String, u32>,
}

/// A stage that is kept running.
struct Kept {
    launch: Launch,
    stop: watch::Sender<bool>,
    running: JoinHandle<()>,
}

impl Kept {
    fn start(launch: Launch, say: mpsc::UnboundedSender<Event>) -> Self {
        let (stop, stopped) = watch::channel(false);
        Self { running: tokio::spawn(launch.clone().keep_running(say, stopped)), launch, stop }
    }
}

/// How a stage ended.
#[derive(Debug, Default)]
struct Ended {
    /// With exit code 0.
    well: bool,
    /// It said that a restart does not mend it.
    for_good: bool,
    /// Somebody killed it, or the kernel for want of memory: that says nothing of the stage, however often it happens.
    killed: bool,
    why: String,
}

/// How a stage is started.
#[derive(Clone)]
struct Launch {
    /// What it is called here.
    stage: String,
    /// The stage's name, and where it runs.
    at: (String, String),
    is_source: bool,
    /// Its input is standard input: it is given ours.
    reads_stdin: bool,
    program: PathBuf,
    arguments: Vec<String>,
    /// Where its servers are, and with which credentials.
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
}

/// What all stages of a run are given.
pub(crate) struct Run<'a> {
    /// `--set` for every stage.
    pub(crate) overrides: &'a [String],
    /// Raised to run again what was run before.
    pub(crate) generation: u32,
    /// The name of an isolated run, whose inputs are there already: its sources are not started.
    pub(crate) replay: Option<&'a str>,
}

impl Supervisor {
    /// Starts every stage, takers before givers.
    ///
    /// Call on the main thread: children end with the thread that started them.
    pub(crate) fn start(session: &Session, run: &Run<'_>) -> anyhow::Result<Self> {
        let (say, events) = mpsc::unbounded_channel();
        let mut kept = Vec::new();
        let threads = model_threads(session);
        for (stage, site) in stages(session).into_iter().rev() {
            if run.replay.is_some() && stage.is_source() {
                continue;
            }
            kept.push(Kept::start(Launch::new(session, &stage, site, run, threads)?, say.clone()));
        }
        kept.reverse();
        let (pids, restarts) = (HashMap::new(), HashMap::new());
        let weak = say.downgrade();
        let goes_on = session.pipeline.is_split().then_some(say);
        Ok(Self { kept, going: Vec::new(), say: weak, _goes_on: goes_on, events, pids, restarts })
    }

    /// Starts what was moved here and stops what was moved away. Call on the main thread too.
    pub(crate) fn place(&mut self, session: &Session, run: &Run<'_>) -> anyhow::Result<()> {
        let Some(say) = self.say.upgrade() else { return Ok(()) };
        let wanted = stages(session);
        let place = |(stage, site): &(StageSpec, &OpenSite)| (stage.name.clone(), site.pipeline.here.clone());
        let stays = |kept: &Kept| wanted.iter().any(|one| place(one) == kept.launch.at);
        let (stay, go): (Vec<Kept>, Vec<Kept>) = std::mem::take(&mut self.kept).into_iter().partition(stays);
        self.kept = stay;
        for Kept { launch, stop, running } in go {
            let _ = stop.send(true);
            self.pids.remove(&launch.stage);
            self.going.push(running);
        }
        let threads = model_threads(session);
        for one @ (stage, site) in &wanted {
            let runs = self.kept.iter().any(|kept| kept.launch.at == place(one));
            if runs || (run.replay.is_some() && stage.is_source()) {
                continue;
            }
            self.kept.push(Kept::start(Launch::new(session, stage, site, run, threads)?, say.clone()));
        }
        // Givers before takers, as they are stopped.
        self.kept.sort_by_key(|kept| wanted.iter().position(|one| place(one) == kept.launch.at));
        Ok(())
    }

    /// Starts a stage that failed once more.
    pub(crate) fn start_again(&mut self, stage: &str) {
        let kept = self.kept.iter_mut().find(|kept| kept.launch.stage == stage);
        if let (Some(kept), Some(say)) = (kept, self.say.upgrade()) {
            *kept = Kept::start(kept.launch.clone(), say);
        }
    }

    /// What happens next.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let event = self.events.recv().await?;
        match &event {
            Event::Started { stage, pid } => {
                self.pids.insert(stage.clone(), *pid);
            }
            Event::Ended { stage } => {
                self.pids.remove(stage);
            }
            Event::Restarting { stage, .. } => *self.restarts.entry(stage.clone()).or_default() += 1,
            Event::Failed { .. } | Event::Said { .. } => {}
        }
        Some(event)
    }

    /// Whether nothing is: a site may only gather what comes from others.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// What is kept running, as it is called here.
    pub(crate) fn names(&self) -> Vec<String> {
        self.kept.iter().map(|kept| kept.launch.stage.clone()).collect()
    }

    /// The processes that run now.
    pub(crate) fn processes(&self) -> Vec<(String, Process)> {
        let mut processes: Vec<_> = self.pids.iter().map(|(stage, &pid)| (stage.clone(), Process::of(pid))).collect();
        processes.sort_by(|a, b| a.0.cmp(&b.0));
        processes
    }

    /// Stops every stage, givers before takers, so that what is under way is taken.
    pub(crate) async fn stop(self) {
        for Kept { stop, running, .. } in self.kept {
            let _ = stop.send(true);
            let _ = running.await;
        }
        for going in self.going {
            let _ = going.await;
        }
    }
}

/// Every stage with the sites that it runs at now, givers before takers; relays stand last, so that they are stopped when all else is.
fn stages(session: &Session) -> Vec<(StageSpec, &OpenSite)> {
    let mut found = Vec::new();
    for name in session.pipeline.stages.iter().map(|stage| stage.name.as_str()).chain([RELAY]) {
        for site in &session.sites {
            let now = site.placed.borrow();
            let stage = if name == RELAY { now.relay() } else { now.stage(name).cloned() };
            found.extend(stage.filter(|stage| stage.runs_at(&now.here)).map(|stage| (stage, site)));
        }
    }
    found
}

/// What a stage is called at a site.
pub(crate) fn name_at(stage: &StageSpec, site: &str) -> String {
    let is_at_several = stage.sites.len() > 1 || !stage.moves_to.is_empty();
    if is_at_several { format!("{}@{site}", stage.name) } else { stage.name.clone() }
}

/// Cores divided by model workers: one thread each unless there are more cores than workers.
fn model_threads(session: &Session) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let stages = stages(session);
    let workers: usize =
        stages.iter().filter(|(stage, _)| stage.model().is_some()).map(|(stage, _)| stage.workers).sum();
    (cores / workers.max(1)).max(1)
}

impl Launch {
    fn new(
        session: &Session,
        stage: &StageSpec,
        site: &OpenSite,
        run: &Run<'_>,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let mut arguments = vec![
            "--pipeline".into(),
            text(&absolute(&session.pipeline.file)?)?,
            "--stage".into(),
            stage.name.clone(),
            "--site".into(),
            site.pipeline.here.clone(),
            "--models".into(),
            text(&session.models)?,
            "--threads".into(),
            threads.to_string(),
        ];
        for set in run.overrides {
            arguments.extend(["--set".into(), set.clone()]);
        }
        if stage.is_source() {
            arguments.extend(["--generation".into(), run.generation.to_string()]);
        }
        if let Some(name) = run.replay {
            arguments.extend(["--run".into(), name.into()]);
        }
        let name = name_at(stage, &site.pipeline.here);
        let mut environment = vec![("CAUSEWAY_NATS", site.nats.clone())];
        // What runs apart from the pipeline is the agent's.
        let who = if run.replay.is_some() { AGENT } else { &stage.name };
        let credentials = |of: &OpenSite| {
            let file = Credentials::of(of.credentials.as_deref(), who).file;
            file.as_deref().map(absolute).transpose()
        };
        if let Some(file) = credentials(site)? {
            environment.push(("CAUSEWAY_CREDENTIALS", text(&file)?));
        }
        // Where the hub is not run here, the file says where it is.
        if let Some(hub) = session.site(&session.pipeline.hub().name).filter(|_| stage.uses == RELAY) {
            environment.push((HUB, hub.nats.clone()));
            // A key of one's own is the same at both.
            if let Some(file) = credentials(hub)?.filter(|_| !hub.is_keyed()) {
                environment.push(("CAUSEWAY_HUB_CREDENTIALS", text(&file)?));
            }
        }
        Ok(Self {
            stage: name.clone(),
            at: (stage.name.clone(), site.pipeline.here.clone()),
            is_source: stage.is_source(),
            reads_stdin: crate::input::reads_stdin(stage),
            program: program(&stage.uses)?,
            arguments,
            environment,
            log: session.home.log(&name),
        })
    }

    async fn keep_running(self, say: mpsc::UnboundedSender<Event>, mut stop: watch::Receiver<bool>) {
        let (mut pause, mut quick_deaths) = (RESTART_PAUSE.0, 0);
        while !*stop.borrow() {
            let began = Instant::now();
            let ended = match self.run_once(&say, &mut stop).await {
                Ok(Some(ended)) => ended,
                Ok(None) => return,
                Err(error) => Ended { why: format!("{error:#}"), ..Ended::default() },
            };
            if self.is_source && ended.well {
                let _ = say.send(Event::Ended { stage: self.stage });
                return;
            }
            if began.elapsed() > SETTLED {
                pause = RESTART_PAUSE.0;
            }
            if began.elapsed() > LIVED {
                quick_deaths = 0;
            }
            quick_deaths += u32::from(!ended.killed);
            if ended.for_good || quick_deaths == MAX_QUICK_DEATHS {
                let _ = say.send(Event::Failed { stage: self.stage, why: ended.why });
                return;
            }
            // One that ended well was moved away, and is told to stop in a moment.
            if !ended.well {
                let _ = say.send(Event::Restarting { stage: self.stage.clone(), why: ended.why });
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stop.changed() => return,
            }
            pause = (pause * 2).min(RESTART_PAUSE.1);
        }
    }

    /// Runs it once. `None`: it was stopped.
    async fn run_once(
        &self,
        say: &mpsc::UnboundedSender<Event>,
        stop: &mut watch::Receiver<bool>,
    ) -> anyhow::Result<Option<Ended>> {
        let mut child = self.spawn()?;
        let pid = child.id().unwrap_or_default();
        let _ = say.send(Event::Started { stage: self.stage.clone(), pid });
        let lines = child.stderr.take().context("no stderr")?;
        let log = OpenOptions::new().create(true).append(true).open(&self.log);
        let log = log.with_context(|| format!("cannot write {}", self.log.display()))?;
        let told = tokio::spawn(tell(lines, log, self.stage.clone(), say.clone()));
        let status = tokio::select! {
            status = child.wait() => status?,
            _ = stop.changed() => {
                end(&mut child).await;
                return Ok(None);
            }
        };
        // The pipe may be held open by a grandchild: the log is not waited for longer than this.
        let last = tokio::time::timeout(Duration::from_secs(1), told).await;
        let last = last.ok().and_then(Result::ok).unwrap_or_default();
        Ok(Some(Ended {
            well: status.success(),
            for_good: status.code() == Some(i32::from(EXIT_UNFIT)),
            killed: status.signal() == Some(nix::sys::signal::Signal::SIGKILL as i32),
            why: why(status, &last),
        }))
    }

    fn spawn(&self) -> anyhow::Result<Child> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.envs(self.is_source.then(crate::input::environment).flatten());
        command.stdin(if self.reads_stdin { Stdio::inherit() } else { Stdio::null() });
        command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        // Ctrl-C goes to the whole group of the terminal; stages are stopped by us, in order.
        command.process_group(0);
        causeway_bus::server::die_with_parent(command.as_std_mut());
        command.spawn().with_context(|| format!("cannot run {}", self.program.display()))
    }
}

/// Why a stage ended: what it said itself, else its status and the last lines of its log.
fn why(status: std::process::ExitStatus, last_lines: &[String]) -> String {
    let said = last_lines.iter().rev().find_map(|line| line.split_once(LAST_WORD)).map(|(_, said)| said);
    match said {
        Some(said) => said.strip_suffix('"').unwrap_or(said).replace("\\\"", "\""),
        None if last_lines.is_empty() => status.to_string(),
        None => format!("{status}; its last lines:\n  {}", last_lines.join("\n  ")),
    }
}

async fn end(child: &mut Child) {
    if let Some(pid) = child.id() {
        causeway_bus::server::terminate(pid);
    }
    if tokio::time::timeout(STOP_TIMEOUT, child.wait()).await.is_err() {
        let _ = child.kill().await;
    }
}

/// Copies a stage's log to its file; passes warnings and errors on. Gives the last lines.
async fn tell(
    lines: tokio::process::ChildStderr,
    mut log: std::fs::File,
    stage: String,
    say: mpsc::UnboundedSender<Event>,
) -> Vec<String> {
    use std::io::Write as _;
    let mut lines = BufReader::new(lines).lines();
    let mut last: Vec<String> = Vec::new();
    while let Ok(Some(line)) = lines.next_line().await {
        let _ = writeln!(log, "{line}");
        // Why it ended is told with the end.
        if (line.contains(" WARN ") || line.contains("ERROR ")) && !line.contains(LAST_WORD) {
            let _ = say.send(Event::Said { stage: stage.clone(), line: line.clone() });
        }
        last.push(line);
        if last.len() > LAST_LINES {
            last.remove(0);
        }
    }
    last
}

/// The program of a stage: beside this one.
pub(crate) fn program(uses: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(format!("causeway-{uses}"));
    if !path.is_file() {
        bail!("cannot find the stage program {}: build it with `./dev build`", path.display());
    }
    Ok(path)
}

fn text(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(Into::into).with_context(|| format!("cannot use {}: its path is not UTF-8", path.display()))
}
