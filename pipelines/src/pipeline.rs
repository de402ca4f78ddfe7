use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::{Override, PipelineError, Placement, RELAY, SiteSpec, TestSpec, check};

/// The one site of a pipeline file that names none.
pub const DEFAULT_SITE: &str = "edge";

/// Captured items: long enough to notice a gap and run it again, short enough for pictures of people.
pub const DEFAULT_KEEP_CAPTURED: Keep = Keep { age: Duration::from_hours(7 * 24), bytes: 1 << 30 };

/// Outcomes: a month to read them; some hundred bytes each.
pub const DEFAULT_KEEP_OUTCOMES: Keep = Keep { age: Duration::from_hours(30 * 24), bytes: 256 << 20 };

/// Changes of a fold: some 400,000 faces of 128 numbers, each of which is remembered.
pub const DEFAULT_KEEP_CHANGES: u64 = 256 << 20;

/// Stands for the path of what is no file.
const NO_FILE: &str = "nowhere/bytes.toml";

/// Copies of what is stored, where the pipeline does not say.
pub(crate) const DEFAULT_COPIES: u64 = 1;

/// What a stage has that does not say otherwise.
pub mod defaults {
    use std::time::Duration;

    /// Instances in one process.
    pub const WORKERS: usize = 1;
    /// Messages that `process` is given at once: batches pay on the bus, beyond 8 not in the models.
    pub const BATCH_MAX: usize = 8;
    /// How long a batch that is not full waits for more. Not at all: behind a full link batches fill by themselves, and with an
    /// empty one every stage of the way would add its wait to every message.
    pub const BATCH_WAIT: Duration = Duration::ZERO;
    /// Bytes that a link may hold before its producer waits.
    pub const LINK_BYTES: u64 = 256 << 20;
    /// Time for one message: some hundred times what the slowest model needs.
    pub const MAX_PROCESS: Duration = Duration::from_secs(30);
    /// Memory for one message beyond what a stage has when it is ready: the largest picture that `max_pixels` allows, several
    /// times.
    pub const QUARANTINE_BYTES: u64 = 1 << 30;
}

/// A checked pipeline: every name in it exists, every kind fits, its graph has no cycle.
#[derive(Debug, Clone)]
pub struct Pipeline {
    /// Its name: the first token of every subject.
    pub name: String,
    /// The file it was read from.
    pub file: PathBuf,
    /// Its sites in the order of the file; `edge` alone where it names none.
    pub sites: Vec<SiteSpec>,
    /// The site that it is seen from: the hub, until somebody says another.
    pub here: String,
    /// Its stages in graph order: a stage stands behind all that it takes from.
    pub stages: Vec<StageSpec>,
    /// How long captured items are kept for repair and thumbnails.
    pub keep_captured: Keep,
    /// How long outcomes, dead letters among them, are kept.
    pub keep_outcomes: Keep,
    /// Bytes of changes that are kept of each fold, beyond what its snapshots need.
    pub keep_changes: u64,
    /// Copies of everything that is stored, each on a server of its own.
    pub copies: usize,
    /// When the server that `up` starts writes to disk for good.
    pub sync: Sync,
    /// What was moved from where the file says, and what is on the move.
    pub placement: Placement,
    /// What it was read from.
    pub(crate) written: Arc<Written>,
}

/// What a pipeline was read from.
#[derive(Debug)]
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    pub(crate) overrides: Vec<Override>,
}

/// When a server writes what it stores to disk for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sync {
    /// So often: a power failure may lose what came since.
    Every(Duration),
    /// Before it says that something is stored.
    Always,
}

impl Sync {
    /// How often; `None` for always.
    pub fn every(self) -> Option<Duration> {
        match self {
            Self::Every(every) => Some(every),
            Self::Always => None,
        }
    }
}

/// As nats-server does by itself.
pub(crate) const DEFAULT_SYNC: Duration = Duration::from_mins(2);

impl Default for Sync {
    fn default() -> Self {
        Self::Every(DEFAULT_SYNC)
    }
}

/// A bound on what a stream keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Older is removed.
    pub age: Duration,
    /// Oldest first beyond this many bytes.
    pub bytes: u64,
}

/// How many messages are pulled together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Most messages that `process` is given at once.
    pub max: usize,
    /// How long a batch that is not full waits for more.
    pub wait: Duration,
}

/// One stage of a pipeline.
#[derive(Debug, Clone)]
pub struct StageSpec {
    /// Durable, stream and log field carry it.
    pub name: String,
    /// The binary, crate and folder.
    pub uses: String,
    /// The stages whose messages it takes; none for a source.
    pub from: Vec<String>,
    /// The sites that it runs at, one or more.
    pub sites: Vec<String>,
    /// Other sites that it may be moved to where every stage has its own key: only there is it given one.
    pub may_move_to: Vec<String>,
    /// Instances in one process, each with its thread and model session.
    pub workers: usize,
    /// How messages are pulled.
    pub batch: Batch,
    /// The noun it takes; none for a source.
    pub takes: Option<&'static str>,
    /// The noun it gives.
    pub gives: &'static str,
    /// The second token of the subjects it publishes on: `emits`, by default the noun it gives.
    pub link: String,
    /// Most bytes that its link may hold before it has to wait.
    pub link_bytes: u64,
    /// Longest time that one message may take, after which its replica gives up and exits.
    pub max_process: Duration,
    /// Most bytes of memory that its quarantine may take beyond what it has when it is ready.
    pub quarantine_bytes: u64,
    /// Whether it folds: one writer with a changelog.
    pub folds: bool,
    /// Where it is on the move to; no site where it is not.
    pub moves_to: Vec<String>,
    /// The other keys of its table, checked against the options of what it uses.
    pub(crate) options: toml::Table,
}

impl Pipeline {
    /// Reads and checks a pipeline file. All its faults come at once.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PipelineError> {
        Self::load_with(path, &[])
    }

    /// The same, with values of the command line in place of the file's.
    pub fn load_with(path: impl AsRef<Path>, overrides: &[Override]) -> Result<Self, PipelineError> {
        check::load(path.as_ref(), overrides)
    }

    /// The same with the unit tests of the file, and of `tests/NAME` beside it. One error a file that is wrong.
    pub fn load_with_tests(
        path: impl AsRef<Path>,
        overrides: &[Override],
    ) -> Result<(Self, Vec<TestSpec>), Vec<PipelineError>> {
        check::load_with_tests(path.as_ref(), overrides)
    }

    /// What `load_with` makes of a file with these bytes. For `tests/fuzz`.
    #[doc(hidden)]
    pub fn of_bytes(bytes: &[u8], overrides: &[Override]) -> Result<Self, PipelineError> {
        check::of_bytes(Path::new(NO_FILE), bytes, overrides)
    }

    /// What `load_with_tests` makes of a file with these bytes. What its tests name is looked for in a folder that is not there.
    /// For `tests/fuzz`.
    #[doc(hidden)]
    pub fn of_bytes_with_tests(bytes: &[u8]) -> Result<(Self, Vec<TestSpec>), Vec<PipelineError>> {
        check::of_bytes_with_tests(Path::new(NO_FILE), bytes)
    }

    /// The same graph as an isolated run: its streams, subjects and tables carry another name, so nothing of it meets the live
    /// pipeline's. All of it runs at the one site that it is seen from.
    #[must_use]
    pub fn of_run(mut self, run: &str) -> Self {
        self.name = format!("{}-replay-{run}", self.name);
        self.sites.retain(|site| site.name == self.here);
        for site in &mut self.sites {
            site.is_hub = true;
        }
        for stage in &mut self.stages {
            stage.sites = vec![self.here.clone()];
            stage.moves_to.clear();
        }
        self.placement = Placement::default();
        self
    }

    /// The same without the stages that `last` does not need: `last` gives the outcomes.
    #[must_use]
    pub fn up_to(mut self, last: &str) -> Self {
        let needed = self.upstream(last);
        self.stages.retain(|stage| needed.contains(&stage.name));
        self
    }

    /// The stage of this name.
    pub fn stage(&self, name: &str) -> Option<&StageSpec> {
        self.stages.iter().find(|stage| stage.name == name)
    }

    /// The stages that take from `name`.
    pub fn takers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a StageSpec> {
        self.stages.iter().filter(move |stage| stage.takes_from(name))
    }

    /// Whether no stage takes what `name` gives: what it gives is an outcome.
    pub fn is_final(&self, name: &str) -> bool {
        self.takers(name).next().is_none()
    }

    /// `name` and all stages before it.
    pub fn upstream(&self, name: &str) -> HashSet<String> {
        let mut found = HashSet::from([name.to_owned()]);
        // Graph order: walking backwards meets every stage after all its takers.
        for stage in self.stages.iter().rev() {
            if found.contains(&stage.name) {
                found.extend(stage.from.iter().cloned());
            }
        }
        found
    }
}

impl StageSpec {
    /// Whether it brings something in.
    pub fn is_source(&self) -> bool {
        self.from.is_empty() && self.uses != RELAY
    }

    /// Whether it takes what the stage of this name gives.
    pub fn takes_from(&self, name: &str) -> bool {
        self.from.iter().any(|from| from == name)
    }

    /// The model it names, if its options have one.
    pub fn model(&self) -> Option<&str> {
        self.options.get("model")?.as_str()
    }

    /// Its own keys as the options of what it uses. They were checked when the file was read.
    pub fn options<O: serde::de::DeserializeOwned>(&self) -> Result<O, String> {
        O::deserialize(self.options.clone()).map_err(|error| format!("[stage.{}]: {error}", self.name))
    }
}
