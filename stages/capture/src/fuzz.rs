//! What private code of this crate makes of what `ffmpeg` writes, for `tests/fuzz`; no part of the interface.

use std::path::Path;
use std::time::Duration;

use causeway_pipelines::CaptureOptions;

use crate::address::Address;
use crate::ffmpeg::read_duration;
use crate::packets::Packets;

/// A frame: its time in ms, its bytes as far as they were kept, and its length.
pub type Frame = (u32, Vec<u8>, usize);

/// The frames of an SMJPEG that comes in pieces of `piece` bytes, and whether all of it was one. Of each frame one byte more than
/// `max_bytes` is kept.
pub fn frames(stream: &[u8], piece: usize, max_bytes: usize) -> (Vec<Frame>, bool) {
    let (mut packets, mut frames) = (Packets::new(max_bytes), Vec::new());
    let mut pieces = stream.chunks(piece.max(1));
    let sound = pieces.all(|piece| packets.take(piece, |frame| frames.push((frame.ms, frame.jpeg, frame.len))).is_ok());
    (frames, sound)
}

/// What is understood of a line of its log: a duration, and the line as it may be shown beside the input `url`.
pub fn line(url: &str, line: &str) -> (Option<Duration>, Option<String>) {
    let options = CaptureOptions { input: Some(url.into()), ..CaptureOptions::default() };
    let address = Address::of(&options, Path::new("nowhere")).ok().flatten();
    (read_duration(line), address.map(|address| address.redact(line)))
}
