//! What workers take: batches of inputs that came for the first time.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::held::Held;

/// The workers' end of the channel.
pub(crate) struct Inputs {
    coming: mpsc::Receiver<Arc<Held>>,
    /// What has come and no worker has taken yet.
    waiting: VecDeque<Arc<Held>>,
    /// How many workers share it.
    workers: usize,
}

impl Inputs {
    pub(crate) fn new(coming: mpsc::Receiver<Arc<Held>>, workers: usize) -> Self {
        Self { coming, waiting: VecDeque::new(), workers: workers.max(1) }
    }

    /// Up to `max` inputs, but no more than the caller's share of what is there, so that no worker idles while another has a
    /// whole batch: the first as soon as there is one, more as they come within `wait`. `None`: there will be none.
    pub(crate) fn next_batch(&mut self, max: usize, wait: Duration) -> Option<Vec<Arc<Held>>> {
        let first = match self.waiting.pop_front() {
            Some(first) => first,
            None => self.coming.recv().ok()?,
        };
        self.waiting.extend(self.coming.try_iter());
        let share = (1 + self.waiting.len()).div_ceil(self.workers).min(max);
        let mut batch = vec![first];
        batch.extend(self.waiting.drain(..share - 1));
        let deadline = Instant::now() + wait;
        while self.waiting.is_empty() && batch.len() < max && !wait.is_zero() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(input) = self.coming.recv_timeout(left) else { break };
            batch.push(input);
        }
        Some(batch)
    }
}
