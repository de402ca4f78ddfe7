use anyhow::ensure;
use causeway_pipelines::ClassifyOptions;
use causeway_schemas::{Decision, Feature};
use causeway_stage::{Failure, Live, Stage as _};

use crate::Classify;
use crate::gallery::{Gallery, Match};
use crate::vote::Votes;

/// Names faces by a gallery that is followed live.
pub(crate) struct People {
    threshold: f32,
    margin: f32,
    gallery: Live<Gallery>,
    votes: Option<Votes>,
}

impl People {
    pub(crate) fn new(options: &ClassifyOptions, gallery: Live<Gallery>) -> anyhow::Result<Self> {
        let &ClassifyOptions { threshold, margin, vote, .. } = options;
        ensure!((-1.0..=1.0).contains(&threshold), "cannot name from a cosine of {threshold} on: it is within -1..1");
        ensure!((0.0..=2.0).contains(&margin), "cannot ask for a margin of {margin}: it is within 0..2");
        Ok(Self { threshold, margin, gallery, votes: vote.map(Votes::new) })
    }

    pub(crate) fn decide_all(&mut self, batch: Vec<Feature>) -> Vec<Result<Decision, Failure>> {
        // One gallery a batch: its revision is the same in all decisions of it.
        let gallery = self.gallery.read();
        let mut decide = |feature: Feature| {
            let face = self.votes.is_some().then(|| (feature.space.clone(), feature.unit_vector()));
            let decision = self.decide(&gallery, feature)?;
            Ok(match (&mut self.votes, face) {
                (Some(votes), Some((space, Ok(vector)))) => votes.vote(&space, vector, decision),
                _ => decision,
            })
        };
        batch.into_iter().map(&mut decide).collect()
    }

    fn decide(&self, gallery: &Gallery, feature: Feature) -> Result<Decision, Failure> {
        let vector =
            feature.unit_vector().map_err(|why| Failure::unfit(format!("cannot classify the feature: {why}")))?;
        let found = gallery.nearest(&feature.space, &vector);
        Ok(Decision {
            label: found.as_ref().filter(|found| self.is_sure(found)).map(|found| found.name.to_owned()),
            score: found.as_ref().map_or(0.0, |found| found.score),
            margin: found.as_ref().map_or(0.0, Match::margin),
            nearest: found.map(|found| found.name.to_owned()),
            capture: feature.capture,
            region: feature.region,
            model: feature.model,
            gallery: gallery.revision(),
            route: Classify::NAME.into(),
            top: Vec::new(),
        })
    }

    fn is_sure(&self, found: &Match<'_>) -> bool {
        found.score >= self.threshold && (found.runner_up.is_none() || found.margin() >= self.margin)
    }
}
