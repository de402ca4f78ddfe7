//! Generations: which time it is that something is run. 0 the first time; each run anew, retry, reconcile and replay has one of
//! its own, so that what it sends passes every hop's dedupe.

use causeway_bus::{Bus, BusError, names};

/// The key of the last generation that was given out.
const GENERATION: &str = "generation";

/// A generation that nobody had before.
pub(crate) async fn next(bus: &Bus) -> Result<u32, BusError> {
    loop {
        let now = bus.table_get(names::CONTROL, GENERATION).await?;
        let value = now.as_ref().and_then(|entry| std::str::from_utf8(&entry.value).ok()?.parse::<u32>().ok());
        let next = value.unwrap_or(0) + 1;
        let revision = now.map_or(0, |entry| entry.revision);
        if bus.table_swap(names::CONTROL, GENERATION, next.to_string().into(), revision).await?.is_some() {
            return Ok(next);
        }
    }
}
