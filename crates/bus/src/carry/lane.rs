use std::collections::BTreeMap;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::size_of;
use crate::{Bus, Record};

/// New messages that are read at once, and that are on their way before older ones.
const AT_ONCE: usize = 32;
/// Bytes of them that are read at once, and that wait to be sent.
const BYTES: u64 = 1 << 20;
/// How often it is looked whether there are new ones.
const EVERY: Duration = Duration::from_millis(10);
/// Pause before a broker that does not answer is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// While much waits: what is stored from now on, which goes first.
pub(super) struct Lane {
    /// Where it begins: the durable gives what is before, and that from here on later. Unknown until the broker has said.
    first: Option<u64>,
    /// The last that the durable gave meanwhile: up to there all is the durable's, which may have come and gone since it was read.
    given: u64,
    reading: BoxFuture<'static, Read>,
    /// Those that are to be sent.
    due: BTreeMap<u64, Record>,
    /// Bytes of those.
    bytes: u64,
    /// Those that were, and are not answered.
    sent: BTreeMap<u64, Record>,
}

/// What was read: where the next begins, and messages.
pub(super) struct Read {
    next: u64,
    records: Vec<Record>,
}

impl Lane {
    pub(super) fn open(bus: Bus, stream: String) -> Self {
        let reading = begin(bus, stream).boxed();
        Self { first: None, given: 0, reading, due: BTreeMap::new(), bytes: 0, sent: BTreeMap::new() }
    }

    /// Where what goes first begins, once that is known.
    pub(super) fn first(&self) -> Option<u64> {
        self.first
    }

    /// The durable has given this one.
    pub(super) fn is_given(&mut self, sequence: u64) {
        self.given = self.given.max(sequence);
    }

    /// Whether it has this message. (Where the stream was set back another one has its number.)
    pub(super) fn has(&self, sequence: u64, stored_at: u64) -> bool {
        let record = self.due.get(&sequence).or_else(|| self.sent.get(&sequence));
        record.is_some_and(|record| record.stored_at == stored_at)
    }

    /// Whether it was to send it, and has not.
    pub(super) fn has_due(&self, sequence: u64) -> bool {
        self.due.contains_key(&sequence)
    }

    /// The first one that it has to send, whether or not it may now.
    pub(super) fn first_due(&self) -> Option<u64> {
        self.due.first_key_value().map(|(sequence, _)| *sequence)
    }

    /// What it has read; waits while it has enough.
    pub(super) async fn read(&mut self) -> Read {
        if self.due.len() >= AT_ONCE || self.bytes >= BYTES {
            std::future::pending::<()>().await;
        }
        (&mut self.reading).await
    }

    /// Takes what was read, but for what `is_left_out`, and reads on.
    pub(super) fn take(&mut self, bus: Bus, stream: String, read: Read, is_left_out: impl Fn(&Record) -> bool) {
        let Read { mut next, records } = read;
        self.first.get_or_insert(next);
        for record in records {
            if record.sequence < next {
                continue;
            }
            next = record.sequence + 1;
            if record.sequence > self.given && !is_left_out(&record) {
                self.is_due(record);
            }
        }
        self.reading = new_ones(bus, stream, next).boxed();
    }

    /// The next one, with its size.
    pub(super) fn next(&self) -> Option<(u64, u64)> {
        let (&sequence, record) = self.due.first_key_value().filter(|_| self.sent.len() < AT_ONCE)?;
        Some((sequence, size_of(&record.subject, &record.headers, &record.body)))
    }

    pub(super) fn is_due(&mut self, record: Record) {
        self.bytes += record.size;
        self.due.insert(record.sequence, record);
    }

    pub(super) fn peek(&self, sequence: u64) -> Option<&Record> {
        self.due.get(&sequence)
    }

    /// One that is sent now.
    pub(super) fn send(&mut self, sequence: u64) -> Option<Record> {
        let record = self.due.remove(&sequence)?;
        self.bytes = self.bytes.saturating_sub(record.size);
        self.sent.insert(sequence, record.clone());
        Some(record)
    }

    /// One that was sent is answered.
    pub(super) fn answered(&mut self, sequence: u64) -> Option<Record> {
        self.sent.remove(&sequence)
    }
}

async fn begin(bus: Bus, stream: String) -> Read {
    loop {
        match bus.stream_state(&stream).await {
            Ok(state) => return Read { next: state.map_or(0, |state| state.last_sequence) + 1, records: Vec::new() },
            Err(error) => tracing::debug!(%error, "not looked what is new; it comes again"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The messages from `next` on, once there are some.
async fn new_ones(bus: Bus, stream: String, next: u64) -> Read {
    loop {
        let pause = match bus.batch_from(&stream, next, AT_ONCE, BYTES).await {
            Ok(records) if records.is_empty() => EVERY,
            Ok(records) => return Read { next, records },
            Err(error) => {
                tracing::debug!(%error, "what is new is not read; it comes again");
                PAUSE
            }
        };
        tokio::time::sleep(pause).await;
    }
}
