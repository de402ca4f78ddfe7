//! Model sessions: the only crate that knows ONNX Runtime.
//!
//! A [`Session`] is one model on one thread. Tensors are 32-bit floats; what shape, range and colour order a model wants is
//! its stage's business.

mod engine;
mod open_error;
mod port;
mod run_error;
mod session;

pub use engine::EngineError;
pub use open_error::OpenError;
pub use port::Port;
pub use run_error::RunError;
pub use session::{Outputs, Session};
