use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::message::Acker;
use async_nats::jetstream::{AckKind, Message};
use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use causeway_schemas::Id;
use futures::StreamExt as _;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

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
    /// When the broker stored it, by its clock, Unix time in ns.
    pub stored_at: u64,
    /// How many wait behind it.
    pub pending: u64,
    acker: Acker,
    /// Where its acks go.
    reply: Option<async_nats::Subject>,
    /// Its place among those that may be held at once; given back when the delivery is dropped.
    _slot: Option<OwnedSemaphorePermit>,
}

impl Delivery {
    fn new(message: Message, slot: Option<OwnedSemaphorePermit>) -> Option<Self> {
        let (stream, sequence, delivered, stored_at, pending) = {
            let info = message.info().ok()?;
            let stored_at = info.published.unix_timestamp_nanos();
            let stored_at = u64::try_from(stored_at).unwrap_or(0);
            (info.stream.to_owned(), info.stream_sequence, info.delivered, stored_at, info.pending)
        };
        let reply = message.reply.clone();
        let (message, acker) = message.split();
        Some(Self {
            subject: message.subject.to_string(),
            headers: Headers(message.headers.unwrap_or_default()),
            body: message.payload,
            stream,
            sequence,
            delivered: u64::try_from(delivered).unwrap_or(1),
            stored_at,
            pending,
            acker,
            reply,
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

    /// The same, and waits until the broker has said that it knows.
    pub(crate) async fn ack_surely(&self, bus: &Bus) {
        let Some(reply) = &self.reply else { return };
        // Where it was said to a broker that has died: the next one knows the delivery, and would repeat it after the ack wait.
        if let Err(error) = bus.asked(|| bus.client.request(reply.clone(), ACK.into())).await {
            tracing::debug!(error = %error, "ack not confirmed; the message may come again");
        }
    }

    /// Not now: it comes again after `delay`.
    pub async fn retry_after(&self, delay: Duration) {
        self.answer(AckKind::Nak(Some(delay))).await;
    }

    /// Still at it: the ack wait begins anew.
    pub async fn progress(&self) {
        self.answer(AckKind::Progress).await;
    }

    /// The same, said over another connection than the one that it came on.
    pub(crate) async fn progress_on(&self, bus: &Bus) {
        let Some(reply) = self.reply.clone() else { return };
        if let Err(error) = bus.client.publish(reply, PROGRESS.into()).await {
            tracing::debug!(error = %error, "progress not said; the message may come again");
        }
    }

    async fn answer(&self, kind: AckKind) {
        if let Err(error) = self.acker.ack_with(kind).await {
            tracing::debug!(error = %error, "ack not sent; the message comes again");
        }
    }
}

/// An ack, and a word that it is being worked on, in the protocol.
const ACK: &str = "+ACK";
const PROGRESS: &str = "+WPI";

/// How a pull waits.
#[derive(Debug, Clone, Copy)]
struct PullBounds {
    /// How long it waits on the server.
    expires: Duration,
    /// The server says this often that the pull is alive; nothing for two of these renews it.
    heartbeat: Duration,
}

impl PullBounds {
    /// For stages whose replicas share a durable.
    const SHARED: Self = Self { expires: Duration::from_secs(10), heartbeat: Duration::from_secs(1) };
    /// For the one writer of a fold: its pin outlives the pull (see `layout::PIN_TIMEOUT`).
    const PINNED: Self = Self { expires: Duration::from_secs(1), heartbeat: Duration::from_millis(400) };
}

/// Messages out of a durable. A pull that stalls is renewed, at once when the connection was; the durable itself is never
/// touched.
///
/// Written against the protocol rather than with the client's `batch()`, which loses its wake-up at every idle heartbeat and
/// then waits until the pull expires, and asks for more than its caller has room for.
/// (<https://docs.nats.io/reference/reference-protocols/nats_api_reference>, `$JS.API.CONSUMER.MSG.NEXT`)
pub struct Pull {
    bus: Bus,
    stream: String,
    durable: String,
    /// The priority group of a durable with one pinned taker, and the pin that the server gave.
    group: Option<&'static str>,
    pin: Option<String>,
    bounds: PullBounds,
    /// How long one message may take to come in.
    slowest: Duration,
    /// Most bytes that a request brings, and whether the next message is longer than that: it comes alone.
    bytes: Option<u64>,
    is_longer: bool,
    /// Half of what may be held: one half is worked on while the other is pulled.
    half: u32,
    slots: Arc<Semaphore>,
    /// Slots that are to be taken away as they come free.
    surplus: usize,
    /// Slots that no message has come for yet.
    spare: Option<OwnedSemaphorePermit>,
    open: Option<Open>,
    connections: watch::Receiver<u64>,
}

/// Where the messages of a pull come in. A renewed pull has another one, so that the server forgets the old.
struct Open {
    inbox: String,
    messages: Subscriber,
    /// How many messages the request under way may still bring.
    left: u32,
    /// Whether it has brought any.
    came: bool,
}

/// The body of a pull request.
#[derive(Serialize)]
struct Request<'a> {
    batch: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<u64>,
    /// ns
    expires: u64,
    /// ns
    idle_heartbeat: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

/// What the server says when a request is used up, across accounts (nats-server 2.15.1).
const COMPLETED: &str = "Batch Completed";
/// What the server says where the next message has more bytes than are left of those that were asked for.
const MAX_BYTES: &str = "MaxBytes";

/// Pause before a pull that failed is made again.
const RENEW_PAUSE: Duration = Duration::from_millis(200);

/// The one priority group that a fold's durable has.
pub(crate) const WRITER_GROUP: &str = "writer";

/// With it the server names the pin of the taker that it has chosen.
const PIN_ID: &str = "Nats-Pin-Id";

impl Pull {
    /// Pulls out of a durable that is shared by all replicas; `held` is the most messages that are out at once, so that none
    /// waits in a buffer where nobody keeps it alive.
    pub fn shared(bus: &Bus, stream: &str, durable: &str, held: usize) -> Self {
        Self::new(bus, stream, durable, None, held)
    }

    /// Pulls out of a durable that gives to one taker at a time; others stand by.
    pub fn pinned(bus: &Bus, stream: &str, durable: &str, held: usize) -> Self {
        Self::new(bus, stream, durable, Some(WRITER_GROUP), held)
    }

    fn new(bus: &Bus, stream: &str, durable: &str, group: Option<&'static str>, held: usize) -> Self {
        let half = half_of(held);
        Self {
            bus: bus.clone(),
            stream: stream.into(),
            durable: durable.into(),
            group,
            pin: None,
            bounds: if group.is_some() { PullBounds::PINNED } else { PullBounds::SHARED },
            slowest: Duration::ZERO,
            bytes: None,
            is_longer: false,
            half,
            slots: Arc::new(Semaphore::new(2 * half as usize)),
            surplus: 0,
            spare: None,
            open: None,
            connections: bus.connections(),
        }
    }

    /// So many bytes at once too, so that many long messages are not all out together.
    #[must_use]
    pub fn of_bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes / 2);
        self
    }

    /// Over a link on which one message may take so long, during which nothing else is heard.
    #[must_use]
    pub(crate) fn over_slow(mut self, slowest: Duration) -> Self {
        self.slowest = slowest;
        self
    }

    /// Another number of messages that may be out at once. Those that are out stay so.
    pub fn set_held(&mut self, held: usize) {
        let half = half_of(held);
        let (now, wanted) = (2 * self.half as usize, 2 * half as usize);
        self.half = half;
        if wanted < now {
            self.surplus += now - wanted;
        } else {
            let kept = self.surplus.min(wanted - now);
            self.surplus -= kept;
            self.slots.add_permits(wanted - now - kept);
        }
    }

    /// The next delivery; waits as long as it takes. Cancel-safe: what was taken from the server is not dropped.
    pub async fn next(&mut self) -> Delivery {
        loop {
            match self.next_or_why().await {
                Ok(delivery) => return delivery,
                Err(why) => self.rest(&why).await,
            }
        }
    }

    /// The same, or why it has to be made anew, which the next call does.
    pub(crate) async fn next_or_why(&mut self) -> Result<Delivery, String> {
        loop {
            match self.poll_once().await {
                Ok(Some(delivery)) => return Ok(delivery),
                Ok(None) => {}
                Err(why) => {
                    tracing::debug!(stream = self.stream, durable = self.durable, why, "pull renewed");
                    self.open = None;
                    return Err(why);
                }
            }
        }
    }

    /// A pause before it is made anew, where something failed.
    pub(crate) async fn rest(&self, why: &str) {
        if why != RECONNECTED {
            tokio::time::sleep(RENEW_PAUSE).await;
        }
    }

    async fn poll_once(&mut self) -> Result<Option<Delivery>, String> {
        self.request().await?;
        let open = self.open.as_mut().ok_or("no pull")?;
        let silence = 2 * self.bounds.heartbeat;
        let (mut heard, mut left) = (self.bus.received(), self.slowest);
        let message = loop {
            tokio::select! {
                biased;
                message = open.messages.next() => break message.ok_or("the subscription ended")?,
                _ = self.connections.changed() => return Err(RECONNECTED.into()),
                () = tokio::time::sleep(silence) => {
                    // Something comes in: it may be the beginning of a long message.
                    let now = self.bus.received();
                    if now == std::mem::replace(&mut heard, now) || left.is_zero() {
                        return Err("no heartbeat".into());
                    }
                    left = left.saturating_sub(silence);
                }
            }
        };
        match message.status {
            None | Some(StatusCode::OK) => {
                open.left = open.left.saturating_sub(1);
                open.came = true;
                self.is_longer = false;
                let pin = message.headers.as_ref().and_then(|headers| headers.get(PIN_ID));
                if let Some(pin) = pin.filter(|_| self.group.is_some()) {
                    self.pin = Some(pin.as_str().into());
                }
                let slot = self.spare.as_mut().and_then(|spare| spare.split(1));
                Ok(Delivery::new(Message { message, context: self.bus.js.clone() }, slot))
            }
            Some(StatusCode::IDLE_HEARTBEAT) => Ok(None),
            // The request is used up or has expired: the next one is made at once.
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                open.left = 0;
                Ok(None)
            }
            Some(StatusCode::PIN_ID_MISMATCH) => {
                self.pin = None;
                open.left = 0;
                Ok(None)
            }
            // Said behind the last message to who has an account of his own. That it was the last is known by then, and more was asked for.
            Some(_) if message.description.as_deref().is_some_and(|why| why.contains(COMPLETED)) => Ok(None),
            // As many bytes as were asked for, or the next one has more.
            Some(_) if message.description.as_deref().is_some_and(|why| why.contains(MAX_BYTES)) => {
                self.is_longer = !open.came;
                open.left = 0;
                Ok(None)
            }
            Some(status) => Err(format!("{status}: {}", message.description.as_deref().unwrap_or("no description"))),
        }
    }

    /// Asks for as many messages as half of what may be held, once there is room for them, unless a request is under way.
    async fn request(&mut self) -> Result<(), String> {
        if self.open.as_ref().is_some_and(|open| open.left > 0) {
            return Ok(());
        }
        let spare = self.spare.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let above = spare.saturating_sub(self.half as usize);
        if above > 0 {
            drop(self.spare.as_mut().and_then(|spare| spare.split(above)));
        }
        self.surplus -= self.slots.forget_permits(self.surplus);
        let missing = self.half.saturating_sub(spare as u32);
        let slots = Arc::clone(&self.slots).acquire_many_owned(missing).await.map_err(|error| error.to_string())?;
        match &mut self.spare {
            Some(spare) => spare.merge(slots),
            none => *none = Some(slots),
        }
        if self.open.is_none() {
            // Who has an account of his own is not told that there is nobody to pull from.
            self.check().await.map_err(|error| error.to_string())?;
            let inbox = self.bus.client.new_inbox();
            let messages = self.bus.client.subscribe(inbox.clone()).await.map_err(|error| error_chain(&error))?;
            self.connections.mark_unchanged();
            self.open = Some(Open { inbox, messages, left: 0, came: false });
        }
        let request = Request {
            batch: if self.is_longer { 1 } else { self.half },
            max_bytes: self.bytes.filter(|_| !self.is_longer),
            expires: self.bounds.expires.as_nanos() as u64,
            idle_heartbeat: self.bounds.heartbeat.as_nanos() as u64,
            group: self.group,
            id: self.pin.as_deref(),
        };
        let body = serde_json::to_vec(&request).map_err(|error| error.to_string())?;
        let open = self.open.as_mut().ok_or("no pull")?;
        (open.left, open.came) = (request.batch, false);
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{}", self.stream, self.durable);
        let sent = self.bus.client.publish_with_reply(subject, open.inbox.clone(), body.into()).await;
        sent.map_err(|error| error_chain(&error))
    }

    /// Whether the durable is there to pull from.
    pub async fn check(&self) -> Result<(), BusError> {
        if self.bus.durable_state(&self.stream, &self.durable).await?.is_some() {
            return Ok(());
        }
        let what = format!("pull `{}` from the stream {}", self.durable, self.stream);
        Err(BusError::request(what, "there is no such durable; run `causeway apply`"))
    }
}

fn half_of(held: usize) -> u32 {
    u32::try_from(held.div_ceil(2)).unwrap_or(u32::MAX).max(1)
}

/// Why a pull is renewed after the connection was: nothing failed, so nothing is waited for.
const RECONNECTED: &str = "reconnected";
