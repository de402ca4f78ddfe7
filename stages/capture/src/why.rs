//! What `ffmpeg`'s last lines mean to a person.

use crate::ffmpeg::Ended;

/// Why a video ended or could not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Why {
    /// For a person; completes "cannot capture from X: ".
    pub(crate) words: String,
    /// Trying again soon does no good, and may do harm: cameras lock out who is wrong too often.
    pub(crate) is_refusal: bool,
}

/// What `ffmpeg` writes, in lower case; what it means; whether it is a refusal. The first that is found counts.
const KNOWN: &[(&str, &str, bool)] = &[
    ("401 unauthorized", "the user or the password is wrong (401 Unauthorized)", true),
    ("403 forbidden", "the user may not see it (403 Forbidden)", true),
    ("404 not found", "there is no such stream (404 Not Found): check the path of the URL", true),
    ("454 session not found", "the camera has ended the session", false),
    ("461 unsupported transport", "the camera does not send this way: try the other `transport`", true),
    ("connection refused", "nothing listens there (connection refused): check the host and the port", false),
    ("no route to host", "there is no way to the host: check the address and the network", false),
    ("network is unreachable", "there is no way to the host: check the address and the network", false),
    ("failed to resolve hostname", "nobody knows the host's name: check it, or write its address", false),
    ("connection timed out", "it does not answer", false),
    ("operation timed out", "it does not answer", false),
    ("connection reset", "the connection was cut", false),
    ("permission denied", "it may not be read (permission denied)", true),
    ("device or resource busy", "another program uses it", false),
    ("no such file or directory", "there is no such file or device", false),
    ("no such device", "there is no such device", false),
    ("unknown input format: 'v4l2'", "this ffmpeg reads no cameras of this machine", true),
    ("moov atom not found", "it is no video or not a whole one: its index is missing (moov atom not found)", true),
    ("matches no streams", "there are no moving pictures in it", true),
    ("decoder not found", "ffmpeg knows no decoder for its codec", true),
    ("no decoder found for", "ffmpeg knows no decoder for its codec", true),
    ("not found for input stream", "ffmpeg knows no decoder for its codec", true),
    ("unsupported codec", "ffmpeg knows no decoder for its codec", true),
    ("unrecognized option", "this ffmpeg is too old: 5.1 or newer is needed", true),
    ("invalid data found when processing input", "it is no video that ffmpeg can read", true),
    ("end of file", "there is no frame in it", false),
];

/// What `ffmpeg` says of everything: no reason.
const EMPTY_TALK: &[&str] = &[
    "error opening input file",
    "error opening output file",
    "conversion failed",
    "nothing was written into output file",
    "output file is empty",
    "terminating thread",
    "task finished with error",
    "[out#0",
    "frame=",
    "[swscaler",
    "stream mapping",
    "last message repeated",
];

impl Why {
    /// Out of how it ended and how many frames it gave.
    pub(crate) fn of(ended: &Ended, frames: u64) -> Self {
        let lines: Vec<String> = ended.said.tail.iter().map(|line| line.to_ascii_lowercase()).collect();
        let found = KNOWN.iter().find(|(sign, ..)| lines.iter().any(|line| line.contains(sign)));
        let why = |words: &str, is_refusal| Self { words: words.into(), is_refusal };
        if ended.stalled {
            return why("it gives no frames", false);
        }
        // Of a stream that ran, what went wrong last is what counts; a line from its beginning could mislead.
        match found {
            Some((_, words, is_refusal)) => why(words, *is_refusal && frames == 0),
            None if ended.is_well() && ended.said.decoded == 0 && frames == 0 => why("there is no frame in it", true),
            None if ended.is_well() => why("the stream ended", false),
            None if ended.was_killed() => why(&format!("ffmpeg was ended ({})", status(ended)), false),
            None => {
                let last = ended.said.tail.iter().zip(&lines).rev();
                let mut last = last.filter(|(_, line)| !EMPTY_TALK.iter().any(|talk| line.contains(talk)));
                let last = last.next().map_or("", |(said, _)| said);
                why(&format!("ffmpeg ended ({}): {last}", status(ended)), false)
            }
        }
    }
}

fn status(ended: &Ended) -> String {
    ended.status.map_or("no status".into(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    use super::*;
    use crate::ffmpeg::Said;

    fn why(code: i32, tail: &[&str], frames: u64) -> Why {
        let tail = tail.iter().map(|&line| line.to_owned()).collect();
        let said = Said { tail, decoded: frames, ..Said::default() };
        Why::of(&Ended { status: Some(ExitStatus::from_raw(code)), stalled: false, said }, frames)
    }

    #[test]
    fn ffmpegs_words_become_a_persons() {
        let refused =
            why(8 << 8, &["[http @ 0x55] HTTP error 401 Unauthorized", "Error opening input files: Server …"], 0);
        assert!(refused.is_refusal && refused.words.contains("password is wrong"), "{refused:?}");
        let nobody = why(1 << 8, &["Connection to tcp://127.0.0.1:1 failed: Connection refused"], 0);
        assert!(!nobody.is_refusal && nobody.words.contains("nothing listens"), "{nobody:?}");
        assert_eq!(why(0, &[], 0).words, "there is no frame in it");
        assert_eq!(why(0, &[], 7).words, "the stream ended");
        assert!(why(9, &[], 7).words.contains("SIGKILL"));
        let odd = why(1 << 8, &["the moon is in the wrong place", "Conversion failed!"], 0);
        assert_eq!(odd.words, "ffmpeg ended (exit status: 1): the moon is in the wrong place");
    }
}
