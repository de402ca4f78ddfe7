//! What the command shows of bytes from outside, for `tests/fuzz`; no part of the interface.

use std::time::Duration;

use causeway_bus::{Entry, Record};
use causeway_pipelines::Pipeline;
use causeway_stage::retry_of;

use crate::content::Content;
use crate::dlq::letters::Letter;
use crate::net::Advisory;
use crate::people::person;
use crate::results::Results;
use crate::status::gather::{Gathered, Replica, StageStatus};

/// What `tap` shows of a message.
pub fn tapped(record: &Record) -> String {
    let content = Content::decode(record.headers.kind(), record.headers.codec(), &record.body);
    // Any is written; a value of its own would hide what cannot be.
    let _ = content.to_json().to_string();
    content.line()
}

/// What `dlq` shows of what stands among dead letters, and the headers that it would be sent again with.
pub fn letter(pipeline: &Pipeline, record: Record) -> (String, Vec<(&'static str, String)>) {
    let body = record.body.clone();
    let letter = Letter::of_body(pipeline, record, Ok(body));
    let _ = (letter.to_json().to_string(), letter.original(), letter.name());
    let again = letter.id.parse().map(|id| retry_of(&letter.letter, id, letter.sequence, 1));
    (letter.page(), again.map_or_else(|_| Vec::new(), |again| again.headers))
}

/// What is found in outcomes that were stored in this order: how many of them read, and all clusters and people.
pub fn results(pipeline: &Pipeline, records: &[Record]) -> usize {
    let mut results = Results::new(pipeline);
    let mut read = 0;
    for record in records {
        if let Ok(meta) = record.headers.meta() {
            read += usize::from(results.add(meta, record.headers.codec(), &record.body).is_ok());
        }
    }
    let _ = (results.numbers(), results.clusters(), results.people(), results.photos());
    read
}

/// What `status` shows of a stage whose replicas said these, and of an agent that found this.
pub fn status(heartbeats: &[&[u8]], drift: &[u8]) -> String {
    let beats = heartbeats.iter().filter_map(|beat| serde_json::from_slice(beat).ok());
    let replicas = beats.map(|beat| Replica { beat, silent: Duration::ZERO }).collect();
    let gathered = Gathered {
        pipeline: "faces".into(),
        site: None,
        file: "faces.toml".into(),
        up: None,
        nats: None,
        stages: vec![StageStatus { name: "classify".into(), replicas, takes: Vec::new() }],
        streams: Vec::new(),
        folds: Vec::new(),
        placement: None,
        edges: Vec::new(),
        carrying: Vec::new(),
        people: 0,
        vectors: 0,
        dead_letters: 0,
        drift: serde_json::from_slice(drift).unwrap_or_default(),
    };
    let _ = gathered.to_json().to_string();
    gathered.page()
}

/// Whether it is what the broker says when it gives a message up.
pub fn is_advisory(body: &[u8]) -> bool {
    serde_json::from_slice::<Advisory>(body).is_ok()
}

/// Whether it is somebody of the gallery.
pub fn is_person(entry: &Entry) -> bool {
    person(entry).is_ok()
}
