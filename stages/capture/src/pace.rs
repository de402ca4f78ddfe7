use std::time::{Duration, Instant};

use anyhow::ensure;

/// Lets one thing through a period. A little lateness is made up for, so that the rate holds on average; a period missed
/// whole, because the link was full, is not: a camera makes no burst of what it did not see.
pub(crate) struct Pace {
    period: Duration,
    due: Option<Instant>,
}

/// No picture is further from the next than this: a day.
const LONGEST_PERIOD: Duration = Duration::from_hours(24);

impl Pace {
    /// `rate` things a second.
    pub(crate) fn new(rate: f64) -> anyhow::Result<Self> {
        let period = Duration::try_from_secs_f64(1.0 / rate).ok().filter(|&period| period <= LONGEST_PERIOD);
        ensure!(
            rate > 0.0 && period.is_some(),
            "cannot capture at rate = {rate}: it is pictures a second, more than 0"
        );
        Ok(Self { period: period.unwrap_or_default(), due: None })
    }

    /// Waits until the next thing is due; the first is due at once.
    pub(crate) fn wait(&mut self) {
        let now = Instant::now();
        let due = self.due_at(now);
        std::thread::sleep(due.saturating_duration_since(now));
    }

    fn due_at(&mut self, now: Instant) -> Instant {
        let due = match self.due {
            Some(last) if last + self.period * 2 > now => last + self.period,
            _ => now,
        };
        self.due = Some(due);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_made_up_for_but_no_missed_period() {
        let mut pace = Pace::new(10.0).unwrap();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        assert_eq!(pace.due_at(at(0)), at(0));
        assert_eq!(pace.due_at(at(5)), at(100), "early: waits");
        assert_eq!(pace.due_at(at(230)), at(200), "a little late: at once");
        assert_eq!(pace.due_at(at(230)), at(300), "and the next where it would have been");
        assert_eq!(pace.due_at(at(1000)), at(1000), "much late: begins anew");
        assert_eq!(pace.due_at(at(1000)), at(1100));
    }

    #[test]
    fn a_rate_is_more_than_nothing() {
        for wrong in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY, 1e-30] {
            assert!(Pace::new(wrong).is_err(), "{wrong}");
        }
        assert!(Pace::new(0.5).is_ok());
    }
}
