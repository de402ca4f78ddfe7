use ort::ErrorCode;

/// Why a model gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// This input can never work with this model.
    #[error("cannot run the model `{model}` on this input: {why}")]
    Never {
        /// The model.
        model: String,
        /// What the engine said.
        why: String,
    },
    /// It did not work this time: too little memory, a device that went away.
    #[error("cannot run the model `{model}` now: {why}")]
    Now {
        /// The model.
        model: String,
        /// What the engine said.
        why: String,
    },
}

impl RunError {
    /// Whether the same input may work another time.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Now { .. })
    }

    pub(crate) fn of(model: &str, error: &ort::Error) -> Self {
        let (model, why) = (model.to_owned(), error.to_string());
        match error.code() {
            // What is wrong lies in the input or in the model: shapes, types, operators.
            ErrorCode::InvalidArgument
            | ErrorCode::NotImplemented
            | ErrorCode::InvalidGraph
            | ErrorCode::InvalidProtobuf
            | ErrorCode::NoModel => Self::Never { model, why },
            _ => Self::Now { model, why },
        }
    }
}
