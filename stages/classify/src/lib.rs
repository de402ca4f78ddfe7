//! The stage `classify`: the nearest person of the gallery, or nobody.

mod gallery;
mod vote;

use anyhow::ensure;
use causeway_pipelines::ClassifyOptions;
use causeway_schemas::{Decision, Feature};
use causeway_stage::{Answer, Context, Failure, Live, Stage};

pub use crate::gallery::{Gallery, Match};
use crate::vote::Votes;

/// The table that the gallery is: a key a person, its value a `causeway_schemas::Person` as JSON.
pub const TABLE: &str = "people";

/// Names faces by a gallery that is followed live.
pub struct Classify {
    threshold: f32,
    margin: f32,
    gallery: Live<Gallery>,
    votes: Option<Votes>,
}

impl Classify {
    /// Judges by `gallery`, which may change while it runs.
    pub fn with_gallery(options: &ClassifyOptions, gallery: Live<Gallery>) -> anyhow::Result<Self> {
        let ClassifyOptions { threshold, margin, vote } = *options;
        ensure!((-1.0..=1.0).contains(&threshold), "cannot name from a cosine of {threshold} on: it is within -1..1");
        ensure!((0.0..=2.0).contains(&margin), "cannot ask for a margin of {margin}: it is within 0..2");
        Ok(Self { threshold, margin, gallery, votes: vote.map(Votes::new) })
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
            route: Self::NAME.into(),
        })
    }

    fn is_sure(&self, found: &Match<'_>) -> bool {
        found.score >= self.threshold && (found.runner_up.is_none() || found.margin() >= self.margin)
    }
}

impl Stage for Classify {
    const NAME: &'static str = "classify";
    type Options = ClassifyOptions;
    type Input = Feature;
    type Output = Decision;

    fn new(options: ClassifyOptions, ctx: &Context) -> anyhow::Result<Self> {
        Self::with_gallery(&options, ctx.table(TABLE))
    }

    fn process(&mut self, batch: Vec<Feature>) -> Vec<Result<Answer<Decision>, Failure>> {
        // One gallery a batch: its revision is the same in all decisions of it.
        let gallery = self.gallery.read();
        let mut decide = |feature: Feature| {
            let face = self.votes.is_some().then(|| (feature.space.clone(), feature.unit_vector()));
            let mut decision = self.decide(&gallery, feature)?;
            if let (Some(votes), Some((space, Ok(vector)))) = (&mut self.votes, face) {
                decision = votes.vote(&space, vector, decision);
            }
            Ok(Answer::Messages(vec![decision]))
        };
        batch.into_iter().map(&mut decide).collect()
    }
}

#[cfg(test)]
mod tests;
