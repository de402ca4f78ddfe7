use std::collections::{BTreeSet, HashMap, HashSet};

use causeway_schemas::{Id, Part};

use crate::Pipeline;

/// Which captured items are complete: the tree under each is closed, that is, every part of it has an outcome for every final
/// stage. It is fed with what any reader of the pipeline's subjects can see.
#[derive(Debug)]
pub struct Ledger {
    /// The final stages and, for each, the stages whose outcome ends a part for it: itself and all before it.
    finals: Vec<(String, HashSet<String>)>,
    items: HashMap<Id, Item>,
}

#[derive(Debug, Default)]
struct Item {
    /// Parts that have an outcome, by place of the final stage.
    closed: Vec<BTreeSet<Part>>,
}

/// One outcome: a decision, an assignment, an `empty`, a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The captured item it belongs to.
    pub root: Id,
    /// The stage that gave it: a final one, or the one where this part ended early.
    pub stage: String,
    /// The part of the item.
    pub part: Part,
}

impl Ledger {
    /// An empty ledger of a pipeline.
    pub fn new(pipeline: &Pipeline) -> Self {
        let finals = pipeline
            .stages
            .iter()
            .filter(|stage| pipeline.is_final(&stage.name))
            .map(|stage| (stage.name.clone(), pipeline.upstream(&stage.name)))
            .collect();
        Self { finals, items: HashMap::new() }
    }

    /// An item was captured.
    pub fn captured(&mut self, root: Id) {
        self.item(root);
    }

    /// An outcome was stored. The same one again changes nothing.
    pub fn outcome(&mut self, outcome: &Outcome) {
        let ends: Vec<bool> = self.finals.iter().map(|(_, ends)| ends.contains(&outcome.stage)).collect();
        let item = self.item(outcome.root);
        for (closed, ends) in item.closed.iter_mut().zip(ends) {
            if ends {
                closed.insert(outcome.part.clone());
            }
        }
    }

    /// Whether every part of the item has its outcome for every final stage.
    pub fn is_complete(&self, root: Id) -> bool {
        self.items.get(&root).is_some_and(Item::is_complete)
    }

    /// Whether the item was captured, or has an outcome.
    pub fn knows(&self, root: Id) -> bool {
        self.items.contains_key(&root)
    }

    /// Items that are known, complete or not.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing is known yet.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The ids of complete items.
    pub fn complete(&self) -> impl Iterator<Item = Id> {
        self.items.iter().filter(|(_, item)| item.is_complete()).map(|(&id, _)| id)
    }

    /// The ids of items that are not complete.
    pub fn open(&self) -> impl Iterator<Item = Id> {
        self.items.iter().filter(|(_, item)| !item.is_complete()).map(|(&id, _)| id)
    }

    /// Forgets an item.
    pub fn forget(&mut self, root: Id) {
        self.items.remove(&root);
    }

    fn item(&mut self, root: Id) -> &mut Item {
        let finals = self.finals.len();
        self.items.entry(root).or_insert_with(|| Item { closed: vec![BTreeSet::new(); finals] })
    }
}

impl Item {
    fn is_complete(&self) -> bool {
        self.closed.iter().all(|parts| is_closed(parts, &[]))
    }
}

/// Whether the part at `place` has an outcome, or all the parts that it was divided into have.
fn is_closed(parts: &BTreeSet<Part>, place: &[(u32, u32)]) -> bool {
    if parts.iter().any(|part| part.levels() == place) {
        return true;
    }
    let counts: BTreeSet<u32> = parts
        .iter()
        .filter(|part| part.levels().starts_with(place))
        .filter_map(|part| part.levels().get(place.len()).map(|&(_, count)| count))
        .collect();
    // More than one count: another generation divided it otherwise. One of them has to be whole. A count that is more than
    // the parts there are cannot be, and is not counted up to.
    counts.iter().filter(|&&count| count as usize <= parts.len()).any(|&count| {
        (1..=count).all(|index| {
            let mut below = place.to_vec();
            below.push((index, count));
            is_closed(parts, &below)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIPELINE: &str = r#"
pipeline = "faces"
[stage.capture]
[stage.preprocess]
from = "capture"
model = "yunet"
[stage.extract]
from = "preprocess"
model = "sface"
[stage.classify]
from = "extract"
[stage.cluster]
from = "extract"
"#;

    const FINALS: [&str; 2] = ["classify", "cluster"];

    fn ledger() -> Ledger {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("faces.toml");
        std::fs::write(&path, PIPELINE).unwrap();
        Ledger::new(&Pipeline::load(path).unwrap())
    }

    fn photo() -> Id {
        Id::captured("photos", "a.jpg")
    }

    /// The answer to one photo's outcomes, each `stage part`.
    fn complete(outcomes: &[&str]) -> bool {
        let mut ledger = ledger();
        ledger.captured(photo());
        for outcome in outcomes {
            let (stage, part) = outcome.split_once(' ').unwrap();
            ledger.outcome(&Outcome { root: photo(), stage: stage.into(), part: part.parse().unwrap() });
        }
        ledger.is_complete(photo())
    }

    #[test]
    fn every_part_needs_every_final_stage() {
        assert!(!complete(&[]));
        assert!(!complete(&["classify 1/1"]));
        assert!(complete(&["classify 1/1", "cluster 1/1"]));
        let all = ["classify 1/2", "classify 2/2", "cluster 1/2", "cluster 2/2"];
        assert!(complete(&all));
        for missing in 0..all.len() {
            let rest: Vec<&str> =
                all.iter().enumerate().filter(|&(at, _)| at != missing).map(|(_, &one)| one).collect();
            assert!(!complete(&rest), "without {}", all[missing]);
        }
    }

    #[test]
    fn parts_of_parts() {
        assert!(complete(&[
            "preprocess 1/2",
            "classify 2/2,1/2",
            "cluster 2/2,1/2",
            "cluster 2/2,2/2",
            "classify 2/2,2/2"
        ]));
        assert!(!complete(&["preprocess 1/2", "classify 2/2,1/2", "cluster 2/2,1/2", "cluster 2/2,2/2"]));
        assert!(!complete(&["extract 1/2,1/2"]));
    }

    #[test]
    fn what_ends_early_ends_for_all_behind_it() {
        for stage in ["capture", "preprocess", "extract"] {
            assert!(complete(&[&format!("{stage} 1/1")]), "{stage}");
            assert!(complete(&[&format!("{stage} 1/2"), "classify 2/2", "cluster 2/2"]), "{stage}");
            assert!(!complete(&[&format!("{stage} 1/2"), "classify 2/2"]), "{stage}");
        }
    }

    #[test]
    fn a_dead_letter_of_one_final_stage_does_not_answer_for_another() {
        assert!(!complete(&["cluster 1/1"]));
        assert!(!complete(&["classify 1/1"]));
        assert!(!complete(&["cluster 1/2", "cluster 2/2", "classify 1/2"]));
    }

    #[test]
    fn a_stage_that_is_not_in_the_pipeline_ends_nothing() {
        assert!(!complete(&["other 1/1"]));
    }

    #[test]
    fn one_generation_has_to_be_whole() {
        // First three faces, one of them answered; run again with a better detector: two, both answered.
        let both = ["classify 1/2", "cluster 1/2", "classify 2/2", "cluster 2/2"];
        assert!(complete(&[&both[..], &["classify 3/3", "cluster 1/3"]].concat()));
        // Halves of either are not a whole.
        assert!(!complete(&[
            "classify 1/2",
            "cluster 1/2",
            "classify 2/3",
            "cluster 2/3",
            "classify 3/3",
            "cluster 3/3"
        ]));
        // Not divided the second time.
        assert!(complete(&["classify 1/3", "cluster 2/3", "classify 1/1", "cluster 1/1"]));
    }

    #[test]
    fn counts_out_of_this_world_are_not_counted_up_to() {
        assert!(!complete(&["classify 1/4294967295", "cluster 4294967295/4294967295"]));
        let deep = ["1/4294967295"; 16].join(",");
        assert!(!complete(&[&format!("classify {deep}"), &format!("cluster {deep}")]));
    }

    #[test]
    fn items_are_told_apart_and_forgotten() {
        let mut ledger = ledger();
        assert!(ledger.is_empty());
        let (a, b) = (Id::captured("photos", "a.jpg"), Id::captured("photos", "b.jpg"));
        ledger.captured(a);
        ledger.captured(a);
        // What has an outcome was captured, whichever is read first.
        ledger.outcome(&Outcome { root: b, stage: "preprocess".into(), part: Part::whole() });
        assert_eq!(ledger.len(), 2);
        assert_eq!((ledger.complete().collect::<Vec<_>>(), ledger.open().collect::<Vec<_>>()), (vec![b], vec![a]));
        ledger.forget(b);
        assert!(!ledger.is_complete(b) && !ledger.knows(b) && ledger.knows(a));
        assert_eq!(ledger.len(), 1);
    }

    /// A tree as a run gives it: how many outputs each message has, some ended early.
    #[derive(Debug, Clone)]
    enum Tree {
        Ends,
        Goes(Vec<Tree>),
    }

    fn tree() -> impl Strategy<Value = Tree> {
        let leaf = prop_oneof![Just(Tree::Ends), Just(Tree::Goes(Vec::new()))];
        leaf.prop_recursive(3, 24, 4, |inner| prop::collection::vec(inner, 1..4).prop_map(Tree::Goes))
    }

    fn outcomes(tree: &Tree, part: &Part, out: &mut Vec<Outcome>) {
        let mut ended = |stage: &str| out.push(Outcome { root: photo(), stage: stage.into(), part: part.clone() });
        match tree {
            Tree::Ends => ended("extract"),
            Tree::Goes(parts) if parts.is_empty() => FINALS.iter().for_each(|stage| ended(stage)),
            Tree::Goes(parts) => {
                for (index, below) in parts.iter().enumerate() {
                    outcomes(below, &part.divide(index, parts.len()), out);
                }
            }
        }
    }

    proptest! {
        /// In any order and however often told: complete with the last outcome, and not before.
        #[test]
        fn complete_with_the_last_outcome(
            (all, again) in tree().prop_flat_map(|tree| {
                let mut all = Vec::new();
                outcomes(&tree, &Part::whole(), &mut all);
                let repeats = prop::collection::vec(0..all.len(), 0..4);
                (Just(all).prop_shuffle(), repeats)
            })
        ) {
            let mut ledger = ledger();
            ledger.captured(photo());
            for (told, outcome) in all.iter().enumerate() {
                prop_assert!(!ledger.is_complete(photo()), "before {outcome:?}");
                ledger.outcome(outcome);
                again.iter().filter(|&&at| at < told).for_each(|&at| ledger.outcome(&all[at]));
            }
            prop_assert!(ledger.is_complete(photo()));
        }
    }
}
