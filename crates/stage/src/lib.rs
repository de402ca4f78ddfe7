//! What a stage is, and how one lives: the only crate that knows batches, acks, drain and health.

mod again;
mod args;
mod context;
mod contract;
mod done;
mod env;
mod export;
pub mod exposition;
mod fold_life;
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod health;
mod held;
mod inputs;
mod memory;
mod metrics;
mod once;
mod outcomes;
mod pace;
mod placed;
mod probe;
mod protocol;
mod quarantine;
mod relay_life;
mod reporter;
mod runs;
#[cfg(test)]
mod simulation;
mod source_life;
mod spans;
mod stage_life;
mod telemetry;
mod trace;
mod unfolded;

pub use again::{DROPPED, again, dropped, retry_of, set_aside_for};
pub use args::{Args, LogFormat};
pub use causeway_bus::server::die_with_parent;
pub use context::{Context, Live, source_at};
pub use contract::{Answer, Captured, Failure, Fold, Source, Stage, Table, Unreadable};
pub use done::answer_stages;
pub use env::{EXIT_HUNG, EXIT_PIPELINE, EXIT_UNFIT};
pub use fold_life::fold_main;
pub use memory::{give_back_memory, keep_memory};
pub use metrics::Heartbeat;
pub use once::{OnceAnswer, OnceInput, OnceMessage};
pub use outcomes::{links_of, meta_of_unreadable, now_ns, outcome_of, outcome_streams, read_ledger};
pub use placed::{
    PLACEMENT_KEY, Placed, SiteReport, follow_placement, is_placed_anew, read_placement, read_report, report_key,
};
pub use relay_life::{Carrying, relay_main};
pub use reporter::Reporter;
pub use source_life::{epoch_key, source_main};
pub use stage_life::stage_main;
pub use telemetry::start_log;
pub use unfolded::{Unfolded, unfolded_key};
