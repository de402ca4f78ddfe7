//! Latency under an open-loop load.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The middle and the tail of some latencies, ms.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Tail {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Left out at the start: connections and caches are cold.
const WARM_UP: f64 = 0.1;

/// Of latencies in the order of their due times, ms.
pub(crate) fn tail(latencies_ms: &[f64]) -> anyhow::Result<Tail> {
    // µs up to ten minutes, to three digits.
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 600_000_000, 3)?;
    for latency in latencies_ms.iter().skip((latencies_ms.len() as f64 * WARM_UP) as usize) {
        histogram.saturating_record((latency * 1e3) as u64);
    }
    let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Tail { p50: ms(0.50), p99: ms(0.99) })
}
