use std::time::{Duration, Instant};

use causeway_schemas::header;

use super::forwarded;
use crate::{Bus, BusError, PublishError, Record, Stored};

/// How long a broker may take none, and the pause before it is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

impl Bus {
    /// Stores here what another site has, as a relay would have carried it; an outcome that is here already stays as it is.
    pub async fn bring(&self, from: &Self, site: &str, record: Record) -> Result<Stored, BusError> {
        let Record { subject, headers, body, .. } = record;
        // The name of the body that goes along is of one that is here.
        let by_reference = headers.get(header::BODY).is_some();
        let body = from.body(&headers, body).await?;
        let (mut headers, if_absent) = forwarded(&headers, site);
        if if_absent {
            // The broker may remember that of one that it has lost.
            headers.insert(header::MSG_ID, self.client.new_inbox());
        }
        let began = Instant::now();
        loop {
            match self.publish_with(&subject, headers.clone(), body.clone(), if_absent, by_reference).await {
                Err(PublishError::Full { .. } | PublishError::Contended { .. } | PublishError::Unsure { .. })
                    if began.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                stored => {
                    return stored.map_err(|error| BusError::request(format!("bring {subject} from {site}"), error));
                }
            }
        }
    }
}
