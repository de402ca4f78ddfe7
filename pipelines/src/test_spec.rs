use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

pub use crate::tests_form::{Near, Region};

/// A checked unit test of a pipeline: `[[test]]` in its file, or in `tests/NAME.toml` beside it.
#[derive(Debug, Clone)]
pub struct TestSpec {
    /// What it shows.
    pub name: String,
    /// The file that it stands in.
    pub file: PathBuf,
    /// The line of its `[[test]]`, from 1.
    pub line: usize,
    /// The stages that it runs, each taking what the one before gives; never empty.
    pub stages: Vec<String>,
    /// What the first of them is given, in order.
    pub inputs: Vec<TestInput>,
    /// Whom `classify` knows.
    pub people: BTreeMap<String, TestPerson>,
    /// What comes out.
    pub expect: Expectation,
}

/// What a stage is given.
#[derive(Debug, Clone)]
pub enum TestInput {
    /// A picture; for a source, whatever it reads.
    Picture(PathBuf),
    /// A JSON file with a message or a list of them.
    File(PathBuf),
    /// A message's fields; what is left out is filled in.
    Message(Map<String, Value>),
}

/// Somebody of the gallery.
#[derive(Debug, Clone)]
pub enum TestPerson {
    /// Photos and folders of photos, which the pipeline's own stages make vectors of.
    Photos(Vec<PathBuf>),
    /// Vectors, and their embedding space where it is said.
    Vectors {
        /// One a photo.
        vectors: Vec<Vec<f64>>,
        /// The embedding space.
        space: Option<String>,
    },
}

/// What comes out of the last stage.
#[derive(Debug, Clone)]
pub enum Expectation {
    /// As many answers, each like this.
    Each {
        /// How many.
        count: usize,
        /// What each is like.
        like: Box<Expected>,
    },
    /// These answers in this order.
    InOrder(Vec<Expected>),
}

/// What an answer is like; what is not said is not looked at.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    /// Nothing was given, for this reason.
    pub empty: Option<String>,
    /// The input was set aside, for this reason.
    pub reject: Option<String>,
    /// The name of a decision; `None` inside: it has none.
    pub label: Option<Option<String>>,
    /// The nearest of a decision.
    pub nearest: Option<String>,
    /// The likeness of a decision or assignment, a crop's detector score.
    pub score: Option<Near>,
    /// How far a decision's nearest is ahead.
    pub margin: Option<Near>,
    /// Which part of the picture it is about.
    pub region: Option<Region>,
    /// What the vector of a feature is like: the numbers and the least cosine.
    pub vector: Option<(Vec<f64>, f64)>,
    /// A word for the cluster of an assignment.
    pub cluster: Option<String>,
}
