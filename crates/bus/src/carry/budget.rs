use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// Of a budget a second so much may be sent at once: a second of it.
const BURST_S: f64 = 1.0;

/// Bytes a second that a site may send, all its links together.
#[derive(Debug)]
pub struct Budget {
    per_s: Option<f64>,
    /// How many may be sent, and when that was so.
    left: Mutex<(f64, Instant)>,
}

impl Budget {
    /// As many bytes a second; `None` for no bound.
    pub fn new(bytes_per_s: Option<u64>) -> Self {
        let per_s = bytes_per_s.map(|bytes| bytes.max(1) as f64);
        Self { per_s, left: Mutex::new((per_s.unwrap_or(0.0) * BURST_S, Instant::now())) }
    }

    /// Takes `bytes`, or says when to ask again. As long as anything is left it may be gone into debt, which what comes next pays: so
    /// long messages wait no longer than short ones.
    pub(super) fn take(&self, bytes: u64) -> Result<(), Instant> {
        let Some(per_s) = self.per_s else { return Ok(()) };
        let now = Instant::now();
        let at = self.ready_at();
        if at > now {
            return Err(at);
        }
        let mut left = self.left.lock().expect("nobody panics with it");
        let there = (left.0 + per_s * (now - left.1).as_secs_f64()).min(per_s * BURST_S);
        *left = (there - bytes as f64, now);
        Ok(())
    }

    /// When something may be taken.
    pub(super) fn ready_at(&self) -> Instant {
        let Some(per_s) = self.per_s else { return Instant::now() };
        let left = self.left.lock().expect("nobody panics with it");
        left.1 + Duration::from_secs_f64(((1.0 - left.0) / per_s).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_budget_is_kept_over_time() {
        let budget = Budget::new(Some(1000));
        assert_eq!(budget.take(1000), Ok(()), "a second of it at once");
        let began = Instant::now();
        for _ in 0..10 {
            while let Err(again) = budget.take(300) {
                tokio::time::sleep_until(again).await;
            }
        }
        let took = began.elapsed().as_secs_f64();
        assert!((2.6..3.1).contains(&took), "3,000 bytes at 1,000 a second, the last in debt: {took} s");
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert_eq!(budget.take(1000), Ok(()));
        assert!(budget.take(1).is_err(), "what was not used for a minute is not saved up");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_longer_than_the_budget_goes_too_and_is_paid_for() {
        let budget = Budget::new(Some(1000));
        assert_eq!(budget.take(5000), Ok(()));
        let again = budget.take(1000).expect_err("it is used up");
        assert_eq!((again - Instant::now()).as_secs_f64().round() as u64, 4);
        assert_eq!(Budget::new(None).take(u64::MAX), Ok(()));
    }
}
