//! Stages that do nothing, in the real runtime: one program that plays whichever stage its file is named after.
//!
//! Linked beside `causeway` as `causeway-capture`, `causeway-preprocess`, … it is what the supervisor starts, so that all but
//! the work itself is real: streams, batches, acks, ids, drain. `./dev bench` measures by it what the runtime costs, and tests
//! tell it to misbehave. What it does is told by the variables of [`script`].

mod fold;
pub mod script;
mod source;
mod stages;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;

/// The stages that it plays.
const PLAYED: [&str; 5] = ["capture", "preprocess", "extract", "classify", "cluster"];

/// Links `causeway`, the relay and the stand-in out of `bin` into `folder`, under the names that the supervisor looks for beside it.
pub fn link(bin: &Path, folder: &Path) -> anyhow::Result<()> {
    let link = |program: &str, name: &str| {
        let (from, to) = (bin.join(program), folder.join(name));
        let linked = fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(drop));
        linked.with_context(|| format!("cannot link {} as {}", from.display(), to.display()))
    };
    // What carries between sites is not played: it is the runtime.
    for program in ["causeway", "causeway-relay"] {
        link(program, program)?;
    }
    PLAYED.iter().try_for_each(|stage| link("causeway-stand-in", &format!("causeway-{stage}")))
}

/// What its program does.
pub fn main() -> ExitCode {
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
