use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{PullConsumer, pull};
use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Message};
use bytes::Bytes;
use causeway_schemas::Id;
use futures::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::bus::error_chain;
use crate::{Bus, BusError, Headers};

/// One delivery of a message. Until it is acked, refused or kept alive it comes again after the ack wait.
pub struct Delivery {
    /// The subject it came on.
    pub subject: String,
    /// Its headers.
    pub headers: Headers,
    /// Its body as it lies in the stream; see `Bus::body` for bodies by reference.
    pub body: Bytes,
    /// Its stream.
    pub stream: String,
    /// Its place there.
    pub sequence: u64,
    /// How often it was delivered, this time included.
    pub delivered: u64,
    acker: Acker,
    /// Its place among those that may be held at once; given back when the delivery is dropped.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Delivery {
    fn new(message: Message, slot: Option<OwnedSemaphorePermit>) -> Option<Self> {
        let (stream, sequence, delivered) = {
            let info = message.info().ok()?;
            (info.stream.to_owned(), info.stream_sequence, info.delivered)
        };
        let (message, acker) = message.split();
        Some(Self {
            subject: message.subject.to_string(),
            headers: Headers(message.headers.unwrap_or_default()),
            body: message.payload,
            stream,
            sequence,
            delivered: u64::try_from(delivered).unwrap_or(1),
            acker,
            _slot: slot,
        })
    }

    /// An id for it: its own, or for a message that carries none the place where it lies.
    pub fn id(&self) -> Id {
        self.headers.id(causeway_schemas::header::ID).unwrap_or_else(|| Id::stored(&self.stream, self.sequence))
    }

    /// Done: it is not delivered again. A lost ack is made up for by the next delivery.
    pub async fn ack(&self) {
        self.answer(AckKind::Ack).await;
    }

    /// Not now: it comes again after `delay`.
    pub async fn retry_after(&self, delay: Duration) {
        self.answer(AckKind::Nak(Some(delay))).await;
    }

    /// Still at it: the ack wait begins anew.
    pub async fn progress(&self) {
        self.answer(AckKind::Progress).await;
    }

    async fn answer(&self, kind: AckKind) {
        if let Err(error) = self.acker.ack_with(kind).await {
            tracing::debug!(error = %error, "ack not sent; the message comes again");
        }
    }
}

/// How much is asked for at once.
#[derive(Debug, Clone, Copy)]
struct PullBounds {
    /// How long a pull waits on the server.
    expires: Duration,
    /// The server says it is alive this often; two missing renew the pull.
    heartbeat: Duration,
}

impl PullBounds {
    /// For stages whose replicas share a durable.
    const SHARED: Self = Self { expires: Duration::from_secs(10), heartbeat: Duration::from_secs(1) };
    /// For the one writer of a fold: its pin outlives the pull (see `layout::PIN_TIMEOUT`).
    const PINNED: Self = Self { expires: Duration::from_secs(1), heartbeat: Duration::from_millis(400) };
}

/// Messages out of a durable. A pull that stalls is renewed; the durable itself is never touched.
pub struct Pull {
    bus: Bus,
    stream: String,
    durable: String,
    /// The priority group of a durable with one pinned taker.
    group: Option<&'static str>,
    bounds: PullBounds,
    /// Half of what may be held: one half is worked on while the other is pulled.
    half: u32,
    slots: Arc<Semaphore>,
    /// Slots of the open batch that no message has come for yet.
    spare: Option<OwnedSemaphorePermit>,
    consumer: Option<PullConsumer>,
    open: Option<Open>,
}

/// A pull that is under way.
enum Open {
    Batch(pull::Batch),
    Pinned(pull::Stream),
}

/// Pause before a pull that failed is made again.
const RENEW_PAUSE: Duration = Duration::from_millis(200);

/// Messages of one pull of a pinned durable; what is held in all is bounded by its `max_ack_pending`.
const PINNED_BATCH: usize = 64;

/// The one priority group that a fold's durable has.
pub(crate) const WRITER_GROUP: &str = "writer";

impl Pull {
    /// Pulls out of a durable that is shared by all replicas; `held` is the most messages that are out at once, so that none
    /// waits in a buffer where nobody keeps it alive.
    pub fn shared(bus: &Bus, stream: &str, durable: &str, held: usize) -> Self {
        Self::new(bus, stream, durable, None, held)
    }

    /// Pulls out of a durable that gives to one taker at a time; others stand by. How many are out at once is bounded by the
    /// durable itself.
    pub fn pinned(bus: &Bus, stream: &str, durable: &str) -> Self {
        Self::new(bus, stream, durable, Some(WRITER_GROUP), 2)
    }

    fn new(bus: &Bus, stream: &str, durable: &str, group: Option<&'static str>, held: usize) -> Self {
        let half = u32::try_from(held.div_ceil(2)).unwrap_or(u32::MAX).max(1);
        Self {
            bus: bus.clone(),
            stream: stream.into(),
            durable: durable.into(),
            group,
            bounds: if group.is_some() { PullBounds::PINNED } else { PullBounds::SHARED },
            half,
            slots: Arc::new(Semaphore::new(2 * half as usize)),
            spare: None,
            consumer: None,
            open: None,
        }
    }

    /// The next delivery; waits as long as it takes. Cancel-safe: what was taken from the server is not dropped.
    pub async fn next(&mut self) -> Delivery {
        loop {
            match self.poll_once().await {
                Ok(Some(delivery)) => return delivery,
                Ok(None) => {}
                Err(why) => {
                    tracing::debug!(stream = self.stream, durable = self.durable, why, "pull renewed");
                    self.open = None;
                    self.consumer = None;
                    tokio::time::sleep(RENEW_PAUSE).await;
                }
            }
        }
    }

    async fn poll_once(&mut self) -> Result<Option<Delivery>, String> {
        if self.open.is_none() {
            self.open = Some(self.pull().await?);
        }
        let message = match self.open.as_mut().ok_or("no pull")? {
            Open::Batch(batch) => batch.next().await.map(|next| next.map_err(|error| error_chain(error.as_ref()))),
            Open::Pinned(stream) => stream.next().await.map(|next| next.map_err(|error| error_chain(&error))),
        };
        let Some(message) = message else {
            // The pull is used up or has expired: the next one is made at once.
            self.open = None;
            return Ok(None);
        };
        let slot = self.spare.as_mut().and_then(|spare| spare.split(1));
        Ok(Delivery::new(message?, slot))
    }

    async fn pull(&mut self) -> Result<Open, String> {
        let (bounds, group, half) = (self.bounds, self.group, self.half);
        if group.is_none() {
            let missing = half - self.spare.as_ref().map_or(0, |spare| spare.num_permits() as u32);
            let slots = Arc::clone(&self.slots).acquire_many_owned(missing).await.map_err(|error| error.to_string())?;
            match &mut self.spare {
                Some(spare) => spare.merge(slots),
                none => *none = Some(slots),
            }
        }
        let consumer = self.consumer().await?;
        if let Some(group) = group {
            let stream = consumer.stream().group(group).max_messages_per_batch(PINNED_BATCH);
            let stream = stream.expires(bounds.expires).heartbeat(bounds.heartbeat).messages().await;
            return Ok(Open::Pinned(stream.map_err(|error| error_chain(&error))?));
        }
        let batch = consumer.batch().max_messages(half as usize).expires(bounds.expires).heartbeat(bounds.heartbeat);
        Ok(Open::Batch(batch.messages().await.map_err(|error| error_chain(&error))?))
    }

    async fn consumer(&mut self) -> Result<&PullConsumer, String> {
        if self.consumer.is_none() {
            let consumer = self.bus.js.get_consumer_from_stream(&self.durable, &self.stream).await;
            self.consumer = Some(consumer.map_err(|error| error_chain(&error))?);
        }
        self.consumer.as_ref().ok_or_else(|| "no consumer".into())
    }

    /// Whether the durable is there to pull from.
    pub async fn check(&mut self) -> Result<(), BusError> {
        let (stream, durable) = (self.stream.clone(), self.durable.clone());
        let what = format!("pull `{durable}` from the stream {stream} (run `causeway apply`)");
        self.consumer().await.map(|_| ()).map_err(|why| BusError::request(what, why))
    }
}
