//! `causeway validate` and `graph`: pipeline files, without running them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use causeway_pipelines::{Override, Pipeline, PipelineError};
use causeway_stage::EXIT_PIPELINE;
use serde_json::{Map, Value, json};

use crate::cli::{PipelineArgs, PlaceArgs};
use crate::connect::{self, Finding, State};
use crate::terminal::{count, print, print_line};

const VALIDATE_EXAMPLES: &str = "\
Examples:
  causeway validate pipelines/faces.toml my/door.toml
  causeway validate pipelines/faces.toml --set classify.threshold=0.45
  causeway validate --json pipelines/faces.toml | jq '.[].faults[].message'
  causeway validate --connect --nats nats://127.0.0.1:4222 my/door.toml

Says what is wrong with each file and its tests, all faults at once, with line, column and stage. With --connect it \
tries what the file needs too: the server and its streams (changing nothing), the models, the sources. Exit code 64 \
when any file is wrong, 1 when something it needs is not there.";

/// The arguments of `validate`.
#[derive(Debug, clap::Args)]
#[command(after_help = VALIDATE_EXAMPLES)]
pub(crate) struct ValidateArgs {
    /// The pipeline files
    #[arg(value_name = "PIPELINE", default_value = "pipelines/faces.toml")]
    pipelines: Vec<PathBuf>,
    /// Set a key of a stage's table over what the files say
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    set: Vec<String>,
    /// Print one JSON object: each file with its faults
    #[arg(long)]
    json: bool,
    /// Try the server, the models and the sources too
    #[arg(long)]
    connect: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// The arguments of `graph`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway graph pipelines/faces.toml\n  causeway graph pipelines/faces.toml --svg --out faces.svg"
)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Draw a picture instead of text
    #[arg(long, conflicts_with = "json")]
    svg: bool,
    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Print the stages as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn validate(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let overrides = args.set.iter().map(|text| text.parse::<Override>()).collect::<Result<Vec<_>, _>>()?;
    let (mut all_right, mut all_there, mut objects) = (true, true, Map::new());
    for file in &args.pipelines {
        let name = file.display().to_string();
        let object = match Pipeline::load_with_tests(file, &overrides) {
            Ok((pipeline, tests)) => {
                if !args.json {
                    let tests =
                        if tests.is_empty() { String::new() } else { format!(", {}", count(tests.len(), "test")) };
                    print_line(format_args!("ok  {name}  {}{tests}", count(pipeline.stages.len(), "stage")))?;
                }
                let mut object =
                    json!({ "ok": true, "stages": pipeline.stages.len(), "tests": tests.len(), "faults": [] });
                if args.connect {
                    let pipeline = args.place.seen(pipeline)?;
                    let findings = connect::look(&pipeline, &args.place, &args.set).await?;
                    all_there &= findings.iter().all(|finding| finding.state != State::Wrong);
                    if !args.json {
                        findings.iter().try_for_each(Finding::print)?;
                    }
                    object["connect"] = json!(findings);
                }
                object
            }
            Err(errors) => {
                all_right = false;
                for error in &errors {
                    eprint!("{}", error.report());
                }
                // A file that cannot be read has no line to point at.
                let unread = errors.iter().find(|error| error.faults().is_empty()).map(ToString::to_string);
                let faults: Vec<_> = errors.iter().flat_map(PipelineError::faults).collect();
                json!({ "ok": false, "error": unread, "faults": faults })
            }
        };
        objects.insert(name, object);
    }
    if args.json {
        print_line(Value::Object(objects))?;
    }
    Ok(match (all_right, all_there) {
        (false, _) => ExitCode::from(EXIT_PIPELINE),
        (true, false) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    })
}

pub(crate) fn graph(args: &GraphArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load()?;
    let drawn = if args.svg {
        pipeline.to_svg(|_| None)
    } else if args.json {
        format!("{}\n", graph_json(&pipeline))
    } else {
        pipeline.to_text()
    };
    match &args.out {
        Some(file) => {
            std::fs::write(file, drawn).with_context(|| format!("cannot write {}", file.display()))?;
            eprintln!("written to {}", file.display());
        }
        None => print(drawn)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn graph_json(pipeline: &Pipeline) -> Value {
    let stages = pipeline.stages.iter().map(|stage| {
        json!({
            "name": stage.name,
            "uses": stage.uses,
            "from": stage.from,
            "sites": stage.sites,
            "takes": stage.takes,
            "gives": stage.gives,
            "link": stage.link,
            "final": pipeline.is_final(&stage.name),
        })
    });
    let sites = pipeline.sites.iter().map(|site| json!({ "name": site.name, "hub": site.is_hub }));
    json!({
        "pipeline": pipeline.name,
        "sites": sites.collect::<Vec<_>>(),
        "stages": stages.collect::<Vec<_>>(),
    })
}
