//! How the process's memory is got from the system and given back.

/// Largest block that is taken out of the heap instead of being mapped by itself: the most that glibc allows.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAP_FROM: std::ffi::c_int = 32 << 20;
/// What may lie free at the end of the heap: a picture, and all that a model makes of it.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_FREE: std::ffi::c_int = 64 << 20;

/// Keeps what a message took for the next one.
///
/// A picture and a model's tensors are blocks of megabytes, taken and given back for every message. glibc maps such blocks by
/// themselves or gives the end of the heap back at once, and then the kernel clears page after page for the next message: a
/// quarter of the time of `preprocess`. It learns from the first blocks that are freed whether to (its thresholds are dynamic),
/// so one start of a process was fast and the next one was not.
/// (<https://man7.org/linux/man-pages/man3/mallopt.3.html>, `M_MMAP_THRESHOLD`, `M_TRIM_THRESHOLD`)
#[cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "mallopt, before any other thread is there")
)]
pub fn keep_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets two numbers of the allocator; neither takes a pointer.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAP_FROM);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_FREE);
    }
}

/// Gives back what the process has free in all its heaps. What loading a model took and freed would stay with the process for good
/// otherwise: the file, and the weights as they were before the engine laid them out for its kernels, more than the session itself.
/// (<https://man7.org/linux/man-pages/man3/malloc_trim.3.html>)
#[cfg_attr(all(target_os = "linux", target_env = "gnu"), expect(unsafe_code, reason = "malloc_trim"))]
pub fn give_back_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes a number, and may be called at any time from any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}
