use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use causeway_schemas::header;

use super::forwarded;
use crate::publish::HEADER_ROOM;
use crate::{Bus, BusError, PublishError, Record, Stored};

/// How long a broker may take none, and the pause before it is asked again.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(100);

impl Bus {
    /// Stores here what another site has, as a relay would have carried it; an outcome that is here already stays as it is.
    pub async fn bring(&self, from: &Self, site: &str, record: Record) -> Result<Stored, BusError> {
        let Record { subject, headers, body, .. } = record;
        let is_long = headers.get(header::BODY).is_some();
        let body = from.body(&headers, body).await?;
        let (mut headers, if_absent) = forwarded(&headers, site);
        if if_absent {
            // The broker may remember that of one that it has lost.
            headers.insert(header::MSG_ID, self.client.new_inbox());
        }
        let began = Instant::now();
        loop {
            let (headers, body) = (headers.clone(), body.clone());
            let stored = if is_long || body.len() + HEADER_ROOM > self.max_payload() {
                self.put(&subject, headers, body, &AtomicU64::new(0)).await
            } else {
                match self.send(&subject, PublishMessage::build().headers(headers).payload(body)).await {
                    Ok(sent) => sent.wait().await,
                    Err(error) => Err(error),
                }
            };
            match stored {
                Err(PublishError::Fenced { .. }) if if_absent => return Ok(Stored::Already),
                Err(PublishError::Full { .. } | PublishError::Contended { .. } | PublishError::Unsure { .. })
                    if began.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                other => {
                    return other.map_err(|error| BusError::request(format!("bring {subject} from {site}"), error));
                }
            }
        }
    }
}
