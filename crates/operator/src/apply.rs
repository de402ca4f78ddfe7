use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use causeway_bus::{Applied, Bus};
use causeway_pipelines::Pipeline;
use causeway_stage::follow_placement;

use crate::agent;
use crate::cli::{MetricsArgs, PipelineArgs, PlaceArgs};
use crate::layout;
use crate::metrics::Told;
use crate::placement::placed;

/// Where the server is when nobody says.
const DEFAULT_NATS: &str = "nats://127.0.0.1:4222";
/// How often it is tried whether a server answers.
const WAIT_PAUSE: Duration = Duration::from_millis(200);

/// The arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Wait this long for a server that does not answer yet
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    wait: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The arguments of `agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
}

async fn connect(pipeline: &PipelineArgs, place: &PlaceArgs, wait: Duration) -> anyhow::Result<(Pipeline, Bus)> {
    let pipeline = pipeline.load()?;
    if pipeline.is_split() && place.site.is_none() {
        bail!("cannot tell which site is meant: say it with --site, one of {}", pipeline.site_names());
    }
    let pipeline = place.seen(pipeline)?;
    let nats = place.address(&pipeline).unwrap_or_else(|| DEFAULT_NATS.into());
    let patience = Instant::now() + wait;
    loop {
        match Bus::connect(&nats, &place.credentials_for(&pipeline), &pipeline.name, "causeway").await {
            Ok(bus) => return Ok((pipeline, bus)),
            Err(error) if Instant::now() >= patience => return Err(error.into()),
            Err(error) => tracing::debug!(%error, "the server does not answer yet"),
        }
        tokio::time::sleep(WAIT_PAUSE).await;
    }
}

pub(crate) async fn apply(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let (pipeline, bus) = connect(&args.pipeline, &args.place, Duration::from_secs(args.wait)).await?;
    let pipeline = placed(&bus, &pipeline).await?;
    let done = layout::apply(&bus, &pipeline).await?;
    crate::drift::lost(&bus, &pipeline).await?;
    if args.json {
        let done: serde_json::Map<_, _> = done.into_iter().map(|(name, what)| (name, word(what).into())).collect();
        println!("{}", serde_json::Value::Object(done));
    } else {
        for (name, what) in done {
            println!("{:9} {name}", word(what));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn word(applied: Applied) -> &'static str {
    match applied {
        Applied::Made => "made",
        Applied::Changed => "changed",
        Applied::Unchanged => "unchanged",
    }
}

pub(crate) async fn agent(args: AgentArgs) -> anyhow::Result<ExitCode> {
    let (pipeline, bus) = connect(&args.pipeline, &args.place, Duration::ZERO).await?;
    let now = placed(&bus, &pipeline).await?;
    layout::apply(&bus, &now).await?;
    crate::drift::lost(&bus, &now).await?;
    let placed = follow_placement(&bus, &pipeline).await;
    let stop = crate::stop::Stop::on_signals()?.told();
    let told = Told::new(vec![(bus.clone(), placed.clone())], "agent");
    let address = told.serve(args.metrics.address, None).await?;
    let name =
        if pipeline.is_split() { format!("{} at {}", pipeline.name, pipeline.here) } else { pipeline.name.clone() };
    eprintln!("agent of {name} at work; Prometheus finds all at http://{address}/targets");
    tokio::select! {
        () = stop => Ok(ExitCode::SUCCESS),
        () = agent::mend(bus.clone(), placed.clone()) => bail!("the agent ended"),
        () = agent::work(bus, pipeline, placed, told) => bail!("the agent ended"),
    }
}
