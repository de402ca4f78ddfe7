//! What a stage's process and its quarantine say to each other, as frames: four bytes of length, big endian, then so many bytes.
//! Bodies are frames of their own behind the one that announces them.

use std::io::{self, Read, Write};
use std::time::Duration;

use causeway_schemas::{Capture, Codec, Id, decode_body, encode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::protocol::MAX_OUTPUT_BYTES;

/// Longest frame: all that an answer may hold, and what stands around it.
pub(super) const MAX_FRAME: usize = MAX_OUTPUT_BYTES + (1 << 20);

/// To the quarantine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    /// A key of a live table; its value is the next frame.
    Put { table: String, key: String, revision: u64, stored_at: u64 },
    /// A key is gone.
    Removed { table: String, key: String, revision: u64 },
    /// All that a table held was told.
    Loaded { table: String },
    /// A part of the state that a fold begins with, which is the next frame.
    State { is_last: bool },
    /// A change of a fold, which is the next frame.
    Change,
    /// An input to be tried; its body is the next frame.
    Input { id: Id, kind: Option<String>, content_type: String },
}

/// From the quarantine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The stage is built.
    Ready,
    /// It cannot be built.
    Unfit(String),
    /// An input's answer.
    Answer(Answered),
}

/// What `process` said of an input.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answered {
    /// Where the input comes from, if it could be read.
    pub(super) capture: Option<Capture>,
    pub(super) answer: Ending,
    /// How long it took.
    pub(super) took: Duration,
    /// What models did: name, version, from when on after the start, and for how long.
    pub(super) runs: Vec<(String, String, Duration, Duration)>,
}

impl Answered {
    pub(super) fn stale() -> Self {
        Self { capture: None, answer: Ending::Stale, took: Duration::ZERO, runs: Vec::new() }
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ending {
    /// So many outputs, each the next frame.
    Messages(usize),
    Nothing {
        reason: String,
        detail: String,
    },
    Reject {
        reason: String,
        detail: String,
    },
    /// It comes again after this pause.
    Retry {
        why: String,
        pause: Duration,
    },
    /// It gave no answer to this input.
    Unanswered,
    /// It panicked; this process ends.
    Panicked(String),
    /// Not tried: the state of this fold is not what the changelog says, and this process ends.
    Stale,
}

/// A frame's bytes.
pub(crate) fn written<T: Serialize>(what: &T) -> Vec<u8> {
    encode(what, Codec::Bincode)
}

/// What a frame says.
pub(crate) fn read<T: DeserializeOwned>(frame: &[u8]) -> Result<T, String> {
    decode_body(frame, Codec::Bincode)
}

/// The next frame, `None` at the end.
pub(super) fn get_frame(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(Some(frame))
}

pub(super) fn put_frame(to: &mut impl Write, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(|_| io::Error::other("a frame of more than 4 GiB"))?;
    to.write_all(&length.to_be_bytes())?;
    to.write_all(frame)
}
