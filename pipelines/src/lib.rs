//! Pipeline files and model manifests: TOML as it was written, checked whole, turned into types that cannot be wrong.

mod check;
mod fault;
mod form;
mod graph;
mod handover;
mod input;
mod labels;
mod ledger;
mod manifest;
mod options;
mod parts;
mod pipeline;
mod placement;
mod recipe;
mod registry;
mod schema;
mod sites;
mod test_spec;
mod tests_check;
mod tests_form;
mod topology;
mod written;

pub use fault::{Fault, Faults, MAX_FILE_BYTES, PipelineError, did_you_mean};
pub use handover::{Begins, Ends, Handover, HandoverError};
pub use input::{Input, InputError, SCHEMES};
pub use ledger::{Ledger, Outcome};
pub use manifest::{Manifest, ManifestError, Task};
pub use options::{
    CaptureOptions, ClassifyOptions, ClusterOptions, ExtractOptions, Gate, OnFull, PreprocessOptions, Transport,
    VoteOptions,
};
pub use pipeline::{
    Batch, DEFAULT_KEEP_CAPTURED, DEFAULT_KEEP_CHANGES, DEFAULT_KEEP_OUTCOMES, DEFAULT_SITE, Keep, Pipeline, StageSpec,
    Sync, defaults,
};
pub use placement::{Moving, Phase, Placement};
pub use recipe::{Colour, InputSpec, LabelsSpec, Layout, OutputSpec};
pub use registry::{USES, Use};
pub use schema::{json_schema, tests_json_schema};
pub use sites::{Crossing, First, Flow, Plan, RELAY, Share, SiteSpec, Taker, UnknownSite, Who, taken_at};
pub use test_spec::{Expectation, Expected, Near, Region, TestInput, TestPerson, TestSpec};
pub use written::{Override, OverrideError};
