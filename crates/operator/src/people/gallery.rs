use std::fmt::Write as _;

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, BusError, Entry, names};
use causeway_schemas::Person;
use causeway_stage::now_ns;
use sha2::{Digest as _, Sha256};

use crate::people::{Examined, Photo, PhotoVerdict};

/// Most vectors of one person: more add little and cost every comparison.
pub(crate) const MAX_VECTORS: usize = 64;
/// How often a write is tried while others write the same person.
const MAX_SWAPS: usize = 16;
/// Bytes of a photo's SHA-256 that tell it from others.
const HASH_BYTES: usize = 16;
/// Stands between a photo's name and its hash.
const HASH_MARK: &str = " sha256:";

/// Everybody in the gallery, by name. What cannot be read is passed over, as the stages do.
pub(crate) async fn read_people(bus: &Bus) -> Result<Vec<Person>, BusError> {
    let entries = bus.table_entries(names::PEOPLE).await?;
    let mut people: Vec<Person> = entries.iter().filter_map(|entry| person(entry).ok()).collect();
    people.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(people)
}

/// A person with the revision of the entry.
pub(crate) async fn read_person(bus: &Bus, name: &str) -> anyhow::Result<Option<(Person, u64)>> {
    let entry = bus.table_get(names::PEOPLE, &names::token(name)).await?;
    entry.map(|entry| Ok((person(&entry)?, entry.revision))).transpose()
}

pub(crate) fn person(entry: &Entry) -> anyhow::Result<Person> {
    serde_json::from_slice(&entry.value).with_context(|| format!("cannot read the gallery's entry {}", entry.key))
}

/// Adds what the photos gave to a person, by compare-and-set. Gives the verdicts and how many vectors the person has now.
pub(crate) async fn enrol(
    bus: &Bus,
    name: &str,
    space: &str,
    examined: Vec<(Photo, Examined)>,
) -> anyhow::Result<(Vec<(String, PhotoVerdict)>, usize)> {
    for _ in 0..MAX_SWAPS {
        let found = read_person(bus, name).await?;
        let (before, revision) = found.map_or((None, 0), |(person, revision)| (Some(person), revision));
        let had = before.as_ref().map_or(0, |person| person.vectors.len());
        let (person, verdicts) = merge(before, name, space, &examined);
        if !verdicts.iter().any(|(_, verdict)| matches!(verdict, PhotoVerdict::Enrolled(_))) {
            return Ok((verdicts, had));
        }
        let vectors = person.vectors.len();
        let value = serde_json::to_vec(&person)?;
        if bus.table_swap(names::PEOPLE, &names::token(name), value.into(), revision).await?.is_some() {
            return Ok((verdicts, vectors));
        }
    }
    bail!("cannot enrol {name}: others change the same person all the time; try again")
}

/// A person with the new vectors added, and what became of each photo. Vectors of another embedding space are replaced: a
/// person has one space, and the pipeline compares in the new one.
fn merge(
    before: Option<Person>,
    name: &str,
    space: &str,
    examined: &[(Photo, Examined)],
) -> (Person, Vec<(String, PhotoVerdict)>) {
    let before = before.filter(|person| person.space == space);
    let mut person = before.unwrap_or_else(|| Person {
        name: name.into(),
        space: space.into(),
        vectors: Vec::new(),
        photos: Vec::new(),
        enrolled_at: now_ns(),
    });
    let mut add = |examined: &Examined| match examined {
        Examined::Nothing(verdict) => verdict.clone(),
        Examined::Face { entry, .. } if person.photos.contains(entry) => PhotoVerdict::Known,
        Examined::Face { .. } if person.vectors.len() >= MAX_VECTORS => PhotoVerdict::Full,
        Examined::Face { entry, taken, vector } => {
            person.vectors.push(vector.clone());
            person.photos.push(entry.clone());
            PhotoVerdict::Enrolled(taken.clone())
        }
    };
    let verdicts = examined.iter().map(|(photo, examined)| (photo.name.clone(), add(examined))).collect();
    (person, verdicts)
}

/// How the gallery names a photo: by file name and content, so that the same photo is not enrolled twice.
pub(crate) fn photo_entry(name: &str, bytes: &[u8]) -> String {
    let mut entry = format!("{name}{HASH_MARK}");
    for byte in &Sha256::digest(bytes)[..HASH_BYTES] {
        let _ = write!(entry, "{byte:02x}");
    }
    entry
}

/// The file name alone.
pub(crate) fn photo_name(entry: &str) -> &str {
    entry.rsplit_once(HASH_MARK).map_or(entry, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use causeway_schemas::Region;

    use super::*;
    use crate::people::verdict::Taken;

    fn face(name: &str, content: u64) -> (Photo, Examined) {
        let region =
            Region { x: 0.0, y: 0.0, w: 1.0, h: 1.0, score: 1.0, sharpness: 1.0, landmarks: vec![], frame: [1, 1] };
        let entry = photo_entry(name, &content.to_le_bytes());
        let taken = Taken { region, faces: 1 };
        (Photo { name: name.into(), path: name.into() }, Examined::Face { entry, taken, vector: vec![content as f32] })
    }

    #[test]
    fn a_photo_counts_once() {
        let (ada, verdicts) = merge(None, "Ada", "s", &[face("a.jpg", 1), face("a.jpg", 1), face("b.jpg", 2)]);
        assert_eq!(ada.vectors, [[1.0], [2.0]]);
        assert_eq!(verdicts[1].1, PhotoVerdict::Known);
        let (ada, verdicts) = merge(Some(ada), "Ada", "s", &[face("b.jpg", 2), face("a.jpg", 3)]);
        assert_eq!(ada.vectors, [[1.0], [2.0], [3.0]]);
        assert_eq!(verdicts[0].1, PhotoVerdict::Known);
        assert_eq!(ada.photos.iter().map(|entry| photo_name(entry)).collect::<Vec<_>>(), ["a.jpg", "b.jpg", "a.jpg"]);
    }

    #[test]
    fn a_person_is_bounded() {
        let photos: Vec<_> = (0..=MAX_VECTORS as u64).map(|content| face("x.jpg", content)).collect();
        let (ada, verdicts) = merge(None, "Ada", "s", &photos);
        assert_eq!(ada.vectors.len(), MAX_VECTORS);
        assert_eq!(verdicts[MAX_VECTORS].1, PhotoVerdict::Full);
    }

    #[test]
    fn another_space_replaces() {
        let (old, _) = merge(None, "Ada", "old", &[face("a.jpg", 1)]);
        let (new, verdicts) = merge(Some(old), "Ada", "new", &[face("a.jpg", 1)]);
        assert_eq!((new.vectors.len(), new.space.as_str()), (1, "new"));
        assert!(matches!(verdicts[0].1, PhotoVerdict::Enrolled(_)));
    }
}
