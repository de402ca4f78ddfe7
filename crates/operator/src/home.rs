//! The folder `.causeway/`: stores, logs, and what a running `up` says of itself.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

/// A `.causeway/` folder.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    dir: PathBuf,
}

/// What a running `up` says of itself in `up.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    pub(crate) pipeline: String,
    pub(crate) file: PathBuf,
    pub(crate) nats: String,
    /// The embedded server, where it is ours.
    pub(crate) server: Option<Process>,
    /// All sites that run here; the one that is meant above is among them.
    #[serde(default)]
    pub(crate) sites: Vec<RunningSite>,
    pub(crate) stages: Vec<(String, Process)>,
}

/// A site that runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningSite {
    pub(crate) name: String,
    pub(crate) nats: String,
    /// Its embedded server, where it is ours.
    pub(crate) server: Option<Process>,
}

impl Running {
    /// Where the server of a site is, if it runs here.
    pub(crate) fn address(&self, site: &str) -> Option<&str> {
        self.sites.iter().find(|known| known.name == site).map(|known| known.nats.as_str())
    }
}

/// A process that is told from a later one with the same id by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks after boot (field 22 of /proc/PID/stat); 0 where there is no /proc.
    pub(crate) started: u64,
}

impl Process {
    pub(crate) fn of(pid: u32) -> Self {
        Self { pid, started: started(pid).unwrap_or(0) }
    }

    pub(crate) fn is_alive(self) -> bool {
        self.started != 0 && started(self.pid) == Some(self.started)
    }
}

/// When a process started; its name may hold anything, so fields are counted behind the last `)`. One that has ended and that
/// nobody has asked for yet (`Z`) is none.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Held while `up` runs: a second one on the same folder is refused.
pub(crate) struct Lock {
    _file: File,
}

impl Home {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Where a site's embedded server keeps its store.
    pub(crate) fn site(&self, site: &str) -> PathBuf {
        self.dir.join(site)
    }

    /// A stage's log.
    pub(crate) fn log(&self, stage: &str) -> PathBuf {
        self.logs().join(format!("{stage}.log"))
    }

    /// The folder of all logs.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The report of a run.
    pub(crate) fn report(&self) -> PathBuf {
        self.dir.join("report.html")
    }

    /// Where Prometheus reads what there is to scrape.
    pub(crate) fn targets(&self) -> PathBuf {
        self.dir.join("prometheus-targets.json")
    }

    fn running_file(&self) -> PathBuf {
        self.dir.join("up.json")
    }

    /// Takes the folder for this process.
    pub(crate) fn lock(&self) -> anyhow::Result<Lock> {
        std::fs::create_dir_all(self.dir.join("logs"))
            .with_context(|| format!("cannot make the folder {}", self.dir.display()))?;
        let path = self.dir.join("lock");
        let file = private().truncate(false).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(Lock { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => {
                let who = self
                    .running()
                    .map_or(String::new(), |running| format!(": pid {} runs {}", running.pid, running.file.display()));
                bail!(
                    "cannot use {}: another `causeway` is at work there{who}; stop it, or give another folder with --home",
                    self.dir.display()
                )
            }
            Err(std::fs::TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", path.display()))
            }
        }
    }

    /// Says what runs here; replaced whole, readable by its owner alone.
    pub(crate) fn say(&self, running: &Running) -> anyhow::Result<()> {
        let path = self.running_file();
        let next = path.with_extension("next");
        let mut file = private().truncate(true).open(&next)?;
        file.write_all(&serde_json::to_vec_pretty(running)?)?;
        std::fs::rename(&next, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Nothing runs here any more.
    pub(crate) fn say_ended(&self) {
        let _ = std::fs::remove_file(self.running_file());
    }

    /// Where a site's server is, as a running `up` says.
    pub(crate) fn address_if_running(&self, site: &str) -> Option<String> {
        self.alive()?.address(site).map(ToOwned::to_owned)
    }

    /// What runs here now.
    pub(crate) fn alive(&self) -> Option<Running> {
        self.running().filter(|running| started(running.pid).is_some())
    }

    /// What runs here, or ran when the machine went down.
    pub(crate) fn running(&self) -> Option<Running> {
        serde_json::from_slice(&std::fs::read(self.running_file()).ok()?).ok()
    }

    /// Ends what an `up` that was killed left behind. Call with the lock held.
    pub(crate) fn end_leftovers(&self) {
        let Some(left) = self.running() else { return };
        let servers = left.sites.iter().filter_map(|site| site.server);
        let processes = left.stages.iter().map(|(_, process)| *process).chain(servers).chain(left.server);
        for process in processes.filter(|process| process.is_alive()) {
            tracing::warn!(pid = process.pid, "ending what an earlier run left behind");
            causeway_bus::server::terminate(process.pid);
            // The store must be free before the next server opens it.
            for _ in 0..500 {
                if !process.is_alive() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
        }
        self.say_ended();
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).mode(0o600);
    options
}
