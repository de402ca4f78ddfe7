//! Model sessions: the only crate that knows ONNX Runtime.
//!
//! A [`Session`] is one model, or a part of one between two of its tensors, on one thread. Tensors are 32-bit floats; what shape, range and colour order a model wants is
//! its stage's business.

mod cut;
mod engine;
mod onnx;
mod open_error;
mod port;
mod run_error;
mod session;

pub use cut::{Cut, CutError};
pub use engine::EngineError;
pub use open_error::OpenError;
pub use port::Port;
pub use run_error::RunError;
pub use session::{Outputs, Session};
