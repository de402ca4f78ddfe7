//! The program `causeway-capture`.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stage::source_main::<causeway_capture::Input>()
}
