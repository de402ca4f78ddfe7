//! What `ffmpeg` writes. From a first byte below 128 on: its SMJPEG, in pieces of so many bytes. Else two lines: an input's URL, and
//! a line of its log.

use causeway_capture::fuzz::{frames, line};

/// Of a frame only so much is kept.
const MAX_FRAME: usize = 100;

pub(crate) fn run(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else { return };
    if first < 128 {
        let whole = frames(rest, rest.len(), MAX_FRAME);
        assert_eq!(frames(rest, first.into(), MAX_FRAME), whole, "other frames in pieces of {first}");
        for (_, jpeg, len) in whole.0 {
            assert_eq!(jpeg.len(), len.min(MAX_FRAME + 1), "another length than was said");
        }
    } else {
        let text = String::from_utf8_lossy(rest);
        let (url, said) = text.split_once('\n').unwrap_or((&text, ""));
        let _ = line(url, said);
    }
}
