use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// Fewest and most bytes that are on the way: enough for any link to begin with, little enough for a small box.
const BYTES: (f64, f64) = (32_768.0, 4_194_304.0);
/// What a far answer may take beyond the shortest there was, where only the rate matters, and where what is new goes first.
const QUEUE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(10));
/// Of the shortest, when what is new goes first: how much longer it may get.
const LONGER: f64 = 0.25;
/// The shortest of so long counts: a way may get longer.
const REMEMBERED: Duration = Duration::from_secs(30);
/// How fast the window grows by what is answered: at first, and once it was too large.
const GROWTH: (f64, f64) = (1.0, 0.125);
/// How fast it shrinks by what is answered too late.
const SHRINKAGE: f64 = 0.5;
/// Weight of an answer in the mean rate.
const WEIGHT: f64 = 0.1;
/// A link that is up carries this much, bytes a second.
pub(super) const LEAST_RATE: f64 = 8192.0;
/// How much slower a link may have become that was taken for dead.
const SLOWER: f64 = 4.0;
/// How long nothing at all may be answered, beyond the time that what is on the way takes.
const SILENCE: Duration = Duration::from_secs(2);

/// How much may be on its way: as much as the link takes, and no more than that in its queues. The delay of the answers tells, as in
/// LEDBAT (RFC 6817): what is sent beyond the link's rate only waits, and what is new waits behind it.
#[derive(Debug)]
pub(super) struct Window {
    bytes: f64,
    on_the_way: u64,
    growth: f64,
    /// The shortest answers, each shorter than those after it, with their times.
    shortest: VecDeque<(Instant, Duration)>,
    /// Bytes a second.
    rate: f64,
    last_answer: Instant,
}

impl Window {
    pub(super) fn new() -> Self {
        Self {
            bytes: 2.0 * BYTES.0,
            on_the_way: 0,
            growth: GROWTH.0,
            shortest: VecDeque::new(),
            rate: 0.0,
            last_answer: Instant::now(),
        }
    }

    /// Whether so many bytes more may go; one message always may.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.on_the_way == 0 || (self.on_the_way + bytes) as f64 <= self.bytes
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        if self.on_the_way == 0 {
            self.last_answer = Instant::now();
        }
        self.on_the_way += bytes;
    }

    /// What was sent has failed, or nobody waits for it any more.
    pub(super) fn gone(&mut self, bytes: u64) {
        self.on_the_way = self.on_the_way.saturating_sub(bytes);
    }

    /// It was stored, so long after it was sent; `is_new_first`: it matters how long what is new waits.
    pub(super) fn answered(&mut self, bytes: u64, took: Duration, is_new_first: bool) {
        let now = Instant::now();
        let was_full = (self.on_the_way + bytes) as f64 * 2.0 > self.bytes;
        self.gone(bytes);
        let since = (now - self.last_answer).as_secs_f64();
        self.last_answer = now;
        if since > 0.0 {
            // Answers come in flocks: a mean over time and not over answers.
            let share = 1.0 - (-since / took.as_secs_f64().max(1e-3) * WEIGHT).exp();
            self.rate += (bytes as f64 / since - self.rate) * share;
        }
        while self.shortest.back().is_some_and(|(_, longer)| *longer >= took) {
            self.shortest.pop_back();
        }
        self.shortest.push_back((now, took));
        while self.shortest.front().is_some_and(|(at, _)| now - *at > REMEMBERED) {
            self.shortest.pop_front();
        }
        let base = self.shortest.front().map_or(took, |(_, shortest)| *shortest);
        let may_take = base + if is_new_first { QUEUE.1 + base.mul_f64(LONGER) } else { QUEUE.0 };
        if took > may_take {
            self.growth = GROWTH.1;
            self.bytes = (self.bytes - bytes as f64 * SHRINKAGE).max(BYTES.0);
        } else if was_full {
            self.bytes = (self.bytes + bytes as f64 * self.growth).min(BYTES.1);
        }
    }

    /// When the link has said nothing for so long that it is taken for dead, while it owes answers.
    pub(super) fn dead_at(&self) -> Option<Instant> {
        let queue = self.on_the_way as f64 / self.rate.max(LEAST_RATE);
        (self.on_the_way > 0).then(|| self.last_answer + SILENCE + Duration::from_secs_f64(queue))
    }

    /// It takes no more for now: little is tried until it does.
    pub(super) fn refused(&mut self) {
        (self.bytes, self.growth) = (BYTES.0, GROWTH.1);
    }

    /// It was not asked for anything for a while.
    pub(super) fn goes_on(&mut self) {
        self.last_answer = Instant::now();
    }

    /// It was taken for dead. What it carried is no measure of what it will: next time it has more time.
    pub(super) fn begin_anew(&mut self) {
        *self = Self { on_the_way: self.on_the_way, rate: self.rate / SLOWER, ..Self::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link with a queue of its own, to which everything is sent that may be; gives the share of its rate that was used and the
    /// mean time in its queue, after it has settled.
    async fn drive(rate: f64, delay: Duration, size: u64, is_new_first: bool) -> (f64, Duration) {
        let mut window = Window::new();
        let mut under_way: VecDeque<(Instant, Instant, Instant)> = VecDeque::new();
        let began = Instant::now();
        let (settled, ends) = (began + Duration::from_secs(20), began + Duration::from_mins(1));
        let mut free = began;
        let (mut carried, mut waited, mut counted) = (0, Duration::ZERO, 0_u32);
        while Instant::now() < ends {
            while window.has_room(size) {
                let now = Instant::now();
                let begins = free.max(now);
                free = begins + Duration::from_secs_f64(size as f64 / rate);
                under_way.push_back((now, begins, free + delay));
                window.sent(size);
            }
            let (sent, begins, answered) = under_way.pop_front().expect("one may always go");
            tokio::time::sleep_until(answered).await;
            window.answered(size, answered - sent, is_new_first);
            if answered > settled {
                carried += size;
                waited += begins - sent;
                counted += 1;
            }
        }
        (carried as f64 / (rate * 40.0), waited / counted.max(1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_is_full_and_its_queue_is_not() {
        for (rate, delay) in [(125e3, 20), (2.5e6, 20), (2.5e6, 200), (12.5e6, 50)] {
            let delay = Duration::from_millis(delay);
            let (used, waited) = drive(rate, delay, 2000, false).await;
            assert!(used > 0.95 && waited < Duration::from_millis(1300), "{rate} {delay:?}: {used} {waited:?}");
            let (used, waited) = drive(rate, delay, 2000, true).await;
            let most = Duration::from_millis(20) + delay.mul_f64(0.4) + Duration::from_secs_f64(BYTES.0 / rate);
            assert!(used > 0.85 && waited < most, "new first, {rate} {delay:?}: {used} {waited:?}, at most {most:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_death_only_after_what_is_on_the_way_had_its_time() {
        let mut window = Window::new();
        assert_eq!(window.dead_at(), None, "nothing is owed");
        window.sent(8 << 20);
        let patience = window.dead_at().expect("something is owed") - Instant::now();
        assert!(patience > Duration::from_secs(1000), "{patience:?}: at first any link may be slow");
        window.gone(8 << 20);
        for _ in 0..1000 {
            window.sent(10_000);
            tokio::time::sleep(Duration::from_millis(10)).await;
            window.answered(10_000, Duration::from_millis(10), false);
        }
        window.sent(100_000);
        let patience = window.dead_at().expect("something is owed") - Instant::now();
        assert!((2050..2200).contains(&patience.as_millis()), "{patience:?} at 1 MB/s");
    }
}
