//! Stored messages as the command shows them: each a header block, two bytes that are 0, a body, two bytes that are 0.

use std::sync::LazyLock;

use bytes::Bytes;
use causeway_bus::{RawRecord, Record};
use causeway_operator::fuzz;
use causeway_pipelines::Pipeline;

/// As many as show what one does to others.
const MOST: usize = 16;

static PIPELINE: LazyLock<Pipeline> = LazyLock::new(|| {
    let file = include_bytes!("../../../pipelines/faces.toml");
    Pipeline::of_bytes(file, &[]).expect("the pipeline of the repository")
});

pub(crate) fn run(bytes: &[u8]) {
    let mut parts = parts(bytes);
    let mut records = Vec::new();
    while let (Some(headers), true) = (parts.next(), records.len() < MOST) {
        let body = Bytes::copy_from_slice(parts.next().unwrap_or_default());
        let raw = RawRecord { subject: "faces.dead.edge.a".into(), stored_at: 0, headers: headers.to_vec(), body };
        let Some(headers) = raw.read_headers() else { continue };
        let size = raw.body.len() as u64;
        let sequence = records.len() as u64 + 1;
        records.push(Record { subject: raw.subject, sequence, stored_at: 0, headers, body: raw.body, size });
    }
    for record in &records {
        shown(&fuzz::tapped(record), 1);
        let (page, again) = fuzz::letter(&PIPELINE, record.clone());
        shown(&page, usize::MAX);
        for (name, value) in again {
            assert!(!value.contains(['\r', '\n']), "{name} cannot be sent again");
        }
    }
    assert!(fuzz::results(&PIPELINE, &records) <= records.len());
}

/// Nothing of a stranger's that a terminal would obey.
fn shown(text: &str, most_lines: usize) {
    assert!(text.lines().count() <= most_lines, "{text:?} has more lines than {most_lines}");
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "a control character in {text:?}");
}

fn parts(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(bytes).filter(|bytes| !bytes.is_empty());
    std::iter::from_fn(move || {
        let all = rest.take()?;
        let Some(at) = all.windows(2).position(|pair| pair == [0, 0]) else { return Some(all) };
        rest = Some(&all[at + 2..]).filter(|rest| !rest.is_empty());
        Some(&all[..at])
    })
}
