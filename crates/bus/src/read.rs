use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::datetime::{from_nanos, parse_rfc3339};
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, RawMessageError};
use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use crate::bus::error_chain;
use crate::{Bus, BusError, CHANGE, Headers, PublishError, StreamState, names};

/// A stored message as a reader sees it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Its subject.
    pub subject: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// When the broker stored it, Unix time in ns.
    pub stored_at: u64,
    /// Its headers.
    pub headers: Headers,
    /// Its body; empty where only headers were asked for.
    pub body: Bytes,
    /// Length of its body as stored, bytes.
    pub size: u64,
}

/// The server's header for the length of a body that it leaves out.
const MESSAGE_SIZE: &str = "Nats-Msg-Size";

/// Stored messages in order.
pub type Records = BoxStream<'static, Result<Record, BusError>>;

/// While stored messages are read, a broker that says nothing for this long is asked for the next one by its number.
pub(crate) const SILENCE: Duration = Duration::from_secs(3);

/// Messages with how many are behind each.
type Following = BoxStream<'static, Result<(Record, u64), BusError>>;

/// Where reading begins.
#[derive(Clone, Copy)]
enum Begin {
    /// With this message.
    At(u64),
    /// With what was stored then, Unix time in ns.
    Since(u64),
}

impl Begin {
    fn policy(self) -> Result<DeliverPolicy, async_nats::Error> {
        Ok(match self {
            Self::At(sequence) => DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) },
            Self::Since(since) => DeliverPolicy::ByStartTime { start_time: from_nanos(i128::from(since))? },
        })
    }

    /// Whether a message is one to be read, of which it then is the last.
    fn takes(&mut self, sequence: u64, stored_at: u64) -> bool {
        let takes = match *self {
            Self::At(next) => sequence >= next,
            Self::Since(since) => stored_at >= since,
        };
        if takes {
            *self = Self::At(sequence + 1);
        }
        takes
    }
}

/// What is asked for at once where no consumer is made: messages and bytes.
const AT_ONCE: (usize, u64) = (512, 1 << 20);
/// So many messages are asked for by their numbers where the end of a stream is gone.
const ASKED_FOR: u64 = 256;
/// How long a batch may take of which something comes in again and again: 1 MiB over a link of 8 KiB a second.
const SLOWEST: Duration = Duration::from_secs(150);
/// So many later questions are answered before an answer counts as lost.
const LATER: u32 = 2;

/// Reading what is stored, bit by bit: needs no consumer.
pub(crate) struct Pieces {
    bus: Bus,
    stream: String,
    headers_only: bool,
    /// Whether what came since is given too, where it is met.
    with_new: bool,
    /// Read, and not given yet.
    read: VecDeque<Record>,
    /// No message before this one is still to come.
    next: u64,
    last: u64,
}

impl Pieces {
    /// What came since is given too, where it is met.
    pub(crate) fn with_new(self) -> Self {
        Self { with_new: true, ..self }
    }

    pub(crate) async fn next(&mut self) -> Result<Option<Record>, BusError> {
        if self.read.is_empty() && self.next <= self.last {
            self.read = self.bus.batch_from(&self.stream, self.next, AT_ONCE.0, AT_ONCE.1).await?.into();
            if self.read.is_empty() {
                self.read.extend(self.behind().await?);
            }
            if !self.with_new {
                self.read.retain(|record| record.sequence <= self.last);
            }
        }
        let Some(mut record) = self.read.pop_front() else {
            self.next = self.last + 1;
            return Ok(None);
        };
        self.next = record.sequence + 1;
        if self.headers_only {
            record.body = Bytes::new();
        }
        Ok(Some(record))
    }

    /// The next one where a copy of the stream gave none, which may be behind: its leader is asked. What it cannot read it passes over
    /// with those behind in some cases; where the last one is there, all in between are asked for by their numbers.
    async fn behind(&self) -> Result<Option<Record>, BusError> {
        if let Some(record) = self.bus.message_from(&self.stream, self.next).await? {
            return Ok(Some(record));
        }
        let is_whole = self.bus.message_at(&self.stream, self.last).await?.is_some();
        let until = if is_whole { self.last } else { self.last.min(self.next + ASKED_FOR) };
        for sequence in self.next..=until {
            if let Some(record) = self.bus.message_at(&self.stream, sequence).await? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }
}

/// Reading what is stored, by a consumer.
struct Scan {
    bus: Bus,
    stream: String,
    headers_only: bool,
    records: Following,
    /// No message before this one is still to come.
    next: u64,
    last: u64,
}

impl Scan {
    async fn next(&mut self) -> Result<Option<Record>, BusError> {
        let Ok(next) = tokio::time::timeout(SILENCE, self.records.next()).await else {
            return self.ask().await;
        };
        let Some((record, pending)) = next.transpose()? else { return Ok(None) };
        // The last message may be gone by the time it would come (an interest stream, an outcome of old).
        self.next = if pending == 0 { self.last + 1 } else { record.sequence + 1 };
        Ok(Some(record))
    }

    /// The broker says nothing of a message that it cannot read, nor of those behind it in some cases.
    async fn ask(&mut self) -> Result<Option<Record>, BusError> {
        while self.next <= self.last {
            let found = self.bus.message_at(&self.stream, self.next).await?;
            self.next += 1;
            if found.is_some() {
                if self.next <= self.last {
                    let begin = Begin::At(self.next);
                    (self.records, _) = self.bus.follow_from(&self.stream, begin, self.headers_only).await?;
                }
                return Ok(found);
            }
        }
        Ok(None)
    }
}

impl Bus {
    /// Every message of `stream` from sequence `from` on that is stored now, in order; the bodies too unless `headers_only`.
    /// What the broker cannot read is passed over. A stream that does not exist has none.
    ///
    /// Headers alone are sent by a consumer, where one may be made; all else is asked for bit by bit.
    pub async fn scan(&self, stream: &str, from: u64, headers_only: bool) -> Result<Records, BusError> {
        let from = from.max(1);
        if headers_only && !self.reads_directly {
            return self.scan_from(stream, Begin::At(from), from, true).await;
        }
        let state = self.stream_state(stream).await?.unwrap_or_default();
        let pieces = self.pieces(stream, from, state, headers_only);
        let next_of = |mut pieces: Pieces| async move { pieces.next().await.transpose().map(|next| (next, pieces)) };
        Ok(futures::stream::unfold(pieces, next_of).boxed())
    }

    /// The messages from sequence `from` on of a stream that is so.
    pub(crate) fn pieces(&self, stream: &str, from: u64, state: StreamState, headers_only: bool) -> Pieces {
        let (next, last) = (from.max(state.first_sequence), state.last_sequence);
        let (bus, stream, read) = (self.clone(), stream.into(), VecDeque::new());
        Pieces { bus, stream, headers_only, with_new: false, read, next, last }
    }

    /// The same of those that were stored at `since` or later, Unix time in ns by the broker's clock.
    pub async fn scan_since(&self, stream: &str, since: u64, headers_only: bool) -> Result<Records, BusError> {
        self.scan_from(stream, Begin::Since(since), 1, headers_only).await
    }

    async fn scan_from(&self, stream: &str, begin: Begin, next: u64, headers_only: bool) -> Result<Records, BusError> {
        let Some(state) = self.stream_state(stream).await? else { return Ok(futures::stream::empty().boxed()) };
        let last = state.last_sequence;
        if state.messages == 0 || last < next {
            return Ok(futures::stream::empty().boxed());
        }
        let next = next.max(state.first_sequence);
        let (records, pending) = self.follow_from(stream, begin, headers_only).await?;
        if pending == 0 {
            return Ok(futures::stream::empty().boxed());
        }
        let scan = Scan { bus: self.clone(), stream: stream.into(), headers_only, records, next, last };
        // It ends with the last message, not when one more is asked for: that one may never come.
        let next_of = |scan: Option<Scan>| async move {
            let mut scan = scan?;
            let next = scan.next().await.transpose()?;
            let goes_on = next.is_ok() && scan.next <= scan.last;
            Some((next, goes_on.then_some(scan)))
        };
        Ok(futures::stream::unfold(Some(scan), next_of).boxed())
    }

    /// Every message of `stream` from sequence `from` on, and those to come.
    pub async fn follow(&self, stream: &str, from: u64, headers_only: bool) -> Result<Records, BusError> {
        let (records, _) = self.follow_from(stream, Begin::At(from), headers_only).await?;
        Ok(records.map(|next| next.map(|(record, _)| record)).boxed())
    }

    /// The messages, with how many there are at first.
    async fn follow_from(
        &self,
        stream: &str,
        mut begin: Begin,
        headers_only: bool,
    ) -> Result<(Following, u64), BusError> {
        let what = format!("read the stream {stream}");
        let fail = |why: &dyn std::error::Error| BusError::request(what.clone(), error_chain(why));
        let handle = self.js.get_stream(stream).await.map_err(|error| fail(&error))?;
        let deliver_policy = begin.policy().map_err(|error| BusError::request(what.clone(), error))?;
        let config = pull::OrderedConfig { deliver_policy, headers_only, ..Default::default() };
        let consumer = handle.create_consumer(config).await.map_err(|error| fail(&error))?;
        let waiting = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| fail(&error))?;
        let records = messages.map(move |next| {
            let message = next.map_err(|error| BusError::request(what.clone(), error_chain(&error)))?;
            let (sequence, stored_at, pending) = {
                let info = message.info().map_err(|error| BusError::request(what.clone(), error))?;
                (info.stream_sequence, info.published.unix_timestamp_nanos(), info.pending)
            };
            let (message, _) = message.split();
            let headers = Headers(message.headers.unwrap_or_default());
            let size = headers.get(MESSAGE_SIZE).and_then(|size| size.parse().ok());
            let record = Record {
                size: size.unwrap_or(message.payload.len() as u64),
                subject: message.subject.to_string(),
                sequence,
                stored_at: u64::try_from(stored_at).unwrap_or(0),
                headers,
                body: message.payload,
            };
            Ok((record, pending))
        });
        // Where the broker died before the first message came, the client reads everything from the beginning (async-nats 0.51,
        // `recreate_consumer_stream`).
        let records = records.filter(move |next: &Result<(Record, u64), BusError>| {
            let takes = next.as_ref().map_or(true, |(record, _)| begin.takes(record.sequence, record.stored_at));
            std::future::ready(takes)
        });
        Ok((records.boxed(), waiting))
    }

    /// Messages of `stream` from sequence `from` on as they are stored, no more than `count` and no more bytes than `bytes`, at least
    /// one if there is any. Needs no consumer, and with it no right to make one.
    /// (<https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-31.md>, batched requests)
    pub(crate) async fn batch_from(
        &self,
        stream: &str,
        from: u64,
        count: usize,
        bytes: u64,
    ) -> Result<Vec<Record>, BusError> {
        self.batch_of(stream, ">", from, count, bytes).await
    }

    /// The same of those with such a subject.
    pub(crate) async fn batch_of(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        count: usize,
        bytes: u64,
    ) -> Result<Vec<Record>, BusError> {
        self.asked(|| self.batch_asked(stream, subject, from, count, bytes)).await
    }

    async fn batch_asked(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        count: usize,
        bytes: u64,
    ) -> Result<Vec<Record>, BusError> {
        let what = || format!("read the stream {stream} from message {from} on");
        let fail = |why: &dyn std::error::Error| BusError::request(what(), error_chain(why));
        let inbox = self.client.new_inbox();
        let mut answers = self.client.subscribe(inbox.clone()).await.map_err(|error| fail(&error))?;
        // `next_by_subj`: from the next one that is there; by its number alone it would be none where that one is gone.
        let request =
            serde_json::json!({ "seq": from.max(1), "next_by_subj": subject, "batch": count, "max_bytes": bytes });
        let asked = format!("$JS.API.DIRECT.GET.{stream}");
        let asked = self.client.publish_with_reply(asked, inbox, request.to_string().into()).await;
        asked.map_err(|error| fail(&error))?;
        let mut records = Vec::new();
        loop {
            let Some(answer) = self.next_of(&mut answers).await else {
                return Err(BusError::request(what(), "the broker does not answer"));
            };
            match answer.status.map(|status| status.as_u16()) {
                None => {}
                // The end of the batch, or that there is none.
                Some(204 | 404) => return Ok(records),
                Some(status) => {
                    let why = answer.description.unwrap_or_default();
                    return Err(BusError::request(what(), format!("{status} {why}")));
                }
            }
            let headers = Headers(answer.headers.unwrap_or_default());
            // The broker's own are behind those that the message may have.
            let last = |name: &str| Some(headers.0.get_last(name)?.as_str());
            let subject = last("Nats-Subject").map(ToOwned::to_owned);
            let sequence = last("Nats-Sequence").and_then(|number| number.parse().ok());
            let stored_at = last("Nats-Time-Stamp").and_then(unix_ns);
            let (Some(subject), Some(sequence), Some(stored_at)) = (subject, sequence, stored_at) else { continue };
            records.push(Record {
                subject,
                sequence,
                stored_at,
                size: answer.payload.len() as u64,
                headers,
                body: answer.payload,
            });
        }
    }

    /// The next of the answers to a question; `None` where none comes.
    ///
    /// It may be the beginning of a long message, or wait behind somebody else's, so it is not missed for as long as something comes in;
    /// but where the broker has answered what it was asked later, twice, it was lost.
    async fn next_of(&self, answers: &mut Subscriber) -> Option<Message> {
        let (began, mut later) = (Instant::now(), 0);
        while later < LATER && began.elapsed() < SLOWEST {
            let heard = self.received();
            match tokio::time::timeout(SILENCE, answers.next()).await {
                Ok(answer) => return answer,
                Err(_) if self.received() == heard => return None,
                Err(_) => {}
            }
            tokio::select! {
                biased;
                answer = answers.next() => return answer,
                () = self.is_asked() => later += 1,
                () = tokio::time::sleep(SILENCE) => {}
            }
        }
        None
    }

    /// Plain subscription: messages as they are published, none that were before; what any NATS client sees.
    pub async fn subscribe(&self, subject: &str) -> Result<Records, BusError> {
        let subscriber = self.client.subscribe(subject.to_owned()).await;
        let subscriber = subscriber.map_err(|error| BusError::request(format!("subscribe {subject}"), error))?;
        Ok(subscriber
            .map(|message| {
                Ok(Record {
                    size: message.payload.len() as u64,
                    subject: message.subject.to_string(),
                    sequence: 0,
                    stored_at: 0,
                    headers: Headers(message.headers.unwrap_or_default()),
                    body: message.payload,
                })
            })
            .boxed())
    }

    /// The first message from `sequence` on, as the leader of the stream has it.
    async fn message_from(&self, stream: &str, sequence: u64) -> Result<Option<Record>, BusError> {
        let what = || format!("read the stream {stream} from message {sequence} on");
        let ask = || async {
            let handle = self.js.get_stream_no_info(stream).await.map_err(|error| BusError::request(what(), error))?;
            record_of(handle.get_first_raw_message_by_subject(">", sequence.max(1)).await, what())
        };
        self.asked(ask).await
    }

    /// The message at `sequence`, if it is still there.
    pub async fn message_at(&self, stream: &str, sequence: u64) -> Result<Option<Record>, BusError> {
        let what = || format!("read message {sequence} of the stream {stream}");
        let ask = || async {
            let handle = self.js.get_stream_no_info(stream).await.map_err(|error| BusError::request(what(), error))?;
            record_of(handle.get_raw_message(sequence).await, what())
        };
        self.asked(ask).await
    }

    /// Appends changes to a fold's changelog, each fenced by the one before; `last` is the last sequence this writer knows.
    /// Gives the new last sequence.
    pub async fn append(&self, stage: &str, last: u64, changes: Vec<Bytes>) -> Result<u64, PublishError> {
        let changes = changes.into_iter().map(|change| (CHANGE, change)).collect();
        self.append_all(&names::changelog_subject(&self.pipeline, stage), last, changes).await
    }
}

/// What the leader of a stream gave.
fn record_of(given: Result<StreamMessage, RawMessageError>, what: String) -> Result<Option<Record>, BusError> {
    match given {
        Ok(message) => Ok(Some(Record {
            size: message.payload.len() as u64,
            subject: message.subject.to_string(),
            sequence: message.sequence,
            stored_at: u64::try_from(message.time.unix_timestamp_nanos()).unwrap_or(0),
            headers: Headers(message.headers),
            body: message.payload,
        })),
        Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
        Err(error) => Err(BusError::request(what, error_chain(&error))),
    }
}

/// A time as the broker writes it (RFC 3339), Unix ns.
fn unix_ns(text: &str) -> Option<u64> {
    u64::try_from(parse_rfc3339(text).ok()?.unix_timestamp_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_not_read_again() {
        let mut from_the_fifth = Begin::At(5);
        let taken: Vec<u64> = [1, 4, 5, 6, 6, 3, 8].into_iter().filter(|&at| from_the_fifth.takes(at, 0)).collect();
        assert_eq!(taken, [5, 6, 8]);
        let mut since = Begin::Since(70);
        let stored = [(1, 60), (2, 70), (1, 60), (3, 69)];
        let taken: Vec<u64> =
            stored.into_iter().filter(|&(at, when)| since.takes(at, when)).map(|(at, _)| at).collect();
        assert_eq!(taken, [2, 3], "from then on it goes by the number");
    }
}
