use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, DeliverPolicy, PriorityPolicy, pull};
use async_nats::jetstream::stream::{
    Config, ConsumerErrorKind, DiscardPolicy, Republish, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{ErrorCode, kv, object_store};

use crate::bus::error_chain;
use crate::pull::WRITER_GROUP;
use crate::{Bus, BusError, names};

/// Dedupe window: nothing depends on it but the quick retry of a publish. About 240 B of broker memory an id.
const DEDUPE_WINDOW: Duration = Duration::from_secs(30);
/// A message that nobody kept alive for this long is delivered again; holders say they are alive every `PROGRESS_EVERY`.
const ACK_WAIT: Duration = Duration::from_secs(1);
/// The same for relays: they hold much while a link is down, and some of them are a link away.
const RELAY_ACK_WAIT: Duration = Duration::from_secs(3);
/// Far backstop against endless redelivery; its advisories are captured in a stream.
const MAX_DELIVER: i64 = 10_000;
/// Most messages that all replicas of a stage hold together.
const MAX_ACK_PENDING: i64 = 4096;
/// Most messages that the writer of a fold holds: it is given no more, so none waits where nobody keeps it alive.
const PINNED_ACK_PENDING: i64 = 256;
/// A pinned taker that does not pull for this long loses its pin to a standby, which so is at work within two seconds; one that lives pulls
/// every second.
const PIN_TIMEOUT: Duration = Duration::from_millis(1800);

/// What the server answers where a durable's files cannot be read or made.
const CONSUMER_STORE_FAILED: ErrorCode = ErrorCode(10012);

/// How often holders of messages say they are alive: three times an ack wait.
pub const PROGRESS_EVERY: Duration = Duration::from_millis(300);
/// The same for relays.
pub(crate) const RELAY_PROGRESS_EVERY: Duration = Duration::from_millis(900);

/// How a stream keeps its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Until every taker has acked; full stops the producer.
    Link {
        /// Most bytes.
        bytes: u64,
    },
    /// Until purged by the agent; full stops the producer.
    Capture {
        /// Most bytes.
        bytes: u64,
    },
    /// Oldest first beyond a bound.
    Outcome {
        /// Most bytes.
        bytes: u64,
        /// Oldest.
        age: Duration,
    },
    /// The same, and of each subject only the newest: what comes later takes its place in one step.
    Newest {
        /// Most bytes.
        bytes: u64,
        /// Oldest.
        age: Duration,
    },
    /// Until purged by the agent.
    Changelog,
}

/// A stream that a pipeline wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamWish {
    /// Its name.
    pub name: String,
    /// What it takes.
    pub subjects: Vec<String>,
    /// How it keeps.
    pub retention: Retention,
    /// Its takers.
    pub durables: Vec<DurableWish>,
    /// On how many servers it is stored.
    pub copies: usize,
    /// Whether it is about to end, for a move: it stays as it is, and gone it is not made again.
    pub ends: bool,
}

/// A durable that a pipeline wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DurableWish {
    /// Its name: the taking stage's, or `relay-SITE`.
    pub name: String,
    /// Who takes.
    pub taker: TakerSort,
    /// The subjects that it gives of its stream; all where none is named.
    pub subjects: Vec<String>,
    /// Whether it is about to end, for a move: gone, it is not made again.
    pub ends: bool,
}

/// Who takes from a durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakerSort {
    /// The replicas of a stage, all at once.
    Shared,
    /// The one writer of a fold.
    Pinned,
    /// A relay.
    Relay,
}

/// A bucket that a pipeline wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketWish {
    /// A table; its entries are forgotten after `age`, if one is given.
    Table {
        /// Its name.
        name: String,
        /// Oldest.
        age: Option<Duration>,
        /// On how many servers it is stored.
        copies: usize,
    },
    /// The object store of long bodies, each kept for `age`.
    Bodies {
        /// Its name.
        name: String,
        /// Oldest.
        age: Duration,
        /// On how many servers it is stored.
        copies: usize,
    },
}

/// What `apply` did about a wish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was not there.
    Made,
    /// It was there and as wanted.
    Unchanged,
    /// It was there and otherwise.
    Changed,
}

/// A stream as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StreamState {
    /// Messages stored.
    pub messages: u64,
    /// Bytes stored.
    pub bytes: u64,
    /// Most bytes, if bounded.
    pub max_bytes: Option<u64>,
    /// Sequence of the first message.
    pub first_sequence: u64,
    /// Sequence of the last message that ever was.
    pub last_sequence: u64,
    /// When the first message was stored, Unix time in ns.
    pub first_at: u64,
}

/// A durable as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DurableState {
    /// Messages not delivered yet.
    pub pending: u64,
    /// Messages delivered and not acked.
    pub unacked: u64,
    /// Messages delivered again.
    pub redelivered: u64,
    /// Every message up to this sequence is acked.
    pub ack_floor: u64,
    /// Last sequence that was delivered.
    pub delivered: u64,
    /// Pulls that wait: 0 means that nobody is there to take.
    pub waiting: u64,
}

impl Bus {
    /// Makes a stream with its durables, or brings it to what is wanted. The durables are made with it, before anything can be
    /// published: an interest stream keeps nothing for a durable that comes later.
    pub async fn apply_stream(&self, wish: &StreamWish) -> Result<Applied, BusError> {
        let fail = |why: String| BusError::request(format!("make the stream {}", wish.name), why);
        let wanted = wish.config();
        if wish.ends {
            return Ok(Applied::Unchanged);
        }
        let there = self.js.get_stream(&wish.name).await.ok().map(|stream| stream.cached_info().config.clone());
        let is_new = there.is_none();
        if is_new {
            // Somebody may publish already, as soon as a stream takes it; and it keeps nothing for a durable that is not there yet.
            let shut = vec![names::shut(&wish.name)];
            let config = if wish.durables.is_empty() {
                wanted.clone()
            } else {
                Config { subjects: shut, republish: None, ..wanted.clone() }
            };
            self.js.create_stream(config).await.map_err(|error| fail(error_chain(&error)))?;
            self.made(&wish.name).await?;
        }
        let mut changed = false;
        for durable in &wish.durables {
            changed |= self.apply_durable(&wish.name, durable).await? != Applied::Unchanged;
        }
        let is_shut = is_new && !wish.durables.is_empty();
        if is_shut || there.is_some_and(|there| !same(&there, &wanted)) {
            self.js.update_stream(&wanted).await.map_err(|error| fail(error_chain(&error)))?;
            changed = true;
        }
        Ok(match (is_new, changed) {
            (true, _) => Applied::Made,
            (false, true) => Applied::Changed,
            (false, false) => Applied::Unchanged,
        })
    }

    /// A stream was just made. Where the server has its messages and could not read its settings it takes the messages and leaves
    /// the settings as they are (nats-server 2.15.1), so that it would not know the stream at its next start: a change writes them.
    async fn made(&self, stream: &str) -> Result<(), BusError> {
        let fail = |why: String| BusError::request(format!("make the stream {stream}"), why);
        let handle = self.js.get_stream(stream).await.map_err(|error| fail(error_chain(&error)))?;
        let info = handle.cached_info();
        if info.state.last_sequence == 0 {
            return Ok(());
        }
        self.js.update_stream(&info.config).await.map_err(|error| fail(error_chain(&error)))?;
        tracing::warn!(
            stream,
            messages = info.state.messages,
            "the broker could not read the settings of this stream: it was made again with the messages that it had"
        );
        Ok(())
    }

    async fn apply_durable(&self, stream: &str, wish: &DurableWish) -> Result<Applied, BusError> {
        let fail = |why: String| BusError::request(format!("make the durable {} of {stream}", wish.name), why);
        let wanted = wish.config();
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
        match handle.consumer_info(&wish.name).await {
            Ok(info) if same_durable(&info.config, &wanted) => Ok(Applied::Unchanged),
            Ok(info) => {
                // Where it began cannot be changed, nor need be.
                let wanted = pull::Config { deliver_policy: info.config.deliver_policy, ..wanted };
                handle.update_consumer(wanted).await.map_err(|error| fail(error_chain(&error)))?;
                Ok(Applied::Changed)
            }
            Err(_) if wish.ends => Ok(Applied::Unchanged),
            Err(_) => {
                handle.create_consumer(wanted).await.map_err(|error| match error.kind() {
                    ConsumerErrorKind::JetStream(refusal) if refusal.error_code() == CONSUMER_STORE_FAILED => {
                        BusError::DurableState { stream: stream.into(), durable: wish.name.clone() }
                    }
                    _ => fail(error_chain(&error)),
                })?;
                Ok(Applied::Made)
            }
        }
    }

    /// Makes a durable anew that begins at message `from`, while a guard keeps what nobody has read: an interest stream forgets
    /// what no durable wants. Whoever pulls goes on by itself.
    pub async fn renew_durable(&self, stream: &str, wish: &DurableWish, from: u64) -> Result<(), BusError> {
        let fail = |why: String| BusError::request(format!("renew the durable {} of {stream}", wish.name), why);
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
        let begin = DeliverPolicy::ByStartSequence { start_sequence: from.max(1) };
        let guard = pull::Config {
            durable_name: Some(guard_of(wish)),
            ack_policy: AckPolicy::Explicit,
            deliver_policy: begin,
            ..Default::default()
        };
        handle.create_consumer(guard).await.map_err(|error| fail(error_chain(&error)))?;
        handle.delete_consumer(&wish.name).await.map_err(|error| fail(error_chain(&error)))?;
        let config = pull::Config { deliver_policy: begin, ..wish.config() };
        handle.create_consumer(config).await.map_err(|error| fail(error_chain(&error)))?;
        handle.delete_consumer(&guard_of(wish)).await.map_err(|error| fail(error_chain(&error)))?;
        Ok(())
    }

    /// Makes a durable that begins with message `from`, unless there is one: a taker that is new at a stream.
    pub async fn begin_durable(&self, stream: &str, wish: &DurableWish, from: u64) -> Result<Applied, BusError> {
        if self.durable_state(stream, &wish.name).await?.is_some() {
            return Ok(Applied::Unchanged);
        }
        let fail = |why: String| BusError::request(format!("make the durable {} of {stream}", wish.name), why);
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
        let begin = DeliverPolicy::ByStartSequence { start_sequence: from.max(1) };
        let config = pull::Config { deliver_policy: begin, ..wish.config() };
        handle.create_consumer(config).await.map_err(|error| fail(error_chain(&error)))?;
        Ok(Applied::Made)
    }

    /// Removes a durable, if there is one: whoever calls knows that nothing is lost by that.
    pub async fn end_durable(&self, stream: &str, durable: &str) -> Result<(), BusError> {
        if self.durable_state(stream, durable).await?.is_none() {
            return Ok(());
        }
        let fail = |why: String| BusError::request(format!("remove the durable {durable} of {stream}"), why);
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
        handle.delete_consumer(durable).await.map_err(|error| fail(error_chain(&error)))?;
        Ok(())
    }

    /// Ends a renewal that was cut off: where its guard is left, the durable is made from what the guard has kept.
    pub async fn end_renewal(&self, stream: &str, wish: &DurableWish) -> Result<(), BusError> {
        let guard = guard_of(wish);
        let Some(kept) = self.durable_state(stream, &guard).await? else { return Ok(()) };
        let fail = |why: String| BusError::request(format!("renew the durable {} of {stream}", wish.name), why);
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
        if self.durable_state(stream, &wish.name).await?.is_none() {
            let begin = DeliverPolicy::ByStartSequence { start_sequence: kept.ack_floor + 1 };
            let config = pull::Config { deliver_policy: begin, ..wish.config() };
            handle.create_consumer(config).await.map_err(|error| fail(error_chain(&error)))?;
        }
        handle.delete_consumer(&guard).await.map_err(|error| fail(error_chain(&error)))?;
        Ok(())
    }

    /// Makes a bucket, or brings its copies to what is wanted.
    pub async fn apply_bucket(&self, wish: &BucketWish) -> Result<Applied, BusError> {
        match wish {
            BucketWish::Table { name, age, copies } => {
                let told = Some(told_as_stored(&format!("$KV.{name}.>"), true));
                if self.js.get_key_value(name).await.is_ok() {
                    return self.apply_behind(&format!("KV_{name}"), *copies, told).await;
                }
                let config = kv::Config {
                    bucket: name.clone(),
                    history: 1,
                    max_age: age.unwrap_or_default(),
                    num_replicas: *copies,
                    republish: told.clone(),
                    ..Default::default()
                };
                let made = self.js.create_key_value(config).await;
                made.map_err(|error| BusError::request(format!("make the table {name}"), error_chain(&error)))?;
                self.made(&format!("KV_{name}")).await?;
                self.apply_behind(&format!("KV_{name}"), *copies, told).await?;
            }
            BucketWish::Bodies { name, age, copies } => {
                if self.js.get_object_store(name).await.is_ok() {
                    return self.apply_behind(&format!("OBJ_{name}"), *copies, None).await;
                }
                let config = object_store::Config {
                    bucket: name.clone(),
                    max_age: *age,
                    max_bytes: -1,
                    num_replicas: *copies,
                    ..Default::default()
                };
                let made = self.js.create_object_store(config).await;
                made.map_err(|error| BusError::request(format!("make the object store {name}"), error_chain(&error)))?;
                self.made(&format!("OBJ_{name}")).await?;
            }
        }
        Ok(Applied::Made)
    }

    /// Brings the stream behind a bucket to what is wanted: its copies, and what the server tells of it.
    async fn apply_behind(&self, stream: &str, copies: usize, told: Option<Republish>) -> Result<Applied, BusError> {
        let fail = |why: String| BusError::request(format!("change the stream {stream}"), why);
        let handle = self.js.get_stream(stream).await.map_err(|error| fail(error_chain(&error)))?;
        let mut config = handle.cached_info().config.clone();
        // Of a table a key is removed by a mark: with a rollup whoever may set one key could empty it.
        let rolls_up = told.is_none();
        if config.num_replicas == copies && config.republish == told && config.allow_rollup == rolls_up {
            return Ok(Applied::Unchanged);
        }
        (config.num_replicas, config.republish, config.allow_rollup) = (copies, told, rolls_up);
        self.js.update_stream(&config).await.map_err(|error| fail(error_chain(&error)))?;
        Ok(Applied::Changed)
    }

    /// A stream as it is; `None` where there is none of this name.
    pub async fn stream_state(&self, stream: &str) -> Result<Option<StreamState>, BusError> {
        use async_nats::jetstream::context::GetStreamErrorKind;
        let what = || format!("look at the stream {stream}");
        let ask = || async {
            match self.js.get_stream(stream).await {
                Ok(handle) => Ok(Some(handle)),
                Err(error) => match error.kind() {
                    GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                        Ok(None)
                    }
                    _ => Err(BusError::request(what(), error_chain(&error))),
                },
            }
        };
        Ok(self.asked(ask).await?.map(|handle| {
            let info = handle.cached_info();
            StreamState {
                messages: info.state.messages,
                bytes: info.state.bytes,
                max_bytes: u64::try_from(info.config.max_bytes).ok().filter(|&bytes| bytes > 0),
                first_sequence: info.state.first_sequence,
                last_sequence: info.state.last_sequence,
                first_at: u64::try_from(info.state.first_timestamp.unix_timestamp_nanos()).unwrap_or(0),
            }
        }))
    }

    /// A durable as it is; `None` where there is none.
    pub async fn durable_state(&self, stream: &str, durable: &str) -> Result<Option<DurableState>, BusError> {
        let what = || format!("look at the durable {durable} of {stream}");
        let ask = || async {
            let handle = self.js.get_stream_no_info(stream).await;
            let handle = handle.map_err(|error| BusError::request(what(), error_chain(&error)))?;
            match handle.consumer_info(durable).await {
                Ok(info) => Ok(Some(info)),
                Err(error) if error.to_string().contains("not found") => Ok(None),
                Err(error) => Err(BusError::request(what(), error_chain(&error))),
            }
        };
        Ok(self.asked(ask).await?.map(|info| DurableState {
            pending: info.num_pending,
            unacked: info.num_ack_pending as u64,
            redelivered: info.num_redelivered as u64,
            ack_floor: info.ack_floor.stream_sequence,
            delivered: info.delivered.stream_sequence,
            waiting: info.num_waiting as u64,
        }))
    }

    /// Removes every message of a stream; of nothing where there is no such stream.
    pub async fn purge(&self, stream: &str) -> Result<(), BusError> {
        self.purge_below(stream, u64::MAX).await
    }

    /// Removes the messages of a stream below `sequence`.
    pub async fn purge_below(&self, stream: &str, sequence: u64) -> Result<(), BusError> {
        let fail = |why: String| BusError::request(format!("purge the stream {stream}"), why);
        if self.stream_state(stream).await?.is_none() {
            return Ok(());
        }
        let handle = self.js.get_stream_no_info(stream).await.map_err(|error| fail(error_chain(&error)))?;
        let purge = handle.purge();
        let done = if sequence == u64::MAX { purge.await } else { purge.sequence(sequence).await };
        done.map(|_| ()).map_err(|error| fail(error_chain(&error)))
    }
}

impl StreamWish {
    pub(crate) fn config(&self) -> Config {
        let (retention, discard, bytes, age) = match self.retention {
            Retention::Link { bytes } => (RetentionPolicy::Interest, DiscardPolicy::New, bytes as i64, Duration::ZERO),
            Retention::Capture { bytes } => (RetentionPolicy::Limits, DiscardPolicy::New, bytes as i64, Duration::ZERO),
            Retention::Outcome { bytes, age } | Retention::Newest { bytes, age } => {
                (RetentionPolicy::Limits, DiscardPolicy::Old, bytes as i64, age)
            }
            Retention::Changelog => (RetentionPolicy::Limits, DiscardPolicy::New, -1, Duration::ZERO),
        };
        Config {
            name: self.name.clone(),
            subjects: self.subjects.clone(),
            retention,
            discard,
            max_bytes: bytes,
            max_age: age,
            max_messages: -1,
            max_messages_per_subject: if matches!(self.retention, Retention::Newest { .. }) { 1 } else { -1 },
            max_message_size: -1,
            max_consumers: -1,
            storage: StorageType::File,
            num_replicas: self.copies,
            duplicate_window: if age.is_zero() { DEDUPE_WINDOW } else { DEDUPE_WINDOW.min(age) },
            allow_direct: true,
            republish: self.told(),
            ..Default::default()
        }
    }

    /// Outcomes are told of once they are stored.
    fn told(&self) -> Option<Republish> {
        let [subject] = &self.subjects[..] else { return None };
        matches!(self.retention, Retention::Outcome { .. }).then(|| told_as_stored(subject, false))
    }
}

/// The server tells of all that it stores under a subject.
fn told_as_stored(subject: &str, headers_only: bool) -> Republish {
    Republish { source: subject.into(), destination: names::stored(subject), headers_only }
}

impl DurableWish {
    pub(crate) fn config(&self) -> pull::Config {
        let mut config = pull::Config {
            durable_name: Some(self.name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: ACK_WAIT,
            deliver_policy: DeliverPolicy::All,
            max_deliver: MAX_DELIVER,
            max_ack_pending: MAX_ACK_PENDING,
            ..Default::default()
        };
        match self.taker {
            TakerSort::Shared => {}
            TakerSort::Pinned => {
                config.max_ack_pending = PINNED_ACK_PENDING;
                config.priority_policy = PriorityPolicy::PinnedClient;
                config.priority_groups = vec![WRITER_GROUP.into()];
                config.priority_timeout = PIN_TIMEOUT;
            }
            TakerSort::Relay => config.ack_wait = RELAY_ACK_WAIT,
        }
        match &self.subjects[..] {
            [one] => config.filter_subject.clone_from(one),
            subjects => config.filter_subjects = subjects.to_vec(),
        }
        config
    }
}

/// The durable that keeps what is unread while `wish` is made anew.
fn guard_of(wish: &DurableWish) -> String {
    // No name of a site ends so.
    format!("{}_renewal-guard", wish.name)
}

/// Whether what is there is what is wanted, in what we set; the server fills in the rest.
fn same(there: &Config, wanted: &Config) -> bool {
    there.subjects == wanted.subjects
        && there.retention == wanted.retention
        && there.discard == wanted.discard
        && there.max_bytes == wanted.max_bytes
        && there.num_replicas == wanted.num_replicas
        && there.max_age == wanted.max_age
        && there.max_messages_per_subject == wanted.max_messages_per_subject
        && there.duplicate_window == wanted.duplicate_window
        && there.allow_direct == wanted.allow_direct
        && there.republish == wanted.republish
}

pub(crate) fn same_durable(there: &consumer::Config, wanted: &pull::Config) -> bool {
    there.ack_wait == wanted.ack_wait
        && there.max_deliver == wanted.max_deliver
        && there.max_ack_pending == wanted.max_ack_pending
        && there.priority_policy == wanted.priority_policy
        && there.priority_timeout == wanted.priority_timeout
        && filters(&there.filter_subject, &there.filter_subjects)
            == filters(&wanted.filter_subject, &wanted.filter_subjects)
}

/// The subjects that a durable gives, whichever way they are written.
fn filters<'a>(one: &'a str, many: &'a [String]) -> BTreeSet<&'a str> {
    many.iter().map(String::as_str).chain([one]).filter(|subject| !subject.is_empty()).collect()
}
