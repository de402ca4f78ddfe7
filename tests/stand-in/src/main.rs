//! Plays whichever stage its file is named after; the library says how.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stand_in::main()
}
