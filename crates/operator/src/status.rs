//! `causeway status`: what runs, what waits and what is stored.

pub(crate) mod gather;
mod page;

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::{PipelineArgs, PlaceArgs, colours};
use crate::placement::placed;
use crate::reached::Reached;
use crate::terminal::{print, print_line};
use gather::Gathered;

/// How often `--watch` looks: as often as replicas say how they are.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Clears a terminal and goes to its top left (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

const EXAMPLES: &str = "\
Examples:
  causeway status
  causeway status --watch
  causeway status --json | jq '.stages[] | {name, pending: .takes[0].pending}'

Of each stage: HANDLED, GIVEN, EMPTY and DEAD count messages since its replicas started; PENDING waits to be \
taken, UNACKED is being worked on, AGAIN was delivered more than once. Where nothing runs, what is stored is shown.";

/// The arguments of `status`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Look again every second
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object; with --watch one a line
    #[arg(long)]
    json: bool,
}

pub(crate) async fn status(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    let home = args.place.home();
    // Before connecting: that may start a server, and say so in the same place.
    let running = home.alive();
    let reached = Reached::here(&pipeline, &args.place).await?;
    let stop = crate::stop::Stop::on_signals()?.told();
    tokio::pin!(stop);
    let result = async {
        loop {
            let mut gathered = Vec::new();
            for (connection, pipeline) in reached.connections() {
                let running = running.as_ref();
                let address = args.place.address(pipeline).filter(|_| !connection.is_store_only());
                let pipeline = placed(&connection.bus, pipeline).await?;
                gathered.push(Gathered::read(&connection.bus, &pipeline, running, address.as_deref()).await?);
            }
            if args.json {
                print_line(to_json(&gathered))?;
            } else {
                let clear = if args.watch && colours() { CLEAR } else { "" };
                let pages: Vec<String> = gathered.iter().map(Gathered::page).collect();
                print(clear.to_owned() + &pages.join("\n"))?;
            }
            if !args.watch {
                return Ok(());
            }
            tokio::select! {
                () = &mut stop => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let goes_on = || home.alive().is_some_and(|now| running.as_ref().is_some_and(|then| then.pid == now.pid));
            if running.is_some() && args.place.nats.is_none() && !goes_on() {
                eprintln!("`up` has ended");
                return Ok(());
            }
            if !args.json && !colours() {
                print_line("")?;
            }
        }
    }
    .await;
    reached.close().await;
    result.map(|()| ExitCode::SUCCESS)
}

/// Of several sites a list.
fn to_json(gathered: &[Gathered]) -> Value {
    match gathered {
        [one] => one.to_json(),
        all => json!({ "sites": all.iter().map(Gathered::to_json).collect::<Vec<_>>() }),
    }
}
