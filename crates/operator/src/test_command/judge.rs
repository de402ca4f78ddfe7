use std::collections::HashMap;

use causeway_pipelines::{Expectation, Expected, Near, Region};
use causeway_schemas::{Crop, Feature, Message as _};
use causeway_stage::{OnceAnswer, OnceMessage};
use serde_json::Value;

/// One thing that is not as expected.
#[derive(Debug, PartialEq)]
pub(super) struct Difference {
    /// Which answer, from 1; none where it is about all.
    pub(super) answer: Option<usize>,
    pub(super) key: &'static str,
    pub(super) expected: String,
    pub(super) got: String,
}

/// All that is not as expected.
pub(super) fn differences(expectation: &Expectation, answers: &[OnceAnswer]) -> Vec<Difference> {
    let (count, each) = match expectation {
        Expectation::Each { count, like } => (*count, vec![&**like; answers.len()]),
        Expectation::InOrder(list) => (list.len(), list.iter().collect()),
    };
    let mut judge = Judge { merged: merges(answers), clusters: Vec::new(), found: Vec::new() };
    if answers.len() != count {
        let got = match answers {
            [only] => format!("1: {}", described(only)),
            many => many.len().to_string(),
        };
        judge.found.push(Difference { answer: None, key: "count", expected: count.to_string(), got });
    }
    for (place, (expected, answer)) in each.into_iter().zip(answers).enumerate() {
        judge.answer(place + 1, expected, answer);
    }
    judge.found
}

struct Judge {
    /// A cluster that is no more → the one that it is part of.
    merged: HashMap<String, String>,
    /// The test's word for a cluster, and the cluster.
    clusters: Vec<(String, String)>,
    found: Vec<Difference>,
}

impl Judge {
    fn answer(&mut self, place: usize, expected: &Expected, answer: &OnceAnswer) {
        let ends = [("empty", &expected.empty), ("reject", &expected.reject)];
        for (key, reason) in ends {
            let Some(reason) = reason else { continue };
            let got = match answer {
                OnceAnswer::Empty { reason, .. } if key == "empty" => Some(reason),
                OnceAnswer::Reject { reason, .. } if key == "reject" => Some(reason),
                _ => None,
            };
            if got != Some(reason) {
                self.differs(place, key, reason.clone(), described(answer));
            }
        }
        if ends.iter().any(|(_, reason)| reason.is_some()) {
            return;
        }
        let OnceAnswer::Outputs(outputs) = answer else {
            return self.differs(place, "answer", "a message".into(), described(answer));
        };
        for output in outputs {
            self.message(place, expected, output);
        }
    }

    fn message(&mut self, place: usize, expected: &Expected, output: &OnceMessage) {
        let message = &output.message;
        if let Some(label) = &expected.label {
            self.text(place, "label", label.as_deref(), &message["label"]);
        }
        if let Some(nearest) = &expected.nearest {
            self.text(place, "nearest", Some(nearest), &message["nearest"]);
        }
        let is_crop = output.kind.starts_with(Crop::NOUN);
        let score = if is_crop { &message["region"]["score"] } else { &message["score"] };
        self.near(place, "score", expected.score, score);
        self.near(place, "margin", expected.margin, &message["margin"]);
        if let Some(region) = &expected.region {
            self.region(place, region, &message["region"]);
        }
        if let Some((like, least)) = &expected.vector {
            match cosine(message, like) {
                Some(cosine) if cosine >= *least => {}
                Some(cosine) => {
                    self.differs(place, "vector", format!("a cosine of {least} or more"), format!("{cosine:.4}"));
                }
                None => {
                    let got = format!("shape {}", message["shape"]);
                    self.differs(place, "vector", format!("{} numbers", like.len()), got);
                }
            }
        }
        if let Some(word) = &expected.cluster {
            self.cluster(place, word, message["cluster"].as_str().unwrap_or_default());
        }
    }

    fn text(&mut self, place: usize, key: &'static str, expected: Option<&str>, got: &Value) {
        if expected != got.as_str() {
            let shown = |text: Option<&str>| text.map_or("unknown".into(), |text| format!("{text:?}"));
            self.differs(place, key, shown(expected), shown(got.as_str()));
        }
    }

    fn near(&mut self, place: usize, key: &'static str, expected: Option<Near>, got: &Value) {
        let Some(near) = expected else { return };
        let number = got.as_f64().unwrap_or(f64::NAN);
        if !(near.min..=near.max).contains(&number) {
            self.differs(place, key, near.to_string(), format!("{number:.4}"));
        }
    }

    fn region(&mut self, place: usize, region: &Region, got: &Value) {
        let sides = [("x", region.x), ("y", region.y), ("w", region.w), ("h", region.h)];
        let written: Vec<(&str, f64)> = sides.into_iter().filter_map(|(side, px)| Some((side, px?))).collect();
        // What is no number is far away.
        let off = |&(side, px): &(&str, f64)| (got[side].as_f64().unwrap_or(f64::INFINITY) - px).abs();
        if written.iter().any(|side| off(side) > region.within) {
            let shown = |value: &dyn Fn(&str, f64) -> f64| {
                let sides = written.iter().map(|&(side, px)| format!("{side} {:.1}", value(side, px)));
                sides.collect::<Vec<_>>().join(", ")
            };
            let expected = format!("{} ± {} px", shown(&|_, px| px), region.within);
            let found = shown(&|side, _| got[side].as_f64().unwrap_or(f64::NAN));
            self.differs(place, "region", expected, found);
        }
    }

    fn cluster(&mut self, place: usize, word: &str, cluster: &str) {
        let mut cluster = cluster;
        // Ends: a cluster is merged once, and only into an older one.
        while let Some(older) = self.merged.get(cluster) {
            cluster = older;
        }
        let cluster = cluster.to_owned();
        let by_word = self.clusters.iter().find(|(known, _)| known == word);
        let by_cluster = self.clusters.iter().find(|(_, known)| *known == cluster);
        match (by_word, by_cluster) {
            (None, None) => self.clusters.push((word.into(), cluster)),
            (Some((_, known)), _) if *known == cluster => {}
            (_, Some((other, _))) => {
                let got = format!("in `{other}`");
                self.differs(place, "cluster", format!("in `{word}`"), got);
            }
            (Some(_), None) => self.differs(place, "cluster", format!("in `{word}`"), "in one of its own".into()),
        }
    }

    fn differs(&mut self, place: usize, key: &'static str, expected: String, got: String) {
        self.found.push(Difference { answer: Some(place), key, expected, got });
    }
}

/// Which clusters were merged into which.
fn merges(answers: &[OnceAnswer]) -> HashMap<String, String> {
    let mut merged = HashMap::new();
    for answer in answers {
        let OnceAnswer::Outputs(outputs) = answer else { continue };
        for output in outputs {
            let younger = output.message["merged"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let older = output.message["cluster"].as_str().unwrap_or_default();
            merged.extend(younger.map(|younger| (younger.to_owned(), older.to_owned())));
        }
    }
    merged
}

fn described(answer: &OnceAnswer) -> String {
    match answer {
        OnceAnswer::Outputs(outputs) => outputs.first().map_or("nothing".into(), |output| format!("a {}", output.kind)),
        OnceAnswer::Empty { reason, detail } => format!("empty, {reason}: {detail}"),
        OnceAnswer::Reject { reason, detail } => format!("reject, {reason}: {detail}"),
        OnceAnswer::Retry(why) => format!("could not be handled now: {why}"),
        OnceAnswer::Opens(what) => what.clone(),
    }
}

fn cosine(message: &Value, like: &[f64]) -> Option<f64> {
    let feature: Feature = serde_json::from_value(message.clone()).ok()?;
    let vector: Vec<f64> = feature.vector()?.into_iter().map(f64::from).collect();
    if vector.len() != like.len() {
        return None;
    }
    let length = |vector: &[f64]| vector.iter().map(|number| number * number).sum::<f64>().sqrt();
    let dot: f64 = vector.iter().zip(like).map(|(a, b)| a * b).sum();
    Some(dot / (length(&vector) * length(like)))
}

#[cfg(test)]
mod tests {
    use causeway_schemas::Id;
    use serde_json::json;

    use super::*;

    fn assignment(cluster: &str, merged: &[&str]) -> OnceAnswer {
        let message = json!({ "cluster": cluster, "merged": merged, "score": 0.5 });
        OnceAnswer::Outputs(vec![OnceMessage { id: Id::captured("s", "i"), kind: "assignment.v1".into(), message }])
    }

    fn words(words: &[&str]) -> Expectation {
        let one = |word: &&str| Expected { cluster: Some((*word).into()), ..Expected::default() };
        Expectation::InOrder(words.iter().map(one).collect())
    }

    #[test]
    fn the_same_word_is_the_same_cluster() {
        let answers = [assignment("1", &[]), assignment("2", &[]), assignment("1", &[])];
        assert_eq!(differences(&words(&["a", "b", "a"]), &answers), []);
        let found = differences(&words(&["a", "a", "b"]), &answers);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((found[1].answer, found[1].got.as_str()), (Some(3), "in `a`"));
        // The third joined the two.
        let answers = [assignment("1", &[]), assignment("2", &[]), assignment("1", &["2"])];
        assert_eq!(differences(&words(&["a", "a", "a"]), &answers), []);
    }

    #[test]
    fn a_number_of_answers_means_messages() {
        let each = Expectation::Each { count: 1, like: Box::default() };
        let empty = OnceAnswer::Empty { reason: "no-face".into(), detail: "none".into() };
        let found = differences(&each, &[empty]);
        assert_eq!((found[0].key, found[0].got.as_str()), ("answer", "empty, no-face: none"));
        assert_eq!(differences(&each, &[]).len(), 1);
    }
}
