//! A server looked at without changing anything: what it is, what it allows, and how far its streams are what a pipeline wants.

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::Config;

use crate::bus::error_chain;
use crate::layout::same_durable;
use crate::{Bus, BusError, StreamWish};

/// The oldest server that has what we use: pinned priority groups came with 2.11.
pub const OLDEST_SERVER: (i64, i64) = (2, 11);

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFacts {
    /// Its version.
    pub version: String,
    /// Whether that is `OLDEST_SERVER` or newer.
    pub is_new_enough: bool,
    /// Longest message it takes, bytes.
    pub max_payload: usize,
    /// Bytes of streams on disk that the account may still make; `None`: as many as the disk holds.
    pub free_storage: Option<u64>,
    /// Streams that the account may still make; `None`: any number.
    pub free_streams: Option<u64>,
}

/// How a stream on the server compares with a wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// It is as wanted, with its durables.
    Same,
    /// There is none, and nothing is in its way.
    Missing,
    /// There is none, and another stream has this subject of it: the server refuses the second.
    Taken {
        /// The subject.
        subject: String,
        /// The other stream.
        by: String,
    },
    /// It is otherwise in these points, which `apply` changes.
    Differs(Vec<String>),
    /// It is otherwise in these points, which no server changes.
    Unfit(Vec<String>),
}

impl Bus {
    /// What the server says of itself and of our account there.
    pub async fn facts(&self) -> Result<ServerFacts, BusError> {
        let account = self.js.query_account().await;
        let account = account.map_err(|error| BusError::request("look at the account", error_chain(&error)))?;
        let info = self.client.server_info();
        let free = |most: Option<i64>, used: u64| {
            most.and_then(|most| u64::try_from(most).ok()).map(|most| most.saturating_sub(used))
        };
        Ok(ServerFacts {
            is_new_enough: self.client.is_server_compatible(OLDEST_SERVER.0, OLDEST_SERVER.1, 0),
            version: info.version,
            max_payload: info.max_payload,
            free_storage: free(account.limits.max_storage, account.storage.max(account.reserved_storage)),
            free_streams: free(account.limits.max_streams, account.streams as u64),
        })
    }

    /// Compares a stream and its durables with a wish.
    pub async fn compare_stream(&self, wish: &StreamWish) -> Result<Compared, BusError> {
        if wish.ends {
            return Ok(Compared::Same);
        }
        let fail = |why: String| BusError::request(format!("look at the stream {}", wish.name), why);
        let stream = match self.js.get_stream(&wish.name).await {
            Ok(stream) => stream,
            Err(error) => {
                return match error.kind() {
                    GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                        Ok(self.in_the_way(wish).await)
                    }
                    _ => Err(fail(error_chain(&error))),
                };
            }
        };
        let (there, wanted) = (&stream.cached_info().config, wish.config());
        let unfit = unchangeable(there, &wanted);
        if !unfit.is_empty() {
            return Ok(Compared::Unfit(unfit));
        }
        let mut differs = changeable(there, &wanted);
        for durable in &wish.durables {
            match stream.consumer_info(&durable.name).await {
                Ok(info) if same_durable(&info.config, &durable.config()) => {}
                Ok(_) => differs.push(format!("its durable {} is set otherwise", durable.name)),
                Err(_) if durable.ends => {}
                Err(_) => differs.push(format!("it has no durable {}", durable.name)),
            }
        }
        Ok(if differs.is_empty() { Compared::Same } else { Compared::Differs(differs) })
    }

    async fn in_the_way(&self, wish: &StreamWish) -> Compared {
        for subject in &wish.subjects {
            if let Ok(by) = self.js.stream_by_subject(subject.as_str()).await {
                return Compared::Taken { subject: subject.clone(), by };
            }
        }
        Compared::Missing
    }
}

/// What a server refuses to change in a stream that is there.
fn unchangeable(there: &Config, wanted: &Config) -> Vec<String> {
    let mut unfit = Vec::new();
    if there.retention != wanted.retention {
        unfit.push(format!("its retention is {:?}, wanted is {:?}", there.retention, wanted.retention));
    }
    if there.storage != wanted.storage {
        unfit.push(format!("its storage is {:?}, wanted is {:?}", there.storage, wanted.storage));
    }
    unfit
}

fn changeable(there: &Config, wanted: &Config) -> Vec<String> {
    let mut differs = Vec::new();
    let mut say = |what: &str, there: String, wanted: String| {
        if there != wanted {
            differs.push(format!("its {what} is {there}, wanted is {wanted}"));
        }
    };
    say("list of subjects", there.subjects.join(", "), wanted.subjects.join(", "));
    say("number of copies", there.num_replicas.to_string(), wanted.num_replicas.to_string());
    say("bound in bytes", there.max_bytes.to_string(), wanted.max_bytes.to_string());
    say("greatest age", format!("{:?}", there.max_age), format!("{:?}", wanted.max_age));
    let of_a_subject = |config: &Config| config.max_messages_per_subject.to_string();
    say("number of messages kept of a subject", of_a_subject(there), of_a_subject(wanted));
    say("answer to being full", format!("{:?}", there.discard), format!("{:?}", wanted.discard));
    let told =
        |config: &Config| config.republish.as_ref().map_or("not told of".into(), |told| told.destination.clone());
    say("subject that it is told of on once it is stored", told(there), told(wanted));
    say("dedupe window", format!("{:?}", there.duplicate_window), format!("{:?}", wanted.duplicate_window));
    differs
}
