//! The promises of Causeway, each against real servers, real models and real kills.

mod bad_input;
mod demo;
mod fold;
mod house;
mod keep;
mod life;
mod objects;
mod own_model;
mod poison;
mod refusals;
mod resume;
