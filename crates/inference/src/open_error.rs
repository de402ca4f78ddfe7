use std::io;
use std::path::PathBuf;

use crate::{CutError, EngineError};

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The ONNX file cannot be read.
    #[error("cannot read the model `{name}`: {path}; run ./dev, or put the file there")]
    Read {
        /// The model.
        name: String,
        /// Its ONNX file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The ONNX file is not the one that its manifest names.
    #[error("cannot trust {path}: its SHA-256 is {found}, the manifest of the model `{name}` says {wanted}")]
    OtherHash {
        /// The model.
        name: String,
        /// Its ONNX file.
        path: PathBuf,
        /// What the manifest says.
        wanted: String,
        /// What it is.
        found: String,
    },
    /// No ONNX Runtime.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// ONNX Runtime refuses the model.
    #[error("cannot open the model `{name}` ({path})")]
    Refused {
        /// The model.
        name: String,
        /// Its ONNX file.
        path: PathBuf,
        /// What it says.
        source: ort::Error,
    },
    /// The model has no such part.
    #[error("cannot cut the model `{name}` ({path})")]
    Cut {
        /// The model.
        name: String,
        /// Its ONNX file.
        path: PathBuf,
        /// Why.
        source: CutError,
    },
    /// A model of another sort than its stage can use.
    #[error("cannot use the model `{name}` here: this stage needs {wanted}; the model has {found}")]
    OtherPorts {
        /// The model.
        name: String,
        /// What the stage needs, with names and shapes.
        wanted: String,
        /// What the model has.
        found: String,
    },
}
