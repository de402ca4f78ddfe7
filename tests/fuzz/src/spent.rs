#![expect(unsafe_code, reason = "an allocator that counts has to be one")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Most memory that one input may have at once, bytes: a stage has several times as much for a message (`quarantine_bytes`).
pub const MAX_BYTES: usize = 256 << 20;

/// Longest time for one input: on a loaded machine, without optimisation, some ten times what the slowest takes.
pub const MAX_TIME: Duration = Duration::from_secs(5);

/// More than this is not given at all: the machine has to survive what is looked for.
const HARD_LIMIT: usize = 4 << 30;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counting; a program that asks [`Spent`] for memory has it as its global one.
pub struct Counting;

/// What an input took.
#[derive(Debug, Clone, Copy)]
pub struct Spent {
    /// Most bytes of memory at once, beyond what there was before.
    pub bytes: usize,
    /// How long.
    pub time: Duration,
}

impl Spent {
    /// Of a call. Another thread's memory counts too.
    pub(crate) fn of(call: impl FnOnce()) -> Self {
        let before = LIVE.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let began = Instant::now();
        call();
        let time = began.elapsed();
        Self { bytes: PEAK.load(Ordering::Relaxed).saturating_sub(before), time }
    }

    /// # Panics
    /// Where it was too much memory. (Time depends on the machine: who runs it judges.)
    pub fn check_memory(&self) {
        assert!(self.bytes <= MAX_BYTES, "{} bytes of memory at once are more than {MAX_BYTES}", self.bytes);
    }
}

fn add(bytes: usize) -> bool {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
    live <= HARD_LIMIT
}

fn take(bytes: usize) {
    LIVE.fetch_sub(bytes, Ordering::Relaxed);
}

// SAFETY: every call is the system allocator's with the same arguments, or gives null, which says that there is no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if add(layout.size()) { unsafe { System.alloc(layout) } } else { refuse(layout.size()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if add(layout.size()) { unsafe { System.alloc_zeroed(layout) } } else { refuse(layout.size()) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        take(layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !add(size) {
            return refuse(size);
        }
        take(layout.size());
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn refuse(bytes: usize) -> *mut u8 {
    take(bytes);
    std::ptr::null_mut()
}
