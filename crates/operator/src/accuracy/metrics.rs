//! The figures, from the faces alone: no bus, no files.
//!
//! The words are those of biometric testing (ISO/IEC 19795-1): a pair of the same person that is judged the same is a true
//! accept (TAR: their share), one of different people that is judged the same a false accept (FAR: their share).

use std::collections::HashMap;
use std::hash::Hash;

/// Hard cases that are kept of either sort.
const HARD_CASES: usize = 3;

/// A labelled face: whose it is, and its feature, L2-normalised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample<'a> {
    pub(crate) person: usize,
    pub(crate) vector: &'a [f32],
}

/// What comparing every face with every other gives.
#[derive(Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) scores: Scores,
    pub(crate) rank1: Share,
    /// The least alike pairs of the same person, the worst first.
    pub(crate) lowest_same: Vec<Pair>,
    /// The most alike pairs of different people, the worst first.
    pub(crate) highest_different: Vec<Pair>,
}

/// Two faces by their places among the samples, and their cosine.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    pub(crate) cosine: f32,
    pub(crate) faces: [usize; 2],
}

/// A part of a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Share {
    pub(crate) part: usize,
    pub(crate) of: usize,
}

impl Share {
    /// As a fraction 0..1; of nothing there is none.
    pub(crate) fn fraction(self) -> Option<f64> {
        (self.of > 0).then(|| self.part as f64 / self.of as f64)
    }
}

impl Comparison {
    /// Compares all pairs: n²/2 cosines, kept as 4 bytes each.
    pub(crate) fn of(samples: &[Sample<'_>]) -> Self {
        let mut comparison = Self::default();
        let mut nearest = vec![Nearest::default(); samples.len()];
        for (i, a) in samples.iter().enumerate() {
            for (j, b) in samples.iter().enumerate().skip(i + 1) {
                let cosine = dot(a.vector, b.vector);
                let is_same = a.person == b.person;
                comparison.take(Pair { cosine, faces: [i, j] }, is_same);
                nearest[i].take(cosine, is_same);
                nearest[j].take(cosine, is_same);
            }
        }
        comparison.scores.sort();
        // Who has one photo only has nothing to be found by: no probe, but in everybody's gallery.
        let probes = nearest.into_iter().filter_map(Nearest::is_right);
        for is_right in probes {
            comparison.rank1.part += usize::from(is_right);
            comparison.rank1.of += 1;
        }
        comparison
    }

    fn take(&mut self, pair: Pair, is_same: bool) {
        if is_same {
            self.scores.same.push(pair.cosine);
            keep_worst(&mut self.lowest_same, pair, |cosine| cosine);
        } else {
            self.scores.different.push(pair.cosine);
            keep_worst(&mut self.highest_different, pair, |cosine| -cosine);
        }
    }
}

/// Puts a pair among the few whose `key` is least.
fn keep_worst(worst: &mut Vec<Pair>, pair: Pair, key: impl Fn(f32) -> f32) {
    let place = worst.partition_point(|known| key(known.cosine) <= key(pair.cosine));
    if place < HARD_CASES {
        worst.insert(place, pair);
        worst.truncate(HARD_CASES);
    }
}

/// The highest cosine of one face to others.
#[derive(Debug, Clone, Copy, Default)]
struct Nearest {
    same: Option<f32>,
    different: Option<f32>,
}

impl Nearest {
    fn take(&mut self, cosine: f32, is_same: bool) {
        let highest = if is_same { &mut self.same } else { &mut self.different };
        *highest = Some(highest.map_or(cosine, |known| known.max(cosine)));
    }

    /// Leave one out, rank 1: whether the nearest of all other faces is of the same person. A tie is wrong: whoever looks
    /// it up may get either. `None` where there is no other face of the person, or of nobody else.
    fn is_right(self) -> Option<bool> {
        Some(self.same? > self.different?)
    }
}

/// Cosines of pairs, ascending.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    same: Vec<f32>,
    different: Vec<f32>,
}

impl Scores {
    #[cfg(test)]
    fn new(same: &[f32], different: &[f32]) -> Self {
        let mut scores = Self { same: same.to_vec(), different: different.to_vec() };
        scores.sort();
        scores
    }

    fn sort(&mut self) {
        self.same.sort_unstable_by(f32::total_cmp);
        self.different.sort_unstable_by(f32::total_cmp);
    }

    /// How many pairs of the same person there are, and how many of different people.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (self.same.len(), self.different.len())
    }

    fn is_empty(&self) -> bool {
        self.same.is_empty() || self.different.is_empty()
    }

    /// The area under the ROC curve, exact: the chance that a pair of the same person is more alike than one of different
    /// people, ties counting half. It is the rank sum of Mann and Whitney over the number of comparisons, U / (n·m)
    /// (Hanley and `McNeil`, "The meaning and use of the area under a ROC curve", Radiology 143, 1982).
    pub(crate) fn auc(&self) -> Option<f64> {
        if self.is_empty() {
            return None;
        }
        // Twice U: the different pairs below, and again those not above.
        let wins = |&cosine: &f32| {
            let below = self.different.partition_point(|&other| other < cosine);
            let not_above = self.different.partition_point(|&other| other <= cosine);
            (below + not_above) as u64
        };
        let wins: u64 = self.same.iter().map(wins).sum();
        Some(wins as f64 / 2.0 / self.same.len() as f64 / self.different.len() as f64)
    }

    /// TAR at a FAR: read off the ROC curve, whose points (one for each cosine that occurs, everything from it on accepted)
    /// are joined by straight lines; where it climbs at just this FAR, the upper end. Without ties that is the highest TAR
    /// of all thresholds whose FAR is not above. The same as `numpy.interp(far, *sklearn.metrics.roc_curve(…)[:2])`.
    pub(crate) fn tar_at_far(&self, far: f64) -> Option<f64> {
        let (mut before, beyond) = self.crossing(|point| point.far > far)?;
        let Some(beyond) = beyond else { return Some(before.tar) };
        before.move_to(beyond, (far - before.far) / (beyond.far - before.far));
        Some(before.tar)
    }

    /// The equal error rate: where the ROC curve, drawn as for [`Self::tar_at_far`], has as large a share of different people
    /// accepted as of the same person refused (FAR = 1 − TAR).
    pub(crate) fn equal_error_rate(&self) -> Option<f64> {
        let excess = |point: RocPoint| point.far - (1.0 - point.tar);
        let (mut before, beyond) = self.crossing(|point| excess(point) >= 0.0)?;
        // The last point accepts all: its excess is 1.
        let beyond = beyond?;
        before.move_to(beyond, -excess(before) / (excess(beyond) - excess(before)));
        Some(before.far)
    }

    /// The fraction of all pairs that are judged right when those from `threshold` on are taken for the same person.
    pub(crate) fn accuracy(&self, threshold: f32) -> Option<f64> {
        if self.is_empty() {
            return None;
        }
        let [same, different] = self.judged_right(threshold);
        Share { part: same.part + different.part, of: same.of + different.of }.fraction()
    }

    /// The mean of the fractions judged right of either sort: pairs of different people, of which there are many more, do
    /// not outvote the others.
    pub(crate) fn balanced_accuracy(&self, threshold: f32) -> Option<f64> {
        let [same, different] = self.judged_right(threshold);
        Some(f64::midpoint(same.fraction()?, different.fraction()?))
    }

    /// Pairs of the same person that are accepted, pairs of different people that are not.
    pub(crate) fn judged_right(&self, threshold: f32) -> [Share; 2] {
        let below = |scores: &[f32]| scores.partition_point(|&cosine| cosine < threshold);
        let (same, different) = (&self.same, &self.different);
        let accepted = Share { part: same.len() - below(same), of: same.len() };
        [accepted, Share { part: below(different), of: different.len() }]
    }

    /// The point of the ROC curve before the first where `is_beyond`, and that one.
    fn crossing(&self, is_beyond: impl Fn(RocPoint) -> bool) -> Option<(RocPoint, Option<RocPoint>)> {
        if self.is_empty() {
            return None;
        }
        let mut before = RocPoint::default();
        for point in self.roc() {
            if is_beyond(point) {
                return Some((before, Some(point)));
            }
            before = point;
        }
        Some((before, None))
    }

    /// The points of the ROC curve behind (0, 0): one for each cosine that occurs, descending, up to (1, 1).
    fn roc(&self) -> impl Iterator<Item = RocPoint> {
        let (mut same, mut different) = (&self.same[..], &self.different[..]);
        std::iter::from_fn(move || {
            let highest = same.last().copied().into_iter().chain(different.last().copied()).reduce(f32::max)?;
            same = &same[..same.partition_point(|&cosine| cosine < highest)];
            different = &different[..different.partition_point(|&cosine| cosine < highest)];
            let accepted = |left: &[f32], all: &[f32]| (all.len() - left.len()) as f64 / all.len() as f64;
            Some(RocPoint { far: accepted(different, &self.different), tar: accepted(same, &self.same) })
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct RocPoint {
    far: f64,
    tar: f64,
}

impl RocPoint {
    /// Moves the given share of the way to another point.
    fn move_to(&mut self, other: Self, share: f64) {
        self.far += share * (other.far - self.far);
        self.tar += share * (other.tar - self.tar);
    }
}

/// How well clusters and people agree, over all pairs of labelled faces.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Clustering {
    /// Of the pairs in one cluster, those of one person.
    pub(crate) precision: Option<f64>,
    /// Of the pairs of one person, those in one cluster.
    pub(crate) recall: Option<f64>,
    /// Their harmonic mean; none where nobody has two faces.
    pub(crate) f1: Option<f64>,
    /// Clusters that any labelled face is in.
    pub(crate) clusters: usize,
}

impl Clustering {
    /// Of faces given as (person, cluster). Pairwise precision, recall and F-measure: Manning, Raghavan and Schütze,
    /// "Introduction to Information Retrieval", 2008, section 16.3.
    pub(crate) fn of<P: Copy + Eq + Hash, C: Copy + Eq + Hash>(faces: &[(P, C)]) -> Self {
        let (of_person, _) = pairs(faces.iter().map(|&(person, _)| person));
        let (in_cluster, clusters) = pairs(faces.iter().map(|&(_, cluster)| cluster));
        let (both, _) = pairs(faces.iter().copied());
        let fraction = |part: usize, of: usize| Share { part, of }.fraction();
        let f1 = fraction(2 * both, of_person + in_cluster).filter(|_| of_person > 0);
        Self { precision: fraction(both, in_cluster), recall: fraction(both, of_person), f1, clusters }
    }
}

/// How many pairs of equal ones there are, and how many different ones.
fn pairs<T: Eq + Hash>(items: impl Iterator<Item = T>) -> (usize, usize) {
    let mut counts: HashMap<T, usize> = HashMap::new();
    for item in items {
        *counts.entry(item).or_default() += 1;
    }
    (counts.values().map(|count| count * (count - 1) / 2).sum(), counts.len())
}

/// The cosine of two vectors of length 1. Summed in f64: 128 roundings of f32 would show in the sixth digit.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let products = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b));
    products.sum::<f64>() as f32
}

#[cfg(test)]
mod tests;
