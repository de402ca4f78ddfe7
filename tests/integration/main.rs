//! The promises of Causeway, each against real servers, real models and real kills.

mod bad_input;
mod bench;
mod demo;
mod fold;
mod house;
mod keep;
mod life;
mod poison;
mod refusals;
mod resume;
