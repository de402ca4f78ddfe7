//! The promises of Causeway, each against real servers, real models and real kills.

mod resume;
