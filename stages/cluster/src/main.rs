//! The program `causeway-cluster`.

use std::process::ExitCode;

fn main() -> ExitCode {
    causeway_stage::fold_main::<causeway_cluster::Cluster>()
}
