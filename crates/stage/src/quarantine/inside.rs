//! The quarantine from within: a stage without a bus, which answers on stdout what it is told on stdin, one input at a time.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::AsFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, anyhow, bail};
use causeway_bus::{Entry, Follow};
use causeway_pipelines::{Pipeline, StageSpec};
use causeway_schemas::{Capture, Codec, DecodeError, Id, Message, decode, decode_body, encode};

use super::wire::{Answered, Ending, Said, Told, get_frame, put_frame, read, written};
use crate::env::{EXIT_PIPELINE, RETRY_PAUSE, spec_of};
use crate::fold_life::change_of;
use crate::memory::give_back_memory;
use crate::protocol::{TOO_MUCH, too_much};
use crate::runs::noted;
use crate::stage_life::{comes_again, panic_text};
use crate::telemetry::start_log;
use crate::{Answer, Args, Context, Failure, Fold, Stage};

/// A quarantine at work.
pub(crate) struct Inside<'a> {
    spec: &'a StageSpec,
    ctx: &'a Context,
    told: Box<dyn Read + 'a>,
    said: Box<dyn Write + 'a>,
    /// What a trial changed in a fold's state, until the changelog says the same.
    tried: Option<Vec<u8>>,
    /// A fold's state has a change that the changelog has not.
    is_stale: bool,
}

/// Runs the quarantine of a stage until its stdin ends.
pub(crate) fn main(
    uses: &str,
    args: &Args,
    pipeline: &Pipeline,
    life: impl FnOnce(Inside<'_>) -> anyhow::Result<()>,
) -> ExitCode {
    start_log(args.log_format, "info");
    kill_first();
    let spec = match spec_of(args, pipeline, uses) {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::from(EXIT_PIPELINE);
        }
    };
    let ctx = Context::new(&spec, args.pipeline_dir(), &args.models, args.threads);
    let lived = own_stdout().and_then(|stdout| {
        let (told, said) = (Box::new(io::stdin().lock()), Box::new(BufWriter::new(stdout)));
        life(Inside { spec: &spec, ctx: &ctx, told, said, tried: None, is_stale: false })
    });
    match lived {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "quarantine ended");
            ExitCode::FAILURE
        }
    }
}

/// Stdout for the answers alone: what a library prints there goes to stderr.
fn own_stdout() -> anyhow::Result<File> {
    let own = io::stdout().as_fd().try_clone_to_owned().context("cannot keep stdout")?;
    nix::unistd::dup2_stdout(io::stderr()).context("cannot part stdout from the answers")?;
    Ok(own.into())
}

/// When the machine has no memory left, the kernel takes this process first.
/// (<https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html>)
fn kill_first() {
    if cfg!(target_os = "linux") {
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    }
}

/// No more than `more` bytes of memory beyond what the process has now.
fn limit_memory(more: u64) -> anyhow::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
        let data = status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix("kB"));
        let now: u64 = data.context("no VmData in /proc/self/status")?.trim().parse()?;
        let (_, hard) = getrlimit(Resource::RLIMIT_DATA)?;
        let limit = (now * 1024).saturating_add(more).min(hard);
        setrlimit(Resource::RLIMIT_DATA, limit, limit)?;
    }
    let _ = more;
    Ok(())
}

/// The quarantine of a source, which there is not.
#[expect(clippy::needless_pass_by_value, reason = "the others take it")]
pub(crate) fn none(inside: Inside<'_>) -> anyhow::Result<()> {
    bail!("[stage.{}] is a source: it takes nothing that could be tried", inside.spec.name)
}

/// A stage's.
pub(crate) fn stage<S: Stage>(mut inside: Inside<'_>) -> anyhow::Result<()> {
    let options = inside.options::<S::Options>();
    let Some(mut stage) = inside.built(options.and_then(|options| S::new(options, inside.ctx)))? else { return Ok(()) };
    while let Some(told) = inside.next()? {
        match told {
            Given::Change(_) | Given::State(_) => bail!("a stage that does not fold has no state"),
            Given::Input { kind, codec, body, .. } => {
                let input = decode::<S::Input>(kind.as_deref(), codec, &body);
                drop(body);
                let answer = try_it(input.map_err(|error| refused(&error)), |input| {
                    stage.process(vec![input]).into_iter().next()
                });
                if !inside.answer(answer)? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// A fold's: the input is decided and applied, and what it changes forgotten where the changelog does not come to the same.
pub(crate) fn fold<F: Fold>(mut inside: Inside<'_>) -> anyhow::Result<()> {
    let options = inside.options::<F::Options>();
    let Some(mut fold) = inside.built(options.and_then(|options| F::new(options, inside.ctx)))? else { return Ok(()) };
    while let Some(told) = inside.next()? {
        match told {
            Given::State(state) => {
                fold.restore(&state)?;
                drop(state);
                // Of what the state takes no message is to blame.
                limit_memory(inside.spec.quarantine_bytes)?;
                inside.say(&Said::Ready, &[])?;
            }
            Given::Change(change) => match inside.tried.take() {
                Some(tried) if tried == change => {}
                Some(_) => inside.is_stale = true,
                None if inside.is_stale => {}
                None => fold.apply(&decode_body(&change, Codec::Bincode).map_err(|why| anyhow!("a change: {why}"))?),
            },
            Given::Input { id, kind, codec, body } => {
                let input = decode::<F::Input>(kind.as_deref(), codec, &body);
                // What was tried was refused, or put off: another process begins anew, and no input is to blame.
                if inside.is_stale || inside.tried.is_some() {
                    return inside.say(&Said::Answer(Answered::stale()), &[]);
                }
                let mut tried = None;
                let answer = try_it(input.map_err(|error| refused(&error)), |input| {
                    let change = change_of(&mut fold, id, &input, None);
                    tried = change.as_ref().ok().map(|change| encode(change, Codec::Bincode));
                    Some(change.map(|change| Answer::Messages(vec![fold.output(&change)])))
                });
                inside.tried = tried;
                if !inside.answer(answer)? {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// What was told that a stage has to do with.
enum Given {
    State(Vec<u8>),
    Change(Vec<u8>),
    Input { id: Id, kind: Option<String>, codec: Codec, body: Vec<u8> },
}

fn refused(error: &DecodeError) -> Ending {
    match comes_again(error) {
        Some(pause) => Ending::Retry { why: error.to_string(), pause },
        None => Ending::Reject { reason: error.reason().into(), detail: error.to_string() },
    }
}

impl Inside<'_> {
    fn options<O: serde::de::DeserializeOwned>(&self) -> anyhow::Result<O> {
        self.spec.options().map_err(|why| anyhow!(why))
    }

    /// Says whether the stage could be built; from here on memory is limited, a fold's once it has its state.
    fn built<S>(&mut self, built: anyhow::Result<S>) -> anyhow::Result<Option<S>> {
        give_back_memory();
        let limit = || if self.spec.folds { Ok(()) } else { limit_memory(self.spec.quarantine_bytes) };
        match built.and_then(|stage| limit().map(|()| stage)) {
            Ok(stage) => {
                self.say(&Said::Ready, &[])?;
                Ok(Some(stage))
            }
            Err(error) => {
                self.say(&Said::Unfit(format!("{error:#}")), &[])?;
                Ok(None)
            }
        }
    }

    fn say(&mut self, said: &Said, bodies: &[Vec<u8>]) -> anyhow::Result<()> {
        put_frame(&mut self.said, &written(said))?;
        for body in bodies {
            put_frame(&mut self.said, body)?;
        }
        Ok(self.said.flush()?)
    }

    /// The next that is not of a table. `None`: the stage's process has gone.
    fn next(&mut self) -> anyhow::Result<Option<Given>> {
        let tables = self.ctx.tables();
        let tell = |table: &str, follow: &Follow| {
            if let Some((_, live)) = tables.iter().find(|(name, _)| name == table) {
                live.tell(follow);
            }
        };
        let mut state = Vec::new();
        while let Some(frame) = get_frame(&mut self.told)? {
            match read(&frame).map_err(|why| anyhow!("not a frame of ours: {why}"))? {
                Told::Put { table, key, revision, stored_at } => {
                    let value = body(&mut self.told)?.into();
                    tell(&table, &Follow::Put(Entry { key, value, revision, stored_at }));
                }
                Told::Removed { table, key, revision } => tell(&table, &Follow::Removed { key, revision }),
                Told::Loaded { table } => tell(&table, &Follow::Loaded),
                Told::State { is_last } => {
                    state.append(&mut body(&mut self.told)?);
                    if is_last {
                        return Ok(Some(Given::State(state)));
                    }
                }
                Told::Change => return Ok(Some(Given::Change(body(&mut self.told)?))),
                Told::Input { id, kind, content_type } => {
                    let codec = Codec::of(Some(&content_type));
                    return Ok(Some(Given::Input { id, kind, codec, body: body(&mut self.told)? }));
                }
            }
        }
        Ok(None)
    }

    /// Says an answer. `false`: this process has to end, since its stage panicked.
    fn answer(&mut self, (answered, bodies): (Answered, Vec<Vec<u8>>)) -> anyhow::Result<bool> {
        let goes_on = !matches!(answered.answer, Ending::Panicked(_));
        self.say(&Said::Answer(answered), &bodies)?;
        Ok(goes_on)
    }
}

/// Tries an input. Gives its answer with the bodies of its outputs.
fn try_it<I: Message, O: Message>(
    input: Result<I, Ending>,
    process: impl FnOnce(I) -> Option<Result<Answer<O>, Failure>>,
) -> (Answered, Vec<Vec<u8>>) {
    let began = Instant::now();
    let (capture, (ending, bodies), runs) = match input {
        Err(ending) => (None, (ending, Vec::new()), Vec::new()),
        Ok(input) => {
            let capture: Capture = input.capture().clone();
            let (answer, runs) = noted(|| catch_unwind(AssertUnwindSafe(|| process(input))));
            let ending = match answer {
                Ok(answer) => ending(answer),
                Err(panic) => (Ending::Panicked(panic_text(panic.as_ref())), Vec::new()),
            };
            (Some(capture), ending, runs)
        }
    };
    let runs = runs.into_iter();
    let runs = runs.map(|run| (run.model, run.version, run.began.saturating_duration_since(began), run.took));
    (Answered { capture, answer: ending, took: began.elapsed(), runs: runs.collect() }, bodies)
}

fn body(told: &mut impl Read) -> anyhow::Result<Vec<u8>> {
    get_frame(told)?.context("a body is missing")
}

fn ending<O: Message>(answer: Option<Result<Answer<O>, Failure>>) -> (Ending, Vec<Vec<u8>>) {
    let ending = match answer {
        None => Ending::Unanswered,
        Some(Ok(Answer::Nothing { reason, detail })) => Ending::Nothing { reason: reason.into(), detail },
        Some(Ok(Answer::Messages(messages))) => return messages_of(&messages),
        Some(Err(Failure::Reject { reason, detail })) => Ending::Reject { reason: reason.into(), detail },
        Some(Err(Failure::Retry(why))) => Ending::Retry { why, pause: RETRY_PAUSE },
    };
    (ending, Vec::new())
}

fn messages_of<O: Message>(messages: &[O]) -> (Ending, Vec<Vec<u8>>) {
    let reject = |detail| (Ending::Reject { reason: TOO_MUCH.into(), detail }, Vec::new());
    if let Some(detail) = too_much(messages.len(), 0) {
        return reject(detail);
    }
    let (mut bodies, mut bytes) = (Vec::with_capacity(messages.len()), 0);
    for message in messages {
        let body = encode(message, Codec::Bincode);
        bytes += body.len();
        if let Some(detail) = too_much(messages.len(), bytes) {
            return reject(detail);
        }
        bodies.push(body);
    }
    (Ending::Messages(bodies.len()), bodies)
}

#[cfg(test)]
mod tests {
    use causeway_pipelines::ClusterOptions;
    use causeway_schemas::{Assignment, Feature};

    use super::*;

    const PIPELINE: &str = r#"
pipeline = "faces"
[stage.capture]
[stage.preprocess]
from = "capture"
model = "yunet"
[stage.extract]
from = "preprocess"
model = "sface"
[stage.cluster]
from = "extract"
"#;

    /// Changes by the id alone.
    struct Ids(Vec<Id>);

    impl Fold for Ids {
        const NAME: &'static str = "cluster";
        type Options = ClusterOptions;
        type Input = Feature;
        type Output = Assignment;
        type Change = Id;

        fn new(_: ClusterOptions, _: &Context) -> anyhow::Result<Self> {
            Ok(Self(Vec::new()))
        }

        fn decide(&self, id: Id, _: &Feature) -> Result<Id, Failure> {
            Ok(id)
        }

        fn recall(&self, id: Id, _: &Feature, _: &Assignment) -> Result<Id, Failure> {
            Ok(id)
        }

        fn apply(&mut self, change: &Id) {
            self.0.push(*change);
        }

        fn input_of(change: &Id) -> Id {
            *change
        }

        fn snapshot(&self) -> Vec<u8> {
            self.0.iter().flat_map(|id| id.bits().to_le_bytes()).collect()
        }

        fn restore(&mut self, snapshot: &[u8]) -> anyhow::Result<()> {
            let (ids, rest) = snapshot.as_chunks();
            anyhow::ensure!(rest.is_empty(), "{} bytes are left over", rest.len());
            self.0 = ids.iter().map(|id| Id::from_bits(u128::from_le_bytes(*id))).collect();
            Ok(())
        }

        fn output(&self, change: &Id) -> Assignment {
            let Feature { capture, region, .. } = feature();
            Assignment { capture, region, cluster: *change, score: 1.0, merged: Vec::new() }
        }
    }

    fn feature() -> Feature {
        let golden = include_bytes!("../../../../schemas/golden/feature.v1.bin");
        decode_body(golden, Codec::Bincode).expect("the golden feature")
    }

    fn id(number: u64) -> Id {
        Id::stored("test", number)
    }

    enum Frame {
        State(u64),
        Input(u64),
        Change(u64),
    }

    /// What a fold's quarantine answers to each input.
    fn answers(frames: &[Frame]) -> Vec<Ending> {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("faces.toml");
        std::fs::write(&file, PIPELINE).expect("it is written");
        let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
        let mut spec = pipeline.stage("cluster").expect("it is there").clone();
        spec.quarantine_bytes = u64::MAX;
        let ctx = Context::new(&spec, dir.path(), dir.path(), 1);
        let mut told = Vec::new();
        let mut put = |told_as: &Told, body: &[u8]| {
            put_frame(&mut told, &written(told_as)).expect("memory");
            put_frame(&mut told, body).expect("memory");
        };
        for frame in frames {
            match frame {
                Frame::Input(number) => {
                    let kind = Some(Feature::kind());
                    let content_type = Codec::Bincode.content_type().to_owned();
                    put(&Told::Input { id: id(*number), kind, content_type }, &encode(&feature(), Codec::Bincode));
                }
                Frame::State(number) => {
                    let state = id(*number).bits().to_le_bytes();
                    put(&Told::State { is_last: false }, &state[..4]);
                    put(&Told::State { is_last: true }, &state[4..]);
                }
                Frame::Change(number) => put(&Told::Change, &encode(&id(*number), Codec::Bincode)),
            }
        }
        let mut said = Vec::new();
        let (told, to) = (Box::new(&told[..]), Box::new(&mut said));
        fold::<Ids>(Inside { spec: &spec, ctx: &ctx, told, said: to, tried: None, is_stale: false }).expect("it lives");
        let (mut said, mut answers) = (&said[..], Vec::new());
        while let Some(frame) = get_frame(&mut said).expect("frames") {
            if let Ok(Said::Answer(answered)) = read::<Said>(&frame) {
                if let Ending::Messages(count) = answered.answer {
                    for _ in 0..count {
                        get_frame(&mut said).expect("a frame").expect("a body");
                    }
                }
                answers.push(answered.answer);
            }
        }
        answers
    }

    #[test]
    fn a_state_that_is_not_the_changelogs_blames_no_input() {
        use Frame::{Change, Input, State};
        let is_answered = |answer: &Ending| matches!(answer, Ending::Messages(1));
        let in_step = answers(&[State(1), Change(2), Input(3), Change(3), Input(4)]);
        assert!(in_step.len() == 2 && in_step.iter().all(is_answered), "{in_step:?}");
        // What was tried was refused then; the changelog went on with another.
        for after in [vec![Input(3)], vec![Change(4), Change(5), Input(3)]] {
            let frames: Vec<Frame> = [Input(2)].into_iter().chain(after).collect();
            let answers = answers(&frames);
            assert!(is_answered(&answers[0]) && matches!(answers[1], Ending::Stale), "{answers:?}");
        }
    }
}
