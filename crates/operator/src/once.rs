//! Stage programs without a bus: run over some messages, or only opened.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use causeway_bus::server::die_with_parent;
use causeway_pipelines::StageSpec;
use causeway_stage::{OnceAnswer, OnceInput};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::supervisor::program;

/// How long a stage may take to load its model, beside its time for each message.
const OPEN_TIMEOUT: Duration = Duration::from_mins(1);

/// Most lines of what a stage says that are told of.
const MAX_LINES: usize = 6;

/// How the stages of a pipeline are started.
pub(crate) struct Programs {
    /// The pipeline file.
    pub(crate) file: PathBuf,
    /// `--set`, for every stage.
    pub(crate) set: Vec<String>,
    /// The folder of models.
    pub(crate) models: PathBuf,
}

/// What a stage answered, and what it said of it.
pub(crate) struct Answered {
    pub(crate) answers: Vec<OnceAnswer>,
    pub(crate) said: Vec<String>,
}

impl Programs {
    /// Runs a stage over these inputs; a source over what it reads. An error is why it could not run.
    pub(crate) async fn once(
        &self,
        stage: &StageSpec,
        set: &[String],
        inputs: &[OnceInput],
    ) -> anyhow::Result<Answered> {
        self.run(stage, "--once", set, inputs).await
    }

    /// Opens what a stage needs: its model, its input.
    pub(crate) async fn open(&self, stage: &StageSpec) -> anyhow::Result<Answered> {
        self.run(stage, "--open", &[], &[]).await
    }

    async fn run(
        &self,
        stage: &StageSpec,
        how: &str,
        set: &[String],
        inputs: &[OnceInput],
    ) -> anyhow::Result<Answered> {
        let name = &stage.name;
        let mut command = Command::new(program(&stage.uses)?);
        command.arg(how).arg("--pipeline").arg(&self.file).args(["--stage", name]).arg("--models").arg(&self.models);
        for set in self.set.iter().chain(set) {
            command.args(["--set", set]);
        }
        // The environment of a running pipeline is not that of a test.
        for variable in ["CAUSEWAY_PIPELINE", "CAUSEWAY_STAGE", "CAUSEWAY_NATS"] {
            command.env_remove(variable);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        die_with_parent(command.as_std_mut());
        let mut child = command.spawn().with_context(|| format!("cannot start [stage.{name}]"))?;
        let mut stdin = child.stdin.take().context("the stage has a stdin")?;
        let timeout = OPEN_TIMEOUT + stage.max_process * u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        let text: Vec<u8> =
            inputs.iter().flat_map(|input| format!("{}\n", serde_json::json!(input)).into_bytes()).collect();
        let talk = async {
            // A stage that ends early says why itself.
            let _ = stdin.write_all(&text).await;
            drop(stdin);
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(timeout, talk).await;
        let output =
            output.with_context(|| format!("cannot run [stage.{name}]: it has not answered after {timeout:?}"))??;
        let said = String::from_utf8_lossy(&output.stderr);
        let mut said: Vec<String> = said.lines().map(Into::into).filter(|line: &String| !line.is_empty()).collect();
        said.drain(..said.len().saturating_sub(MAX_LINES));
        if !output.status.success() {
            let why = if said.is_empty() { output.status.to_string() } else { said.join("; ") };
            bail!("[stage.{name}]: {why}");
        }
        let lines = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let answers = lines.map(serde_json::from_slice).collect::<Result<Vec<OnceAnswer>, _>>();
        let answers = answers.with_context(|| format!("cannot read what [stage.{name}] answers"))?;
        Ok(Answered { answers, said })
    }
}
