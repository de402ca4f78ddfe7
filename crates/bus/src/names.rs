//! Names on the bus: streams `<pipeline>_<stage>`, subjects `<pipeline>.<link>.<site>.<key>[.<id>]`.

use causeway_schemas::Id;

/// The link name of `empty.v1`.
pub const EMPTY: &str = "empty";
/// The link name of dead letters.
pub const DEAD: &str = "dead";
/// The link name of what says at another site that there is a dead letter.
pub const RECEIPT: &str = "receipt";
/// The link name of changelogs.
pub const LOG: &str = "log";
/// The table of known people.
pub const PEOPLE: &str = "people";
/// The table of what the pipeline agrees on: epochs, generations.
pub const CONTROL: &str = "control";
/// The table of where stages are, where they were moved: the hub's, copied to every site, with what each site says of a move.
pub const PLACEMENT: &str = "placement";
/// The table of messages that did not get their answer the first time.
pub const ATTEMPTS: &str = "attempts";
/// The table of what every replica says of itself.
pub const REPLICAS: &str = "replicas";
/// The bucket of bodies that are too long for a message.
const BODIES: &str = "bodies";

/// The stream of a stage's link or outcomes, also `empty`, `dead`.
pub fn stream(pipeline: &str, stage: &str) -> String {
    format!("{pipeline}_{stage}")
}

/// The subject of a stream whose durables are not all made yet: nobody publishes there.
pub(crate) fn shut(stream: &str) -> String {
    format!("$CAUSEWAY.SHUT.{stream}")
}

/// The site where it was captured what is told under a subject, `<pipeline>.<link>.<site>…`; empty where it has none.
pub fn site_of(subject: &str) -> &str {
    subject.split('.').nth(2).unwrap_or_default()
}

/// The durable of what a relay takes to another site.
pub fn relay(site: &str) -> String {
    format!("relay-{site}")
}

/// The stream of a fold's changes.
pub fn changelog(pipeline: &str, stage: &str) -> String {
    format!("{pipeline}_{stage}_log")
}

/// The one subject of a fold's changes.
pub fn changelog_subject(pipeline: &str, stage: &str) -> String {
    format!("{pipeline}.{LOG}.{stage}")
}

/// How streams of snapshots end; no stage's does.
pub const SNAPSHOTS: &str = "_state";

/// The stream of the snapshots of a fold's state.
pub fn snapshots(pipeline: &str, stage: &str) -> String {
    format!("{pipeline}_{stage}{SNAPSHOTS}")
}

/// The one subject of a fold's snapshots.
pub fn snapshots_subject(pipeline: &str, stage: &str) -> String {
    format!("{pipeline}.{LOG}.{stage}.state")
}

/// The key-value bucket behind a table.
pub fn bucket(pipeline: &str, table: &str) -> String {
    format!("{pipeline}_{table}")
}

/// Where the agent of a site is asked which items have their outcomes.
pub fn done(pipeline: &str, site: &str) -> String {
    format!("_CAUSEWAY.{pipeline}.{site}.done")
}

/// Where the agent of a site is asked to remove a dead letter of a stage.
pub fn letter(pipeline: &str, site: &str, stage: &str) -> String {
    format!("_CAUSEWAY.{pipeline}.{site}.letter.{stage}")
}

/// The subject of a key of a table; `*` and `>` are of many.
pub fn key_of_table(pipeline: &str, table: &str, key: &str) -> String {
    format!("$KV.{}.{key}", bucket(pipeline, table))
}

/// The subjects of a table's keys.
pub fn keys_of_table(pipeline: &str, table: &str) -> String {
    key_of_table(pipeline, table, ">")
}

/// The stream behind a table.
pub fn stream_of_table(pipeline: &str, table: &str) -> String {
    format!("KV_{}", bucket(pipeline, table))
}

/// The object bucket for long bodies.
pub fn bodies(pipeline: &str) -> String {
    format!("{pipeline}_{BODIES}")
}

/// The stream behind it, and its subjects.
pub fn bodies_of(pipeline: &str) -> (String, String) {
    let bucket = bodies(pipeline);
    (format!("OBJ_{bucket}"), format!("$O.{bucket}.>"))
}

/// The subject of the chunks of a body.
pub(crate) fn chunks_of_body(pipeline: &str, nuid: &str) -> String {
    format!("$O.{}.C.{nuid}", bodies(pipeline))
}

/// Where the server tells of what it has stored under a subject: outcomes whole, of tables that there is something. A reader meets no
/// repeat there that was refused, and one with an account of its own nothing else.
pub fn stored(subject: &str) -> String {
    format!("_STORED.{subject}")
}

/// Dead letters, or receipts of them, that a stage gives.
pub fn of_stage(pipeline: &str, link: &str, stage: &str) -> String {
    format!("{pipeline}.{link}.*.*.{stage}.*")
}

/// The stream that keeps the broker's advisories about messages given up on.
pub fn advisories(pipeline: &str) -> String {
    format!("{pipeline}_advisories")
}

/// All subjects of a link.
pub fn link(pipeline: &str, link: &str) -> String {
    format!("{pipeline}.{link}.>")
}

/// All subjects of a link of what was captured at a site.
pub fn link_of_site(pipeline: &str, link: &str, site: &str) -> String {
    format!("{pipeline}.{link}.{site}.>")
}

/// The subject of a message on a link, where the id is not part of it.
pub fn subject(pipeline: &str, link: &str, site: &str, source: &str) -> String {
    format!("{pipeline}.{link}.{site}.{}", token(source))
}

/// The subject of an outcome: ends in its id, which is what put-if-absent goes by.
pub fn outcome(pipeline: &str, link: &str, site: &str, source: &str, id: Id) -> String {
    format!("{}.{id}", subject(pipeline, link, site, source))
}

/// A text as one token of a subject or one key of a table: letters, digits, `-` and `_` as they are, everything else as `=XX`
/// (percent-encoding with `=`, since `%` may not stand in a key of a table).
pub fn token(text: &str) -> String {
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => token.push(char::from(byte)),
            _ => {
                use std::fmt::Write as _;
                let _ = write!(token, "={byte:02X}");
            }
        }
    }
    if token.is_empty() { "=".into() } else { token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_one_token() {
        assert_eq!(token("door-2"), "door-2");
        assert_eq!(token("Barack Obama"), "Barack=20Obama");
        assert_eq!(token("a.b>*"), "a=2Eb=3E=2A");
        assert_eq!(token("ä"), "=C3=A4");
        assert_eq!(token(""), "=");
        assert_ne!(token("a=20"), token("a "));
    }
}
