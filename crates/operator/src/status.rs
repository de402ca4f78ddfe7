//! `causeway status`: what runs, what waits and what is stored.

pub(crate) mod gather;
mod page;

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::{PipelineArgs, PlaceArgs, colours, connect};
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
    let pipeline = args.pipeline.load()?;
    let home = args.place.home();
    // Before connecting: that may start a server, and say so in the same place.
    let running = home.address_if_running().and_then(|_| home.running());
    let connection = connect(&pipeline, &args.place).await?;
    let address = args.place.nats.clone().or_else(|| running.as_ref().map(|running| running.nats.clone()));
    let stop = crate::stop::Stop::on_signals()?.told();
    tokio::pin!(stop);
    let result = async {
        loop {
            let gathered = Gathered::read(&connection.bus, &pipeline, running.as_ref(), address.as_deref()).await?;
            if args.json {
                print_line(gathered.to_json())?;
            } else if args.watch && colours() {
                print(CLEAR.to_owned() + &gathered.page())?;
            } else {
                print(gathered.page())?;
            }
            if !args.watch {
                return Ok(());
            }
            tokio::select! {
                () = &mut stop => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if running.is_some() && home.address_if_running() != address && args.place.nats.is_none() {
                eprintln!("`up` has ended");
                return Ok(());
            }
            if !args.json && !colours() {
                print_line("")?;
            }
        }
    }
    .await;
    connection.close().await;
    result.map(|()| ExitCode::SUCCESS)
}
