//! The wire: kinds of messages, their versions, ids and headers. No other crate knows how a message is written.

mod blob;
mod codec;
mod id;
mod kinds;
mod meta;

pub use codec::{Codec, DecodeError, Message, decode, decode_body, encode};
pub use id::{Id, IdError};
pub use kinds::{
    Assignment, Capture, Crop, DeadLetter, Decision, DecisionV1, Dtype, Empty, Feature, Frame, ModelRef, Person,
    Ranked, Receipt, Region, json_schema,
};
pub use meta::{Meta, MetaError, Part, header};
