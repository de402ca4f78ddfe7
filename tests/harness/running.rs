use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use causeway_bus::{Bus, Credentials};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::Tools;

/// Longest time that anything in a test is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_mins(2);

/// The variable that marks every process of a home, also those that `causeway` starts.
pub(crate) const HOME_MARK: &str = "CAUSEWAY_TEST_HOME";

/// A `causeway` that is running. Dropped, it is killed, and its children with it.
pub struct Running {
    child: Child,
    said: Said,
    home: PathBuf,
}

/// What a process says, read as it says it: a pipe that nobody reads fills up, and whoever writes to it stands still.
struct Said {
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

/// A `causeway` that has ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` after a signal.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Finished {
    /// The last line of stdout as JSON.
    pub fn json(&self) -> serde_json::Value {
        let line = self.stdout.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Itself, if it ended with 0.
    #[expect(
        clippy::must_use_candidate,
        clippy::return_self_not_must_use,
        reason = "an assertion, whether its value is used or not"
    )]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }
}

impl Running {
    /// Starts `causeway ARGUMENTS… --home HOME` in the checkout.
    pub fn start(tools: &Tools, home: &Path, arguments: &[&str]) -> Self {
        Self::start_with(tools, home, arguments, Stdio::null())
    }

    /// The same, with something as its standard input.
    pub fn start_with(tools: &Tools, home: &Path, arguments: &[&str], stdin: Stdio) -> Self {
        let mut command = Command::new(tools.program("causeway"));
        command.args(arguments).arg("--home").arg(home).env(HOME_MARK, home).current_dir(crate::workspace());
        command.stdin(stdin);
        Self::spawned(tools, command, home)
    }

    /// The same with further variables.
    pub fn start_in(tools: &Tools, home: &Path, arguments: &[&str], env: &[(&str, String)]) -> Self {
        let mut command = Command::new(tools.program("causeway"));
        command.args(arguments).arg("--home").arg(home).env(HOME_MARK, home).current_dir(crate::workspace());
        command.stdin(Stdio::null()).envs(env.iter().cloned());
        Self::spawned(tools, command, home)
    }

    /// The same by a command that has all its arguments.
    pub(crate) fn start_as(tools: &Tools, command: std::process::Command, home: &Path) -> Self {
        let mut command = Command::from(command);
        command.env(HOME_MARK, home).current_dir(crate::workspace()).stdin(Stdio::null());
        Self::spawned(tools, command, home)
    }

    fn spawned(tools: &Tools, command: Command, home: &Path) -> Self {
        let mut child = spawn(tools, command);
        let said = Said::of(&mut child);
        Self { child, said, home: home.to_owned() }
    }

    /// Runs it to its end.
    pub async fn finish(self) -> Finished {
        self.finish_within(PATIENCE).await
    }

    /// The same within a time of its own, for a test of minutes.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn finish_within(mut self, patience: Duration) -> Finished {
        let in_time = tokio::time::timeout(patience, self.child.wait()).await.is_ok();
        if !in_time {
            self.child.start_kill().expect("it can be killed");
        }
        let finished = finished(self.child, self.said).await;
        assert!(in_time, "causeway does not end in {patience:?}; until then it said {finished:?}");
        finished
    }

    /// Asks it to stop and waits until it has.
    pub async fn stop(self) -> Finished {
        causeway_bus::server::terminate(self.pid());
        self.finish().await
    }

    /// Sends SIGINT to its process group, as a terminal does at Ctrl-C.
    ///
    /// # Panics
    /// When it has ended.
    pub fn interrupt_group(&self) {
        use nix::sys::signal::{Signal, killpg};
        let group = nix::unistd::Pid::from_raw(i32::try_from(self.pid()).expect("a pid"));
        killpg(group, Signal::SIGINT).expect("it is there");
    }

    /// Whether it has not ended.
    ///
    /// # Panics
    /// When that cannot be told.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be asked").is_none()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// What it says of itself in `up.json`; waits until it is there.
    pub async fn about(&self) -> serde_json::Value {
        eventually("up.json", async || self.about_now()).await
    }

    /// The same where it is there: not of a run before.
    pub fn about_now(&self) -> Option<serde_json::Value> {
        let text = std::fs::read(self.home.join("up.json")).ok()?;
        let about: serde_json::Value = serde_json::from_slice(&text).ok()?;
        (about["pid"] == self.pid()).then_some(about)
    }

    /// The process of a stage, as soon as it runs as another one than `not`.
    pub async fn stage_pid(&self, stage: &str, not: Option<u32>) -> u32 {
        eventually("the stage's process", async || {
            let about = self.about().await;
            let stages = about["stages"].as_array()?.clone();
            let process = stages.iter().find(|entry| entry[0] == stage)?;
            let pid = u32::try_from(process[1]["pid"].as_u64()?).ok()?;
            (Some(pid) != not).then_some(pid)
        })
        .await
    }

    /// A connection to the server of one of its sites.
    pub async fn bus_at(&self, site: &str, pipeline: &str) -> Bus {
        self.bus_with(site, pipeline, &Credentials::default()).await
    }

    /// The same with credentials.
    pub async fn bus_with(&self, site: &str, pipeline: &str, credentials: &Credentials) -> Bus {
        let about = self.about().await;
        let mut sites = about["sites"].as_array().into_iter().flatten();
        let site = sites.find(|known| known["name"] == site).expect("it runs here");
        let address = site["nats"].as_str().expect("an address");
        Bus::connect(address, credentials, pipeline, "test").await.expect("its server answers")
    }

    /// The process of the server of one of its sites, as soon as it is another one than `not`.
    pub async fn server_pid(&self, site: &str, not: Option<u32>) -> u32 {
        eventually("the server's process", async || {
            let about = self.about().await;
            let known = about["sites"].as_array()?.iter().find(|known| known["name"] == site)?.clone();
            let pid = u32::try_from(known["server"]["pid"].as_u64()?).ok()?;
            (Some(pid) != not).then_some(pid)
        })
        .await
    }

    /// A connection to its server.
    pub async fn bus(&self, pipeline: &str) -> Bus {
        let about = self.about().await;
        let address = about["nats"].as_str().expect("an address");
        Bus::connect(address, &Credentials::default(), pipeline, "test").await.expect("its server answers")
    }
}

/// Runs `causeway ARGUMENTS…` to its end, without a home of its own.
pub async fn causeway(tools: &Tools, arguments: &[&str]) -> Finished {
    let mut command = Command::new(tools.program("causeway"));
    command.args(arguments).current_dir(crate::workspace());
    command.stdin(Stdio::null());
    let child = spawn(tools, command);
    tokio::time::timeout(PATIENCE, output(child)).await.expect("causeway ends in time")
}

fn spawn(tools: &Tools, mut command: Command) -> Child {
    command.envs(tools.env.iter().cloned()).env_remove("CAUSEWAY_NATS").env("NO_COLOR", "1");
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // A group of its own, as a shell gives it.
    command.process_group(0);
    command.spawn().expect("causeway can be run")
}

pub(crate) async fn output(mut child: Child) -> Finished {
    let said = Said::of(&mut child);
    finished(child, said).await
}

async fn finished(mut child: Child, said: Said) -> Finished {
    let status = child.wait().await.expect("it can be waited for");
    let text = async |read: JoinHandle<String>| read.await.expect("its output is read");
    Finished { code: status.code(), stdout: text(said.stdout).await, stderr: text(said.stderr).await }
}

impl Said {
    fn of(child: &mut Child) -> Self {
        let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        Self { stdout: tokio::spawn(whole(stdout)), stderr: tokio::spawn(whole(stderr)) }
    }
}

async fn whole(mut from: impl AsyncRead + Unpin) -> String {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).await.expect("its output is read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Asks again and again, without a fixed sleep in the test's own logic, until there is an answer.
///
/// # Panics
/// When there is none within two minutes.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, ask).await
}

/// The same within a time of its own.
///
/// # Panics
/// When there is no answer in time.
pub async fn within<T>(patience: Duration, what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// Kills a process as the kernel would.
///
/// # Panics
/// When there is no such process.
pub fn kill(pid: u32) {
    signal(pid, "KILL");
}

/// Sends a signal by its name: `KILL`, `STOP`, `CONT`.
///
/// # Panics
/// When there is no such signal or process.
pub fn signal(pid: u32, name: &str) {
    let signal = format!("SIG{name}").parse::<nix::sys::signal::Signal>().expect("a signal");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid")), signal)
        .expect("it is there");
}
