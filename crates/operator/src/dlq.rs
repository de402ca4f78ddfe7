//! `causeway dlq`: what could not be handled, and why.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, names};
use causeway_pipelines::{Pipeline, did_you_mean};
use causeway_schemas::{Codec, DeadLetter, Id, decode_body, header};
use clap::Subcommand;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cli::{PipelineArgs, PipelineFlags, PlaceArgs, connect};
use crate::content::{Content, SHORT_ID};
use crate::terminal::{bytes, date_time, one_line, print, print_line, table};

/// Most characters of a reason's details in a list.
const MAX_DETAIL: usize = 70;
/// Most characters of a text in `show`.
const MAX_TEXT: usize = 1000;
/// Most ids that an error lists.
const MAX_LISTED: usize = 8;

/// The arguments of `dlq`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// List dead letters, the oldest first
    Ls(LsArgs),
    /// Show one dead letter with its headers and what its body is
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway dlq ls --stage preprocess\n  causeway dlq ls --reason not-an-image --json"
)]
struct LsArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Only those that this stage set aside
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Only those with this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  causeway dlq show 4hv7a0g5\n  causeway dlq show 4hv7a0g5 --body photo.jpg")]
struct ShowArgs {
    /// The id, or as much of its beginning as no other has
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    pipeline: PipelineFlags,
    /// The stage that set it aside, where several did
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Write the original bytes to this file: of a photo the photo, else the message's body
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A dead letter as it is stored.
#[derive(Debug)]
struct Stored {
    id: String,
    root: Option<String>,
    origin: Option<String>,
    letter: DeadLetter,
}

pub(crate) async fn dlq(args: DlqArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        DlqCommand::Ls(args) => list(args).await,
        DlqCommand::Show(args) => show(args).await,
    }
}

async fn list(args: LsArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load()?;
    check_stage(&pipeline, args.stage.as_deref())?;
    let wanted = |letter: &DeadLetter| {
        args.stage.as_ref().is_none_or(|stage| *stage == letter.stage)
            && args.reason.as_ref().is_none_or(|reason| *reason == letter.reason)
    };
    let letters = read(&pipeline, &args.place, |stored| wanted(&stored.letter)).await?;
    if args.json {
        let letters: Vec<_> = letters.iter().map(Stored::to_json).collect();
        print_line(json!({ "dead_letters": letters }))?;
    } else if letters.is_empty() {
        let such = if args.stage.is_some() || args.reason.is_some() { " of this sort" } else { "" };
        eprintln!("no dead letters{such}");
    } else {
        let ids: Vec<_> = letters.iter().map(|stored| stored.id.as_str()).collect();
        let shown = telling(&ids);
        let rows = letters.iter().map(|stored| stored.row(shown)).collect();
        print(table(&["ID", "WHEN (UTC)", "STAGE", "REASON", "ITEM", "BYTES", "DETAIL"], &[5], rows))?;
        eprintln!("`causeway dlq show ID` shows one with its headers and its body");
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load()?;
    check_stage(&pipeline, args.stage.as_deref())?;
    let matches = |stored: &Stored| {
        stored.id.starts_with(&args.id) && args.stage.as_ref().is_none_or(|stage| *stage == stored.letter.stage)
    };
    let mut found = read(&pipeline, &args.place, matches).await?;
    let stored = match found.len() {
        0 => bail!("cannot find a dead letter whose id begins with `{}`: `causeway dlq ls` lists them", args.id),
        1 => found.remove(0),
        _ => bail!("{}", ambiguous(&args.id, &found)),
    };
    if let Some(file) = &args.body {
        let original = stored.original();
        std::fs::write(file, &original).with_context(|| format!("cannot write {}", file.display()))?;
        eprintln!("{} written to {}", bytes(original.len() as u64), file.display());
    }
    if args.json {
        print_line(stored.to_json())?;
    } else {
        print(stored.page())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn check_stage(pipeline: &Pipeline, stage: Option<&str>) -> anyhow::Result<()> {
    let Some(stage) = stage.filter(|stage| pipeline.stage(stage).is_none()) else { return Ok(()) };
    let names: Vec<_> = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
    let hint = did_you_mean(stage, names.iter().copied()).map_or(String::new(), |hint| format!("{hint} "));
    bail!("cannot find [stage.{stage}] in {}: {hint}It has {}", pipeline.file.display(), names.join(", "))
}

fn ambiguous(id: &str, found: &[Stored]) -> String {
    let listed =
        found.iter().take(MAX_LISTED).map(|stored| format!("\n  {} --stage {}", stored.id, stored.letter.stage));
    let more = if found.len() > MAX_LISTED { "\n  …" } else { "" };
    format!("cannot tell which dead letter `{id}` is: {} begin so:{}{more}", found.len(), listed.collect::<String>())
}

/// The least number of characters that tells all these ids apart, and not fewer than are handy.
fn telling(ids: &[&str]) -> usize {
    let mut sorted = ids.to_vec();
    sorted.sort_unstable();
    // One message can be set aside by two stages: the same id tells nothing apart.
    sorted.dedup();
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let longest = sorted.windows(2).map(|pair| common(pair[0], pair[1])).max().unwrap_or(0);
    (longest + 1).max(SHORT_ID)
}

/// The dead letters that are `wanted`, the oldest first.
async fn read(pipeline: &Pipeline, place: &PlaceArgs, wanted: impl Fn(&Stored) -> bool) -> anyhow::Result<Vec<Stored>> {
    let connection = connect(pipeline, place).await?;
    let letters = read_from(&connection.bus, pipeline, wanted).await;
    connection.close().await;
    letters
}

async fn read_from(bus: &Bus, pipeline: &Pipeline, wanted: impl Fn(&Stored) -> bool) -> anyhow::Result<Vec<Stored>> {
    let stream = names::stream(&pipeline.name, names::DEAD);
    let mut records = bus.scan(&stream, 1, false).await?;
    let mut letters = Vec::new();
    while let Some(record) = records.next().await {
        let record = record?;
        let codec = record.headers.codec();
        let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(&stream, record.sequence)).to_string();
        let get = |name: &str| record.headers.get(name).map(Into::into);
        let (root, origin) = (get(header::ROOT), get(header::ORIGIN));
        let body = bus.body(&record.headers, record.body.clone()).await;
        let letter = body.map_err(anyhow::Error::from).and_then(|body| {
            decode_body::<DeadLetter>(&body, codec)
                .map_err(|why| anyhow::anyhow!("not written by a stage, no dead letter: {why}"))
        });
        // A stranger may publish anything here: it is listed too, for what it is.
        let letter = letter.unwrap_or_else(|error| DeadLetter {
            stage: "?".into(),
            reason: "unreadable".into(),
            detail: format!("{error:#}"),
            attempts: 0,
            models: Vec::new(),
            at: record.stored_at,
            subject: record.subject.clone(),
            headers: record.headers.to_pairs(),
            body: record.body.to_vec(),
        });
        let stored = Stored { id, root, origin, letter };
        if wanted(&stored) {
            letters.push(stored);
        }
    }
    Ok(letters)
}

impl Stored {
    /// What the message was when it was set aside.
    fn content(&self) -> Content {
        let get = |name: &str| {
            let header = self.letter.headers.iter().find(|(found, _)| found == name);
            header.map(|(_, value)| value.as_str())
        };
        let codec = Codec::of(get(header::CONTENT_TYPE));
        Content::decode(get(header::KIND), codec, &self.letter.body)
    }

    /// What came in, as it was: the file that was captured, else the body of the message.
    fn original(&self) -> Vec<u8> {
        match self.content() {
            Content::Frame(frame) => frame.image,
            _ => self.letter.body.clone(),
        }
    }

    /// What a person knows it by: the captured item, or else the subject it came on.
    fn item(&self) -> String {
        let capture = match self.content() {
            Content::Frame(message) => Some(message.capture),
            Content::Crop(message) => Some(message.capture),
            Content::Feature(message) => Some(message.capture),
            Content::Decision(message) => Some(message.capture),
            Content::Assignment(message) => Some(message.capture),
            Content::Empty(message) => Some(message.capture),
            Content::Dead(_) | Content::Other { .. } => None,
        };
        capture.map_or_else(|| self.letter.subject.clone(), |capture| capture.item)
    }

    fn row(&self, shown: usize) -> Vec<String> {
        let letter = &self.letter;
        vec![
            self.id.chars().take(shown).collect(),
            date_time(letter.at),
            one_line(&letter.stage, MAX_DETAIL),
            one_line(&letter.reason, MAX_DETAIL),
            one_line(&self.item(), MAX_DETAIL),
            letter.body.len().to_string(),
            one_line(&letter.detail, MAX_DETAIL),
        ]
    }

    /// The whole of it, a line a field.
    fn page(&self) -> String {
        let letter = &self.letter;
        let models: Vec<_> = letter.models.iter().map(|model| format!("{} {}", model.name, model.version)).collect();
        let mut fields = vec![
            ("id", self.id.clone()),
            ("stage", letter.stage.clone()),
            ("reason", letter.reason.clone()),
            ("detail", letter.detail.clone()),
            ("item", self.item()),
            ("attempts", letter.attempts.to_string()),
            ("when", format!("{} UTC", date_time(letter.at))),
            ("models", if models.is_empty() { "none".into() } else { models.join(", ") }),
            ("came on", letter.subject.clone()),
        ];
        fields.extend(self.root.clone().map(|root| ("captured as", root)));
        fields.extend(self.origin.clone().map(|origin| ("origin", origin)));
        fields.push(("body", self.body_text()));
        let line = |name: &str, value: &str| format!("{name:11}  {}\n", one_line(value, MAX_TEXT));
        let headers =
            letter.headers.iter().enumerate().map(|(place, (name, value))| {
                line(if place == 0 { "headers" } else { "" }, &format!("{name}: {value}"))
            });
        fields.iter().map(|(name, value)| line(name, value)).chain(headers).collect()
    }

    fn body_text(&self) -> String {
        let body = &self.letter.body;
        match self.content() {
            Content::Other { looks, .. } if self.letter.headers.is_empty() => {
                let looks = looks
                    .map_or("it looks like no picture and no text".into(), |looks| format!("it looks like {looks}"));
                format!("{}, the original file; {looks}", bytes(body.len() as u64))
            }
            content => format!("{}: {}", bytes(body.len() as u64), content.line()),
        }
    }

    fn to_json(&self) -> Value {
        let letter = &self.letter;
        json!({
            "id": self.id,
            "stage": letter.stage,
            "reason": letter.reason,
            "detail": letter.detail,
            "item": self.item(),
            "attempts": letter.attempts,
            "at": letter.at,
            "models": letter.models,
            "subject": letter.subject,
            "root": self.root,
            "origin": self.origin,
            "headers": letter.headers,
            "bytes": letter.body.len(),
            "message": self.content().to_json(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: &str, stage: &str) -> Stored {
        let letter = DeadLetter {
            stage: stage.into(),
            reason: "not-an-image".into(),
            detail: "cannot decode the file: it does not begin like any picture".into(),
            attempts: 1,
            models: Vec::new(),
            at: 1_769_879_109_000_000_000,
            subject: "notes.jpg".into(),
            headers: Vec::new(),
            body: b"dear diary".to_vec(),
        };
        Stored { id: id.into(), root: None, origin: None, letter }
    }

    #[test]
    fn a_page_tells_all() {
        let expected = "\
id           4hv7a0g5xrawwq2ybg5gmy7jb3
stage        capture
reason       not-an-image
detail       cannot decode the file: it does not begin like any picture
item         notes.jpg
attempts     1
when         2026-01-31 17:05:09 UTC
models       none
came on      notes.jpg
body         10 B, the original file; it looks like text
";
        assert_eq!(stored("4hv7a0g5xrawwq2ybg5gmy7jb3", "capture").page(), expected);
    }

    #[test]
    fn an_id_is_cut_to_what_tells_it_apart() {
        assert_eq!(telling(&["0123456789", "1123456789"]), SHORT_ID);
        assert_eq!(telling(&["0123456789", "0123456788", "0123456789"]), 10);
        assert_eq!(telling(&[]), SHORT_ID);
    }

    #[test]
    fn the_same_message_can_be_two_letters() {
        let text = ambiguous("4h", &[stored("4hv", "classify"), stored("4hv", "cluster")]);
        assert_eq!(
            text,
            "cannot tell which dead letter `4h` is: 2 begin so:\n  4hv --stage classify\n  4hv --stage cluster"
        );
    }
}
