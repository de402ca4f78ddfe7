//! NATS, and nothing else knows it: connections, streams, durables, tables, and the server that `up` starts.

mod address;
mod ask;
mod bus;
mod carry;
mod headers;
mod layout;
mod log;
mod look;
pub mod names;
mod publish;
mod pull;
mod read;
mod repair;
pub mod server;
mod snapshot;
mod table;

pub use address::{host_of, is_local};
pub use ask::Question;
pub use bus::{Bus, BusError, Credentials};
pub use carry::{Budget, Carried, Carrier, End, First, Keys, Line, Way};
pub use headers::Headers;
pub use layout::{
    Applied, BucketWish, DurableState, DurableWish, PROGRESS_EVERY, Retention, StreamState, StreamWish, TakerSort,
};
pub use log::{LogBegin, LogError};
pub use look::{Compared, OLDEST_SERVER, ServerFacts};
pub use publish::{CHANGE, Outgoing, PublishError, Stored};
pub use pull::{Delivery, Pull};
pub use read::{Record, Records};
pub use repair::RawRecord;
pub use snapshot::Snapshot;
pub use table::{Entry, Follow};
