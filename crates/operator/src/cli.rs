//! The arguments of `causeway`.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use causeway_bus::{Bus, Credentials};
use causeway_pipelines::{Override, Pipeline, json_schema, tests_json_schema};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

use crate::home::Home;
use crate::rights::AGENT;
use crate::session::Session;
use crate::terminal::print_line;
use crate::{
    accuracy, apply, asyncapi, chaos, demo, deploy, dlq, init, inspect, keys, move_command, people, reconcile, replay,
    status, tap, test_command, up_command,
};

/// AI pipelines that are split between edge and cloud, over NATS JetStream.
///
/// Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 the arguments are
/// wrong, 64 the pipeline file is wrong, 130 interrupted a second time.
#[derive(Debug, Parser)]
#[command(name = "causeway", bin_name = "causeway", version, max_term_width = 100, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  causeway up pipelines/faces.toml --input ~/Pictures --until-drained
  causeway enrol 'Ada Lovelace=photos/ada' 'Alan Turing=photos/alan'
  causeway tap classify               what is decided, as it is decided
  causeway dlq ls                     what could not be handled, and why";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a pipeline: its server (unless --nats names one), its stages; restart what dies
    Up(up_command::UpArgs),
    /// Make the streams, durables and tables of a pipeline on a server, or compare them
    Apply(apply::ApplyArgs),
    /// Keep a site tidy and mend it: purge what is safe to purge, set aside what the broker gave up on, mend streams, durables and folds, do
    /// its part in moves
    Agent(apply::AgentArgs),
    /// Teach the gallery who somebody is, from photos
    Enrol(people::EnrolArgs),
    /// List the people of the gallery
    People(people::PeopleArgs),
    /// Remove a person from the gallery
    Forget(people::ForgetArgs),
    /// Write a commented first pipeline
    Init(init::InitArgs),
    /// Check a pipeline file: all faults at once
    Validate(inspect::ValidateArgs),
    /// Run the unit tests written in a pipeline file
    Test(test_command::TestArgs),
    /// Draw a pipeline
    Graph(inspect::GraphArgs),
    /// Describe what other programs read of a pipeline, as an AsyncAPI document
    Asyncapi(asyncapi::AsyncApiArgs),
    /// Make keys for everybody who signs in at the sites, and certificates for their servers
    Keys(keys::KeysArgs),
    /// Show what runs, what waits and what is stored
    Status(status::StatusArgs),
    /// Show messages as they come, decoded
    Tap(tap::TapArgs),
    /// Look at dead letters, send them again, give them up
    Dlq(dlq::DlqArgs),
    /// Move a stage to another site while it works
    #[command(long_about = move_command::LONG)]
    Move(move_command::MoveArgs),
    /// Find what was captured and has not all its outcomes, and run it again
    #[command(long_about = reconcile::LONG)]
    Reconcile(reconcile::ReconcileArgs),
    /// Run what is stored through the stages once more, isolated from the live results, and compare
    #[command(long_about = replay::LONG)]
    Replay(replay::ReplayArgs),
    /// Do harm to a running pipeline, and look whether it keeps its promise
    #[command(long_about = chaos::LONG)]
    Chaos(chaos::ChaosArgs),
    /// Write the files that run a pipeline in containers
    Deploy(deploy::DeployArgs),
    /// Run the face pipeline on the demo's photos and make a report
    Demo(demo::DemoArgs),
    /// Measure a face pipeline on a folder of named people
    Accuracy(accuracy::AccuracyArgs),
    /// Print the JSON Schema of pipeline files, or of files of tests
    #[command(hide = true)]
    Schema {
        /// That of a file of tests
        #[arg(long)]
        tests: bool,
    },
    /// Print the completions of a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// Which pipeline, and what it is run with.
#[derive(Debug, Clone, Args)]
pub(crate) struct PipelineArgs {
    #[arg(
        id = "PIPELINE",
        value_name = "PIPELINE",
        help = "The pipeline file [env: CAUSEWAY_PIPELINE] [default: pipelines/faces.toml]"
    )]
    written: Option<PathBuf>,
    /// The same by name, as commands have it whose arguments are something else
    #[arg(id = "PIPELINE_FLAG", long = "pipeline", value_name = "FILE", conflicts_with = "PIPELINE", hide = true)]
    named: Option<PathBuf>,
    /// Set a key of a stage's table over what the file says
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// The pipeline when none is named.
const DEFAULT_PIPELINE: &str = "pipelines/faces.toml";

impl PipelineArgs {
    /// The pipeline file.
    pub(crate) fn file(&self) -> PathBuf {
        let said = self.written.clone().or_else(|| self.named.clone());
        said.or_else(|| std::env::var_os("CAUSEWAY_PIPELINE").map(PathBuf::from)).unwrap_or(DEFAULT_PIPELINE.into())
    }

    /// Reads and checks it.
    pub(crate) fn load(&self) -> anyhow::Result<Pipeline> {
        load(&self.file(), &self.set)
    }

    /// The same, seen from the site that is meant.
    pub(crate) fn load_at(&self, place: &PlaceArgs) -> anyhow::Result<Pipeline> {
        place.seen(self.load()?)
    }
}

/// The same, where the arguments themselves are something else.
#[derive(Debug, Clone, Args)]
pub(crate) struct PipelineFlags {
    /// The pipeline file
    #[arg(long, env = "CAUSEWAY_PIPELINE", value_name = "FILE", default_value = DEFAULT_PIPELINE)]
    pub(crate) pipeline: PathBuf,
    /// Set a key of a stage's table over what the file says
    #[arg(long = "set", value_name = "STAGE.KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

/// Where results and models are.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArgs {
    /// The folder for stores, logs and reports
    #[arg(long, env = "CAUSEWAY_HOME", value_name = "DIR", default_value = ".causeway")]
    pub(crate) home: PathBuf,
    /// The folder of models and their manifests
    #[arg(long, env = "CAUSEWAY_MODELS", value_name = "DIR", default_value = ".tools/models")]
    pub(crate) models: PathBuf,
    /// The site that is meant; by default the hub, and for `up` all of them
    #[arg(long, env = "CAUSEWAY_SITE", value_name = "SITE")]
    pub(crate) site: Option<String>,
    /// Use this NATS server instead of starting one
    #[arg(long, env = "CAUSEWAY_NATS", value_name = "URL", hide_env_values = true)]
    pub(crate) nats: Option<String>,
    /// A file with NATS credentials, or a site's folder of keys (`causeway keys`)
    #[arg(long, env = "CAUSEWAY_CREDENTIALS", value_name = "FILE")]
    pub(crate) credentials: Option<PathBuf>,
}

/// Where Prometheus is answered.
#[derive(Debug, Clone, Args)]
pub(crate) struct MetricsArgs {
    /// Where /metrics and /targets answer Prometheus; port 0 takes a free one
    #[arg(
        id = "METRICS",
        long = "metrics",
        env = "CAUSEWAY_METRICS",
        value_name = "ADDR",
        default_value = "127.0.0.1:0"
    )]
    pub(crate) address: SocketAddr,
}

impl PlaceArgs {
    pub(crate) fn home(&self) -> Home {
        Home::new(&self.home)
    }

    /// A pipeline as it is seen from the site that is meant: the one that is named, else the one that runs here alone, else the hub.
    pub(crate) fn seen(&self, pipeline: Pipeline) -> anyhow::Result<Pipeline> {
        let only = || {
            let running = self.home().alive().filter(|running| running.pipeline == pipeline.name)?;
            let [only] = &running.sites[..] else { return None };
            pipeline.site(&only.name).map(|site| site.name.clone())
        };
        let Some(site) = self.site.clone().or_else(only) else { return Ok(pipeline) };
        Ok(pipeline.at(&site)?)
    }

    /// Where the server is of the site that a pipeline is seen from: as it is named, as a running `up` says, or as the file does.
    pub(crate) fn address(&self, pipeline: &Pipeline) -> Option<String> {
        let running = || self.home().address_if_running(&pipeline.here);
        let written = || pipeline.site(&pipeline.here)?.address.clone();
        self.nats.clone().or_else(running).or_else(written)
    }

    /// The credentials for it.
    pub(crate) fn credentials_for(&self, pipeline: &Pipeline) -> Credentials {
        // What `up` started itself has none but those of `causeway keys`.
        let is_own = || {
            let running = self.home().alive()?;
            running.sites.into_iter().find(|site| site.name == pipeline.here)?.server
        };
        let written = || pipeline.site(&pipeline.here)?.credentials.clone().map(|file| beside(pipeline, &file));
        let is_written = |file: &PathBuf| file.is_dir() || self.nats.is_some() || is_own().is_none();
        Credentials::of(self.credentials.clone().or_else(|| written().filter(is_written)).as_deref(), AGENT)
    }
}

/// A path of a pipeline file: relative ones are relative to its folder.
pub(crate) fn beside(pipeline: &Pipeline, file: &Path) -> PathBuf {
    pipeline.file.parent().unwrap_or(Path::new(".")).join(file)
}

impl PipelineFlags {
    /// Reads and checks the file, seen from the site that is meant.
    pub(crate) fn load_at(&self, place: &PlaceArgs) -> anyhow::Result<Pipeline> {
        place.seen(load(&self.pipeline, &self.set)?)
    }
}

/// Reads and checks a pipeline file with `--set`s.
pub(crate) fn load(file: &Path, set: &[String]) -> anyhow::Result<Pipeline> {
    let overrides = set.iter().map(|text| text.parse::<Override>()).collect::<Result<Vec<_>, _>>()?;
    Ok(Pipeline::load_with(file, &overrides)?)
}

/// Connects to a pipeline that runs, or whose results are stored: to `--nats`, to the server of a running `up`, or to one that
/// is started on the stored results for as long as the command takes.
pub(crate) async fn connect(pipeline: &Pipeline, place: &PlaceArgs) -> anyhow::Result<Connection> {
    connect_to(pipeline, place, false).await
}

/// The same; where nothing is stored yet, an empty store is made.
pub(crate) async fn connect_or_create(pipeline: &Pipeline, place: &PlaceArgs) -> anyhow::Result<Connection> {
    connect_to(pipeline, place, true).await
}

async fn connect_to(pipeline: &Pipeline, place: &PlaceArgs, create: bool) -> anyhow::Result<Connection> {
    if let Some(address) = place.address(pipeline) {
        let bus = Bus::connect(&address, &place.credentials_for(pipeline), &pipeline.name, "causeway").await?;
        return Ok(Connection { bus, address, session: None });
    }
    let session = Session::open_store(pipeline.clone(), &place.home, create).await?;
    Ok(Connection { bus: session.bus.clone(), address: session.nats.clone(), session: Some(session) })
}

/// A bus, and the server that was started for it.
pub(crate) struct Connection {
    pub(crate) bus: Bus,
    /// Where its server is.
    pub(crate) address: String,
    session: Option<Session>,
}

impl Connection {
    /// Whether nothing runs: the server is only there to look at what is stored.
    pub(crate) fn is_store_only(&self) -> bool {
        self.session.is_some()
    }

    pub(crate) async fn close(self) {
        if let Some(session) = self.session {
            session.close().await;
        }
    }
}

/// Colours on stdout: on a terminal, unless `NO_COLOR` is set.
pub(crate) fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // One thread: children end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli.command)),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    if let Some(wrong) = error.downcast_ref::<causeway_pipelines::PipelineError>() {
        // Where a file does not fit what it is used for, that is said first.
        let (what, why) = (error.to_string(), wrong.to_string());
        if what != why {
            eprintln!("causeway: {what}");
        }
        eprintln!("{}", wrong.report());
        return ExitCode::from(causeway_stage::EXIT_PIPELINE);
    }
    // Whoever read the output has seen enough: `causeway people | head`.
    if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    eprintln!("causeway: {error:#}");
    ExitCode::FAILURE
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    causeway_stage::start_log(causeway_stage::LogFormat::Human, "warn");
    match command {
        Command::Up(args) => up_command::run(args).await,
        Command::Apply(args) => apply::apply(args).await,
        Command::Agent(args) => Box::pin(apply::agent(args)).await,
        Command::Enrol(args) => Box::pin(people::enrol(args)).await,
        Command::People(args) => people::people(args).await,
        Command::Forget(args) => people::forget(args).await,
        Command::Init(args) => init::init(&args),
        Command::Validate(args) => inspect::validate(&args).await,
        Command::Test(args) => test_command::test(args).await,
        Command::Graph(args) => inspect::graph(&args),
        Command::Asyncapi(args) => asyncapi::run(&args),
        Command::Keys(args) => keys::run(&args),
        Command::Status(args) => status::status(args).await,
        Command::Tap(args) => tap::tap(args).await,
        Command::Dlq(args) => dlq::dlq(args).await,
        Command::Move(args) => Box::pin(move_command::run(args)).await,
        Command::Reconcile(args) => reconcile::reconcile(args).await,
        Command::Replay(args) => Box::pin(replay::replay(args)).await,
        Command::Chaos(args) => chaos::chaos(args).await,
        Command::Deploy(args) => deploy::deploy(args),
        Command::Demo(args) => demo::demo(args).await,
        Command::Accuracy(args) => accuracy::accuracy(args).await,
        Command::Schema { tests } => {
            let schema = if tests { tests_json_schema() } else { json_schema() };
            print_line(format_args!("{schema:#}"))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "causeway", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The line of a command takes the place of a long help that its arguments have.
    #[test]
    fn what_needs_words_has_them() {
        for path in ["move", "reconcile", "replay", "chaos", "dlq retry", "dlq drop"] {
            let mut command = Cli::command();
            let mut found = &mut command;
            for name in path.split(' ') {
                found = found.find_subcommand_mut(name).unwrap();
            }
            let line = found.get_about().map(ToString::to_string);
            assert!(found.get_long_about().is_some_and(|text| Some(text.to_string()) != line), "{path}");
        }
    }
}
