use bincode::config::{Configuration, Fixint, LittleEndian, NoLimit};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Capture;

/// A kind of message: a noun with a version, the same for every pipeline.
pub trait Message: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The noun: `feature`. Also the default name of the link in a subject.
    const NOUN: &'static str;
    /// The version that is written.
    const VERSION: u16;
    /// Longest body that is read, in bytes.
    const MAX_BYTES: usize;

    /// Where it began.
    fn capture(&self) -> &Capture;

    /// Whether all its numbers are some, neither infinite nor NaN: JSON, which outcomes are written in, has no others.
    fn is_finite(&self) -> bool {
        true
    }

    /// Reads a body of the version before `VERSION`; `None` where that is not read, as when there was none.
    fn of_version_before(_body: &[u8], _codec: Codec) -> Option<Result<Self, String>> {
        None
    }

    /// The kind as written in `Causeway-Kind`: `feature.v1`.
    fn kind() -> String {
        format!("{}.v{}", Self::NOUN, Self::VERSION)
    }
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Between stages: bincode, compact and fast.
    Bincode,
    /// For strangers: JSON.
    Json,
}

impl Codec {
    /// As written in the header `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Bincode => "application/x-bincode",
            Self::Json => "application/json",
        }
    }

    /// The codec that a `Content-Type` names; bincode where there is none.
    pub fn of(content_type: Option<&str>) -> Self {
        match content_type {
            Some(name) if name.starts_with("application/json") => Self::Json,
            _ => Self::Bincode,
        }
    }
}

/// Why a body cannot be read as the wanted message.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The header is missing or is no noun with a version.
    #[error("cannot tell its kind: the header Causeway-Kind is {0}")]
    NoKind(String),
    /// A noun that the taker does not take.
    #[error("cannot take a `{found}`: this stage takes `{wanted}`")]
    OtherKind {
        /// What the header said.
        found: String,
        /// What the stage takes.
        wanted: String,
    },
    /// The noun is right, its version is newer than this program.
    #[error("cannot read `{found}` yet: this program reads up to `{wanted}`; run a newer stage")]
    Newer {
        /// What the header said.
        found: String,
        /// The newest that is read.
        wanted: String,
    },
    /// The body is longer than any message of its kind.
    #[error("cannot read a body of {len} bytes: a {kind} has at most {max}")]
    TooLong {
        /// Length of the body, bytes.
        len: usize,
        /// The kind.
        kind: String,
        /// The bound, bytes.
        max: usize,
    },
    /// The bytes are not what the kind says.
    #[error("cannot decode the body as {kind}: {why}")]
    Malformed {
        /// The kind.
        kind: String,
        /// What the decoder said.
        why: String,
    },
}

impl DecodeError {
    /// A short fixed name for dead letters and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoKind(_) | Self::OtherKind { .. } => "unknown-kind",
            Self::Newer { .. } => "newer-version",
            Self::TooLong { .. } => "too-long",
            Self::Malformed { .. } => "malformed",
        }
    }
}

/// The frozen wire form: little endian, fixed-width integers. No limit when writing; the reader bounds by length first.
const WIRE: Configuration<LittleEndian, Fixint, NoLimit> =
    bincode::config::standard().with_fixed_int_encoding().with_little_endian();

/// Writes a message. Fails only where a type cannot be written at all, which its test shows.
pub fn encode<M: Serialize>(message: &M, codec: Codec) -> Vec<u8> {
    match codec {
        Codec::Bincode => bincode::serde::encode_to_vec(message, WIRE).expect("a wire message is encodable"),
        Codec::Json => serde_json::to_vec(message).expect("a wire message is encodable"),
    }
}

/// Reads a message of kind `M` out of a body whose headers said `kind` and `codec`.
pub fn decode<M: Message>(kind: Option<&str>, codec: Codec, body: &[u8]) -> Result<M, DecodeError> {
    let version = version_of::<M>(kind)?;
    if body.len() > M::MAX_BYTES {
        return Err(DecodeError::TooLong { len: body.len(), kind: M::kind(), max: M::MAX_BYTES });
    }
    let other = || DecodeError::OtherKind { found: shown(kind), wanted: M::kind() };
    let read = match M::VERSION - version {
        0 => decode_body(body, codec),
        1 => M::of_version_before(body, codec).ok_or_else(other)?,
        _ => return Err(other()),
    };
    read.and_then(finite).map_err(|why| DecodeError::Malformed { kind: shown(kind), why })
}

fn finite<M: Message>(message: M) -> Result<M, String> {
    if message.is_finite() { Ok(message) } else { Err("a number in it is infinite or none".into()) }
}

/// Reads bytes that `encode` wrote, whatever they are; for records that are no messages (a fold's changes).
///
/// The decoder claims no more than the bytes there are: the limit is the next power of two over their length times 64,
/// so a forged length is refused before memory is taken.
pub fn decode_body<T: DeserializeOwned>(body: &[u8], codec: Codec) -> Result<T, String> {
    match codec {
        Codec::Json => serde_json::from_slice(body).map_err(|error| error.to_string()),
        Codec::Bincode => {
            let (value, read) = decode_limited(body)?;
            if read != body.len() {
                return Err(format!("{} bytes are left over", body.len() - read));
            }
            Ok(value)
        }
    }
}

/// bincode's limit is a constant of the type: two sizes keep a short body from claiming what only a picture may.
fn decode_limited<T: DeserializeOwned>(body: &[u8]) -> Result<(T, usize), String> {
    const SHORT: usize = 1 << 20;
    const LONG: usize = 128 << 20;
    let result = if body.len() <= SHORT / 2 {
        bincode::serde::decode_from_slice(body, WIRE.with_limit::<SHORT>())
    } else {
        bincode::serde::decode_from_slice(body, WIRE.with_limit::<LONG>())
    };
    result.map_err(|error| error.to_string())
}

/// The version of a kind whose noun is `M`'s; at most the newest that is known.
fn version_of<M: Message>(kind: Option<&str>) -> Result<u16, DecodeError> {
    let written = kind.ok_or_else(|| DecodeError::NoKind("missing".into()))?;
    let (noun, version) = written
        .split_once(".v")
        .and_then(|(noun, version)| Some((noun, version.parse::<u16>().ok()?)))
        .ok_or_else(|| DecodeError::NoKind(format!("`{}`", shown(kind))))?;
    if noun != M::NOUN {
        return Err(DecodeError::OtherKind { found: shown(kind), wanted: M::kind() });
    }
    if version > M::VERSION {
        return Err(DecodeError::Newer { found: shown(kind), wanted: M::kind() });
    }
    Ok(version)
}

fn shown(kind: Option<&str>) -> String {
    kind.unwrap_or_default().chars().take(64).collect()
}
