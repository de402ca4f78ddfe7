use super::*;

#[track_caller]
fn assert_close(found: Option<f64>, expected: f64) {
    let found = found.expect("a figure");
    assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
}

#[test]
fn auc_is_1_when_apart_0_when_reversed_and_a_half_when_equal() {
    assert_close(Scores::new(&[0.8, 0.9], &[0.1, 0.2, 0.3]).auc(), 1.0);
    assert_close(Scores::new(&[0.1], &[0.8, 0.9]).auc(), 0.0);
    assert_close(Scores::new(&[0.5, 0.5], &[0.5, 0.5, 0.5]).auc(), 0.5);
}

#[test]
fn ties_count_half_in_auc() {
    // 0.9 beats 3 of 3; 0.5 beats 0.1, ties with 0.5, loses to 0.7: (3 + 1 + ½) / 6.
    assert_close(Scores::new(&[0.5, 0.9], &[0.1, 0.5, 0.7]).auc(), 4.5 / 6.0);
}

#[test]
fn auc_is_the_area_under_the_roc_curve() {
    let scores = Scores::new(&[0.2, 0.5, 0.5, 0.6, 0.9, 0.9], &[0.1, 0.2, 0.3, 0.5, 0.5, 0.9, 0.95]);
    let mut area = 0.0;
    let mut before = RocPoint::default();
    for point in scores.roc() {
        area += (point.far - before.far) * f64::midpoint(point.tar, before.tar);
        before = point;
    }
    assert_eq!(before, RocPoint { far: 1.0, tar: 1.0 });
    assert_close(scores.auc(), area);
}

#[test]
fn tar_at_far_is_the_highest_that_the_far_allows() {
    // From 0.7 on: 2 of 4 accepted, no false one. From 0.6 on: one of 4 false. From 0.3 on: 3 of 4, one false.
    let scores = Scores::new(&[0.2, 0.3, 0.7, 0.9], &[0.0, 0.05, 0.1, 0.6]);
    assert_close(scores.tar_at_far(0.0), 0.5);
    assert_close(scores.tar_at_far(1e-3), 0.5);
    assert_close(scores.tar_at_far(0.2499), 0.5);
    assert_close(scores.tar_at_far(0.25), 1.0);
    assert_close(scores.tar_at_far(1.0), 1.0);
    // One of 1000 is just what a FAR of 1e-3 allows.
    let different: Vec<f32> = (0..1000_u16).map(|i| f32::from(i) / 1000.0).collect();
    assert_close(Scores::new(&[0.998_5, 0.5], &different).tar_at_far(1e-3), 0.5);
    assert_close(Scores::new(&[0.997_5, 0.5], &different).tar_at_far(1e-3), 0.0);
}

#[test]
fn tar_at_far_is_interpolated_where_scores_tie() {
    // All at once: from (0, 0) straight to (1, 1).
    assert_close(Scores::new(&[0.5], &[0.5]).tar_at_far(1e-3), 1e-3);
    // (0, ½), then a tie of 1 of 2 same with 2 of 4 different: at a FAR of ¼ half way from ½ to 1.
    assert_close(Scores::new(&[0.9, 0.5], &[0.5, 0.5, 0.1, 0.2]).tar_at_far(0.25), 0.75);
}

#[test]
fn equal_error_rate_is_where_both_errors_are_equal() {
    assert_close(Scores::new(&[0.8, 0.9], &[0.1, 0.2]).equal_error_rate(), 0.0);
    assert_close(Scores::new(&[0.1, 0.2], &[0.8, 0.9]).equal_error_rate(), 1.0);
    // From 0.6 on 1 of 4 is refused and 1 of 4 falsely accepted.
    assert_close(Scores::new(&[0.3, 0.7, 0.8, 0.9], &[0.0, 0.1, 0.2, 0.6]).equal_error_rate(), 0.25);
    // One tie from (0, 0) to (1, 1): half way.
    assert_close(Scores::new(&[0.5], &[0.5]).equal_error_rate(), 0.5);
    // 1 of 3 is refused while FAR goes from 0 to ½: they meet at ⅓.
    assert_close(Scores::new(&[0.1, 0.8, 0.9], &[0.0, 0.5]).equal_error_rate(), 1.0 / 3.0);
}

#[test]
fn accuracy_at_a_threshold_counts_what_is_on_it_as_accepted() {
    let scores = Scores::new(&[0.4, 0.39], &[0.4, 0.1, 0.2, 0.3, 0.35, 0.0]);
    // Right: 0.4 of the same person, five of six of different people.
    assert_eq!(scores.judged_right(0.4), [Share { part: 1, of: 2 }, Share { part: 5, of: 6 }]);
    assert_close(scores.accuracy(0.4), 6.0 / 8.0);
    assert_close(scores.balanced_accuracy(0.4), f64::midpoint(1.0 / 2.0, 5.0 / 6.0));
}

#[test]
fn without_pairs_of_both_sorts_there_are_no_figures() {
    for scores in [Scores::new(&[0.5], &[]), Scores::new(&[], &[0.5]), Scores::default()] {
        let figures = [scores.auc(), scores.tar_at_far(1e-3), scores.equal_error_rate(), scores.accuracy(0.4)];
        assert_eq!(figures, [None; 4]);
        assert_eq!(scores.balanced_accuracy(0.4), None);
    }
}

/// A vector of length 1 at this angle, degrees.
fn at(degrees: f32) -> [f32; 2] {
    let (sin, cos) = degrees.to_radians().sin_cos();
    [cos, sin]
}

fn compare(people: &[usize], degrees: &[f32]) -> Comparison {
    let vectors: Vec<_> = degrees.iter().map(|&degrees| at(degrees)).collect();
    let samples: Vec<_> = people.iter().zip(&vectors).map(|(&person, vector)| Sample { person, vector }).collect();
    Comparison::of(&samples)
}

#[test]
fn rank_1_leaves_one_out() {
    // 0° finds 10°. 10° finds 0°. 50° and 95° are of one person, but 50° is nearer to the single face at 60°. 95° finds 60°.
    let comparison = compare(&[0, 0, 1, 1, 2], &[0.0, 10.0, 50.0, 95.0, 60.0]);
    assert_eq!(comparison.rank1, Share { part: 2, of: 4 });
    assert_eq!(comparison.scores.counts(), (2, 8));
}

#[test]
fn the_same_photo_under_two_names_is_found_by_neither() {
    assert_eq!(compare(&[0, 0, 1, 1], &[0.0, 0.0, 0.0, 90.0]).rank1, Share { part: 0, of: 4 });
}

#[test]
fn one_photo_each_has_no_rank_1() {
    assert_eq!(compare(&[0, 1, 2], &[0.0, 10.0, 20.0]).rank1.fraction(), None);
    assert_eq!(compare(&[], &[]).rank1.fraction(), None);
    assert_eq!(compare(&[0, 0], &[0.0, 10.0]).rank1.fraction(), None, "one person only");
}

#[test]
fn the_hard_cases_come_worst_first() {
    let comparison = compare(&[0, 0, 0, 1, 1], &[0.0, 10.0, 30.0, 35.0, 90.0]);
    let faces = |pairs: &[Pair]| pairs.iter().map(|pair| pair.faces).collect::<Vec<_>>();
    assert_eq!(faces(&comparison.lowest_same), [[3, 4], [0, 2], [1, 2]]);
    assert_eq!(faces(&comparison.highest_different), [[2, 3], [1, 3], [0, 3]]);
    assert!((comparison.lowest_same[0].cosine - 55_f32.to_radians().cos()).abs() < 1e-6);
}

#[test]
fn clusters_that_are_people_are_perfect() {
    let found = Clustering::of(&[(0, 'a'), (0, 'a'), (1, 'b'), (1, 'b'), (2, 'c')]);
    assert_eq!(found, Clustering { precision: Some(1.0), recall: Some(1.0), f1: Some(1.0), clusters: 3 });
}

#[test]
fn one_face_astray() {
    // People: 3 + 1 pairs. Clusters: a has 2 faces (1 pair), b has 3 (3 pairs, of which 1 is of one person).
    let found = Clustering::of(&[(0, 'a'), (0, 'a'), (0, 'b'), (1, 'b'), (1, 'b')]);
    assert_close(found.precision, 2.0 / 4.0);
    assert_close(found.recall, 2.0 / 4.0);
    assert_close(found.f1, 0.5);
    // All in one: 4 of 10 pairs. F1 = 2·0.4·1 / 1.4.
    let found = Clustering::of(&[(0, 'a'), (0, 'a'), (0, 'a'), (1, 'a'), (1, 'a')]);
    assert_close(found.f1, 0.8 / 1.4);
}

#[test]
fn nothing_together_has_an_f1_of_0_and_no_precision() {
    let found = Clustering::of(&[(0, 'a'), (0, 'b')]);
    assert_eq!(found, Clustering { precision: None, recall: Some(0.0), f1: Some(0.0), clusters: 2 });
}

#[test]
fn where_nobody_has_two_faces_there_is_no_f1() {
    let found = Clustering::of(&[(0, 'a'), (1, 'a')]);
    assert_eq!(found, Clustering { precision: Some(0.0), recall: None, f1: None, clusters: 1 });
    assert_eq!(Clustering::of::<usize, char>(&[]).f1, None);
}
