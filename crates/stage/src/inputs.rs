//! What workers take: batches of inputs that came for the first time, and inputs that came again, each alone.

use std::collections::VecDeque;
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
    /// What has come and no worker has taken yet.
    waiting: VecDeque<Job>,
    /// How many workers share it.
    workers: usize,
}

/// What one call of `process` is given.
pub(crate) struct Batch {
    pub(crate) inputs: Vec<Arc<Held>>,
    /// Dropped when they have their answers.
    pub(crate) alone: Option<oneshot::Sender<()>>,
}

impl Inputs {
    pub(crate) fn new(jobs: mpsc::Receiver<Job>, workers: usize) -> Self {
        Self { jobs, waiting: VecDeque::new(), workers: workers.max(1) }
    }

    /// Up to `max` inputs, but no more than the caller's share of what is there, so that no worker idles while another has a
    /// whole batch: the first as soon as there is one, more as they come within `wait`. `None`: there will be none.
    pub(crate) fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Batch> {
        let first = match self.waiting.pop_front() {
            Some(first) => first,
            None => self.jobs.recv().ok()?,
        };
        self.waiting.extend(self.jobs.try_iter());
        let share = (1 + self.waiting.len()).div_ceil(self.workers).min(max);
        let mut batch = Batch { inputs: vec![first.held], alone: first.alone };
        while batch.inputs.len() < share && self.take_into(&mut batch) {}
        let deadline = Instant::now() + wait;
        while self.waiting.is_empty() && batch.alone.is_none() && batch.inputs.len() < max && !wait.is_zero() {
            let Ok(job) = self.jobs.recv_timeout(deadline.saturating_duration_since(Instant::now())) else { break };
            self.waiting.push_back(job);
            if !self.take_into(&mut batch) {
                break;
            }
        }
        Some(batch)
    }

    /// Moves the next job into a batch, unless either is handled alone.
    fn take_into(&mut self, batch: &mut Batch) -> bool {
        let next = self.waiting.pop_front_if(|job| batch.alone.is_none() && job.alone.is_none());
        let taken = next.is_some();
        batch.inputs.extend(next.map(|job| job.held));
        taken
    }
}
