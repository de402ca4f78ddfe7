use std::error::Error;
use std::io;

/// Why bytes cannot be used as a picture. None of these goes away by trying again.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No bytes at all.
    #[error("cannot decode the file: it is empty")]
    Empty,
    /// The first bytes are those of no picture.
    #[error("cannot decode the file: it does not begin like any picture")]
    NotAnImage,
    /// A picture, but of a sort that is not read.
    #[error("cannot decode the picture: {what} is not supported; JPEG, PNG and WebP are")]
    Unsupported {
        /// The format or feature.
        what: String,
    },
    /// More pixels than allowed; found in the header, before anything was decoded.
    #[error("cannot decode the picture: {width} × {height} pixels are more than the {max_pixels} allowed")]
    TooManyPixels {
        /// Width, px.
        width: u32,
        /// Height, px.
        height: u32,
        /// The bound: width × height.
        max_pixels: u64,
    },
    /// The header is fine, the decoder wants more memory than a picture of this size may need.
    #[error("cannot decode the picture: it needs more memory than {width} × {height} pixels may take")]
    TooMuchMemory {
        /// Width, px.
        width: u32,
        /// Height, px.
        height: u32,
    },
    /// The file ends before the picture does.
    #[error("cannot decode the picture: the file ends before it is complete")]
    Truncated,
    /// The bytes break the rules of their format.
    #[error("cannot decode the picture: {why}")]
    Corrupt {
        /// What the decoder said.
        why: String,
    },
}

impl ImageError {
    /// A short fixed name for dead letters and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Empty => "empty-file",
            Self::NotAnImage => "not-an-image",
            Self::Unsupported { .. } => "unsupported-format",
            Self::TooManyPixels { .. } | Self::TooMuchMemory { .. } => "too-many-pixels",
            Self::Truncated => "truncated",
            Self::Corrupt { .. } => "corrupt",
        }
    }

    /// What the decoder's error means for a picture whose header, as far as it was read, said `size` (width, height).
    pub(crate) fn of(error: image::ImageError, size: (u32, u32)) -> Self {
        match error {
            _ if ended_early(&error) => Self::Truncated,
            image::ImageError::Limits(_) => Self::TooMuchMemory { width: size.0, height: size.1 },
            image::ImageError::Unsupported(error) => Self::Unsupported { what: error.to_string() },
            other => Self::Corrupt { why: other.to_string() },
        }
    }
}

/// Whether an error, or one of its causes, is the end of the file.
fn ended_early(error: &image::ImageError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    if let image::ImageError::IoError(error) = error {
        cause = Some(error);
    }
    while let Some(error) = cause {
        if error.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::UnexpectedEof) {
            return true;
        }
        cause = error.source();
    }
    false
}
