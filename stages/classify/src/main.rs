//! The program `causeway-classify`.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stage::stage_main::<causeway_classify::Classify>()
}
