//! Placement: which stages were moved from where the file has them, and what is on the move.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Override, Pipeline, PipelineError, check};

/// What was moved, as it is written down at the hub and copied to every site.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// One more with each move.
    pub epoch: u64,
    /// The sites of those stages that were moved.
    #[serde(default)]
    pub sites: BTreeMap<String, Vec<String>>,
    /// The stage that is on the move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Moving>,
}

/// A move that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moving {
    /// The stage.
    pub stage: String,
    /// The sites that it will have.
    pub to: Vec<String>,
    /// How far it is.
    pub phase: Phase,
    /// Since when, Unix time in ns.
    pub since: u64,
}

/// How far a move is. Each site does its part of a phase, and says so; with the last of them the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// What lies where it will be is made, and its replicas there get ready. Nothing is taken there yet.
    Prepare,
    /// It takes where it will be; where it was it finishes what is not taken there. From here on there is no way back.
    HandOver,
    /// It was called off while it was prepared: what was made is removed again.
    Back,
}

impl Placement {
    /// The sites of moved stages once the move that is under way has ended.
    pub fn after(&self) -> BTreeMap<String, Vec<String>> {
        let mut sites = self.sites.clone();
        if let Some(moving) = &self.moving {
            sites.insert(moving.stage.clone(), moving.to.clone());
        }
        sites
    }

    /// The phase of the move that is under way.
    pub fn phase(&self) -> Option<Phase> {
        self.moving.as_ref().map(|moving| moving.phase)
    }
}

impl Pipeline {
    /// The same with its stages where they were moved to. An error where they cannot run there, by the file that was read.
    pub fn placed(&self, placement: &Placement) -> Result<Self, PipelineError> {
        let mut placed = self.with_sites(&placement.sites)?;
        if placement.moving.is_some() {
            let after = self.with_sites(&placement.after())?;
            if placement.phase() != Some(Phase::Back) {
                for (stage, after) in placed.stages.iter_mut().zip(after.stages) {
                    let sites = |stage: &crate::StageSpec| stage.sites.iter().cloned().collect::<BTreeSet<_>>();
                    if sites(stage) != sites(&after) {
                        stage.moves_to = after.sites;
                    }
                }
            }
        }
        placed.placement = placement.clone();
        Ok(placed)
    }

    /// The same once the move that is under way has ended.
    #[must_use]
    pub fn after(&self) -> Self {
        let mut after = self.clone();
        for stage in &mut after.stages {
            if !stage.moves_to.is_empty() {
                stage.sites = std::mem::take(&mut stage.moves_to);
            }
        }
        after.placement.sites = self.placement.after();
        after.placement.moving = None;
        after
    }

    /// The same without the move that is under way: what holds until it is handed over.
    #[must_use]
    pub fn before(&self) -> Self {
        let mut before = self.clone();
        before.stages.iter_mut().for_each(|stage| stage.moves_to.clear());
        before.placement.moving = None;
        before
    }

    /// Whether a stage takes in two places, or finishes where it was.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.placement.phase() == Some(Phase::HandOver)
    }

    /// As the file has it, with these stages elsewhere. Stages that the file does not have are passed over.
    fn with_sites(&self, sites: &BTreeMap<String, Vec<String>>) -> Result<Self, PipelineError> {
        let known = sites.iter().filter(|(stage, _)| self.stage(stage).is_some());
        let moved = known.map(|(stage, sites)| Override::sites(stage, sites));
        let overrides: Vec<Override> = self.written.overrides.iter().cloned().chain(moved).collect();
        let mut placed = check::of_bytes(&self.file, &self.written.bytes, &overrides)?;
        // The next placement is of the file too, not of this one.
        placed.written = Arc::clone(&self.written);
        placed.here.clone_from(&self.here);
        Ok(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sites::TestSites;

    const SITES: &str = "[site.edge]\n[site.cloud]\nhub = true";

    fn moved(placement: &str) -> Result<Pipeline, PipelineError> {
        let pipeline = TestSites::read(SITES, ["edge", "edge", "cloud", "cloud", "cloud"]).unwrap().at("edge").unwrap();
        pipeline.placed(&serde_json::from_str(placement).unwrap())
    }

    fn sites(pipeline: &Pipeline, stage: &str) -> (Vec<String>, Vec<String>) {
        let stage = pipeline.stage(stage).unwrap();
        (stage.sites.clone(), stage.moves_to.clone())
    }

    #[test]
    fn a_moved_stage_is_elsewhere() {
        let placed = moved(r#"{"epoch":3,"sites":{"extract":["edge"],"gone":["moon"]}}"#).unwrap();
        assert_eq!((placed.here.as_str(), placed.placement.epoch), ("edge", 3));
        assert_eq!(sites(&placed, "extract"), (vec!["edge".into()], vec![]));
        // What is placed again is placed from the file.
        let back = placed.placed(&Placement::default()).unwrap();
        assert_eq!(sites(&back, "extract"), (vec!["cloud".into()], vec![]));
    }

    #[test]
    fn one_on_the_move_has_both() {
        let at = |phase| {
            let text = r#"{"epoch":1,"moving":{"stage":"extract","to":["edge"],"since":0,"phase":"PHASE"}}"#;
            moved(&text.replace("PHASE", phase)).unwrap()
        };
        let both = (vec!["cloud".to_owned()], vec!["edge".to_owned()]);
        assert_eq!(sites(&at("prepare"), "extract"), both);
        assert_eq!(sites(&at("hand-over"), "extract"), both);
        assert_eq!(sites(&at("back"), "extract"), (vec!["cloud".into()], vec![]));
        let takes = |phase| at(phase).plan().taken_here(at(phase).stage("extract").unwrap()).len();
        assert_eq!((takes("prepare"), takes("hand-over"), takes("back")), (0, 1, 0), "at the edge");
    }

    #[test]
    fn where_it_cannot_run_it_is_not_moved() {
        for (stage, site) in [("extract", "moon"), ("capture", "moon")] {
            let placement = format!(r#"{{"epoch":1,"sites":{{"{stage}":["{site}"]}}}}"#);
            let error = moved(&placement).unwrap_err().report();
            assert!(error.contains("moon"), "{error}");
        }
    }
}
