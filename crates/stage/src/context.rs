use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use causeway_bus::Follow;
use causeway_pipelines::{Manifest, ManifestError, StageSpec};
use causeway_schemas::ModelRef;

use crate::{Reporter, Table};

/// What a stage is given when it is built: its models and its live tables.
#[derive(Clone)]
pub struct Context {
    pipeline_dir: PathBuf,
    models: PathBuf,
    threads: usize,
    used: Arc<Mutex<Vec<ModelRef>>>,
    tables: Arc<Mutex<HashMap<String, Registered>>>,
    stage: String,
    source: String,
    epoch: u64,
    reporter: Reporter,
}

/// A table that a stage asked for; the runtime follows the bucket and swaps the value.
#[derive(Clone)]
pub(crate) struct Registered {
    kind: TypeId,
    live: Arc<dyn Any + Send + Sync>,
    apply: Arc<dyn Fn(&Follow) + Send + Sync>,
}

/// A table as it is now: `read` gives an `Arc` that no later change touches.
pub struct Live<T>(Arc<RwLock<Arc<T>>>);

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Live<T> {
    /// The table as it is now.
    pub fn read(&self) -> Arc<T> {
        Arc::clone(&self.0.read().expect("no writer of a table panics"))
    }
}

impl<T: Default> Live<T> {
    /// A table that nobody follows, for tests and for use without a bus.
    pub fn fixed(table: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(table))))
    }
}

/// What a source is called at a site, in ids and in the key of its epoch.
pub fn source_at(spec: &StageSpec, site: &str) -> String {
    if spec.sites.len() > 1 { format!("{}@{site}", spec.name) } else { spec.name.clone() }
}

impl Context {
    /// A context of the stage `spec` of the pipeline file in `pipeline_dir`, with models out of `models` and `threads` model
    /// threads a worker.
    pub fn new(spec: &StageSpec, pipeline_dir: &Path, models: &Path, threads: usize) -> Self {
        Self {
            pipeline_dir: pipeline_dir.into(),
            models: models.into(),
            threads,
            used: Arc::default(),
            tables: Arc::default(),
            stage: spec.name.clone(),
            source: spec.name.clone(),
            epoch: 0,
            reporter: Reporter::default(),
        }
    }

    /// The stage's name in the pipeline.
    pub fn stage(&self) -> &str {
        &self.stage
    }

    /// The name of a source in its messages' ids.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The same at one of the sites of its stage: what is captured at several has its site in its source's name, since each counts for
    /// itself.
    pub(crate) fn at(mut self, spec: &StageSpec, site: &str) -> Self {
        self.source = source_at(spec, site);
        self
    }

    /// The same for one run of a source: its epoch, and who hears how it fares.
    #[must_use]
    pub fn of_run(mut self, epoch: u64, reporter: Reporter) -> Self {
        (self.epoch, self.reporter) = (epoch, reporter);
        self
    }

    /// Which start of this source it is, from 1: the ids of what cannot be read twice are made of it. 0 where nobody counts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Where a source says how it fares.
    pub fn reporter(&self) -> Reporter {
        self.reporter.clone()
    }

    /// A path of the pipeline file: relative ones are relative to its folder.
    pub fn path(&self, written: &Path) -> PathBuf {
        self.pipeline_dir.join(written)
    }

    /// The manifest of a model. The stage opens it with `causeway-inference`.
    pub fn model(&self, name: &str) -> Result<Manifest, ManifestError> {
        let manifest = Manifest::load(&self.models, name)?;
        let model = ModelRef {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: manifest.sha256.clone(),
        };
        let mut used = self.used.lock().expect("no holder of the list panics");
        if !used.contains(&model) {
            used.push(model);
        }
        Ok(manifest)
    }

    /// How many threads a model may use in one worker.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The models asked for so far; dead letters name them.
    pub fn models_used(&self) -> Vec<ModelRef> {
        self.used.lock().expect("no holder of the list panics").clone()
    }

    /// The live table of this name. The stage gets its messages only once the table was loaded for the first time.
    ///
    /// # Panics
    /// When the same name was asked for with another type.
    pub fn table<T: Table>(&self, name: &str) -> Live<T> {
        let mut tables = self.tables.lock().expect("no holder of the tables panics");
        let registered = tables.entry(name.into()).or_insert_with(|| Registered::new::<T>());
        assert_eq!(registered.kind, TypeId::of::<T>(), "the table `{name}` was asked for as two types");
        let live = Arc::clone(&registered.live).downcast::<RwLock<Arc<T>>>().expect("checked above");
        Live(live)
    }

    pub(crate) fn tables(&self) -> Vec<(String, Registered)> {
        let tables = self.tables.lock().expect("no holder of the tables panics");
        tables.iter().map(|(name, table)| (name.clone(), table.clone())).collect()
    }
}

impl Registered {
    fn new<T: Table>() -> Self {
        let live: Arc<RwLock<Arc<T>>> = Arc::default();
        let swapped = Arc::clone(&live);
        let apply = move |follow: &Follow| {
            let mut live = swapped.write().expect("no writer of a table panics");
            // Copies only while a reader holds the table as it was.
            let table = Arc::make_mut(&mut *live);
            match follow {
                Follow::Put(entry) => {
                    if let Err(error) = table.put(&entry.key, &entry.value, entry.revision) {
                        tracing::warn!(key = entry.key, error = format!("{error:#}"), "table entry passed over");
                    }
                }
                Follow::Removed { key, revision } => table.remove(key, *revision),
                Follow::Loaded => {}
            }
        };
        Self { kind: TypeId::of::<T>(), live, apply: Arc::new(apply) }
    }

    /// Takes a change; `false` when it was the word that all has been told.
    pub(crate) fn tell(&self, follow: &Follow) -> bool {
        (self.apply)(follow);
        !matches!(follow, Follow::Loaded)
    }
}
