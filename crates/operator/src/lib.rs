//! The `causeway` command: brings pipelines up, shows what they do, and what became of what went in.

mod accuracy;
mod agent;
mod apply;
mod asyncapi;
mod chaos;
mod cli;
mod connect;
mod content;
mod demo;
mod deploy;
mod dlq;
mod drift;
#[doc(hidden)]
pub mod fuzz;
mod generation;
mod home;
mod init;
mod input;
mod inspect;
mod kept;
mod layout;
mod metrics;
mod move_command;
mod net;
mod once;
mod people;
mod placement;
mod progress;
mod reconcile;
mod replay;
mod report;
mod results;
mod session;
mod status;
mod stop;
mod subject;
mod summary;
mod supervisor;
mod tap;
mod terminal;
mod test_command;
mod thumbnails;
mod up;
mod up_command;
mod when;

pub use cli::main;
