use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::Line;
use crate::Bus;

/// Pause before a broker that is here is asked again.
const PAUSE: Duration = Duration::from_millis(250);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// One of the two brokers between which something is carried.
#[derive(Clone)]
pub enum End {
    /// That of the relay's own site.
    Here(Box<Bus>),
    /// That of another, a link away.
    Across(Arc<Line>),
}

impl End {
    /// That of the relay's own site.
    pub fn here(bus: &Bus) -> Self {
        Self::Here(Box::new(bus.clone()))
    }

    /// The connection that there is now.
    pub(super) fn bus(&self) -> Bus {
        match self {
            Self::Here(bus) => Bus::clone(bus),
            Self::Across(line) => line.bus(),
        }
    }

    pub(super) fn is_across(&self) -> bool {
        matches!(self, Self::Across(_))
    }

    /// Told when what was asked for is not answered any more: its connection was renewed, or there is another.
    pub(super) fn renewals(&self) -> watch::Receiver<u64> {
        match self {
            Self::Here(bus) => bus.connections(),
            Self::Across(line) => line.renewals(),
        }
    }

    /// Told when there is another connection; `None` where that never happens.
    pub(super) fn replacements(&self) -> Option<watch::Receiver<u64>> {
        self.is_across().then(|| self.renewals())
    }

    /// Comes back when the broker has answered a question.
    pub(super) async fn until_it_answers(&self) {
        match self {
            Self::Here(bus) => {
                while tokio::time::timeout(ANSWER, bus.is_asked()).await.is_err() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::Across(line) => line.until_it_answers().await,
        }
    }
}
