//! The program `causeway-extract`.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stage::stage_main::<causeway_extract::Extract>()
}
