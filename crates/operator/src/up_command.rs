use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{MetricsArgs, PipelineArgs, PlaceArgs, load};
use crate::report;
use crate::results::Results;
use crate::session::{Session, Where};
use crate::summary::Summary;
use crate::up::{self, RunOptions};

/// The arguments of `up`.
#[derive(Debug, clap::Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
    /// What its capture stage reads: a folder, a glob, a file, a camera's URL, a device, or - for standard input
    #[arg(long, value_name = "INPUT")]
    input: Option<PathBuf>,
    /// End when everything that was captured has its outcomes
    #[arg(long)]
    until_drained: bool,
    /// Forget the results of earlier runs and run everything anew
    #[arg(long)]
    again: bool,
    /// Print the summary as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    let mut set = args.pipeline.set.clone();
    if let Some(input) = &args.input {
        set.push(up::input_override(&args.pipeline.file(), input)?);
    }
    let pipeline = load(&args.pipeline.file(), &set)?;
    let place = &args.place;
    let mut session = Session::open(pipeline, &place.home, &place.models, &Where::of(place)).await?;
    session.say_readers();
    let options = RunOptions {
        overrides: set,
        until_drained: args.until_drained,
        quiet: false,
        again: args.again,
        replay: None,
        metrics: Some(args.metrics.address),
    };
    let result: anyhow::Result<bool> = async {
        let stats = up::run(&mut session, &options).await?;
        let results = Results::read_all(&session.seen()).await?;
        let report = report::write(&session, &results, &stats.crossed()).await?;
        Summary::new(&results, &session.pipeline, &stats, Some(&report)).print(args.json)?;
        Ok(args.until_drained && stats.interrupted)
    }
    .await;
    session.close().await;
    if result? {
        eprintln!("interrupted: not everything has its results yet; the next `up` goes on from here");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
