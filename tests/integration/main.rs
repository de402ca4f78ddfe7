//! The promises of Causeway, each against real servers, real models and real kills.

mod alerts;
mod bad_input;
mod bench;
mod cameras;
mod chaos;
mod connect;
mod containers;
mod demo;
mod disk;
mod editor;
mod fold;
mod house;
mod hub;
mod keep;
mod life;
mod metrics;
mod objects;
mod oracle;
mod own_model;
mod pipeline_tests;
mod poison;
mod power;
mod refusals;
mod repair;
mod resume;
mod traces;
