//! `causeway dlq`: what could not be handled, why, and what becomes of it.

mod drop;
mod filter;
pub(crate) mod letters;
mod retry;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::json;

use crate::cli::{PipelineArgs, PipelineFlags, PlaceArgs, connect};
use crate::content::SHORT_ID;
use crate::terminal::{bytes, print, print_line, table};
use drop::DropArgs;
use filter::{Filters, check_stage};
use letters::Letter;
use retry::RetryArgs;

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
    /// Send messages to the stage that set them aside once more
    #[command(long_about = retry::LONG)]
    Retry(RetryArgs),
    /// Give dead letters up: they are removed, their items stay accounted for
    #[command(long_about = drop::LONG)]
    Drop(DropArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway dlq ls --stage preprocess --since 2h\n  causeway dlq ls --reason not-an-image --json"
)]
struct LsArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway dlq show 4hv7a0g5\n  causeway dlq show 4hv7a0g5 --body photo.jpg\n  causeway dlq show 4hv7a0g5 --body face.png"
)]
struct ShowArgs {
    /// The id, or as much of its beginning as no other has
    #[arg(value_name = "ID")]
    id: String,
    #[command(flatten)]
    pipeline: PipelineFlags,
    /// The stage that set it aside, where several did
    #[arg(long, value_name = "STAGE")]
    stage: Option<String>,
    /// Write the original bytes to this file: of a photo the photo, else the message's body; of a crop a PNG, where the file's
    /// name ends so
    #[arg(long, value_name = "FILE")]
    body: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn dlq(args: DlqArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        DlqCommand::Ls(args) => list(args).await,
        DlqCommand::Show(args) => show(args).await,
        DlqCommand::Retry(args) => retry::retry(args).await,
        DlqCommand::Drop(args) => drop::drop(args).await,
    }
}

async fn list(args: LsArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    args.filters.check(&pipeline)?;
    let connection = connect(&pipeline, &args.place).await?;
    let letters = letters::read(&connection.bus, &pipeline, false, |letter| args.filters.pass(letter)).await;
    connection.close().await;
    let letters = letters?;
    if args.json {
        let letters: Vec<_> = letters.iter().map(Letter::to_json).collect();
        print_line(json!({ "dead_letters": letters }))?;
    } else if letters.is_empty() {
        let such = if args.filters.is_any() { " of this sort" } else { "" };
        eprintln!("no dead letters{such}");
    } else {
        let ids: Vec<_> = letters.iter().map(|letter| letter.id.as_str()).collect();
        let shown = telling(&ids);
        let rows = letters.iter().map(|letter| letter.row(shown)).collect();
        print(table(&["ID", "WHEN (UTC)", "STAGE", "REASON", "ITEM", "BYTES", "DETAIL"], &[5], rows))?;
        eprintln!("`causeway dlq show ID` shows one whole, `retry ID` sends it again, `drop ID` gives it up");
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: ShowArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    check_stage(&pipeline, args.stage.as_deref())?;
    let matches = |letter: &Letter| {
        letter.id.starts_with(&args.id) && args.stage.as_ref().is_none_or(|stage| *stage == letter.letter.stage)
    };
    let connection = connect(&pipeline, &args.place).await?;
    let found = letters::read(&connection.bus, &pipeline, true, matches).await;
    connection.close().await;
    let mut found = found?;
    let letter = match found.len() {
        0 => bail!("cannot find a dead letter whose id begins with `{}`: `causeway dlq ls` lists them", args.id),
        1 => found.remove(0),
        _ => bail!("{}", ambiguous(&args.id, &found.iter().collect::<Vec<_>>())),
    };
    if let Some(file) = &args.body {
        write_body(&letter, file)?;
    }
    if args.json {
        print_line(letter.to_json())?;
    } else {
        print(letter.page())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_body(letter: &Letter, file: &Path) -> anyhow::Result<()> {
    let is_png = file.extension().is_some_and(|end| end.eq_ignore_ascii_case("png"));
    let picture = letter.picture().filter(|_| is_png);
    let original = picture.map_or_else(|| letter.original(), |picture| causeway_imaging::png(&picture));
    std::fs::write(file, &original).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("{} written to {}", bytes(original.len() as u64), file.display());
    Ok(())
}

fn ambiguous(id: &str, found: &[&Letter]) -> String {
    let listed =
        found.iter().take(MAX_LISTED).map(|letter| format!("\n  {} --stage {}", letter.id, letter.letter.stage));
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

#[cfg(test)]
mod tests {
    use super::letters::tests::letter;
    use super::*;

    #[test]
    fn an_id_is_cut_to_what_tells_it_apart() {
        assert_eq!(telling(&["0123456789", "1123456789"]), SHORT_ID);
        assert_eq!(telling(&["0123456789", "0123456788", "0123456789"]), 10);
        assert_eq!(telling(&[]), SHORT_ID);
    }

    #[test]
    fn the_same_message_can_be_two_letters() {
        let text = ambiguous("4h", &[&letter("4hv", "classify"), &letter("4hv", "cluster")]);
        assert_eq!(
            text,
            "cannot tell which dead letter `4h` is: 2 begin so:\n  4hv --stage classify\n  4hv --stage cluster"
        );
    }
}
