//! What runs in a process of its own, so that its memory is its own: the limits L0 and L1, and the preparation.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::in_process;
use crate::place::Place;

/// A task for a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) what: What,
    /// A pipeline file: options of the stages.
    pub(crate) pipeline: PathBuf,
    pub(crate) models: PathBuf,
    /// The photos.
    pub(crate) photos: PathBuf,
    /// Folders of people to enrol, for `Prepare`.
    pub(crate) enrol: PathBuf,
    /// The gallery as JSON, for `L1`.
    pub(crate) people: PathBuf,
    /// What each photo asks of the models, for `L0`.
    pub(crate) shapes: Vec<Shape>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) enum What {
    /// Enrols people and answers every photo once.
    Prepare,
    /// The bare models, in `workers` threads with a session each, of `threads` threads.
    L0 { workers: usize, threads: usize },
    /// One of the models alone, as a stage has it, for the memory that it takes.
    One { model: Model, workers: usize },
    /// The stages' code in `workers` threads; with `rate`, a photo is due every 1/rate s.
    L1 { workers: usize, rate: Option<f64> },
}

/// A model of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Model {
    /// Finds faces: preprocess has it.
    Detector,
    /// Makes vectors: extract has it.
    Embedder,
}

/// What a photo asks of the models: the detector's input sizes (height, width), and how many faces are embedded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Shape {
    pub(crate) looks: Vec<[usize; 2]>,
    pub(crate) faces: usize,
}

/// What a limit did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) photos: usize,
    pub(crate) took_s: f64,
    pub(crate) rss_mb: f64,
    pub(crate) cpu_s: f64,
    /// For each photo the time from when it was due until its last answer, ms.
    pub(crate) latencies_ms: Vec<f64>,
}

/// Runs the task of a file in this process; the answer goes to stdout.
pub(crate) fn run(file: &Path) -> anyhow::Result<()> {
    // As the stages do.
    causeway_stage::keep_memory();
    let task: Task = serde_json::from_slice(&std::fs::read(file)?)?;
    let answer = match task.what {
        What::Prepare => serde_json::to_string(&in_process::prepare(&task)?)?,
        What::L0 { workers, threads } => serde_json::to_string(&in_process::bare(&task, workers, threads, None)?)?,
        What::One { model, workers } => serde_json::to_string(&in_process::bare(&task, workers, 1, Some(model))?)?,
        What::L1 { workers, rate } => serde_json::to_string(&in_process::whole(&task, workers, rate)?)?,
    };
    println!("{answer}");
    Ok(())
}

/// Runs a task in a child.
pub(crate) async fn answer<T: DeserializeOwned>(place: &Place, task: &Task) -> anyhow::Result<T> {
    let dir = place.fresh()?;
    let file = dir.path().join("task.json");
    std::fs::write(&file, serde_json::to_vec(task)?)?;
    let mut command = tokio::process::Command::new(&place.me);
    command.arg("--child").arg(&file).stderr(std::process::Stdio::inherit()).kill_on_drop(true);
    causeway_bus::server::die_with_parent(command.as_std_mut());
    let output = command.output().await?;
    ensure!(output.status.success(), "cannot run {:?} in a process of its own: {}", task.what, output.status);
    serde_json::from_slice(&output.stdout).context("cannot read what the child answered")
}
