use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Count, Status};

/// Where a source says how it fares between two items; `causeway status` and `/metrics` show it.
#[derive(Clone, Default)]
pub struct Reporter(Option<Arc<Status>>);

/// Longer than any wait: what a source waits for is told until it goes on.
const UNTIL_IT_GOES_ON: Duration = Duration::from_hours(365 * 24);

impl Reporter {
    pub(crate) fn of(status: &Arc<Status>) -> Self {
        Self(Some(Arc::clone(status)))
    }

    /// Items were dropped for want of room.
    pub fn dropped(&self, items: u64) {
        if let Some(status) = &self.0 {
            status.count(Count::Dropped, items);
        }
    }

    /// There are no items for now, for this reason: completes "waiting: ".
    pub fn waits(&self, why: &str) {
        if let Some(status) = &self.0 {
            status.waits(why, UNTIL_IT_GOES_ON);
        }
    }

    /// There are items again.
    pub fn goes_on(&self) {
        if let Some(status) = &self.0 {
            status.goes_on();
        }
    }
}
