use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use causeway_pipelines::StageSpec;

/// Work that is held ahead of each worker: much longer than a pull takes, and short enough that what a killed replica held is
/// soon done elsewhere.
const AHEAD: Duration = Duration::from_millis(100);
/// Most messages that are held ahead of a worker whose messages take hardly any time, unless its batches are larger.
const MOST_AHEAD: u64 = 16;
/// The newest measure counts for one in this many.
const SMOOTHING: u64 = 8;

/// How long a message takes a worker, smoothed.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// ns; 0 before anything was measured.
    each: AtomicU64,
}

impl Pace {
    /// A worker handled `count` messages within `took`.
    pub(crate) fn measured(&self, took: Duration, count: usize) {
        let each = (took.as_nanos() as u64 / count.max(1) as u64).max(1);
        // Two workers at once may lose a measure, not more.
        let before = self.each.load(Ordering::Relaxed);
        let smoothed = if before == 0 { each } else { before - before / SMOOTHING + each / SMOOTHING };
        self.each.store(smoothed.max(1), Ordering::Relaxed);
    }

    /// How many messages a replica holds at once: what its workers are at and as much again, or more while that is done sooner
    /// than within [`AHEAD`].
    pub(crate) fn held(&self, spec: &StageSpec) -> usize {
        let least = 2 * spec.workers * spec.batch.max;
        let ahead = match self.each.load(Ordering::Relaxed) {
            0 => 0,
            each => (AHEAD.as_nanos() as u64 / each).min(MOST_AHEAD) as usize,
        };
        least.max(spec.workers * ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(workers: usize, max: usize) -> StageSpec {
        let text = format!(
            "pipeline = \"p\"\n[stage.capture]\n[stage.preprocess]\nfrom = \"capture\"\nmodel = \"yunet\"\nworkers = {workers}\n\
             batch = {{ max = {max} }}\n"
        );
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        let pipeline = causeway_pipelines::Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
        pipeline.stage("preprocess").unwrap().clone()
    }

    #[test]
    fn the_slow_hold_little_and_the_fast_as_much_as_is_of_use() {
        let pace = Pace::default();
        assert_eq!(pace.held(&spec(2, 1)), 4, "before anything is known");
        pace.measured(Duration::from_millis(25), 1);
        assert_eq!(pace.held(&spec(2, 1)), 8, "100 ms for each worker");
        let fast = Pace::default();
        fast.measured(Duration::from_micros(40), 4);
        assert_eq!(fast.held(&spec(1, 1)), 16);
        assert_eq!(fast.held(&spec(1, 64)), 128, "never less than two batches");
        let slow = Pace::default();
        slow.measured(Duration::from_secs(3), 1);
        assert_eq!(slow.held(&spec(1, 1)), 2);
    }

    #[test]
    fn a_single_slow_message_does_not_count_for_much() {
        let pace = Pace::default();
        pace.measured(Duration::from_millis(1), 1);
        pace.measured(Duration::from_millis(9), 1);
        assert_eq!(pace.each.load(Ordering::Relaxed), 2_000_000);
    }
}
