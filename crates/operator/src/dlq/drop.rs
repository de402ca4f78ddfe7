use std::process::ExitCode;

use anyhow::bail;
use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Capture, Id, Meta, header};
use causeway_stage::{dropped, meta_of_unreadable};
use serde_json::json;

use super::filter::Selection;
use super::letters::{self, Letter};
use crate::cli::{PipelineFlags, PlaceArgs, connect};
use crate::terminal::{count, print_line};

/// What `--help` says.
pub(super) const LONG: &str = "\
Give dead letters up. Each is removed for good, with the bytes that it holds; in its place stands an `empty` with the reason \
`dropped`, so that its item stays accounted for and is not captured again.";

/// The arguments of `dlq drop`.
#[derive(Debug, clap::Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:\n  causeway dlq drop 4hv7a0g5\n  causeway dlq drop --reason not-an-image --until 7d --yes"
)]
pub(super) struct DropArgs {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    pipeline: PipelineFlags,
    /// Drop more than one
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn drop(args: DropArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    args.selection.check(&pipeline, "drop")?;
    let connection = connect(&pipeline, &args.place).await?;
    let done = drop_selected(&connection.bus, &pipeline, &args).await;
    connection.close().await;
    let done = done?;
    if args.json {
        let name = |letter: &Letter| json!({ "id": letter.id, "stage": letter.letter.stage, "item": letter.item });
        print_line(json!({ "dropped": done.iter().map(name).collect::<Vec<_>>() }))?;
    } else {
        done.iter().try_for_each(|letter| print_line(format_args!("dropped  {}", letter.name())))?;
        if done.is_empty() {
            eprintln!("no dead letters of this sort");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn drop_selected(bus: &Bus, pipeline: &Pipeline, args: &DropArgs) -> anyhow::Result<Vec<Letter>> {
    let found = letters::read(bus, pipeline, false, |letter| args.selection.may_mean(letter)).await?;
    let meant = args.selection.resolve(found)?;
    if meant.len() > 1 && !args.yes {
        bail!(
            "this drops {} for good: `causeway dlq ls` with the same filters lists them; add --yes to drop them",
            count(meant.len(), "dead letter")
        );
    }
    for letter in &meant {
        drop_one(bus, pipeline, letter).await?;
    }
    Ok(meant)
}

/// First what stands in its place, then the letter goes: killed in between, it is dropped again.
async fn drop_one(bus: &Bus, pipeline: &Pipeline, letter: &Letter) -> anyhow::Result<()> {
    if letter.is_of_a_stage() {
        let id: Id = letter.id.parse()?;
        let meta = letter.meta.clone().unwrap_or_else(|| meta_of_unreadable(id));
        let meta = Meta { id, ..meta };
        bus.publish(&dropped(pipeline, &letter.subject, &meta, capture(pipeline, letter), &letter.letter)).await?;
    }
    bus.delete_message(&names::stream(&pipeline.name, names::DEAD), letter.sequence).await?;
    Ok(())
}

/// Where its message began, as far as anything says so. What came off a link without our headers was never captured: it has no
/// source, which is how a reader of the `empty` tells.
fn capture(pipeline: &Pipeline, letter: &Letter) -> Capture {
    let stage = pipeline.stage(&letter.letter.stage).filter(|stage| stage.is_source());
    let is_ours = letter.letter.headers.iter().any(|(name, _)| name == header::ROOT);
    if let Some(capture) = letter.capture.clone().filter(|_| is_ours) {
        return capture;
    }
    Capture {
        source: stage.map_or_else(String::new, |stage| stage.name.clone()),
        item: letter.item.clone(),
        epoch: 0,
        sequence: 0,
        captured_at: letter.letter.at,
    }
}
