//! A header block, the line `NATS/1.0` included.

use bytes::Bytes;
use causeway_bus::{Headers, RawRecord, names};
use causeway_schemas::{Meta, header};
use causeway_stage::{again, fuzz, outcome_of};

pub(crate) fn run(bytes: &[u8]) {
    let record = RawRecord { subject: String::new(), stored_at: 0, headers: bytes.to_vec(), body: Bytes::new() };
    let _ = record.headers_base64();
    // What a dead letter of it says.
    for (name, _) in record.header_pairs() {
        assert!(!name.contains("\r\n"), "{name:?} is more than a name");
    }
    let read = record.read_headers();
    assert!(!record.is_readable() || read.is_some(), "said to be readable, and is not");
    if let Some(headers) = read {
        message(&headers);
    }
}

fn message(headers: &Headers) {
    let _ = (headers.kind(), headers.codec(), headers.to_pairs());
    if let Some(traceparent) = fuzz::traceparent(headers) {
        assert_eq!(traceparent.len(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".len());
    }
    // Whatever the subject was, children go to one of four tokens.
    let subject = headers.get("Subject").unwrap_or_default();
    assert_eq!(fuzz::place(subject, "faces", "crop").split('.').count(), 4, "children of {subject:?}");
    assert!(!names::token(subject).contains(['.', '*', '>', ' ', '\r', '\n']), "{subject:?} is no token");
    let Ok(meta) = headers.meta() else { return };
    let written = meta.to_headers();
    let get = |name: &str| written.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str());
    assert_eq!(Meta::from_headers(get).expect("what was written reads"), meta);
    let child = meta.child("stage", "crop.v1".into(), 1, 3);
    assert_eq!((child.root, child.parent, child.generation), (meta.root, Some(meta.id), meta.generation));
    let outcome = outcome_of(headers).expect("as the headers read");
    assert_eq!(outcome.root, meta.root);
    let again = again("faces.crop.edge.a", meta.id, 1, |name| headers.get(name), Bytes::new());
    for (name, value) in &again.headers {
        assert!(!value.contains(['\r', '\n']), "{name} cannot be sent");
    }
    assert!(again.headers.iter().any(|(name, value)| *name == header::ID && *value == meta.id.to_string()));
}
