//! The program `causeway-preprocess`.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stage::stage_main::<causeway_preprocess::Preprocess>()
}
