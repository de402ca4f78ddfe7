//! Pictures: the only crate that knows image formats and how a pixel is sampled.
//!
//! A [`Picture`] is upright, 8 bits a channel, red green blue, row by row from the top left, without padding.

mod antialiased;
mod decode;
mod error;
mod fit;
mod jpeg;
mod picture;
mod png;
mod resize;
mod sharpness;
mod thumbnail;
mod warp;
mod webp;

#[cfg(test)]
mod bad_images;

pub use decode::{Format, Probe, decode, decode_at_least, format_of, probe};
pub use error::ImageError;
pub use fit::{Fitted, fit};
pub use picture::Picture;
pub use png::png;
pub use resize::resize;
pub use sharpness::sharpness;
pub use thumbnail::thumbnail;
pub use warp::{Affine, warp};
