use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use async_nats::HeaderMap;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{PublishAckFuture, PublishError as JsPublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use causeway_schemas::header;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::watch;

use crate::bus::{RENEWED, error_chain};
use crate::{Bus, names};

/// A message to be stored.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where to.
    pub subject: String,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: Bytes,
    /// Only if nothing is stored under this subject yet: an outcome.
    pub if_absent: bool,
}

/// How a message came to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// As this message of the stream.
    At(u64),
    /// It was there already: the same id inside the dedupe window, or the same subject of an outcome.
    Already,
}

/// Why a message was not stored, and so what to do.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The stream is at its limit: wait and try again.
    #[error("cannot store on {subject}: its stream is full")]
    Full {
        /// Where to.
        subject: String,
    },
    /// No stream takes the subject: `apply` was not run, or for another pipeline.
    #[error("cannot store on {subject}: no stream takes it; run `causeway apply`")]
    NoStream {
        /// Where to.
        subject: String,
    },
    /// Another writer appended first.
    #[error("cannot append to {subject}: another writer has")]
    Fenced {
        /// Where to.
        subject: String,
    },
    /// Another message on its subject is being stored: whether that one is there is not known yet. Try again.
    #[error("cannot store on {subject}: another message there is under way")]
    Contended {
        /// Where to.
        subject: String,
    },
    /// The broker does not take it as it is.
    #[error("cannot store on {subject}: the broker refuses it: {why}")]
    Refused {
        /// Where to.
        subject: String,
        /// What the broker or the client said.
        why: String,
    },
    /// No answer, or another error: it may or may not be stored; try again with the same id.
    #[error("cannot tell whether {subject} was stored: {why}")]
    Unsure {
        /// Where to.
        subject: String,
        /// What the client said.
        why: String,
    },
}

/// The kind of a changelog's entries.
pub const CHANGE: &str = "change.v1";

/// Room for headers beside a body, bytes.
pub(crate) const HEADER_ROOM: usize = 8 << 10;

/// What the server answers where there is no room: a stream with `discard = new` that is full (10077: maximum bytes exceeded, maximum
/// messages exceeded), an account or a server whose storage is used up (10002, 10023, 10047).
const STORE_FAILED: [u64; 4] = [10077, 10002, 10023, 10047];

impl Bus {
    /// Stores a message and waits for the ack. A body that is too long for a message goes to the object store first.
    pub async fn publish(&self, outgoing: &Outgoing) -> Result<Stored, PublishError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &outgoing.headers {
            headers.insert(*name, value.as_str());
        }
        if outgoing.if_absent {
            headers.insert(async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, "0");
        }
        // A message that names its body as it is has it in the object store already, or nowhere.
        self.publish_with(&outgoing.subject, headers, outgoing.body.clone(), outgoing.if_absent, false).await
    }

    /// The same of a message with all its headers; `if_absent`: one of them says so. With `by_reference` its body goes to the object
    /// store however short it is.
    pub(crate) async fn publish_with(
        &self,
        subject: &str,
        headers: HeaderMap,
        body: Bytes,
        if_absent: bool,
        by_reference: bool,
    ) -> Result<Stored, PublishError> {
        let is_long = by_reference || body.len() + HEADER_ROOM > self.max_payload();
        let stored = if is_long {
            self.put(subject, headers, body, &AtomicU64::new(0)).await
        } else {
            let message = PublishMessage::build().headers(headers).payload(body);
            self.send(subject, message).await?.wait().await
        };
        match stored {
            Err(PublishError::Fenced { .. }) if if_absent => Ok(Stored::Already),
            other => other,
        }
    }

    /// Appends bodies, each with its kind, to a stream of one subject whose last sequence is `last`, each naming the one before it.
    /// Gives the new last.
    ///
    /// They are sent one after the other and their acks are waited for together: futures that are polled at once would send
    /// in the order in which they are woken, and the server would refuse what overtakes.
    pub(crate) async fn append_all(
        &self,
        subject: &str,
        last: u64,
        bodies: Vec<(&'static str, Bytes)>,
    ) -> Result<u64, PublishError> {
        let mut acks = Vec::with_capacity(bodies.len());
        // By its number alone one behind the first would be taken where somebody else has appended as many as are before it.
        let (run, all) = (self.client.new_inbox(), bodies.len());
        for (place, (kind, body)) in bodies.into_iter().enumerate() {
            let mut message = PublishMessage::build().header(header::KIND, kind).payload(body);
            message = message.expected_last_sequence(last + place as u64);
            if place > 0 {
                message = message.expected_last_message_id(format!("{run}.{}", place - 1));
            }
            if place + 1 < all {
                message = message.message_id(format!("{run}.{place}"));
            }
            acks.push(self.send(subject, message).await?);
        }
        let mut stored = last;
        for ack in acks {
            match ack.wait().await {
                Ok(Stored::At(sequence)) => stored = sequence,
                Ok(Stored::Already) | Err(PublishError::Contended { .. }) => {
                    return Err(PublishError::Fenced { subject: subject.into() });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(stored)
    }

    /// Stores a body in the object store, then a message that names it; `read` grows with what has been stored of it.
    pub(crate) async fn put(
        &self,
        subject: &str,
        mut headers: HeaderMap,
        body: Bytes,
        read: &AtomicU64,
    ) -> Result<Stored, PublishError> {
        let mut connections = self.connections();
        let reference = tokio::select! {
            biased;
            reference = self.put_object(subject, &body, read) => reference?,
            // What was asked on the old connection is not answered.
            _ = connections.changed() => {
                let why = RENEWED.into();
                return Err(PublishError::Unsure { subject: subject.into(), why });
            }
        };
        headers.insert(header::BODY, reference.as_str());
        let message = PublishMessage::build().headers(headers).payload(Bytes::new());
        self.send(subject, message).await?.wait().await
    }

    /// Hands a message to the connection; it is stored once its ack has come.
    pub(crate) async fn send(&self, subject: &str, message: PublishMessage) -> Result<Sent, PublishError> {
        let connections = self.connections();
        let ack = self.js.send_publish(subject.to_owned(), message).await;
        Ok(Sent { subject: subject.into(), connections, ack: ack.map_err(|error| refusal(subject, &error))? })
    }

    async fn put_object(&self, subject: &str, body: &Bytes, read: &AtomicU64) -> Result<String, PublishError> {
        let unsure = |why: &dyn std::error::Error| PublishError::Unsure {
            subject: subject.into(),
            why: format!("object store: {}", error_chain(why)),
        };
        let reference = hex(&Sha256::digest(body));
        let bucket = names::bodies(&self.pipeline);
        let store = self.js.get_object_store(bucket).await.map_err(|error| unsure(&error))?;
        // The name is the content: what is there already is the same.
        if store.info(&reference).await.is_err() {
            store
                .put(reference.as_str(), &mut Counted { left: body.as_ref(), read })
                .await
                .map_err(|error| unsure(&error))?;
        }
        Ok(reference)
    }
}

/// A body that tells how much of it was read: the client reads the next chunk when the one before is stored.
struct Counted<'a> {
    left: &'a [u8],
    read: &'a AtomicU64,
}

impl AsyncRead for Counted<'_> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = self.left.len();
        let done = Pin::new(&mut self.left).poll_read(cx, buffer);
        self.read.fetch_add((before - self.left.len()) as u64, Ordering::Relaxed);
        done
    }
}

/// A message on its way.
pub(crate) struct Sent {
    subject: String,
    connections: watch::Receiver<u64>,
    ack: PublishAckFuture,
}

impl Sent {
    pub(crate) async fn wait(mut self) -> Result<Stored, PublishError> {
        let ack = tokio::select! {
            biased;
            ack = self.ack.into_future() => ack.map_err(|error| refusal(&self.subject, &error))?,
            _ = self.connections.changed() => {
                return Err(PublishError::Unsure { subject: self.subject, why: RENEWED.into() });
            }
        };
        Ok(if ack.duplicate { Stored::Already } else { Stored::At(ack.sequence) })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn refusal(subject: &str, error: &JsPublishError) -> PublishError {
    let subject = subject.to_owned();
    let code = std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<async_nats::jetstream::Error>())
        .map(async_nats::jetstream::Error::error_code);
    match (error.kind(), code) {
        (PublishErrorKind::StreamNotFound, _) => PublishError::NoStream { subject },
        // In a cluster: of a proposal that is not decided yet.
        (_, Some(ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT)) => PublishError::Contended { subject },
        (PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId, _) => {
            PublishError::Fenced { subject }
        }
        (_, Some(code)) if STORE_FAILED.contains(&code.0) => PublishError::Full { subject },
        (PublishErrorKind::MaxPayloadExceeded, _) | (_, Some(_)) => {
            PublishError::Refused { subject, why: error_chain(error) }
        }
        _ => PublishError::Unsure { subject, why: error_chain(error) },
    }
}
