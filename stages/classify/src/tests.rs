use causeway_schemas::{Capture, Dtype, ModelRef, Person, Region};
use causeway_stage::Table as _;

use super::*;

const OPTIONS: ClassifyOptions =
    ClassifyOptions { model: None, input: None, top_k: 5, threshold: 0.40, margin: 0.05, vote: None };

fn feature(space: &str, vector: &[f32]) -> Feature {
    let capture = Capture { source: "s".into(), item: "i".into(), epoch: 0, sequence: 7, captured_at: 8 };
    let region =
        Region { x: 1.0, y: 2.0, w: 3.0, h: 4.0, score: 0.9, sharpness: 50.0, landmarks: Vec::new(), frame: [10, 10] };
    Feature {
        capture,
        region,
        dtype: Dtype::F32,
        shape: vec![vector.len() as u32],
        data: Feature::encode_f32(vector),
        space: space.into(),
        model: ModelRef { name: "m".into(), version: "1".into(), sha256: "0".into() },
    }
}

fn person(name: &str, space: &str, vectors: &[&[f32]]) -> Vec<u8> {
    let vectors = vectors.iter().map(|vector| vector.to_vec()).collect();
    let person = Person { name: name.into(), space: space.into(), vectors, photos: Vec::new(), enrolled_at: 0 };
    serde_json::to_vec(&person).unwrap()
}

fn gallery(persons: &[(&str, &[&[f32]])]) -> Gallery {
    let mut gallery = Gallery::default();
    for (revision, (name, vectors)) in persons.iter().enumerate() {
        gallery.put(name, &person(name, "f", vectors), revision as u64 + 1).unwrap();
    }
    gallery
}

fn decide(gallery: Gallery, feature: Feature) -> Decision {
    let mut stage = Classify::with_gallery(&OPTIONS, Live::fixed(gallery)).unwrap();
    match stage.process(vec![feature]).pop() {
        Some(Ok(Answer::Messages(mut messages))) if messages.len() == 1 => messages.remove(0),
        other => panic!("no decision: {other:?}"),
    }
}

/// What a decision says: label, nearest, score, margin.
fn said(decision: &Decision) -> (Option<&str>, Option<&str>, f32, f32) {
    (decision.label.as_deref(), decision.nearest.as_deref(), decision.score, decision.margin)
}

#[test]
fn the_nearest_person_is_named_by_the_best_of_the_photos() {
    let gallery = gallery(&[("ann", &[&[0.0, 1.0], &[0.6, 0.8]]), ("bob", &[&[0.0, -1.0]])]);
    let decision = decide(gallery, feature("f", &[1.0, 0.0]));
    assert_eq!(said(&decision), (Some("ann"), Some("ann"), 0.6, 0.6));
    assert_eq!((decision.gallery, &decision.route[..]), (2, "classify"));
    assert_eq!((&decision.capture, &decision.region), (&feature("f", &[1.0]).capture, &feature("f", &[1.0]).region));
}

#[test]
fn below_the_threshold_is_unknown_and_says_who_was_nearest() {
    let found = decide(gallery(&[("ann", &[&[0.28, 0.96]])]), feature("f", &[1.0, 0.0]));
    assert_eq!(said(&found), (None, Some("ann"), 0.28, 0.28));
}

#[test]
fn too_near_to_another_is_unknown() {
    let two = gallery(&[("ann", &[&[0.6, 0.8]]), ("bob", &[&[0.58, 0.814_616_8]])]);
    let (label, nearest, score, margin) = {
        let decision = decide(two, feature("f", &[1.0, 0.0]));
        (decision.label, decision.nearest, decision.score, decision.margin)
    };
    assert_eq!((label, nearest.as_deref(), score.to_bits()), (None, Some("ann"), 0.6f32.to_bits()));
    assert!((margin - 0.02).abs() < 1e-6);
}

#[test]
fn the_margin_is_to_another_person_not_to_another_photo_or_key() {
    let mut one = gallery(&[("ann", &[&[1.0, 0.0], &[0.98, 0.199]]), ("bob", &[&[0.6, 0.8]])]);
    one.put("ann-2", &person("ann", "f", &[&[0.999, 0.0447]]), 9).unwrap();
    let decision = decide(one, feature("f", &[1.0, 0.0]));
    assert_eq!(decision.label.as_deref(), Some("ann"));
    assert!((decision.margin - 0.4).abs() < 1e-6);
}

#[test]
fn only_one_person_needs_no_margin() {
    let low = ClassifyOptions { threshold: 0.01, margin: 0.5, ..OPTIONS };
    let live = Live::fixed(gallery(&[("ann", &[&[0.28, 0.96]])]));
    let mut stage = Classify::with_gallery(&low, live).unwrap();
    let answer = stage.process(vec![feature("f", &[1.0, 0.0])]).pop().unwrap().unwrap();
    let Answer::Messages(decisions) = answer else { panic!("no decision") };
    assert_eq!(decisions[0].label.as_deref(), Some("ann"));
}

#[test]
fn equally_near_ones_are_told_apart_by_name() {
    for names in [["ann", "bob"], ["bob", "ann"]] {
        let two = gallery(&[(names[0], &[&[1.0, 0.0]]), (names[1], &[&[1.0, 0.0]])]);
        assert_eq!(said(&decide(two, feature("f", &[1.0, 0.0]))), (None, Some("ann"), 1.0, 0.0));
    }
}

#[test]
fn spaces_are_never_compared() {
    let one = gallery(&[("ann", &[&[1.0, 0.0]])]);
    for other in [feature("g", &[1.0, 0.0]), feature("f", &[1.0, 0.0, 0.0])] {
        let decision = decide(one.clone(), other);
        assert_eq!(said(&decision), (None, None, 0.0, 0.0));
        assert_eq!(decision.gallery, 1);
    }
    assert_eq!(said(&decide(Gallery::default(), feature("f", &[1.0]))), (None, None, 0.0, 0.0));
}

#[test]
fn what_is_no_vector_is_rejected_and_its_neighbours_are_not() {
    let mut matrix = feature("f", &[1.0, 0.0]);
    matrix.shape = vec![1, 2];
    let mut short = feature("f", &[1.0, 0.0]);
    short.data.pop();
    let numbers = [vec![], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0], vec![0.0, 1.0]];
    let batch = numbers.iter().map(|numbers| feature("f", numbers)).chain([matrix, short]).collect();
    let mut stage = Classify::with_gallery(&OPTIONS, Live::fixed(Gallery::default())).unwrap();
    let rejected = |answer: &Result<_, _>| matches!(answer, Err(Failure::Reject { .. }));
    let rejected: Vec<bool> = stage.process(batch).iter().map(rejected).collect();
    assert_eq!(rejected, [true, true, true, true, false, true, true]);
}

#[test]
fn the_revision_is_the_highest_seen() {
    let mut people = gallery(&[("ann", &[&[1.0, 0.0]]), ("bob", &[&[0.0, 1.0]])]);
    people.remove("ann", 7);
    assert_eq!((people.len(), people.revision()), (1, 7));
    people.remove("nobody", 3);
    assert_eq!((people.len(), people.revision()), (1, 7));
    people.remove("bob", 8);
    assert!(people.is_empty());
    assert_eq!(people, {
        let mut empty = Gallery::default();
        empty.remove("x", 8);
        empty
    });
}

#[test]
fn a_key_put_again_replaces_the_person() {
    let mut people = gallery(&[("a", &[&[1.0, 0.0], &[0.8, 0.6]]), ("b", &[&[0.0, 1.0]])]);
    people.put("a", &person("ann", "g", &[&[1.0, 0.0]]), 3).unwrap();
    assert_eq!(said(&decide(people.clone(), feature("f", &[1.0, 0.0]))), (None, Some("b"), 0.0, 0.0));
    assert_eq!(decide(people, feature("g", &[1.0, 0.0])).label.as_deref(), Some("ann"));
}

#[test]
fn an_entry_that_cannot_be_read_says_so_and_leaves_nothing_of_the_key() {
    let bad: [(&[u8], &str); 6] = [
        (b"{", "cannot read the person"),
        (&person("", "f", &[&[1.0]]), "no name"),
        (&person("x", "f", &[]), "no vector"),
        (&person("x", "f", &[&[1.0, 0.0], &[1.0]]), "vector 1 has 1 numbers, vector 0 has 2"),
        (&person("x", "f", &[&[0.0, 0.0]]), "vector 0: 2 numbers of length 0 have no direction"),
        (&person("x", "f", &[&[]]), "have no direction"),
    ];
    for (value, says) in bad {
        let mut people = gallery(&[("x", &[&[1.0, 0.0]]), ("y", &[&[1.0, 0.0]])]);
        let error = format!("{:#}", people.put("x", value, 5).unwrap_err());
        assert!(error.contains(says), "{error}");
        assert_eq!((people.len(), people.revision()), (1, 5));
    }
}

#[test]
fn vectors_of_another_length_are_normalised() {
    let found = decide(gallery(&[("ann", &[&[3.0, 4.0]])]), feature("f", &[10.0, 0.0]));
    assert_eq!(said(&found), (Some("ann"), Some("ann"), 0.6, 0.6));
}

#[test]
fn options_are_within_their_range() {
    for (threshold, margin) in [(1.5, 0.0), (f32::NAN, 0.0), (0.4, -0.1), (0.4, f32::NAN)] {
        let options = ClassifyOptions { threshold, margin, ..OPTIONS };
        assert!(Classify::with_gallery(&options, Live::fixed(Gallery::default())).is_err());
    }
}

/// `cargo test -p causeway-classify --release -- --ignored --nocapture`
#[test]
#[ignore = "prints a figure"]
fn time_of_a_decision_among_ten_thousand() {
    let mut people = Gallery::default();
    for index in 0..10_000u32 {
        let vectors: Vec<Vec<f32>> = (0..3)
            .map(|photo| (0..128).map(|x| ((index * 3 + photo) as f32 * 0.37 + x as f32).sin()).collect())
            .collect();
        let vectors: Vec<&[f32]> = vectors.iter().map(|vector| &vector[..]).collect();
        people.put(&index.to_string(), &person(&index.to_string(), "f", &vectors), u64::from(index)).unwrap();
    }
    let start = std::time::Instant::now();
    let copy = people.clone();
    println!("{:?} a copy of the gallery", start.elapsed());
    assert_eq!(copy, people);
    let face: Vec<f32> = (0..128).map(|x| (x as f32).cos()).collect();
    let mut stage = Classify::with_gallery(&OPTIONS, Live::fixed(people)).unwrap();
    let start = std::time::Instant::now();
    let decided = stage.process(vec![feature("f", &face); 100]).len();
    println!("{:?} a decision among 10,000 persons of 3 photos", start.elapsed() / decided as u32);
}
