//! The program `causeway-relay`: carries what crosses between a site and the hub.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stage::relay_main()
}
