//! The stage `classify`: the nearest person of the gallery, or the labels of a model; or nobody and nothing.

mod gallery;
mod model;
mod people;
mod vote;

use causeway_pipelines::ClassifyOptions;
use causeway_schemas::{Decision, Feature};
use causeway_stage::{Answer, Context, Failure, Live, Stage};

pub use crate::gallery::{Gallery, Match};

use model::Model;
use people::People;

/// The table that the gallery is: a key a person, its value a `causeway_schemas::Person` as JSON.
pub const TABLE: &str = "people";

/// Takes features, gives for each who or what it is.
pub struct Classify(By);

/// What is judged by.
enum By {
    /// A gallery that is followed live.
    People(People),
    /// The rest of the model that made the feature.
    Model(Box<Model>),
}

impl Classify {
    /// Judges by `gallery`, which may change while it runs.
    pub fn with_gallery(options: &ClassifyOptions, gallery: Live<Gallery>) -> anyhow::Result<Self> {
        Ok(Self(By::People(People::new(options, gallery)?)))
    }
}

impl Stage for Classify {
    const NAME: &'static str = "classify";
    type Options = ClassifyOptions;
    type Input = Feature;
    type Output = Decision;

    fn new(options: ClassifyOptions, ctx: &Context) -> anyhow::Result<Self> {
        match &options.model {
            Some(name) => Ok(Self(By::Model(Box::new(Model::open(name, &options, ctx)?)))),
            None => Self::with_gallery(&options, ctx.table(TABLE)),
        }
    }

    fn process(&mut self, batch: Vec<Feature>) -> Vec<Result<Answer<Decision>, Failure>> {
        let decided = match &mut self.0 {
            By::People(people) => people.decide_all(batch),
            By::Model(model) => batch.into_iter().map(|feature| model.decide(feature)).collect(),
        };
        decided.into_iter().map(|decision| decision.map(|decision| Answer::Messages(vec![decision]))).collect()
    }
}

#[cfg(test)]
mod tests;
