//! What workers take: batches of inputs that came for the first time, and inputs that came again, each alone.

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::held::Held;

/// An input on its way to a worker.
pub(crate) struct Job {
    pub(crate) held: Arc<Held>,
    /// It came again and is handled alone; dropped when it has its answer.
    pub(crate) alone: Option<oneshot::Sender<()>>,
}

/// The workers' end of the channel.
pub(crate) struct Inputs {
    jobs: mpsc::Receiver<Job>,
    /// A job that ended a batch, since it is handled alone.
    next: Option<Job>,
}

/// What one call of `process` is given.
pub(crate) struct Batch {
    pub(crate) inputs: Vec<Arc<Held>>,
    /// Dropped when they have their answers.
    pub(crate) alone: Option<oneshot::Sender<()>>,
}

impl Inputs {
    pub(crate) fn new(jobs: mpsc::Receiver<Job>) -> Self {
        Self { jobs, next: None }
    }

    /// Up to `max` inputs: the first as soon as there is one, more as they come within `wait`. `None`: there will be none.
    pub(crate) fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Batch> {
        let first = self.next.take().or_else(|| self.jobs.recv().ok())?;
        let mut batch = Batch { inputs: vec![first.held], alone: first.alone };
        let deadline = Instant::now() + wait;
        while batch.alone.is_none() && batch.inputs.len() < max {
            match self.jobs.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(job) if job.alone.is_some() => {
                    self.next = Some(job);
                    break;
                }
                Ok(job) => batch.inputs.push(job.held),
                Err(_) => break,
            }
        }
        Some(batch)
    }
}
