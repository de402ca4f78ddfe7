//! Stages that do nothing, in the real runtime: one program that plays whichever stage its file is named after.
//!
//! Linked beside `causeway` as `causeway-capture`, `causeway-preprocess`, … it is what the supervisor starts, so that all but
//! the work itself is real: streams, batches, acks, ids, drain. `./dev bench` measures by it what the runtime costs. What is
//! captured is told by the variables of [`script`].

mod fold;
mod script;
mod source;
mod stages;

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    match Path::new(&program).file_name().and_then(|name| name.to_str()).unwrap_or_default() {
        "causeway-capture" => causeway_stage::source_main::<source::Capture>(),
        "causeway-preprocess" => causeway_stage::stage_main::<stages::Preprocess>(),
        "causeway-extract" => causeway_stage::stage_main::<stages::Extract>(),
        "causeway-classify" => causeway_stage::stage_main::<stages::Classify>(),
        "causeway-cluster" => causeway_stage::fold_main::<fold::Cluster>(),
        other => {
            eprintln!("cannot stand in for `{other}`: link this program as causeway-capture, causeway-preprocess, …");
            ExitCode::from(2)
        }
    }
}
