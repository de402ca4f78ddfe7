//! The server that `up` starts: a child process on a free loopback port, with its store in a folder.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// Longest message, bytes: the advised ceiling of NATS.
pub const MAX_PAYLOAD: usize = 8 << 20;
/// How long a server may take until it listens; a store of many gigabytes is read first.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// What its Go runtime tries to stay below (`GOMEMLIMIT`), unless the environment names another. Without one it takes half a gigabyte for
/// streams of some ten megabytes, since it collects only when its heap has doubled; it needs 60 to 150 MB.
pub const MEMORY: &str = "256MiB";
/// The environment variable that names the above.
pub const MEMORY_LIMIT: &str = "GOMEMLIMIT";
/// How often we look whether it listens.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program is not there.
    #[error(
        "cannot find nats-server: looked at $CAUSEWAY_NATS_SERVER, beside this program, in PATH and in .tools/; `./dev build` brings it"
    )]
    NotFound,
    /// It cannot be run.
    #[error("cannot run {program}: {source}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended instead of listening.
    #[error("cannot start nats-server: it ended with {status}; its last lines:\n{log}")]
    Ended {
        /// How it ended.
        status: String,
        /// The end of its log.
        log: String,
    },
    /// It does not listen.
    #[error("cannot start nats-server: it does not listen after {0:?}; see {1}")]
    Slow(Duration, PathBuf),
    /// A file cannot be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// How a server is started.
#[derive(Debug, Clone)]
pub struct Start {
    /// The port of the server that was there before, so that clients find it again; any free one otherwise.
    pub port: Option<u16>,
    /// How often it writes to disk for good; `None`: before it says that something is stored.
    pub sync: Option<Duration>,
    /// Its accounts with their users, as its configuration has them; without any whoever is on this machine may do everything.
    pub accounts: Option<serde_json::Value>,
}

impl Default for Start {
    /// Any free port, and the server's own two minutes.
    fn default() -> Self {
        Self { port: None, sync: Some(Duration::from_mins(2)), accounts: None }
    }
}

/// A running server.
pub struct Server {
    child: Child,
    port: u16,
    log: Log,
}

/// What a server says, from where it was last looked at.
struct Log {
    path: PathBuf,
    read: u64,
}

/// A line that has this says that a stream could not be written. The server does not try again, however much room there is later:
/// every publish to it goes unanswered until the server is started anew (nats-server 2.15.1).
const CANNOT_WRITE: &str = "Critical write error: ";
/// Most of a log that is read at once, bytes.
const MAX_LOG: u64 = 1 << 20;

impl Server {
    /// Starts a server named `site` with its store, configuration and log under `dir`.
    pub async fn start(site: &str, dir: &Path, start: Start) -> Result<Self, ServerError> {
        let program = find().ok_or(ServerError::NotFound)?;
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Write { path, source }
        };
        let ports = dir.join("ports");
        // A port file of an earlier server must not be taken for this one's.
        match std::fs::remove_dir_all(&ports) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(write(&ports)(error)),
            _ => std::fs::create_dir_all(&ports).map_err(write(&ports))?,
        }
        let config = dir.join("nats-server.conf");
        std::fs::write(&config, configuration(site, dir, &start)).map_err(write(&config))?;
        let log = dir.join("nats-server.log");
        let read = std::fs::metadata(&log).map_or(0, |log| log.len());
        let mut command = Command::new(&program);
        command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if std::env::var_os(MEMORY_LIMIT).is_none() {
            command.env(MEMORY_LIMIT, MEMORY);
        }
        // Ctrl-C goes to the whole group of a terminal; the server is stopped by us, after the stages.
        command.kill_on_drop(true).process_group(0);
        die_with_parent(command.as_std_mut());
        let mut child = command.spawn().map_err(|source| ServerError::Run { program, source })?;
        let port = wait_until_listening(&mut child, &ports, &log).await?;
        Ok(Self { child, port, log: Log { path: log, read } })
    }

    /// Where clients connect to.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id, while it lives.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Why it could not write to its store since it was last asked, if it could not: it will not by itself, and has to be started
    /// anew.
    pub fn write_error(&mut self) -> Option<String> {
        let said = self.log.next().unwrap_or_default();
        let error = said.lines().find_map(|line| line.split_once(CANNOT_WRITE))?.1;
        Some(error.rsplit_once(": ").map_or(error, |(_, why)| why).to_owned())
    }

    /// Removes what it wrote down of a durable and cannot read: it makes none in its place otherwise.
    pub fn forget_durable(&self, stream: &str, durable: &str) -> std::io::Result<()> {
        let accounts = self.log.path.with_file_name("store").join("jetstream");
        for account in std::fs::read_dir(accounts)? {
            let of_stream = account?.path().join("streams").join(stream);
            let file = of_stream.join("obs").join(durable).join("o.dat");
            if file.exists() {
                return std::fs::remove_file(file);
            }
        }
        Err(std::io::ErrorKind::NotFound.into())
    }

    /// Asks it to end, and does not wait.
    pub fn terminate(&self) {
        if let Some(pid) = self.child.id() {
            terminate(pid);
        }
    }

    /// Waits until it ends of its own accord.
    pub async fn ended(&mut self) -> String {
        match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        }
    }

    /// Asks it to end and waits; it writes what it holds.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            terminate(pid);
        }
        if tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }
}

impl Log {
    /// What was added to it.
    fn next(&mut self) -> std::io::Result<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = std::fs::File::open(&self.path)?;
        let length = file.metadata()?.len();
        // It was begun anew.
        if length < self.read {
            self.read = 0;
        }
        file.seek(SeekFrom::Start(self.read))?;
        let mut said = Vec::new();
        file.take(MAX_LOG).read_to_end(&mut said)?;
        self.read += said.len() as u64;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

async fn wait_until_listening(child: &mut Child, ports: &Path, log: &Path) -> Result<u16, ServerError> {
    let pid = child.id().unwrap_or_default();
    let file = ports.join(format!("nats-server_{pid}.ports"));
    let deadline = tokio::time::Instant::now() + START_TIMEOUT;
    loop {
        if let Some(port) = std::fs::read_to_string(&file).ok().and_then(|text| port_of(&text)) {
            return Ok(port);
        }
        if let Ok(Some(status)) = child.try_wait() {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let log = lines[lines.len().saturating_sub(5)..].join("\n");
            return Err(ServerError::Ended { status: status.to_string(), log });
        }
        if tokio::time::Instant::now() > deadline {
            return Err(ServerError::Slow(START_TIMEOUT, log.into()));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The client port out of the file that the server writes: `{"nats":["nats://127.0.0.1:4222"]}`.
fn port_of(text: &str) -> Option<u16> {
    let ports: serde_json::Value = serde_json::from_str(text).ok()?;
    ports.get("nats")?.get(0)?.as_str()?.rsplit(':').next()?.parse().ok()
}

/// How often a server writes to disk for good, as its configuration has it.
pub fn sync_interval(every: Option<Duration>) -> String {
    every.map_or_else(|| "always".into(), |every| format!("{}ms", every.as_millis()))
}

/// Loopback only, whatever the site: other machines come in through a server that its operator configured.
fn configuration(site: &str, dir: &Path, start: &Start) -> String {
    let quote = |path: &Path| format!("{:?}", path.display().to_string());
    format!(
        "# Written by causeway at every start.\n\
         listen: \"127.0.0.1:{port}\"\n\
         server_name: \"{site}\"\n\
         ports_file_dir: {ports}\n\
         log_file: {log}\n\
         logfile_size_limit: 10MB\n\
         max_payload: {MAX_PAYLOAD}\n\
         jetstream {{ store_dir: {store}, sync_interval: \"{sync}\" }}\n\
         {accounts}",
        port = start.port.map_or(-1, i32::from),
        sync = sync_interval(start.sync),
        ports = quote(&dir.join("ports")),
        log = quote(&dir.join("nats-server.log")),
        store = quote(&dir.join("store")),
        accounts = start.accounts.as_ref().map_or_else(String::new, |accounts| format!("accounts: {accounts:#}\n")),
    )
}

/// `$CAUSEWAY_NATS_SERVER`, beside this program, in PATH, or as `./dev` brought it into the checkout that this program is in.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CAUSEWAY_NATS_SERVER") {
        return Some(path.into()).filter(|path: &PathBuf| path.is_file());
    }
    let program = std::env::current_exe().ok()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = std::env::split_paths(&path).map(|dir| dir.join("nats-server"));
    let in_checkout = program.ancestors().map(|dir| dir.join(".tools/venv/bin/nats-server"));
    let beside = std::iter::once(program.with_file_name("nats-server"));
    beside.chain(in_path).chain(in_checkout).find(|path| path.is_file())
}

/// Asks a process to end.
pub fn terminate(pid: u32) {
    use nix::sys::signal::{Signal, kill};
    let _ = kill(nix::unistd::Pid::from_raw(pid as i32), Signal::SIGTERM);
}

/// A child that ends with its parent, also when the parent is killed. The kernel watches the parent *thread*: call it from one
/// that lives as long as the process.
#[cfg_attr(
    target_os = "linux",
    expect(unsafe_code, reason = "prctl between fork and exec: one async-signal-safe call")
)]
pub fn die_with_parent(command: &mut std::process::Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: the closure runs in the forked child and makes one async-signal-safe system call.
    unsafe {
        use std::os::unix::process::CommandExt as _;
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).map_err(std::io::Error::from)
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}
