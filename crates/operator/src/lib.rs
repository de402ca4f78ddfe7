//! The `causeway` command: brings pipelines up, shows what they do, and what became of what went in.

mod accuracy;
mod agent;
mod apply;
mod cli;
mod connect;
mod content;
mod demo;
mod deploy;
mod dlq;
mod home;
mod init;
mod input;
mod inspect;
mod layout;
mod metrics;
mod once;
mod people;
mod progress;
mod report;
mod results;
mod session;
mod status;
mod subject;
mod summary;
mod supervisor;
mod tap;
mod terminal;
mod test_command;
mod thumbnails;
mod up;
mod up_command;

pub use cli::main;
