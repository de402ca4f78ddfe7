//! Entries of the table of known people, a line each: a key in one character, then a person as JSON, or nothing where the key is
//! removed. Each vector is then looked for.

use causeway_classify::Gallery;
use causeway_schemas::Person;
use causeway_stage::Table as _;

pub(crate) fn run(bytes: &[u8]) {
    let mut gallery = Gallery::default();
    for (line, revision) in bytes.split(|&byte| byte == b'\n').zip(1..) {
        let Some((&key, value)) = line.split_first() else { continue };
        let key = char::from(key).to_string();
        if value.is_empty() {
            gallery.remove(&key, revision);
            continue;
        }
        let enrolled = gallery.put(&key, value, revision).is_ok();
        assert_eq!(gallery.revision(), revision);
        let Ok(person) = serde_json::from_slice::<Person>(value) else { continue };
        for vector in &person.vectors {
            let nearest = gallery.nearest(&person.space, vector);
            assert!(!enrolled || nearest.is_some(), "somebody who was just enrolled is not found");
            assert!(nearest.is_none_or(|found| (-1.0..=1.0).contains(&found.score)), "{nearest:?}");
        }
    }
}
