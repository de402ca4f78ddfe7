use std::process::ExitCode;

use anyhow::bail;
use causeway_bus::{Applied, Bus};

use crate::agent;
use crate::cli::{MetricsArgs, PipelineArgs, PlaceArgs};
use crate::layout;
use crate::metrics::Told;

/// Where the server is when nobody says.
const DEFAULT_NATS: &str = "nats://127.0.0.1:4222";
/// The arguments of `apply`.
#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The site whose server it is
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The arguments of `agent`.
#[derive(Debug, clap::Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// The site that it keeps
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    metrics: MetricsArgs,
}

async fn connect(
    pipeline: &PipelineArgs,
    site: Option<&str>,
    place: &PlaceArgs,
) -> anyhow::Result<(causeway_pipelines::Pipeline, Bus)> {
    let pipeline = pipeline.load()?;
    if let Some(site) = site
        && !pipeline.sites.iter().any(|known| known == site)
    {
        bail!("cannot find the site `{site}` in {}: it has {}", pipeline.file.display(), pipeline.sites.join(", "));
    }
    let running = place.home().address_if_running();
    let nats = place.nats.clone().or(running).unwrap_or_else(|| DEFAULT_NATS.into());
    let bus = Bus::connect(&nats, &place.credentials(), &pipeline.name, "causeway").await?;
    Ok((pipeline, bus))
}

pub(crate) async fn apply(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let (pipeline, bus) = connect(&args.pipeline, args.site.as_deref(), &args.place).await?;
    let done = layout::apply(&bus, &pipeline).await?;
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
    let (pipeline, bus) = connect(&args.pipeline, args.site.as_deref(), &args.place).await?;
    layout::apply(&bus, &pipeline).await?;
    let stop = crate::up::stop_signal()?;
    let told = Told::new(&bus, &pipeline, "agent");
    let address = told.serve(args.metrics.address, None).await?;
    eprintln!("agent of {} at work; Prometheus finds all at http://{address}/targets", pipeline.name);
    tokio::select! {
        () = stop => Ok(ExitCode::SUCCESS),
        () = agent::keep(bus, pipeline, told) => bail!("the agent ended"),
    }
}
