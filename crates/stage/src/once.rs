//! A stage without a bus: what stands on stdin goes through its own code once, and its answers come on stdout. So `causeway test`
//! runs exactly what `causeway up` runs, and `causeway validate --connect` opens exactly what it opens.

use std::collections::HashMap;
use std::io::{BufRead as _, BufWriter, Read as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::{Context as _, anyhow, bail};
use causeway_bus::{Entry, Follow};
use causeway_pipelines::{Pipeline, StageSpec};
use causeway_schemas::{Codec, Id, Message, decode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::env::{EXIT_UNFIT, Unfit, spec_of};
use crate::fold_life::change_of;
use crate::stage_life::panic_text;
use crate::{Answer, Args, Context, Failure, Fold, Source, Stage};

/// Most bytes that are read: some large frames, or thousands of features.
const MAX_INPUT: u64 = 1 << 30;

/// Most items that a source gives: a camera has no end.
const MAX_ITEMS: usize = 10_000;

/// One line of what a stage is given.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum OnceInput {
    /// An entry of a live table, before the messages.
    Entry {
        /// The table.
        table: String,
        /// The key.
        key: String,
        /// The value, which a table has as JSON.
        value: Value,
    },
    /// A message.
    Message(OnceMessage),
}

/// A message outside the bus.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OnceMessage {
    /// Its logical id.
    pub id: Id,
    /// Noun and version: `crop.v1`.
    pub kind: String,
    /// The message, as JSON.
    pub message: Value,
}

/// One line of what a stage answers: one for each message, in order; of a source one for each item.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnceAnswer {
    /// These messages.
    Outputs(Vec<OnceMessage>),
    /// Rightly nothing.
    Empty {
        /// A short fixed name.
        reason: String,
        /// For a person.
        detail: String,
    },
    /// It would be set aside.
    Reject {
        /// A short fixed name.
        reason: String,
        /// For a person.
        detail: String,
    },
    /// It would come again.
    Retry(String),
    /// Of `--open`: what a source will read, for a person.
    Opens(String),
}

/// What is to be done.
pub(crate) struct Work<'a> {
    pub(crate) spec: &'a StageSpec,
    pub(crate) ctx: &'a Context,
    /// Only opened: nothing is read.
    open: bool,
}

/// Runs the stage over stdin.
pub(crate) fn main(
    uses: &str,
    args: &Args,
    pipeline: &Pipeline,
    once: impl FnOnce(&Work<'_>) -> anyhow::Result<()>,
) -> ExitCode {
    let warnings = tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_target(false);
    let _ = warnings.with_ansi(false).with_max_level(tracing::Level::WARN).try_init();
    let result = spec_of(args, pipeline, uses).and_then(|spec| {
        let ctx = Context::new(&spec, args.pipeline_dir(), &args.models, args.threads);
        once(&Work { spec: &spec, ctx: &ctx, open: args.open })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            if error.is::<Unfit>() { ExitCode::from(EXIT_UNFIT) } else { ExitCode::FAILURE }
        }
    }
}

/// A stage's messages, in batches of its own size.
pub(crate) fn stage<S: Stage>(work: &Work<'_>) -> anyhow::Result<()> {
    let build = || S::new(options::<S::Options>(work.spec)?, work.ctx).context(Unfit);
    let mut stage = build()?;
    if work.open {
        return Ok(());
    }
    let messages = work.read()?;
    let mut out = Answers::new(work.spec);
    for batch in messages.chunks(work.spec.batch.max) {
        let inputs: Vec<_> = batch.iter().map(read::<S::Input>).collect();
        let good: Vec<S::Input> = inputs.iter().filter_map(|input| input.as_ref().ok().cloned()).collect();
        let together = catch_unwind(AssertUnwindSafe(|| stage.process(good.clone())));
        let answers = if let Ok(answers) = together {
            answers.into_iter().map(Ok).collect::<Vec<_>>()
        } else {
            // As the runtime does: each message of a batch that panicked is tried alone.
            let mut alone = Vec::new();
            for input in good {
                stage = build()?;
                let answer = catch_unwind(AssertUnwindSafe(|| stage.process(vec![input]).into_iter().next()));
                alone.push(
                    answer
                        .map_err(|panic| panic_text(panic.as_ref()))
                        .and_then(|answer| answer.ok_or_else(|| "the stage gave no result for this input".to_owned())),
                );
            }
            stage = build()?;
            alone
        };
        let mut answers = answers.into_iter();
        for (message, input) in batch.iter().zip(inputs) {
            match input {
                Err(refused) => out.answer(&refused)?,
                Ok(_) => match answers.next() {
                    Some(Ok(answer)) => out.of(message.id, answer)?,
                    Some(Err(panic)) => out.reject("panicked", panic)?,
                    None => out.reject("unanswered", "the stage gave no result for this input".into())?,
                },
            }
        }
    }
    out.end()
}

/// A fold's messages, one after the other, from the empty state on.
pub(crate) fn fold<F: Fold>(work: &Work<'_>) -> anyhow::Result<()> {
    let mut fold = F::new(options::<F::Options>(work.spec)?, work.ctx).context(Unfit)?;
    if work.open {
        return Ok(());
    }
    let messages = work.read()?;
    let mut out = Answers::new(work.spec);
    let mut changes: HashMap<Id, F::Change> = HashMap::new();
    for message in messages {
        let input = match read::<F::Input>(&message) {
            Ok(input) => input,
            Err(refused) => {
                out.answer(&refused)?;
                continue;
            }
        };
        let change = match changes.get(&message.id) {
            Some(known) => Ok(known.clone()),
            None => change_of(&mut fold, message.id, &input, None),
        };
        changes.extend(change.as_ref().ok().map(|change| (message.id, change.clone())));
        out.of(message.id, change.map(|change| Answer::Messages(vec![fold.output(&change)])))?;
    }
    out.end()
}

/// A source's items.
pub(crate) fn source<S: Source>(work: &Work<'_>) -> anyhow::Result<()> {
    let mut source = S::new(options::<S::Options>(work.spec)?, work.ctx).context(Unfit)?;
    let mut out = Answers::new(work.spec);
    if work.open {
        if let Some(about) = source.about() {
            out.answer(&OnceAnswer::Opens(about))?;
        }
        return out.end();
    }
    for _ in 0..MAX_ITEMS {
        let Some(captured) = source.next() else { break };
        match captured.message {
            Ok(message) => out.answer(&OnceAnswer::Outputs(vec![written(captured.id, &message)?]))?,
            Err(unreadable) => out.reject(unreadable.reason, unreadable.detail)?,
        }
    }
    out.end()
}

fn options<O: serde::de::DeserializeOwned>(spec: &StageSpec) -> anyhow::Result<O> {
    spec.options().map_err(|why| anyhow!(why))
}

fn written<M: Message>(id: Id, message: &M) -> anyhow::Result<OnceMessage> {
    Ok(OnceMessage { id, kind: M::kind(), message: serde_json::to_value(message)? })
}

/// The message, judged as one from the bus.
fn read<M: Message>(message: &OnceMessage) -> Result<M, OnceAnswer> {
    let body = message.message.to_string();
    decode(Some(&message.kind), Codec::Json, body.as_bytes())
        .map_err(|error| OnceAnswer::Reject { reason: error.reason().into(), detail: error.to_string() })
}

impl Work<'_> {
    /// All of stdin: the entries go into the tables, the messages are given.
    fn read(&self) -> anyhow::Result<Vec<OnceMessage>> {
        let tables = self.ctx.tables();
        let mut messages = Vec::new();
        let mut revision = 0;
        let mut stdin = std::io::stdin().lock().take(MAX_INPUT);
        let mut line = String::new();
        while stdin.read_line(&mut line).context("cannot read stdin")? > 0 {
            if stdin.limit() == 0 {
                bail!("cannot read more than {MAX_INPUT} bytes from stdin");
            }
            match serde_json::from_str(&line).context("cannot read a line of stdin as a message")? {
                OnceInput::Message(message) => messages.push(message),
                OnceInput::Entry { table, key, value } => {
                    revision += 1;
                    let Some((_, live)) = tables.iter().find(|(name, _)| *name == table) else {
                        bail!("cannot fill the table `{table}`: [stage.{}] has none", self.spec.name);
                    };
                    let value = value.to_string().into();
                    live.tell(&Follow::Put(Entry { key, value, revision, stored_at: 0 }));
                }
            }
            line.clear();
        }
        Ok(messages)
    }
}

/// Writes answers.
struct Answers<'a> {
    out: BufWriter<std::io::Stdout>,
    spec: &'a StageSpec,
}

impl<'a> Answers<'a> {
    fn new(spec: &'a StageSpec) -> Self {
        Self { out: BufWriter::new(std::io::stdout()), spec }
    }

    fn answer(&mut self, answer: &OnceAnswer) -> anyhow::Result<()> {
        serde_json::to_writer(&mut self.out, answer)?;
        Ok(self.out.write_all(b"\n")?)
    }

    fn reject(&mut self, reason: &str, detail: String) -> anyhow::Result<()> {
        self.answer(&OnceAnswer::Reject { reason: reason.into(), detail })
    }

    /// What the input `parent` gave.
    fn of<M: Message>(&mut self, parent: Id, answer: Result<Answer<M>, Failure>) -> anyhow::Result<()> {
        let answer = match answer {
            Ok(Answer::Nothing { reason, detail }) => OnceAnswer::Empty { reason: reason.into(), detail },
            Ok(Answer::Messages(messages)) if messages.is_empty() => {
                OnceAnswer::Empty { reason: "nothing".into(), detail: String::new() }
            }
            Ok(Answer::Messages(messages)) => {
                let outputs = messages.iter().enumerate();
                let outputs = outputs.map(|(index, message)| written(parent.derived(&self.spec.name, index), message));
                OnceAnswer::Outputs(outputs.collect::<anyhow::Result<_>>()?)
            }
            Err(Failure::Reject { reason, detail }) => OnceAnswer::Reject { reason: reason.into(), detail },
            Err(Failure::Retry(why)) => OnceAnswer::Retry(why),
        };
        self.answer(&answer)
    }

    fn end(mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}
