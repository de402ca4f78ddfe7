use std::path::PathBuf;
use std::process::Stdio;

use causeway_bus::server::{Server, Start};
use causeway_bus::{Bus, Credentials};
use causeway_pipelines::Pipeline;
use causeway_stage::{answer_stages, follow_placement};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::Tools;
use crate::running::{Finished, PATIENCE, causeway, kill, output};

/// A server of its own with a pipeline applied to it; stages are started one by one.
pub struct Site {
    tools: Tools,
    /// Its server.
    pub server: Server,
    /// A connection to it.
    pub bus: Bus,
    /// The pipeline.
    pub pipeline: Pipeline,
    file: PathBuf,
    dir: TempDir,
    /// Answers sources, as the agent of a site does.
    _answers: JoinSet<()>,
}

/// A stage's process. Dropped, it is killed.
pub struct StageProcess {
    child: Child,
}

impl Site {
    /// Starts a server and applies the pipeline `text`.
    ///
    /// # Panics
    /// When any of it fails.
    pub async fn start(tools: &Tools, text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("pipeline.toml");
        std::fs::write(&file, text).expect("it is written");
        let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
        let server = Server::start("edge", dir.path(), Start::default()).await.expect("a server");
        let bus = Bus::connect(&server.address(), &Credentials::default(), &pipeline.name, "test").await;
        let bus = bus.expect("a bus");
        let mut answers = JoinSet::new();
        answers.spawn(answer_stages(bus.clone(), follow_placement(&bus, &pipeline).await));
        let site = Self { tools: tools.clone(), server, bus, pipeline, file, dir, _answers: answers };
        site.apply().await;
        site
    }

    /// Makes what of the pipeline is not there.
    ///
    /// # Panics
    /// When it cannot be made.
    pub async fn apply(&self) {
        let path = self.file.to_str().expect("a path");
        causeway(&self.tools, &["apply", path, "--nats", &self.server.address()]).await.ok();
    }

    /// Kills its server and waits until it is gone.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill_server(&mut self) {
        kill(self.server.pid().expect("it runs"));
        self.server.ended().await;
    }

    /// Starts its server again: the same port, the same store.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_server(&mut self) {
        let start = Start { port: Some(self.server.port()), ..Start::default() };
        self.server = Server::start("edge", self.dir.path(), start).await.expect("it starts again");
    }

    /// Starts a replica of a stage.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn stage(&self, name: &str, more: &[&str]) -> StageProcess {
        let mut command = self.command(name, more);
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        StageProcess { child: command.spawn().expect("a stage can be run") }
    }

    /// Starts a replica of a stage that meets its server at another address: somebody stands between.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn stage_at(&self, address: &str, name: &str, more: &[&str]) -> StageProcess {
        let mut command = self.command(name, more);
        command.env("CAUSEWAY_NATS", address).stdout(Stdio::null()).stderr(Stdio::inherit());
        StageProcess { child: command.spawn().expect("a stage can be run") }
    }

    /// Runs a replica of a stage to its end.
    ///
    /// # Panics
    /// When it cannot be run.
    pub async fn finish_stage(&self, name: &str, more: &[&str]) -> Finished {
        let mut command = self.command(name, more);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().expect("a stage can be run");
        tokio::time::timeout(PATIENCE, output(child)).await.expect("the stage ends in time")
    }

    fn command(&self, name: &str, more: &[&str]) -> Command {
        let uses = &self.pipeline.stage(name).expect("a stage of the pipeline").uses;
        let mut command = Command::new(self.tools.program(&format!("causeway-{uses}")));
        command.arg("--pipeline").arg(&self.file).args(["--stage", name]).args(more);
        command.envs(self.tools.env.iter().cloned()).env("CAUSEWAY_NATS", self.server.address());
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }
}

impl StageProcess {
    /// Starts one more replica of a stage of a pipeline that `up` runs with its server at `nats`.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn start(tools: &Tools, file: &str, name: &str, nats: &str, env: &[(&str, String)]) -> Self {
        let mut command = Command::new(tools.program(&format!("causeway-{name}")));
        command.args(["--pipeline", file, "--stage", name]).envs(tools.env.iter().cloned()).envs(env.iter().cloned());
        command.env("CAUSEWAY_NATS", nats).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.kill_on_drop(true).spawn().expect("a stage can be run") }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Panics
    /// When it cannot be killed.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it can be killed");
    }

    /// Asks it to drain and gives its exit code.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub async fn stop(mut self) -> Option<i32> {
        causeway_bus::server::terminate(self.pid());
        self.ended().await
    }

    /// Its exit code once it ends of its own accord.
    ///
    /// # Panics
    /// When it cannot be waited for.
    pub async fn ended(&mut self) -> Option<i32> {
        self.child.wait().await.expect("it can be waited for").code()
    }
}
