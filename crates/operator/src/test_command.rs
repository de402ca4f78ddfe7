//! `causeway test`: the unit tests written in a pipeline file, run with the stages' own programs.

mod judge;
mod messages;
mod people;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use causeway_pipelines::{Override, Pipeline, TestInput, TestSpec};
use causeway_stage::{EXIT_PIPELINE, OnceAnswer, OnceInput, OnceMessage};
use serde_json::{Value, json};

use crate::once::Programs;
use crate::session::absolute;
use crate::terminal::{Paint, count, one_line, print_line};
use judge::{Difference, differences};
use people::Gallery;

/// Most characters of a value that are shown.
const MAX_SHOWN: usize = 160;

const EXAMPLES: &str = "\
Examples:
  causeway test pipelines/faces.toml
  causeway test pipelines/faces.toml 'six people'     the tests with these words in their names
  causeway test --set classify.threshold=0.5          would they still pass?
  causeway test --json | jq '.tests[] | select(.ok | not)'

Runs the [[test]] tables of the file and those of tests/NAME.toml beside it: each stage is started as `up` starts \
it, without a server. Exit code 0 when all pass, 1 when one fails, 64 when a file is wrong.";

/// The arguments of `test`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TestArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", default_value = "pipelines/faces.toml")]
    pipeline: PathBuf,
    /// Run only the tests that have this in their names
    #[arg(value_name = "WORDS")]
    words: Option<String>,
    /// Set a key of a stage's table over what the file says
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    set: Vec<String>,
    /// The folder of models and their manifests
    #[arg(long, env = "CAUSEWAY_MODELS", value_name = "DIR", default_value = ".tools/models")]
    models: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What became of a test.
struct Verdict {
    took: Duration,
    /// What is otherwise; an error is why it could not run.
    differences: anyhow::Result<Vec<Difference>>,
    /// What its stages said.
    said: Vec<String>,
}

impl Verdict {
    fn passed(&self) -> bool {
        matches!(&self.differences, Ok(differences) if differences.is_empty())
    }
}

pub(crate) async fn test(args: TestArgs) -> anyhow::Result<ExitCode> {
    let overrides = args.set.iter().map(|text| text.parse::<Override>()).collect::<Result<Vec<_>, _>>()?;
    let (pipeline, tests) = match Pipeline::load_with_tests(&args.pipeline, &overrides) {
        Ok(loaded) => loaded,
        Err(errors) => {
            for error in &errors {
                eprint!("{}", error.report());
            }
            return Ok(ExitCode::from(EXIT_PIPELINE));
        }
    };
    let file = args.pipeline.display();
    if tests.is_empty() {
        bail!(
            "cannot test {file}: it has no [[test]], nor has a file tests/NAME.toml beside it; docs/testing-pipelines.md shows one"
        );
    }
    let words = args.words.as_deref().unwrap_or_default().to_lowercase();
    let chosen: Vec<&TestSpec> = tests.iter().filter(|test| test.name.to_lowercase().contains(&words)).collect();
    if chosen.is_empty() {
        let names: Vec<String> = tests.iter().map(|test| format!("  {}", one_line(&test.name, MAX_SHOWN))).collect();
        bail!("cannot find a test with `{words}` in its name; {file} has:\n{}", names.join("\n"));
    }
    let programs = Programs { file: absolute(&args.pipeline)?, set: args.set.clone(), models: absolute(&args.models)? };
    let mut gallery = Gallery::new(&pipeline, &args.models);
    let (mut failed, mut objects) = (0, Vec::new());
    for test in &chosen {
        let verdict = run(&pipeline, test, &programs, &mut gallery).await;
        failed += usize::from(!verdict.passed());
        if args.json {
            objects.push(object(test, &verdict));
        } else {
            tell(test, &verdict)?;
        }
    }
    let passed = chosen.len() - failed;
    if args.json {
        print_line(json!({ "passed": passed, "failed": failed, "tests": objects }))?;
    } else {
        print_line(format_args!("{}: {passed} passed, {failed} failed", count(chosen.len(), "test")))?;
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(pipeline: &Pipeline, test: &TestSpec, programs: &Programs, gallery: &mut Gallery<'_>) -> Verdict {
    let (began, mut said) = (Instant::now(), Vec::new());
    let answers = answers(pipeline, test, programs, gallery, &mut said).await;
    let differences = answers.map(|answers| differences(&test.expect, &answers));
    Verdict { took: began.elapsed(), differences, said }
}

/// What comes out of the last stage, in order; what ended on the way, where it ended.
async fn answers(
    pipeline: &Pipeline,
    test: &TestSpec,
    programs: &Programs,
    gallery: &mut Gallery<'_>,
    said: &mut Vec<String>,
) -> anyhow::Result<Vec<OnceAnswer>> {
    let mut items: Vec<OnceAnswer> = Vec::new();
    for (place, name) in test.stages.iter().enumerate() {
        let stage = pipeline.stage(name).with_context(|| format!("cannot find [stage.{name}]"))?;
        if stage.is_source() {
            let answered = programs.once(stage, &source_set(stage, test)?, &[]).await?;
            said.extend(answered.said);
            items = answered.answers;
            continue;
        }
        if place == 0 {
            let messages = messages::of(stage, &test.inputs)?;
            items = messages.into_iter().map(|message| OnceAnswer::Outputs(vec![message])).collect();
        }
        let going = items.iter().flat_map(outputs).cloned().map(OnceInput::Message);
        let mut inputs = if stage.uses == "classify" { gallery.entries(&test.people)? } else { Vec::new() };
        inputs.extend(going);
        let answered = programs.once(stage, &[], &inputs).await?;
        said.extend(answered.said);
        let mut answers = answered.answers.into_iter();
        let mut next = Vec::new();
        for item in items {
            match item {
                OnceAnswer::Outputs(outputs) => {
                    let missing = || format!("[stage.{name}] gave fewer answers than it was asked");
                    for _ in outputs {
                        next.push(answers.next().with_context(missing)?);
                    }
                }
                ended => next.push(ended),
            }
        }
        items = next;
    }
    // One answer a message from here on.
    Ok(items
        .into_iter()
        .flat_map(|item| match item {
            OnceAnswer::Outputs(outputs) => outputs.into_iter().map(|one| OnceAnswer::Outputs(vec![one])).collect(),
            ended => vec![ended],
        })
        .collect())
}

fn outputs(answer: &OnceAnswer) -> &[OnceMessage] {
    match answer {
        OnceAnswer::Outputs(outputs) => outputs,
        _ => &[],
    }
}

/// What a source is set to: the test's input, once.
fn source_set(stage: &causeway_pipelines::StageSpec, test: &TestSpec) -> anyhow::Result<Vec<String>> {
    let name = &stage.name;
    let Some(TestInput::Picture(path)) = test.inputs.first() else { bail!("[stage.{name}]: the test names no input") };
    let path = absolute(path)?;
    let path = path.to_str().with_context(|| format!("cannot use {}: its path is not UTF-8", path.display()))?;
    let mut set = vec![format!("{name}.input={path}")];
    if stage.options::<Value>().is_ok_and(|options| options.get("repeat").is_some()) {
        set.push(format!("{name}.repeat=false"));
    }
    Ok(set)
}

fn tell(test: &TestSpec, verdict: &Verdict) -> std::io::Result<()> {
    let way = test.stages.join(" → ");
    let name = one_line(&test.name, MAX_SHOWN);
    let word = if verdict.passed() { Paint::Green.on("ok  ") } else { Paint::Red.on("FAIL") };
    print_line(format_args!(
        "{word}  {name}  {}",
        Paint::Dim.on(&format!("{way}, {:.1} s", verdict.took.as_secs_f64()))
    ))?;
    if verdict.passed() {
        return Ok(());
    }
    print_line(format_args!("      {}:{}", test.file.display(), test.line))?;
    match &verdict.differences {
        Err(error) => print_line(format_args!("      cannot run: {}", one_line(&format!("{error:#}"), 4 * MAX_SHOWN)))?,
        Ok(differences) => {
            for difference in differences {
                let place = difference.answer.map_or(String::new(), |answer| format!("answer {answer}: "));
                print_line(format_args!("      {place}{}", Paint::Bold.on(difference.key)))?;
                print_line(format_args!("        expected  {}", one_line(&difference.expected, MAX_SHOWN)))?;
                print_line(format_args!("        got       {}", one_line(&difference.got, MAX_SHOWN)))?;
            }
        }
    }
    verdict
        .said
        .iter()
        .try_for_each(|line| print_line(format_args!("      {}", Paint::Dim.on(&one_line(line, MAX_SHOWN)))))
}

fn object(test: &TestSpec, verdict: &Verdict) -> Value {
    let differences = verdict.differences.as_ref().map_or(Vec::new(), |differences| {
        differences
            .iter()
            .map(|one| json!({ "answer": one.answer, "key": one.key, "expected": one.expected, "got": one.got }))
            .collect()
    });
    json!({
        "name": test.name,
        "file": test.file,
        "line": test.line,
        "stages": test.stages,
        "ok": verdict.passed(),
        "took_ms": verdict.took.as_millis() as u64,
        "differences": differences,
        "error": verdict.differences.as_ref().err().map(|error| format!("{error:#}")),
        "said": verdict.said,
    })
}
