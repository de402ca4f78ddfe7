//! What stands in the tables of a pipeline, and the broker's advisories, a line each: the findings of the agent, then heartbeats.

use causeway_bus::Entry;
use causeway_operator::fuzz;

pub(crate) fn run(bytes: &[u8]) {
    let lines: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let (drift, heartbeats) = lines.split_first().expect("a split gives one at least");
    let page = fuzz::status(heartbeats, drift);
    assert!(!page.chars().any(|c| c.is_control() && c != '\n'), "a control character in {page:?}");
    // Head, stages, streams, people; what was dropped and each finding have a line of their own.
    assert!(page.lines().count() <= 12 + page.matches(" UTC: ").count(), "more lines than it has:\n{page}");
    for line in lines {
        let _ = fuzz::is_advisory(line);
        let value = bytes::Bytes::copy_from_slice(line);
        let _ = fuzz::is_person(&Entry { key: "a".into(), value, revision: 1, stored_at: 0 });
    }
}
