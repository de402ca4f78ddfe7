use std::collections::{BTreeMap, BTreeSet, HashSet};

use causeway_pipelines::Pipeline;
use causeway_schemas::{Id, Meta};
use serde::Serialize;
use serde_json::json;

use super::inputs::Input;
use crate::results::{Found, Results};
use crate::terminal::{count, one_line, table};

/// Scores that are nearer than this are equal: the same model gives them on another machine.
const SAME_SCORE: f32 = 1e-4;
/// Most characters of a text of strangers.
const MAX_TEXT: usize = 60;

/// What a replay answered otherwise than what is stored.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "`--json` has it under this name")]
pub(super) struct Changes {
    /// Items that were compared.
    compared: usize,
    /// Items of which no result is stored.
    not_stored: usize,
    /// Answers that are equal.
    equal: usize,
    changes: Vec<Change>,
}

/// One answer that differs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Change {
    item: String,
    /// Which part of the item: `2/3`.
    part: String,
    /// What differs: `label`, `score`, `cluster`, `empty`, `dead`, or `answer` where one has none.
    what: &'static str,
    /// As it is stored.
    live: String,
    /// As it was answered now.
    replay: String,
}

/// An answer to a part of an item.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Decision {
        label: Option<String>,
        score: f32,
    },
    Empty(String),
    Dead(String),
    /// The others of its cluster.
    Cluster(BTreeSet<Id>),
}

/// Where an answer belongs: item, part, and which of its answers.
type Key = (Id, String, &'static str);

impl Changes {
    pub(super) fn between(pipeline: &Pipeline, inputs: &[Input], live: &Results, replay: &Results) -> Self {
        let roots: HashSet<Id> = inputs.iter().map(|input| input.id).collect();
        let known = live.photos();
        let compared: HashSet<Id> = roots.iter().copied().filter(|root| known.contains(root)).collect();
        // Clusters are compared by those members that both know.
        let common = live.assignments.keys().filter(|id| replay.assignments.contains_key(id));
        let members: HashSet<Id> =
            common.filter(|id| compared.contains(&live.assignments[*id].meta.root)).copied().collect();
        let before = answers(pipeline, live, &compared, &members);
        let after = answers(pipeline, replay, &compared, &members);
        let item = |root: Id| live.capture(root).or_else(|| replay.capture(root)).map(|capture| capture.item.clone());
        let (mut changes, mut equal) = (Vec::new(), 0);
        for key in before.keys().chain(after.keys()).collect::<BTreeSet<_>>() {
            let (before, after) = (before.get(key), after.get(key));
            match what(before, after) {
                None => equal += 1,
                Some(what) => changes.push(Change {
                    item: item(key.0).unwrap_or_else(|| key.0.to_string()),
                    part: key.1.clone(),
                    what,
                    live: shown(before),
                    replay: shown(after),
                }),
            }
        }
        changes.sort();
        Self { compared: compared.len(), not_stored: roots.len() - compared.len(), equal, changes }
    }

    /// For a terminal.
    pub(super) fn page(&self) -> String {
        let rows = self.changes.iter().map(|change| {
            let Change { item, part, what, live, replay } = change;
            vec![
                one_line(item, MAX_TEXT),
                part.clone(),
                (*what).into(),
                one_line(live, MAX_TEXT),
                one_line(replay, MAX_TEXT),
            ]
        });
        let head = ["ITEM", "PART", "WHAT", "STORED", "NOW"];
        let list = if self.changes.is_empty() { String::new() } else { table(&head, &[], rows.collect()) };
        let not_stored = match self.not_stored {
            0 => String::new(),
            some => format!("; of {} no result is stored", count(some, "item")),
        };
        let compared = count(self.compared, "item");
        format!(
            "{list}{} changed, {} equal in {compared}{not_stored}\n",
            count(self.changes.len(), "answer"),
            self.equal
        )
    }

    pub(super) fn to_json(&self) -> serde_json::Value {
        let mut object = json!(self);
        object["changed"] = json!(self.changes.len());
        object
    }
}

/// Every answer to these items by the stages that were run.
fn answers(
    pipeline: &Pipeline,
    results: &Results,
    roots: &HashSet<Id>,
    members: &HashSet<Id>,
) -> BTreeMap<Key, Answer> {
    let is_meant = |meta: &Meta| roots.contains(&meta.root) && pipeline.stage(&meta.stage).is_some();
    let mut answers = BTreeMap::new();
    let mut add = |meta: &Meta, sort: &'static str, answer: Answer| {
        if is_meant(meta) {
            answers.insert((meta.root, meta.part.to_string(), sort), answer);
        }
    };
    for Found { meta, message } in results.decisions.values() {
        add(meta, "decision", Answer::Decision { label: message.label.clone(), score: message.score });
    }
    for Found { meta, message } in &results.empties {
        add(meta, "empty", Answer::Empty(format!("{}: {}", message.stage, message.reason)));
    }
    for Found { meta, message } in &results.dead_letters {
        add(meta, "dead", Answer::Dead(format!("{}: {}", message.stage, message.reason)));
    }
    let mut clusters: BTreeMap<Id, BTreeSet<Id>> = BTreeMap::new();
    for (&id, found) in results.assignments.iter().filter(|(id, _)| members.contains(id)) {
        clusters.entry(results.current(found.message.cluster)).or_default().insert(id);
    }
    for (id, found) in &results.assignments {
        let mut others = clusters.get(&results.current(found.message.cluster)).cloned().unwrap_or_default();
        others.remove(id);
        add(&found.meta, "cluster", Answer::Cluster(others));
    }
    answers
}

/// What differs between two answers, if anything does.
fn what(live: Option<&Answer>, replay: Option<&Answer>) -> Option<&'static str> {
    let Some(live) = live else { return Some("answer") };
    match (live, replay) {
        (Answer::Decision { label, .. }, Some(Answer::Decision { label: now, .. })) if label != now => Some("label"),
        (Answer::Decision { score, .. }, Some(Answer::Decision { score: now, .. })) => {
            ((score - now).abs() > SAME_SCORE).then_some("score")
        }
        (live, Some(replay)) if live == replay => None,
        (Answer::Empty(_), Some(_)) => Some("empty"),
        (Answer::Dead(_), Some(_)) => Some("dead"),
        (Answer::Cluster(_), Some(_)) => Some("cluster"),
        (Answer::Decision { .. }, Some(_)) | (_, None) => Some("answer"),
    }
}

fn shown(answer: Option<&Answer>) -> String {
    match answer {
        None => "-".into(),
        Some(Answer::Decision { label, score }) => format!("{} {score:.4}", label.as_deref().unwrap_or("unknown")),
        Some(Answer::Empty(text)) => format!("nothing ({text})"),
        Some(Answer::Dead(text)) => format!("dead letter ({text})"),
        Some(Answer::Cluster(others)) if others.is_empty() => "alone".into(),
        Some(Answer::Cluster(others)) => format!("with {}", count(others.len(), "other")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(label: Option<&str>, score: f32) -> Answer {
        Answer::Decision { label: label.map(Into::into), score }
    }

    #[test]
    fn what_differs_is_named() {
        let ada = decision(Some("Ada"), 0.7);
        assert_eq!(what(Some(&ada), Some(&decision(Some("Ada"), 0.700_05))), None);
        assert_eq!(what(Some(&ada), Some(&decision(Some("Ada"), 0.71))), Some("score"));
        assert_eq!(what(Some(&ada), Some(&decision(None, 0.7))), Some("label"));
        assert_eq!(what(Some(&ada), None), Some("answer"));
        assert_eq!(what(None, Some(&ada)), Some("answer"));
        let empty = |reason: &str| Answer::Empty(reason.into());
        assert_eq!(what(Some(&empty("no-face")), Some(&empty("no-face"))), None);
        assert_eq!(what(Some(&empty("no-face")), Some(&empty("below-quality"))), Some("empty"));
        let with = |others: &[&str]| Answer::Cluster(others.iter().map(|item| Id::captured("s", item)).collect());
        assert_eq!(what(Some(&with(&["a", "b"])), Some(&with(&["b", "a"]))), None);
        assert_eq!(what(Some(&with(&["a"])), Some(&with(&["b"]))), Some("cluster"));
    }
}
