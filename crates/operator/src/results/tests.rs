use causeway_schemas::{ModelRef, Part, encode};

use super::*;

/// The same graph under other names: kinds tell, names do not.
const PIPELINE: &str = r#"
pipeline = "doors"
[stage.camera]
uses = "capture"
[stage.find]
uses = "preprocess"
from = "camera"
model = "yunet"
[stage.describe]
uses = "extract"
from = "find"
model = "sface"
[stage.who]
uses = "classify"
from = "describe"
[stage.alike]
uses = "cluster"
from = "describe"
"#;

pub(crate) fn pipeline() -> Pipeline {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("doors.toml");
    std::fs::write(&path, PIPELINE).unwrap();
    Pipeline::load(path).unwrap()
}

fn results() -> Results {
    Results::new(&pipeline())
}

/// Results that a test tells of, photo by photo.
pub(crate) struct Told {
    pub(crate) results: Results,
}

impl Told {
    pub(crate) fn new() -> Self {
        Self { results: results() }
    }

    /// Face `index` of `count` in a photo, in the cluster of another or in its own; gives its id.
    pub(crate) fn face(
        &mut self,
        item: &str,
        index: usize,
        count: usize,
        label: Option<&str>,
        cluster: Option<Id>,
    ) -> Id {
        let face = feature(item, index, count);
        self.results.decide(&face, item, label, 0.5);
        self.results.assign(&face, item, cluster.unwrap_or(face.id), &[]);
        face.id
    }

    pub(crate) fn empty(&mut self, item: &str) {
        let (reason, detail) = ("no-face".into(), String::new());
        let empty = Empty { capture: capture(item), stage: "find".into(), reason, detail };
        self.results.store(&photo(item).child("find", Empty::kind(), 0, 1), &empty);
    }

    pub(crate) fn dead(&mut self, item: &str, stage: &str) {
        self.results.set_aside(&photo(item), stage, Vec::new());
    }
}

fn photo(item: &str) -> Meta {
    Meta::captured(Id::captured("camera", item), "camera", "frame.v1".into(), 0)
}

fn capture(item: &str) -> Capture {
    Capture { source: "camera".into(), item: item.into(), epoch: 0, sequence: 0, captured_at: 1 }
}

fn region() -> Region {
    let [x, y, w, h] = [1.0, 2.0, 30.0, 40.0];
    Region { x, y, w, h, score: 0.9, sharpness: 100.0, landmarks: Vec::new(), frame: [100, 100] }
}

/// Face `index` of `count` in a photo: the headers of its feature.
fn feature(item: &str, index: usize, count: usize) -> Meta {
    photo(item).child("find", "crop.v1".into(), index, count).child("describe", "feature.v1".into(), 0, 1)
}

impl Results {
    fn store(&mut self, meta: &Meta, message: &impl Serialize) {
        self.add(meta.clone(), Codec::Json, &encode(message, Codec::Json)).unwrap();
    }

    fn decide(&mut self, feature: &Meta, item: &str, label: Option<&str>, score: f32) {
        let decision = Decision {
            capture: capture(item),
            region: region(),
            label: label.map(Into::into),
            score,
            margin: score,
            nearest: label.map(Into::into),
            model: ModelRef { name: "sface".into(), version: "1".into(), sha256: String::new() },
            gallery: 1,
            top: Vec::new(),
            route: "who".into(),
        };
        self.store(&feature.child("who", Decision::kind(), 0, 1), &decision);
    }

    fn assign(&mut self, feature: &Meta, item: &str, cluster: Id, merged: &[Id]) {
        let (capture, region, merged) = (capture(item), region(), merged.to_vec());
        let assignment = Assignment { capture, region, cluster, score: 0.5, merged };
        self.store(&feature.child("alike", Assignment::kind(), 0, 1), &assignment);
    }

    fn set_aside(&mut self, meta: &Meta, stage: &str, headers: Vec<(String, String)>) {
        let letter = DeadLetter {
            stage: stage.into(),
            reason: "malformed".into(),
            detail: "cannot decode".into(),
            attempts: 1,
            models: Vec::new(),
            at: 1,
            subject: "x".into(),
            headers,
            body: vec![1, 2, 3],
        };
        self.store(&Meta { kind: DeadLetter::KIND.into(), stage: stage.into(), ..meta.clone() }, &letter);
    }
}

#[test]
fn a_face_is_joined_by_its_parent() {
    let mut results = results();
    let (left, right) = (feature("a.jpg", 0, 2), feature("a.jpg", 1, 2));
    // In any order: the assignment of one before its decision, the other way round for the other.
    results.assign(&left, "a.jpg", left.id, &[]);
    results.decide(&right, "a.jpg", None, 0.1);
    results.decide(&left, "a.jpg", Some("Ada"), 0.8);
    results.assign(&right, "a.jpg", right.id, &[]);
    let faces = results.faces();
    let seen: Vec<_> = faces.iter().map(|face| (face.id, face.label(), face.cluster)).collect();
    assert_eq!(seen, [(left.id, Some("Ada"), Some(left.id)), (right.id, None, Some(right.id))]);
    let numbers = Numbers { photos: 1, faces: 2, people: 1, clusters: 2, unknown_clusters: 1, ..Default::default() };
    assert_eq!(results.numbers(), numbers);
    assert!(results.ledger.is_complete(left.root));
}

#[test]
fn merges_are_followed_to_the_end() {
    let mut results = results();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|item| feature(item, 0, 1));
    results.assign(&a, "a", a.id, &[]);
    results.assign(&b, "b", b.id, &[]);
    results.assign(&c, "c", c.id, &[b.id]);
    results.assign(&d, "d", a.id, &[c.id]);
    results.decide(&b, "b", Some("Ada"), 0.7);
    let clusters = results.clusters();
    assert_eq!(clusters.len(), 1);
    assert_eq!((clusters[0].id, clusters[0].faces.len()), (a.id, 4));
    assert_eq!(clusters[0].names().into_iter().collect::<Vec<_>>(), ["Ada"]);
    assert_eq!(results.numbers().unknown_clusters, 0);
}

#[test]
fn merges_in_a_circle_end() {
    let mut results = results();
    let [a, b] = ["a", "b"].map(|item| feature(item, 0, 1));
    results.assign(&a, "a", a.id, &[b.id, a.id]);
    results.assign(&b, "b", b.id, &[a.id]);
    assert_eq!((results.current(a.id), results.current(b.id)), (a.id, a.id));
}

#[test]
fn the_largest_cluster_and_the_most_seen_person_come_first() {
    let mut results = results();
    let faces: Vec<Meta> = (0..5).map(|index| feature("group.jpg", index, 5)).collect();
    let founders = [0, 1, 1, 3, 1];
    let names = [Some("Zoe"), Some("Ada"), Some("Ada"), None, Some("Ada")];
    for (at, face) in faces.iter().enumerate() {
        results.assign(face, "group.jpg", faces[founders[at]].id, &[]);
        results.decide(face, "group.jpg", names[at], 0.5 + at as f32 / 10.0);
    }
    let sizes: Vec<usize> = results.clusters().iter().map(|cluster| cluster.faces.len()).collect();
    assert_eq!(sizes, [3, 1, 1]);
    let people = results.people();
    assert_eq!(
        people.iter().map(|person| (person.name, person.faces.len())).collect::<Vec<_>>(),
        [("Ada", 3), ("Zoe", 1)]
    );
    // The surest first.
    assert_eq!(people[0].faces[0].id, faces[4].id);
}

#[test]
fn what_ended_early_is_a_photo_and_what_a_stranger_sent_is_none() {
    let mut results = results();
    let empty =
        Empty { capture: capture("cat.png"), stage: "find".into(), reason: "no-face".into(), detail: String::new() };
    results.store(&photo("cat.png").child("find", Empty::kind(), 0, 1), &empty);
    results.set_aside(&photo("text.jpg"), "camera", Vec::new());
    let broken = photo("broken.jpg");
    let headers = broken.to_headers().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    results.set_aside(&broken, "find", headers);
    let strange = Meta::captured(Id::stored("doors_camera", 7), "unknown", DeadLetter::KIND.into(), 0);
    results.set_aside(&strange, "find", vec![("X".into(), "y".into())]);
    let numbers = Numbers { photos: 3, empties: 1, dead_letters: 3, ..Default::default() };
    assert_eq!(results.numbers(), numbers);
    assert_eq!(results.capture(photo("cat.png").id).map(|capture| capture.item.as_str()), Some("cat.png"));
    let reasons = Results::reasons(&results.dead_letters, |letter| &letter.reason);
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), [("malformed", 3)]);
}

#[test]
fn a_name_says_more_than_none_and_kinds_of_others_are_counted() {
    let mut results = results();
    let face = feature("a.jpg", 0, 1);
    results.decide(&face, "a.jpg", Some("Ada"), 0.8);
    results.decide(&face, "a.jpg", None, 0.0);
    assert_eq!(results.faces()[0].label(), Some("Ada"));
    let other = Meta { kind: "pose.v1".into(), part: Part::whole(), ..face.child("who", String::new(), 0, 1) };
    assert!(results.add(other, Codec::Json, b"{}").is_ok());
    let newer = Meta { kind: "decision.v9".into(), ..face.child("who", String::new(), 0, 1) };
    assert!(matches!(results.add(newer, Codec::Json, b"{}"), Err(DecodeError::Newer { .. })));
    assert_eq!(results.numbers().photos, 1);
}
