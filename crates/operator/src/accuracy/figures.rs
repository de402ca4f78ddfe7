//! The figures as people read them, and as programs do.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use crate::accuracy::answers::{Answers, Without};
use crate::accuracy::folder::Labelled;
use crate::accuracy::metrics::{Clustering, Comparison, Pair, Sample};
use crate::terminal::{count, one_line, table};

/// The false accept rate at which TAR is read.
const FAR: f64 = 1e-3;
/// Photos without a face that are written out.
const MAX_WITHOUT: usize = 20;
/// Most characters of a photo's name, and of a reason.
const MAX_TEXT: usize = 100;

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Figures<'a> {
    labelled: &'a Labelled,
    answers: &'a Answers,
    comparison: Comparison,
    clustering: Clustering,
    /// The cosine from which two faces are taken for the same person; none where no stage classifies.
    threshold: Option<f32>,
    /// From the start of the stages until the last photo had its outcomes.
    took: Duration,
}

/// The one line for a program.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Object {
    photos: usize,
    detected: usize,
    auc: Option<f64>,
    tar_at_far_1e3: Option<f64>,
    accuracy: Option<f64>,
    rank1: Option<f64>,
    cluster_f1: Option<f64>,
}

impl<'a> Figures<'a> {
    pub(crate) fn new(labelled: &'a Labelled, answers: &'a Answers, threshold: Option<f32>, took: Duration) -> Self {
        let person = |photo: usize| labelled.photos[photo].person;
        let samples = answers.labelled.iter();
        let samples = samples.map(|face| Sample { person: person(face.photo), vector: &face.vector });
        let comparison = Comparison::of(&samples.collect::<Vec<_>>());
        let clusters = answers.labelled.iter().map(|face| (person(face.photo), face.cluster));
        let clustering = Clustering::of(&clusters.collect::<Vec<_>>());
        Self { labelled, answers, comparison, clustering, threshold, took }
    }

    pub(crate) fn object(&self) -> Object {
        let scores = &self.comparison.scores;
        Object {
            photos: self.labelled.photos.len(),
            detected: self.answers.labelled.len(),
            auc: scores.auc(),
            tar_at_far_1e3: scores.tar_at_far(FAR),
            accuracy: self.threshold.and_then(|threshold| scores.accuracy(threshold)),
            rank1: self.comparison.rank1.fraction(),
            cluster_f1: self.clustering.f1,
        }
    }

    /// The tables.
    pub(crate) fn text(&self) -> String {
        let mut text = table(&["FIGURE", "VALUE", "NOTE"], &[1], self.rows());
        let hard = self.hard_cases();
        if !hard.is_empty() {
            let _ = write!(text, "\n{}", table(&["HARD CASES", "COSINE", "PHOTOS"], &[1], hard));
        }
        let without = &self.answers.without;
        if !without.is_empty() {
            let rows = without.iter().take(MAX_WITHOUT).map(|without| self.without_row(without)).collect();
            let _ = write!(text, "\n{}", table(&["WITHOUT A FACE", "STAGE", "WHY"], &[], rows));
        }
        if without.len() > MAX_WITHOUT {
            let _ = writeln!(text, "and {} more", without.len() - MAX_WITHOUT);
        }
        text
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let Comparison { scores, rank1, .. } = &self.comparison;
        let Clustering { precision, recall, f1, clusters } = self.clustering;
        let (photos, detected) = (self.labelled.photos.len(), self.answers.labelled.len());
        let (same, different) = scores.counts();
        let pairs = format!("{} of the same person, {different} of different people", count(same, "pair"));
        let at_threshold = |figure: fn(&_, f32) -> Option<f64>| self.threshold.and_then(|at| figure(scores, at));
        let took_s = self.took.as_secs_f64();
        let row = |figure: &str, value: String, note: String| vec![figure.to_owned(), value, note];
        let found = photos.max(1) as f64;
        vec![
            row("photos", photos.to_string(), format!("of {}", people(self.labelled.people.len()))),
            row(
                "photos with a face",
                detected.to_string(),
                format!("{} of the photos", share(Some(detected as f64 / found))),
            ),
            row("faces", self.answers.faces.to_string(), self.faces_note()),
            row("AUC", share(scores.auc()), self.or_why_no_pairs(pairs)),
            row("TAR at FAR 0.001", share(scores.tar_at_far(FAR)), self.or_why_no_pairs(String::new())),
            row("equal error rate", rate(scores.equal_error_rate()), self.or_why_no_pairs(String::new())),
            row("accuracy", share(at_threshold(super::metrics::Scores::accuracy)), self.accuracy_note()),
            row(
                "balanced accuracy",
                share(at_threshold(super::metrics::Scores::balanced_accuracy)),
                self.balanced_note(),
            ),
            row("rank-1", share(rank1.fraction()), self.rank1_note()),
            row("cluster precision", share(precision), self.clusters_note(clusters)),
            row("cluster recall", share(recall), String::new()),
            row(
                "cluster F1",
                share(f1),
                if f1.is_some() { String::new() } else { "nobody has two photos with a face".into() },
            ),
            row(
                "photos/s",
                format!("{:.1}", photos as f64 / took_s.max(1e-9)),
                format!("{took_s:.1} s from start to drained"),
            ),
        ]
    }

    fn faces_note(&self) -> String {
        match self.answers.faces - self.answers.labelled.len() {
            0 => String::new(),
            others => format!("{others} beside the labelled ones, left out"),
        }
    }

    /// Why nothing can be verified, else the note.
    fn or_why_no_pairs(&self, note: String) -> String {
        match self.comparison.scores.counts() {
            (0, 0) => "less than two photos with a face".into(),
            (0, _) => "no pair of the same person: nobody has two photos with a face".into(),
            (_, 0) => "no pair of different people: one person only".into(),
            _ => note,
        }
    }

    fn accuracy_note(&self) -> String {
        let Some(threshold) = self.threshold else { return "no stage classifies: no threshold".into() };
        self.or_why_no_pairs(format!("pairs judged right at the cosine {threshold}"))
    }

    fn balanced_note(&self) -> String {
        let Some(threshold) = self.threshold else { return self.accuracy_note() };
        let [same, different] = self.comparison.scores.judged_right(threshold);
        let note = format!(
            "of the same person {} of {}, of different people {} of {}",
            same.part, same.of, different.part, different.of
        );
        self.or_why_no_pairs(note)
    }

    fn rank1_note(&self) -> String {
        let rank1 = self.comparison.rank1;
        if rank1.of == 0 {
            return self.or_why_no_pairs("nobody has two photos with a face".into());
        }
        format!("the most alike other photo is of the same person: {} of {}", rank1.part, rank1.of)
    }

    fn clusters_note(&self, clusters: usize) -> String {
        let note = format!("{} of labelled faces, as they came online", count(clusters, "cluster"));
        if self.clustering.precision.is_some() { note } else { note + "; no two faces together" }
    }

    fn hard_cases(&self) -> Vec<Vec<String>> {
        let row = |what: &str, pair: &Pair| {
            let [a, b] = pair.faces.map(|face| self.name(self.answers.labelled[face].photo));
            vec![what.to_owned(), format!("{:.4}", pair.cosine), format!("{a} · {b}")]
        };
        let same = self.comparison.lowest_same.iter().map(|pair| row("same person", pair));
        let different = self.comparison.highest_different.iter().map(|pair| row("different people", pair));
        same.chain(different).collect()
    }

    fn without_row(&self, without: &Without) -> Vec<String> {
        vec![self.name(without.photo), without.stage.clone(), one_line(&without.why, MAX_TEXT)]
    }

    fn name(&self, photo: usize) -> String {
        one_line(&self.labelled.photos[photo].name, MAX_TEXT)
    }
}

fn people(count: usize) -> String {
    if count == 1 { "1 person".into() } else { format!("{count} people") }
}

/// A fraction with four digits, rounded down: 1.0000 is nothing less than 1.
fn share(fraction: Option<f64>) -> String {
    fraction.map_or("n/a".into(), |fraction| format!("{:.4}", (fraction * 1e4).floor() / 1e4))
}

/// A rate of errors with four digits, rounded up: 0.0000 is nothing more than 0.
fn rate(fraction: Option<f64>) -> String {
    fraction.map_or("n/a".into(), |fraction| format!("{:.4}", (fraction * 1e4).ceil() / 1e4))
}

#[cfg(test)]
mod tests {
    use causeway_schemas::Id;

    use super::*;
    use crate::accuracy::answers::LabelledFace;

    fn folder(photos: &[&str]) -> (tempfile::TempDir, Labelled) {
        let dir = tempfile::tempdir().unwrap();
        for photo in photos {
            let path = dir.path().join(photo);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let labelled = Labelled::read(dir.path()).unwrap();
        (dir, labelled)
    }

    fn face(photo: usize, cosine: f32, cluster: &str) -> LabelledFace {
        let vector = vec![cosine, (1.0 - cosine * cosine).sqrt()];
        LabelledFace { photo, vector, cluster: Id::captured("test", cluster) }
    }

    fn text(labelled: &Labelled, answers: &Answers) -> String {
        Figures::new(labelled, answers, Some(0.4), Duration::from_secs(2)).text()
    }

    #[test]
    fn the_table_as_a_person_sees_it() {
        let (_dir, labelled) = folder(&["Ada/1.jpg", "Ada/2.jpg", "Bob/1.jpg", "Bob/2.jpg"]);
        let without = vec![Without { photo: 3, stage: "preprocess".into(), why: "no-face: none".into() }];
        let answers =
            Answers { labelled: vec![face(0, 1.0, "a"), face(1, 0.8, "a"), face(2, 0.0, "b")], faces: 5, without };
        assert_eq!(
            text(&labelled, &answers),
            "\
FIGURE               VALUE  NOTE
photos                   4  of 2 people
photos with a face       3  0.7500 of the photos
faces                    5  2 beside the labelled ones, left out
AUC                 1.0000  1 pair of the same person, 2 of different people
TAR at FAR 0.001    1.0000
equal error rate    0.0000
accuracy            0.6666  pairs judged right at the cosine 0.4
balanced accuracy   0.7500  of the same person 1 of 1, of different people 1 of 2
rank-1              1.0000  the most alike other photo is of the same person: 2 of 2
cluster precision   1.0000  2 clusters of labelled faces, as they came online
cluster recall      1.0000
cluster F1          1.0000
photos/s               2.0  2.0 s from start to drained

HARD CASES        COSINE  PHOTOS
same person       0.8000  Ada/1.jpg · Ada/2.jpg
different people  0.6000  Ada/2.jpg · Bob/1.jpg
different people  0.0000  Ada/1.jpg · Bob/1.jpg

WITHOUT A FACE  STAGE       WHY
Bob/2.jpg       preprocess  no-face: none
"
        );
    }

    #[test]
    fn a_program_gets_seven_keys_and_null_for_what_there_is_not() {
        let (_dir, labelled) = folder(&["Ada/1.jpg", "Ada/2.jpg"]);
        let answers = Answers { labelled: vec![face(0, 1.0, "a"), face(1, 0.8, "a")], faces: 2, without: Vec::new() };
        let figures = Figures::new(&labelled, &answers, Some(0.4), Duration::ZERO);
        assert_eq!(
            serde_json::to_string(&figures.object()).unwrap(),
            r#"{"photos":2,"detected":2,"auc":null,"tar_at_far_1e3":null,"accuracy":null,"rank1":null,"cluster_f1":1.0}"#
        );
    }

    #[test]
    fn what_cannot_be_told_says_why() {
        let (_dir, labelled) = folder(&["Ada/1.jpg", "Bob/1.jpg"]);
        let one = Answers { labelled: vec![face(0, 1.0, "a"), face(1, 0.0, "b")], faces: 2, without: Vec::new() };
        let told = text(&labelled, &one);
        for line in [
            "AUC                   n/a  no pair of the same person: nobody has two photos with a face",
            "rank-1                n/a  no pair of the same person: nobody has two photos with a face",
            "cluster precision     n/a  2 clusters of labelled faces, as they came online; no two faces together",
            "cluster F1            n/a  nobody has two photos with a face",
        ] {
            assert!(told.contains(line), "{told}");
        }
        let none = Answers { labelled: Vec::new(), faces: 0, without: Vec::new() };
        let told = text(&labelled, &none);
        assert!(told.contains("photos with a face      0  0.0000 of the photos"), "{told}");
        assert!(told.contains("AUC                   n/a  less than two photos with a face"), "{told}");
        assert!(!told.contains("NaN"), "{told}");
    }

    #[test]
    fn nothing_is_rounded_to_perfect() {
        assert_eq!(share(Some(0.999_96)), "0.9999");
        assert_eq!(rate(Some(0.000_01)), "0.0001");
        assert_eq!(share(Some(1.0)), "1.0000");
    }
}
