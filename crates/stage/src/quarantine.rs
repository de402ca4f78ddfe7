//! The quarantine: a process of the stage's own program for inputs that came again, each of which may be what its replica did
//! not survive. It stays up, its model loaded once, has limits of time and memory, knows no bus, and ends with its stage.

pub(crate) mod inside;
pub(crate) mod wire;

use std::io::Write as _;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, bail};
use bytes::{Bytes, BytesMut};
use causeway_bus::Follow;
use causeway_bus::server::die_with_parent;
use causeway_schemas::{Codec, Message, decode_body};
use futures::future::BoxFuture;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::env::Env;
use crate::held::Held;
use crate::protocol::{Death, KILLED};
use crate::runs::Run;
use crate::stage_life::{self, Verdict};
use crate::trace::Work;
use wire::{Answered, Ending, MAX_FRAME, Said, Told};

/// Bytes of a fold's state in one frame.
const STATE_PART: usize = 4 << 20;
/// How long it may take to build the stage and to be told its tables.
const START: Duration = Duration::from_mins(1);
/// Frames on their way to it.
const AHEAD: usize = 64;
/// How much of what it said last is kept to tell why it ended, bytes.
/// A backtrace has to fit.
const LAST_WORDS: usize = 32 << 10;
/// Whoever killed it may be about to kill its stage too, as when all that belongs to a service is: then nothing is concluded.
const DOUBT: Duration = Duration::from_millis(100);

/// The quarantine of a replica: a process while there is one.
pub(crate) struct Quarantine {
    env: Arc<Env>,
    inmate: Option<Inmate>,
    /// Of a fold: what its process begins with.
    state: Option<StateNow>,
}

/// Gives a fold's state as it is, with the last change that it knows.
pub(crate) type StateNow = Box<dyn Fn() -> BoxFuture<'static, anyhow::Result<(u64, Vec<u8>)>> + Send + Sync>;

/// What became of an input.
pub(crate) enum Ran {
    Answered(Verdict),
    /// The quarantine did not survive it.
    Died(Death),
    /// The stage stops, and the quarantine with it: nothing is concluded.
    Stopped,
}

struct Inmate {
    process: Child,
    told: mpsc::Sender<Bytes>,
    said: FramedRead<ChildStdout, LengthDelimitedCodec>,
    /// The last change of a fold's changelog that it knows.
    last: u64,
    /// Gives the end of what it logged.
    words: JoinHandle<Vec<u8>>,
    /// What serves it; ends with it.
    tasks: JoinSet<()>,
}

impl Quarantine {
    pub(crate) fn new(env: &Arc<Env>) -> Self {
        Self { env: Arc::clone(env), inmate: None, state: None }
    }

    /// A process that is started from here on begins with this state of a fold.
    pub(crate) fn begin_with(&mut self, state: StateNow) {
        self.state = Some(state);
    }

    /// Starts its process if there is none.
    pub(crate) async fn ready(&mut self) -> anyhow::Result<()> {
        if let Some(inmate) = &mut self.inmate
            && inmate.process.try_wait()?.is_none()
        {
            return Ok(());
        }
        self.inmate = None;
        let started = tokio::time::timeout(START, Inmate::start(&self.env, self.state.as_ref())).await;
        self.inmate = Some(started.map_err(|_| anyhow!("it was not ready within {START:?}"))??);
        Ok(())
    }

    /// Tells a fold's quarantine the change at `sequence` of its changelog, where there is one.
    pub(crate) async fn change(&mut self, sequence: u64, change: &Bytes) {
        if let Some(inmate) = &mut self.inmate {
            inmate.change(sequence, change).await;
        }
    }

    /// Its process ends; the next input starts another.
    pub(crate) fn end(&mut self) {
        (self.inmate, self.state) = (None, None);
    }

    /// Tries an input whose output is an `O`, and waits for the end.
    pub(crate) async fn run<O: Message>(&mut self, held: &Arc<Held>) -> Ran {
        let Some(inmate) = &mut self.inmate else {
            return Ran::Answered(again("its quarantine is not there".into()));
        };
        let began = Instant::now();
        let headers = &held.delivery.headers;
        let (kind, content_type) = (headers.kind().map(str::to_owned), headers.codec().content_type().to_owned());
        inmate.tell(&Told::Input { id: held.id(), kind, content_type }, Some(&held.body)).await;
        let limit = self.env.spec.max_process;
        let answered = tokio::time::timeout(limit, inmate.answer()).await;
        let death = match answered {
            Ok(Ok((answered, bodies))) => {
                let ends = matches!(answered.answer, Ending::Panicked(_) | Ending::Stale);
                let verdict = self.verdict::<O>(held, began, answered, &bodies);
                if ends {
                    self.inmate = None;
                }
                return Ran::Answered(verdict);
            }
            Ok(Err(why)) => inmate.death(&why).await,
            Err(_) => {
                let detail = format!("it took longer than max_process_ms = {} allows", limit.as_millis());
                Death { reason: "hung".into(), detail }
            }
        };
        self.inmate = None;
        self.env.status.quarantine_died(&death.reason);
        tokio::time::sleep(DOUBT).await;
        if self.env.stop.is_cancelled() {
            return Ran::Stopped;
        }
        tracing::warn!(id = %held.id(), death.reason, death.detail, "the quarantine did not survive a message");
        Ran::Died(death)
    }

    fn verdict<O: Message>(
        &self,
        held: &Arc<Held>,
        began: Instant,
        answered: Answered,
        bodies: &[BytesMut],
    ) -> Verdict {
        let runs = answered.runs.into_iter();
        let runs = runs.map(|(model, version, at, took)| Run { model, version, began: began + at, took });
        let runs: Vec<_> = runs.collect();
        self.env.status.processed(answered.took, std::slice::from_ref(held));
        self.env.status.model_runs(&runs);
        held.worked(&Arc::new(Work { began, count: 1, runs }));
        match (answered.answer, answered.capture) {
            (Ending::Messages(_), Some(capture)) => {
                match bodies.iter().map(|body| decode_body::<O>(body, Codec::Bincode)).collect::<Result<Vec<_>, _>>() {
                    Ok(messages) => stage_life::outputs_of::<O>(&self.env, held, capture, &messages),
                    Err(why) => again(format!("its quarantine's answer does not read: {why}")),
                }
            }
            (Ending::Nothing { reason, detail }, Some(capture)) => {
                stage_life::nothing(&self.env, held, capture, &reason, detail)
            }
            (Ending::Reject { reason, detail }, _) => Verdict::Reject { reason: reason.into(), detail },
            (Ending::Retry { why, pause }, _) => Verdict::Retry { why, pause },
            (Ending::Stale, _) => again("its quarantine begins anew".into()),
            (Ending::Panicked(detail), _) => Verdict::Reject { reason: stage_life::PANICKED.into(), detail },
            (Ending::Unanswered | Ending::Messages(_) | Ending::Nothing { .. }, _) => stage_life::no_answer(),
        }
    }
}

/// It comes again at once, here or elsewhere.
fn again(why: String) -> Verdict {
    Verdict::Retry { why, pause: Duration::ZERO }
}

impl Inmate {
    /// Starts it; it is told the tables as they are now, and then every change of them.
    async fn start(env: &Arc<Env>, state: Option<&StateNow>) -> anyhow::Result<Self> {
        let mut process = spawn()?;
        let pipe = || anyhow!("a pipe of it is missing");
        let stdin = process.stdin.take().with_context(pipe)?;
        let said = LengthDelimitedCodec::builder()
            .max_frame_length(MAX_FRAME)
            .new_read(process.stdout.take().with_context(pipe)?);
        let stderr = process.stderr.take().with_context(pipe)?;
        let words = tokio::spawn(pass_on(stderr));
        let (told, to_tell) = mpsc::channel(AHEAD);
        let mut tasks = JoinSet::new();
        tasks.spawn(write(stdin, to_tell));
        let mut inmate = Self { process, told, said, last: 0, words, tasks };
        match inmate.next().await? {
            Said::Ready => {}
            Said::Unfit(why) => bail!("{why}"),
            Said::Answer(_) => bail!("it answered what nobody asked"),
        }
        for (name, _) in env.ctx.tables() {
            inmate.follow(env, name).await?;
        }
        if let Some(state) = state {
            inmate.restore(state().await?).await?;
        }
        tracing::info!(pid = inmate.process.id(), "quarantine started");
        Ok(inmate)
    }

    /// Tells a fold's the state that it begins with.
    async fn restore(&mut self, (last, state): (u64, Vec<u8>)) -> anyhow::Result<()> {
        let state = Bytes::from(state);
        // An empty one too.
        for at in (0..state.len().max(1)).step_by(STATE_PART) {
            let end = state.len().min(at + STATE_PART);
            self.tell(&Told::State { is_last: end == state.len() }, Some(&state.slice(at..end))).await;
        }
        self.last = last;
        match self.next().await? {
            Said::Ready => Ok(()),
            _ => bail!("it did not take its state"),
        }
    }

    async fn change(&mut self, sequence: u64, change: &Bytes) {
        if sequence > self.last {
            self.last = sequence;
            self.tell(&Told::Change, Some(change)).await;
        }
    }

    /// Tells it a table from now on; returns when it knows what there is.
    async fn follow(&mut self, env: &Arc<Env>, name: String) -> anyhow::Result<()> {
        let (follow, mut followed) = mpsc::unbounded_channel::<Follow>();
        let bus = env.bus.clone();
        let table = name.clone();
        self.tasks.spawn(async move {
            bus.follow_table(&table, move |change| {
                let _ = follow.send(change);
            })
            .await;
        });
        let (loaded, is_loaded) = tokio::sync::oneshot::channel();
        let told = self.told.clone();
        self.tasks.spawn(async move {
            let mut loaded = Some(loaded);
            while let Some(follow) = followed.recv().await {
                let table = name.clone();
                let (what, value) = match follow {
                    Follow::Put(entry) => {
                        let (key, revision, stored_at) = (entry.key, entry.revision, entry.stored_at);
                        (Told::Put { table, key, revision, stored_at }, Some(entry.value))
                    }
                    Follow::Removed { key, revision } => (Told::Removed { table, key, revision }, None),
                    Follow::Loaded => (Told::Loaded { table }, None),
                };
                let is_last = matches!(what, Told::Loaded { .. });
                tell(&told, &what, value.as_ref()).await;
                if is_last && let Some(loaded) = loaded.take() {
                    let _ = loaded.send(());
                }
            }
        });
        is_loaded.await.context("a table was not loaded")
    }

    /// Tells it something; that it has ended shows when it is to answer.
    async fn tell(&self, what: &Told, body: Option<&Bytes>) {
        tell(&self.told, what, body).await;
    }

    async fn next(&mut self) -> anyhow::Result<Said> {
        let frame = self.said.next().await.context("it has ended")??;
        wire::read(&frame).map_err(|why| anyhow!("it says what cannot be read: {why}"))
    }

    /// Its answer, with the bodies of the outputs.
    async fn answer(&mut self) -> anyhow::Result<(Answered, Vec<BytesMut>)> {
        let Said::Answer(answered) = self.next().await? else { bail!("it says something else than an answer") };
        let mut bodies = Vec::new();
        if let Ending::Messages(count) = answered.answer {
            for _ in 0..count {
                bodies.push(self.said.next().await.context("it has ended")??);
            }
        }
        Ok((answered, bodies))
    }

    /// Why it ended.
    async fn death(&mut self, why: &anyhow::Error) -> Death {
        // It has closed its stdout; what still lives a while later is killed when it is dropped.
        let status = tokio::time::timeout(DOUBT, self.process.wait()).await.ok().and_then(Result::ok);
        let words = tokio::time::timeout(DOUBT, &mut self.words).await.ok().and_then(Result::ok).unwrap_or_default();
        death(status, &String::from_utf8_lossy(&words), why)
    }
}

fn death(status: Option<ExitStatus>, words: &str, why: &anyhow::Error) -> Death {
    let ended = status.map_or_else(|| format!("{why:#}"), |status| status.to_string());
    let wanted_memory = ["memory allocation of", "bad_alloc", "out of memory", "annot allocate memory"];
    let memory = words.lines().find(|line| wanted_memory.iter().any(|sign| line.contains(sign)));
    let reason = if memory.is_some() { "out-of-memory" } else { KILLED };
    // Not a line of a backtrace.
    let is_said =
        |line: &&str| !line.starts_with(char::is_whitespace) && !line.starts_with("note:") && !line.is_empty();
    let last = memory.or_else(|| words.lines().rev().find(is_said)).unwrap_or_default().trim();
    let detail = if last.is_empty() {
        format!("its process ended: {ended}")
    } else {
        format!("its process ended: {ended}; {last}")
    };
    Death { reason: reason.into(), detail }
}

/// This program again, by the same arguments.
fn spawn() -> anyhow::Result<Child> {
    // Where the file was replaced meanwhile, Linux still has the one that runs.
    let running = std::path::Path::new("/proc/self/exe");
    let program = if running.exists() { running.to_owned() } else { std::env::current_exe()? };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut command = Command::new(program);
    command.arg0(name).args(arguments).arg("--quarantine");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C is for its stage alone, which then has it finish.
    command.process_group(0);
    die_with_parent(command.as_std_mut());
    command.spawn().context("it cannot be started")
}

async fn tell(told: &mpsc::Sender<Bytes>, what: &Told, body: Option<&Bytes>) {
    // Both frames or, where it has ended, none: who waits for its answer finds out.
    if told.send(wire::written(what).into()).await.is_ok()
        && let Some(body) = body
    {
        let _ = told.send(body.clone()).await;
    }
}

async fn write(stdin: ChildStdin, mut told: mpsc::Receiver<Bytes>) {
    let mut to =
        FramedWrite::new(stdin, LengthDelimitedCodec::builder().max_frame_length(u32::MAX as usize).new_codec());
    while let Some(frame) = told.recv().await {
        if to.send(frame).await.is_err() {
            return;
        }
    }
}

/// Passes on what it logs, and gives the end of it.
async fn pass_on(mut stderr: impl AsyncRead + Unpin) -> Vec<u8> {
    let (mut some, mut words) = (vec![0; 4096], Vec::new());
    while let Ok(count @ 1..) = stderr.read(&mut some).await {
        let _ = std::io::stderr().write_all(&some[..count]);
        words.extend_from_slice(&some[..count]);
        words.drain(..words.len().saturating_sub(LAST_WORDS));
    }
    words
}
