//! The promises of Causeway, each against real servers, real models and real kills.

mod bad_input;
mod connect;
mod demo;
mod editor;
mod fold;
mod house;
mod keep;
mod life;
mod pipeline_tests;
mod poison;
mod refusals;
mod resume;
