use std::collections::{HashMap, HashSet};

use causeway_schemas::{Dtype, ModelRef};
use proptest::prelude::*;

use super::*;

const THRESHOLD: f32 = 0.40;

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

fn id(index: usize) -> Id {
    Id::captured("test", &index.to_string())
}

/// The unit vector at so many degrees.
fn at(degrees: f32) -> Vec<f32> {
    let (sin, cos) = degrees.to_radians().sin_cos();
    vec![cos, sin]
}

/// As the runtime does it: what is known is only answered, what is new is decided, stored and applied.
fn take(state: &mut Cluster, changelog: &mut Vec<Change>, id: Id, feature: &Feature) -> Assignment {
    let known = changelog.iter().find(|change| change.id == id).cloned();
    let change = known.unwrap_or_else(|| {
        let change = state.decide(id, feature).unwrap();
        state.apply(&change);
        changelog.push(change.clone());
        change
    });
    state.output(&change)
}

fn merges(changelog: &[Change]) -> Merges {
    let mut merges = Merges::default();
    for change in changelog {
        merges.add(change);
    }
    merges
}

fn replay(changelog: &[Change], threshold: f32) -> Cluster {
    let mut state = Cluster::with_threshold(threshold);
    for change in changelog {
        state.apply(change);
    }
    state
}

/// Clusters as lists of the changes' places, in the order of the state, which knows how many are in each.
fn clusters(state: &Cluster, changelog: &[Change]) -> Vec<Vec<usize>> {
    let merges = merges(changelog);
    let members = |cluster| (0..changelog.len()).filter(move |&at| merges.current(changelog[at].cluster) == cluster);
    let all: Vec<(Vec<usize>, u64)> =
        state.clusters().map(|(cluster, size)| (members.clone()(cluster).collect(), size)).collect();
    assert!(all.iter().all(|(members, size)| members.len() as u64 == *size), "{all:?}");
    all.into_iter().map(|(members, _)| members).collect()
}

fn run(vectors: &[Vec<f32>]) -> (Cluster, Vec<Change>, Vec<Assignment>) {
    let mut state = Cluster::with_threshold(THRESHOLD);
    let mut log = Vec::new();
    let faces = vectors.iter().enumerate();
    let out = faces.map(|(index, vector)| take(&mut state, &mut log, id(index), &feature("f", vector))).collect();
    (state, log, out)
}

#[test]
fn near_faces_share_a_cluster_named_after_the_first() {
    let (state, log, out) = run(&[at(0.0), at(90.0), at(10.0)]);
    assert_eq!(clusters(&state, &log), [vec![0, 2], vec![1]]);
    assert_eq!(out.iter().map(|out| out.cluster).collect::<Vec<_>>(), [id(0), id(1), id(0)]);
    assert_eq!(out[0].score.to_bits(), 1f32.to_bits());
    assert!((out[2].score - 10f32.to_radians().cos()).abs() < 1e-6);
    assert_eq!((out[2].capture.sequence, out[2].region.x.to_bits()), (7, 1f32.to_bits()));
}

#[test]
fn a_face_between_merges_two_clusters_into_the_older() {
    let (state, log, out) = run(&[at(0.0), at(80.0), at(45.0)]);
    assert_eq!(clusters(&state, &log), [vec![0, 1, 2]]);
    assert_eq!(out[2].cluster, id(0), "the face is nearer to 1, the older of both is 0");
    assert_eq!(out[2].merged, [id(1)]);
    assert!((out[2].score - 35f32.to_radians().cos()).abs() < 1e-6, "the score is that to the nearer one");
    let merges = merges(&log);
    assert_eq!([0, 1].map(|cluster| merges.current(id(cluster))), [id(0), id(0)]);
}

#[test]
fn merges_are_followed_to_the_end() {
    let mut state = Cluster::with_threshold(THRESHOLD);
    let mut log = Vec::new();
    let mut take = |index: usize, degrees| take(&mut state, &mut log, id(index), &feature("f", &at(degrees)));
    take(0, 0.0);
    take(1, 70.0);
    take(2, 140.0);
    assert_eq!(take(3, 105.0).merged, [id(2)], "nearest first, and 0 is too far from all of them");
    // More and more faces in between draw the middle of the younger one towards 0.
    let drawn = (4..40).map(|index| take(index, 50.0)).find(|out| out.merged == [id(1)]);
    assert_eq!(drawn.unwrap().cluster, id(0));
    assert_eq!(merges(&log).current(id(2)), id(0));
    assert_eq!(state.clusters().count(), 1);
}

#[test]
fn one_pair_has_to_say_it_louder_than_many() {
    let little_above = THRESHOLD.acos().to_degrees() - 1.0;
    let (state, ..) = run(&[at(0.0), at(little_above)]);
    assert_eq!(state.clusters().count(), 2);
    let mut many = vec![at(0.0); 20];
    many.push(at(little_above));
    assert_eq!(run(&many).0.clusters().count(), 1);
}

#[test]
fn spaces_are_clustered_apart() {
    let mut state = Cluster::with_threshold(THRESHOLD);
    let mut log = Vec::new();
    let face = [1.0, 0.0];
    for (index, feature) in
        [feature("a", &face), feature("b", &face), feature("a", &[1.0, 0.0, 0.0]), feature("a", &face)]
            .iter()
            .enumerate()
    {
        take(&mut state, &mut log, id(index), feature);
    }
    let mut members = clusters(&state, &log);
    members.sort();
    assert_eq!(members, [vec![0, 3], vec![1], vec![2]]);
}

#[test]
fn what_is_no_vector_is_rejected() {
    let state = Cluster::with_threshold(THRESHOLD);
    let mut matrix = feature("f", &[1.0, 0.0]);
    matrix.shape = vec![1, 2];
    let mut short = feature("f", &[1.0, 0.0]);
    short.data.pop();
    let numbers = [vec![], vec![0.0, 0.0], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0]];
    let all = numbers.iter().map(|numbers| feature("f", numbers)).chain([matrix, short]);
    for wrong in all {
        assert!(matches!(state.decide(id(0), &wrong), Err(Failure::Reject { .. })), "{wrong:?}");
    }
}

#[test]
fn length_does_not_matter() {
    let (long, log, _) = run(&[vec![1000.0, 0.0], vec![0.001, 0.0]]);
    assert_eq!(clusters(&long, &log), [vec![0, 1]]);
}

#[test]
fn a_change_survives_the_wire() {
    use causeway_schemas::{Codec, decode_body, encode};
    let change = Cluster::with_threshold(THRESHOLD).decide(id(0), &feature("f", &at(33.0))).unwrap();
    let back: Change = decode_body(&encode(&change, Codec::Bincode), Codec::Bincode).unwrap();
    assert_eq!(back, change);
}

proptest! {
    /// Whatever comes in whatever order and however often: the changelog alone gives the same state to the last bit, and so does a
    /// snapshot with the changes behind it; a face that comes again gets the same answer, every face is in one cluster, and a
    /// cluster has the id of its first member.
    #[test]
    fn the_changelog_is_the_state(
        faces in prop::collection::vec(prop::collection::vec(-1f32..1.0, 3), 1..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 1..120),
        threshold in -0.5f32..0.95,
        behind in any::<prop::sample::Index>(),
    ) {
        prop_assume!(faces.iter().all(|face| face.iter().any(|&x| x != 0.0)));
        let mut state = Cluster::with_threshold(threshold);
        let mut log = Vec::new();
        let mut answers: HashMap<Id, Assignment> = HashMap::new();
        for place in &order {
            let index = place.index(faces.len());
            let answer = take(&mut state, &mut log, id(index), &feature("f", &faces[index]));
            prop_assert_eq!(answers.entry(id(index)).or_insert_with(|| answer.clone()), &answer);
        }
        prop_assert_eq!(log.len(), answers.len());
        prop_assert_eq!(&replay(&log, threshold), &state);

        let (before, after) = log.split_at(behind.index(log.len() + 1));
        let mut restored = Cluster::with_threshold(threshold);
        restored.restore(&replay(before, threshold).snapshot()).unwrap();
        for change in after {
            restored.apply(change);
        }
        prop_assert_eq!(&restored, &state);

        let mut seen = HashSet::new();
        for ((cluster, _), members) in state.clusters().zip(clusters(&state, &log)) {
            prop_assert_eq!(log[members[0]].id, cluster);
            for member in members {
                prop_assert!(seen.insert(member));
            }
        }
        prop_assert_eq!(seen.len(), log.len());
    }
}

/// One of the labelled features in the file that `LFW_FEATURES` names: a JSON list of `{person, photo, vector}`.
#[derive(Deserialize)]
struct Labelled {
    person: String,
    vector: Vec<f32>,
}

fn labelled() -> Option<Vec<Labelled>> {
    let Some(path) = std::env::var_os("LFW_FEATURES") else {
        eprintln!("not measured: LFW_FEATURES names no file of labelled features");
        return None;
    };
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

/// Pairwise F1 of the clusters when the faces come in this order.
fn pairwise_f1(faces: &[Labelled], order: &[usize], threshold: f32) -> f64 {
    let mut state = Cluster::with_threshold(threshold);
    let mut log = Vec::new();
    for &index in order {
        let change = state.decide(id(index), &feature("f", &faces[index].vector)).unwrap();
        state.apply(&change);
        log.push(change);
    }
    let merges = merges(&log);
    let cluster: HashMap<Id, Id> = log.iter().map(|change| (change.id, merges.current(change.cluster))).collect();
    let (mut both, mut either) = (0, 0);
    for a in 0..order.len() {
        for b in 0..a {
            let same = faces[order[a]].person == faces[order[b]].person;
            let together = cluster[&id(order[a])] == cluster[&id(order[b])];
            both += 2 * u32::from(same && together);
            either += u32::from(same) + u32::from(together);
        }
    }
    f64::from(both) / f64::from(either)
}

/// A shuffle by a linear congruential generator (Knuth's MMIX constants): the same on every machine.
fn shuffled(len: usize, seed: u64) -> Vec<usize> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    };
    let mut order: Vec<usize> = (0..len).collect();
    for place in (1..len).rev() {
        order.swap(place, next() % (place + 1));
    }
    order
}

#[test]
fn labelled_faces_are_clustered_without_a_fault_in_any_order() {
    let Some(faces) = labelled() else { return };
    let file_order: Vec<usize> = (0..faces.len()).collect();
    assert!((pairwise_f1(&faces, &file_order, THRESHOLD) - 1.0).abs() < 1e-9);
    for seed in 0..50 {
        let f1 = pairwise_f1(&faces, &shuffled(faces.len(), seed), THRESHOLD);
        assert!((f1 - 1.0).abs() < 1e-9, "seed {seed}: {f1}");
    }
}

/// `LFW_FEATURES=FILE cargo test -p causeway-cluster -- --ignored --nocapture`: how far the threshold may be off.
#[test]
#[ignore = "prints a table"]
fn table_of_f1_over_thresholds() {
    let Some(faces) = labelled() else { return };
    let file_order: Vec<usize> = (0..faces.len()).collect();
    println!("threshold  file order  min     mean    perfect of 200 shuffles");
    for percent in (26..=56).step_by(2) {
        let threshold = percent as f32 / 100.0;
        let file = pairwise_f1(&faces, &file_order, threshold);
        let all: Vec<f64> = (0..200).map(|seed| pairwise_f1(&faces, &shuffled(faces.len(), seed), threshold)).collect();
        let min = all.iter().copied().fold(1.0, f64::min);
        let mean = all.iter().sum::<f64>() / all.len() as f64;
        let perfect = all.iter().filter(|&&f1| f1 > 1.0 - 1e-9).count();
        println!("{threshold:9.2}  {file:10.4}  {min:.4}  {mean:.4}  {perfect}");
    }
    let mut seen = HashSet::new();
    let strangers: Vec<usize> = (0..faces.len()).filter(|&index| seen.insert(&faces[index].person)).collect();
    let mut state = Cluster::with_threshold(THRESHOLD);
    for &index in &strangers {
        let change = state.decide(id(index), &feature("f", &faces[index].vector)).unwrap();
        state.apply(&change);
    }
    println!("{} strangers with one photo each: {} clusters", strangers.len(), state.clusters().count());
}

/// `cargo test -p causeway-cluster --release -- --ignored --nocapture`
#[test]
#[ignore = "prints a figure"]
fn time_of_a_face_among_thousands_of_clusters() {
    const CLUSTERS: usize = 4000;
    let face = |index: usize| -> Vec<f32> {
        (0..128).map(|x| ((index * index + 7) as f32 * (x as f32 + 0.7)).sin()).collect()
    };
    let mut state = Cluster::with_threshold(0.9);
    for index in 0..CLUSTERS {
        let change = state.decide(id(index), &feature("f", &face(index))).unwrap();
        state.apply(&change);
    }
    let start = std::time::Instant::now();
    for index in CLUSTERS..CLUSTERS + 100 {
        state.decide(id(index), &feature("f", &face(index))).unwrap();
    }
    println!("{:?} a face among {} clusters", start.elapsed() / 100, state.clusters().count());
}

#[test]
fn what_nobody_has_joined_for_the_longest_time_is_forgotten() {
    let options = ClusterOptions { threshold: THRESHOLD, max_clusters: 32 };
    let empty = || Cluster { max_clusters: options.max_clusters, ..Cluster::with_threshold(THRESHOLD) };
    // 33 strangers, of whom the first comes again before the last.
    let face = |index: usize| {
        let mut vector = vec![0.0; 40];
        vector[index] = 1.0;
        feature("f", &vector)
    };
    let (mut state, mut log) = (empty(), Vec::new());
    for (index, stranger) in (0..32).chain([0, 32]).enumerate() {
        take(&mut state, &mut log, id(index), &face(stranger));
    }
    let left: Vec<Id> = state.clusters().map(|(cluster, _)| cluster).collect();
    let expected: Vec<Id> = [0].into_iter().chain(4..32).chain([33]).map(id).collect();
    assert_eq!(left, expected, "a sixteenth goes, beside the one too many");
    assert_eq!(take(&mut state, &mut log, id(40), &face(0)).cluster, id(0));
    assert_eq!(take(&mut state, &mut log, id(41), &face(2)).cluster, id(41), "it is a stranger once more");
    let mut restored = empty();
    restored.restore(&state.snapshot()).unwrap();
    assert_eq!(restored, state);
    let mut again = empty();
    for change in &log {
        again.apply(change);
    }
    assert_eq!(again, state);
}

#[test]
fn what_is_no_snapshot_is_refused() {
    let (state, ..) = run(&[at(0.0), at(90.0), at(10.0)]);
    let bytes = state.snapshot();
    let restore = |bytes: &[u8]| Cluster::with_threshold(THRESHOLD).restore(bytes);
    assert!(restore(&bytes).is_ok() && restore(&[]).is_ok());
    for end in 1..bytes.len() {
        assert!(restore(&bytes[..end]).is_err(), "{end} of {}", bytes.len());
    }
    assert!(restore(&[&bytes[..], &bytes].concat()).is_err(), "a space is there twice");
    assert!(restore(&[0xff; 64]).is_err());
}

/// A changelog that is not ours: `current` would look for the end of a circle for ever.
#[test]
fn merges_in_circles_are_none() {
    let state = Cluster::with_threshold(THRESHOLD);
    let change = |face: usize, cluster: usize, merges: &[usize]| {
        let change = state.decide(id(face), &feature("f", &at(0.0))).unwrap();
        Change { cluster: id(cluster), merges: merges.iter().map(|&merged| id(merged)).collect(), ..change }
    };
    let log = [change(0, 0, &[0]), change(1, 1, &[2]), change(2, 2, &[1, 3]), change(3, 3, &[1])];
    replay(&log, THRESHOLD);
    let merges = merges(&log);
    assert_eq!([0, 1, 2, 3].map(|face| merges.current(id(face))), [id(0), id(1), id(1), id(1)]);
}
