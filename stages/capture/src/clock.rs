/// When a frame of something live was captured: the arrival of frames is shaken by the network, by `ffmpeg` and by waiting, their
/// timestamps are not. So a frame's time is its timestamp, laid on the machine's clock by the frame that was fastest.
///
/// The camera's clock may run differently from the machine's, so the fastest frame counts less as it gets older.
#[derive(Default)]
pub(crate) struct CameraClock {
    /// Machine's clock less timestamp, ns, of the fastest frame.
    offset: Option<i128>,
    /// The last frame's timestamp and time, ns.
    last: Option<(u64, u64)>,
}

/// How much a camera's clock may run ahead of or behind the machine's: one part in a thousand, ten times what quartz does.
const DRIFT: i128 = 1000;

impl CameraClock {
    /// The time of the frame with the timestamp `pts_ns` that arrives at `now_ns`; later than that of the one before it, and
    /// never after its arrival.
    pub(crate) fn at(&mut self, pts_ns: u64, now_ns: u64) -> u64 {
        let seen = i128::from(now_ns) - i128::from(pts_ns);
        let passed = self.last.map_or(0, |(pts, _)| i128::from(pts_ns.saturating_sub(pts)));
        let offset = self.offset.map_or(seen, |offset| seen.min(offset + passed / DRIFT));
        self.offset = Some(offset);
        let at = u64::try_from(offset + i128::from(pts_ns)).unwrap_or(0).min(now_ns);
        let at = self.last.map_or(at, |(_, last)| at.max(last + 1));
        self.last = Some((pts_ns, at));
        at
    }

    /// The timestamps begin anew; time does not.
    pub(crate) fn begin_anew(&mut self) {
        self.offset = None;
        self.last = self.last.map(|(_, at)| (0, at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn a_late_frame_has_the_time_it_was_captured() {
        let mut clock = CameraClock::default();
        let mut at = |pts: u64, now: u64| clock.at(pts * MS, now * MS) as f64 / MS as f64;
        assert!((at(0, 1000) - 1000.0).abs() < 1.0);
        // 300 ms late.
        assert!((at(40, 1340) - 1040.0).abs() < 1.0);
        assert!((at(80, 1341) - 1080.0).abs() < 1.0);
        // The first one was slow after all: from here on all are earlier.
        assert!((at(400, 1200) - 1200.0).abs() < 1.0);
        assert!((at(440, 1500) - 1240.0).abs() < 1.0);
    }

    #[test]
    fn time_goes_on_and_never_past_the_arrival() {
        let mut clock = CameraClock::default();
        let mut last = 0;
        for (pts, now) in [(0, 100), (40, 141), (80, 150), (120, 150), (0, 151), (40, 400)] {
            if pts == 0 {
                clock.begin_anew();
            }
            let at = clock.at(pts * MS, now * MS);
            assert!(at > last && at <= now * MS + 2, "{at} after {last}");
            last = at;
        }
    }
}
