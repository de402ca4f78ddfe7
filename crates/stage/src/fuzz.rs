//! What private code of this crate makes of bytes from outside, for `tests/fuzz`; no part of the interface.

use causeway_bus::Headers;

use crate::outcomes::Place;
use crate::quarantine::wire::{self, Said, Told};
use crate::trace::TraceContext;

/// The trace that a message's headers name, as they would be written.
pub fn traceparent(headers: &Headers) -> Option<String> {
    let read = TraceContext::read(headers.get(causeway_schemas::header::TRACEPARENT)?)?;
    Some(read.traceparent())
}

/// Where the children of a message that came on `subject` go.
pub fn place(subject: &str, pipeline: &str, link: &str) -> String {
    Place::of(subject).subject(pipeline, link)
}

/// A frame between a stage and its quarantine, in both directions: what it says, written again.
pub fn quarantine(frame: &[u8]) -> [Option<Vec<u8>>; 2] {
    let told = wire::read::<Told>(frame).ok().map(|told| wire::written(&told));
    let said = wire::read::<Said>(frame).ok().map(|said| wire::written(&said));
    [told, said]
}
