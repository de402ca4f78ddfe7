use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use causeway_pipelines::OnFull;

/// Frames between the thread that reads a video and the link: bounded, with a policy for what comes when it is full.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    capacity: usize,
    on_full: OnFull,
}

struct State<T> {
    waiting: VecDeque<T>,
    /// How the source ended: nothing is put any more.
    ended: Option<Result<(), String>>,
    /// Nobody takes any more.
    closed: bool,
    /// Dropped since there was room the last time.
    dropping: u64,
}

/// What became of something that was put.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It waits.
    Kept,
    /// It, or the oldest that waited, was dropped; whether it is the first since there was room.
    Dropped { first: bool },
    /// Nobody takes any more.
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize, on_full: OnFull) -> Self {
        let state = State { waiting: VecDeque::new(), ended: None, closed: false, dropping: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new(), capacity, on_full }
    }

    /// Puts the next one; waits for room where the policy is to block.
    pub(crate) fn put(&self, one: T) -> Put {
        let mut state = self.lock();
        while self.on_full == OnFull::Block && state.waiting.len() >= self.capacity && !state.closed {
            state = self.changed.wait(state).expect("no holder of the queue panics");
        }
        if state.closed {
            return Put::Closed;
        }
        let full = state.waiting.len() >= self.capacity;
        if !full || self.on_full == OnFull::KeepLatest {
            state.waiting.push_back(one);
        }
        if !full {
            self.changed.notify_all();
            return Put::Kept;
        }
        if self.on_full == OnFull::KeepLatest {
            state.waiting.pop_front();
        }
        state.dropping += 1;
        Put::Dropped { first: state.dropping == 1 }
    }

    /// The next one, as soon as there is one; `None` once the source has ended. With it how many were dropped in a time of
    /// want that is over now: the last one that waited was taken.
    pub(crate) fn take(&self) -> Option<(T, Option<u64>)> {
        let mut state = self.lock();
        loop {
            if let Some(one) = state.waiting.pop_front() {
                let is_over = state.waiting.is_empty() && state.dropping > 0;
                let dropped = is_over.then(|| std::mem::take(&mut state.dropping));
                self.changed.notify_all();
                return Some((one, dropped));
            }
            if state.ended.is_some() || state.closed {
                return None;
            }
            state = self.changed.wait(state).expect("no holder of the queue panics");
        }
    }

    /// The source has ended.
    pub(crate) fn end(&self, how: Result<(), String>) {
        self.lock().ended = Some(how);
        self.changed.notify_all();
    }

    /// How it ended; `Ok` while it has not.
    pub(crate) fn ended(&self) -> Result<(), String> {
        self.lock().ended.clone().unwrap_or(Ok(()))
    }

    /// Nobody takes any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits this long, or until nobody takes any more: `false`.
    pub(crate) fn pause(&self, pause: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, pause, |state| !state.closed);
        !waited.expect("no holder of the queue panics").0.closed
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().expect("no holder of the queue panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn filled(on_full: OnFull, puts: u32) -> Queue<u32> {
        let queue = Queue::new(3, on_full);
        for one in 0..puts {
            queue.put(one);
        }
        queue.end(Ok(()));
        queue
    }

    fn rest(queue: &Queue<u32>) -> (Vec<u32>, u64) {
        let taken: Vec<_> = std::iter::from_fn(|| queue.take()).collect();
        (taken.iter().map(|(one, _)| *one).collect(), taken.iter().filter_map(|(_, dropped)| *dropped).sum())
    }

    #[test]
    fn the_policy_says_which_are_dropped() {
        assert_eq!(rest(&filled(OnFull::DropNewest, 6)), (vec![0, 1, 2], 3));
        assert_eq!(rest(&filled(OnFull::KeepLatest, 6)), (vec![3, 4, 5], 3));
        assert_eq!(rest(&filled(OnFull::Block, 3)), (vec![0, 1, 2], 0));
    }

    #[test]
    fn a_time_of_want_is_told_once() {
        let queue = Queue::new(1, OnFull::DropNewest);
        assert_eq!(queue.put(0), Put::Kept);
        assert_eq!(queue.put(1), Put::Dropped { first: true });
        assert_eq!(queue.put(2), Put::Dropped { first: false });
        assert_eq!(queue.take(), Some((0, Some(2))));
        assert_eq!(queue.put(3), Put::Kept);
        assert_eq!(queue.put(4), Put::Dropped { first: true });
    }

    #[test]
    fn who_blocks_goes_on_when_there_is_room_or_nobody_takes() {
        let queue = Arc::new(Queue::new(1, OnFull::Block));
        let putting = Arc::clone(&queue);
        let putter = std::thread::spawn(move || [putting.put(0), putting.put(1), putting.put(2)]);
        assert_eq!(queue.take(), Some((0, None)));
        while queue.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
        queue.close();
        assert_eq!(putter.join().unwrap(), [Put::Kept, Put::Kept, Put::Closed]);
        assert!(!queue.pause(Duration::from_hours(1)));
    }
}
