use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use causeway_bus::{Bus, PublishError, names};
use causeway_pipelines::Pipeline;
use causeway_stage::retry_of;
use serde_json::json;

use super::filter::Selection;
use super::letters::{self, Letter};
use crate::cli::{PipelineFlags, PlaceArgs, connect};
use crate::generation;
use crate::terminal::{count, print_line};

/// How long a full link is waited for before the command gives up.
const FULL_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a publish that failed is tried again.
const STORE_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether the stages have answered.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What `--help` says.
pub(super) const LONG: &str = "\
Send messages to the stage that set them aside once more: to that stage alone, as they were. A dead letter is listed until \
its stage has answered: then it is gone, or stands there anew with why it failed this time. What it gives has the ids that it \
would have had the first time, so nothing is there twice, however often it is sent.

Mend the cause first. What a source could not read is no message yet: mend the file and run `causeway up` again.";

/// The arguments of `dlq retry`.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  causeway dlq retry 4hv7a0g5\n  causeway dlq retry --stage preprocess --since 2h --wait 60\n  causeway dlq retry --all --dry-run"
)]
pub(super) struct RetryArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    pipeline: PipelineFlags,
    /// Only say what would be sent
    #[arg(long)]
    dry_run: bool,
    /// Wait until all are answered, at most this long
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    wait: Option<u64>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What became of all that were selected.
#[derive(Default)]
struct Outcome {
    sent: Vec<Letter>,
    /// With why each cannot be sent.
    refused: Vec<(Letter, String)>,
    /// Answered within the time that was given, and set aside once more.
    answered: usize,
    again: Vec<Letter>,
    unanswered: usize,
}

pub(super) async fn retry(args: RetryArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    args.selection.check(&pipeline, "retry")?;
    let connection = connect(&pipeline, &args.place).await?;
    let (bus, stored_only) = (connection.bus.clone(), connection.is_store_only());
    let outcome = async {
        if stored_only && args.wait.is_some() {
            bail!("cannot wait for answers: nothing runs here; without --wait they come with the next `causeway up`");
        }
        let found = letters::read(&bus, &pipeline, false, |letter| args.selection.may_mean(letter)).await?;
        let meant = args.selection.resolve(found)?;
        let mut outcome = send_all(&bus, &pipeline, meant, args.dry_run).await?;
        if let Some(seconds) = args.wait {
            wait(&bus, &pipeline, &mut outcome, Duration::from_secs(seconds)).await?;
        }
        Ok(outcome)
    }
    .await;
    connection.close().await;
    let outcome = outcome?;
    if args.json {
        print_line(outcome.to_json(args.wait.is_some()))?;
    } else {
        outcome.print(&args, stored_only)?;
    }
    let well = outcome.refused.is_empty() && outcome.again.is_empty() && outcome.unanswered == 0;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn send_all(bus: &Bus, pipeline: &Pipeline, meant: Vec<Letter>, dry_run: bool) -> anyhow::Result<Outcome> {
    let mut outcome = Outcome::default();
    let mut generation = None;
    for letter in meant {
        if let Some(why) = refusal(pipeline, &letter) {
            outcome.refused.push((letter, why));
            continue;
        }
        if !dry_run {
            let generation = match generation {
                Some(generation) => generation,
                None => *generation.insert(generation::next(bus).await?),
            };
            // With its body, which a list of many would not hold. It may have been answered since it was listed.
            let Some(whole) = letters::read_one(bus, pipeline, letter.sequence).await? else { continue };
            if let Err(error) = send(bus, &whole, generation).await {
                bail!("{} sent, then: {error:#}", count(outcome.sent.len(), "message"));
            }
        }
        outcome.sent.push(letter);
    }
    Ok(outcome)
}

/// Why a letter cannot be sent again, if it cannot.
fn refusal(pipeline: &Pipeline, letter: &Letter) -> Option<String> {
    if !letter.is_of_a_stage() {
        return Some("no stage wrote it, so there is nothing to send".into());
    }
    let name = &letter.letter.stage;
    let Some(stage) = pipeline.stage(name) else {
        return Some(format!("[stage.{name}] is not in {} any more", pipeline.file.display()));
    };
    if stage.is_source() {
        return Some(format!(
            "{name} could not read it, so it is no message yet: mend it and run `causeway up` again, or drop it"
        ));
    }
    let comes_on = |from: &String| {
        let link = pipeline.stage(from).map(|from| names::link(&pipeline.name, &from.link));
        link.is_some_and(|link| letter.letter.subject.starts_with(link.trim_end_matches('>')))
    };
    let taken = stage.from.iter().any(comes_on);
    (!taken).then(|| format!("it came on {}, which {name} does not take any more", letter.letter.subject))
}

/// Stores the message on the link that it came on. This is all: whoever is killed when, it is stored or not, and its letter
/// stays until the stage has answered.
async fn send(bus: &Bus, letter: &Letter, generation: u32) -> anyhow::Result<()> {
    let again = retry_of(&letter.letter, letter.id.parse()?, letter.sequence, generation);
    let began = Instant::now();
    loop {
        match bus.publish(&again).await {
            Ok(_) => return Ok(()),
            Err(error @ (PublishError::Full { .. } | PublishError::Unsure { .. }))
                if began.elapsed() < FULL_PATIENCE =>
            {
                tracing::debug!(%error, "not stored; trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

/// Waits until the letter of each is gone, or another stands in its place.
async fn wait(bus: &Bus, pipeline: &Pipeline, outcome: &mut Outcome, patience: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut open: BTreeMap<u64, &Letter> = outcome.sent.iter().map(|letter| (letter.sequence, letter)).collect();
    let stream = names::stream(&pipeline.name, names::DEAD);
    loop {
        for sequence in open.keys().copied().collect::<Vec<_>>() {
            if bus.raw_message_at(&stream, sequence).await?.is_none() {
                open.remove(&sequence);
            }
        }
        if open.is_empty() || began.elapsed() > patience {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    outcome.unanswered = open.len();
    let is_anew = |letter: &Letter| {
        let before = outcome.sent.iter().find(|sent| sent.subject == letter.subject);
        before.is_some_and(|before| before.sequence < letter.sequence)
    };
    outcome.again = letters::read(bus, pipeline, false, is_anew).await?;
    outcome.answered = outcome.sent.len() - outcome.unanswered - outcome.again.len();
    Ok(())
}

impl Outcome {
    fn print(&self, args: &RetryArgs, stored_only: bool) -> anyhow::Result<()> {
        let verb = if args.dry_run { "would be sent" } else { "sent" };
        for letter in &self.sent {
            print_line(format_args!("{verb}  {}", letter.name()))?;
        }
        for letter in &self.again {
            print_line(format_args!("set aside again  {}: {}", letter.name(), letter.letter.reason))?;
        }
        for (letter, why) in &self.refused {
            eprintln!("cannot send {}: {why}", letter.name());
        }
        if self.sent.is_empty() && self.refused.is_empty() {
            eprintln!("no dead letters of this sort");
        } else if args.wait.is_some() {
            let (all, again, open) = (self.sent.len(), self.again.len(), self.unanswered);
            eprintln!("{} of {all} answered, {again} set aside again, {open} not answered in time", self.answered);
        } else if !args.dry_run && !self.sent.is_empty() {
            let when = if stored_only { "with the next `causeway up`" } else { "as their stages get to them" };
            eprintln!(
                "{} sent; their answers come {when}, and `causeway dlq ls` lists each until then",
                count(self.sent.len(), "message")
            );
        }
        Ok(())
    }

    fn to_json(&self, waited: bool) -> serde_json::Value {
        let name = |letter: &Letter| json!({ "id": letter.id, "stage": letter.letter.stage, "item": letter.item });
        let refused = self.refused.iter().map(|(letter, why)| {
            let mut object = name(letter);
            object["why"] = json!(why);
            object
        });
        let mut object = json!({
            "sent": self.sent.iter().map(name).collect::<Vec<_>>(),
            "refused": refused.collect::<Vec<_>>(),
        });
        if waited {
            object["answered"] = json!(self.answered);
            object["again"] = json!(self.again.iter().map(name).collect::<Vec<_>>());
            object["unanswered"] = json!(self.unanswered);
        }
        object
    }
}
