//! The `causeway` command: brings pipelines up, shows what they do, and what became of what went in.

mod accuracy;
mod agent;
mod apply;
mod cli;
mod content;
mod demo;
mod dlq;
mod home;
mod inspect;
mod layout;
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
mod thumbnails;
mod up;
mod up_command;

pub use cli::main;
