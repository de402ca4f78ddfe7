//! The stage `capture`: pictures out of a folder, frames of a video or a camera. What can be read twice comes in the same order
//! and with the same ids on every run.

mod address;
mod clock;
mod ffmpeg;
#[doc(hidden)]
pub mod fuzz;
mod pace;
mod packets;
mod pictures;
mod queue;
mod video;
mod why;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use causeway_imaging::probe;
use causeway_pipelines::CaptureOptions;
use causeway_schemas::{Capture, Frame, Id, Message as _};
use causeway_stage::{Captured, Context, Source, Unreadable};
use sha2::{Digest, Sha256};

use crate::pace::Pace;
use crate::pictures::{Picture, Pictures};

/// Whatever `input` names.
pub enum Input {
    /// Pictures.
    Folder(Folder),
    /// A video.
    Video(Video),
}

/// The frames of a video file, a camera, a stream or standard input.
pub struct Video(video::Video);

impl Source for Input {
    const NAME: &'static str = "capture";
    type Options = CaptureOptions;
    type Output = Frame;

    fn new(options: CaptureOptions, ctx: &Context) -> anyhow::Result<Self> {
        match video::Video::open(&options, ctx)? {
            Some(video) => Ok(Self::Video(Video(video))),
            None => Ok(Self::Folder(Folder::open(&options, ctx.source(), &ctx.path(Path::new("")), ctx.epoch())?)),
        }
    }

    fn next(&mut self) -> Option<Captured<Frame>> {
        match self {
            Self::Folder(folder) => folder.next(),
            Self::Video(Video(video)) => video.next(),
        }
    }

    fn end(&mut self) -> anyhow::Result<()> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Video(Video(video)) => video.end(),
        }
    }

    fn about(&self) -> Option<String> {
        match self {
            Self::Folder(folder) => Some(folder.about()),
            Self::Video(_) => None,
        }
    }
}

/// The pictures of a folder or a glob. `next` waits when there is a rate, and ends when there is no `repeat`.
pub struct Folder {
    source: String,
    pictures: Pictures,
    /// The pictures of this round that are still to come.
    waiting: std::vec::IntoIter<Picture>,
    repeat: bool,
    /// From 0: how often the folder was gone through before.
    round: u64,
    /// Of this start: the rounds behind the first belong to it alone.
    epoch: u64,
    /// From 0: the place of the next picture in this run.
    sequence: u64,
    pace: Option<Pace>,
    max_bytes: u64,
    max_pixels: u64,
}

/// The longest picture whose frame can be read again: room is left for what stands beside the picture.
const LONGEST_PICTURE: u64 = (Frame::MAX_BYTES - (64 << 10)) as u64;

impl Folder {
    /// Opens the input of `options`, a relative one within `base`; `source` is the name that its ids are made of, and `epoch` this
    /// start of it.
    pub fn open(options: &CaptureOptions, source: &str, base: &Path, epoch: u64) -> anyhow::Result<Self> {
        let input = options.input.as_deref().filter(|input| !input.as_os_str().is_empty()).with_context(|| {
            format!("cannot capture without an input: set `input` in [stage.{source}] or pass `--input DIR`")
        })?;
        let max_bytes = options.max_bytes.as_u64();
        ensure!(
            max_bytes <= LONGEST_PICTURE,
            "cannot capture with max_bytes = {max_bytes}: the longest picture that a frame carries is {LONGEST_PICTURE} bytes"
        );
        let pace = options.rate.map(Pace::new).transpose()?;
        let pictures = Pictures::of(&base.join(input))?;
        let (waiting, passed_over) = pictures.list()?;
        if passed_over > 0 {
            tracing::info!(files = passed_over, "files passed over: no picture by their extension");
        }
        if waiting.is_empty() {
            tracing::warn!(input = %base.join(input).display(), "no picture found");
        }
        Ok(Self {
            source: source.into(),
            pictures,
            waiting: waiting.into_iter(),
            repeat: options.repeat,
            round: 0,
            epoch,
            sequence: 0,
            pace,
            max_bytes,
            max_pixels: options.max_pixels,
        })
    }

    /// How many pictures of this round are still to come.
    pub fn remaining(&self) -> usize {
        self.waiting.len()
    }

    fn next_picture(&mut self) -> Option<Picture> {
        if let Some(picture) = self.waiting.next() {
            return Some(picture);
        }
        if !self.repeat || self.sequence == 0 {
            return None;
        }
        // Listed anew: what came in the meantime is captured too.
        let listed = self.pictures.list().inspect_err(|error| {
            tracing::error!(error = format!("{error:#}"), "input gone: the source ends");
        });
        self.waiting = listed.ok()?.0.into_iter();
        self.round += 1;
        self.waiting.next()
    }

    fn capture(&self, picture: Picture) -> Captured<Frame> {
        let (item, repeats) = (picture.item, self.round == 0);
        let refused = |id: Id, reason: &'static str, detail: String, body: Vec<u8>| {
            let item = item.clone();
            Captured { id, repeats, message: Err(Unreadable { item, reason, detail, body }) }
        };
        let (body, whole) = match read_at_most(&picture.path, self.max_bytes) {
            Ok(read) => read,
            Err(error) => {
                let detail = format!("cannot read the file: {error}");
                return refused(self.id(&item, "unreadable"), "unreadable", detail, Vec::new());
            }
        };
        let id = self.id(&item, &hex(&Sha256::digest(&body)));
        if !whole {
            let detail = format!("the file has more than max_bytes = {}", self.max_bytes);
            return refused(id, "too-long", detail, body);
        }
        if let Err(error) = probe(&body, self.max_pixels) {
            return refused(id, error.reason(), error.to_string(), body);
        }
        let epoch = if repeats { 0 } else { self.epoch };
        let (source, sequence) = (self.source.clone(), self.sequence);
        let capture = Capture { source, item, epoch, sequence, captured_at: unix_ns() };
        Captured { id, repeats, message: Ok(Frame { capture, image: body }) }
    }

    /// The same on every run; another in every further round, whichever run it is of: after a restart, too, a simulated camera shows
    /// what nobody has seen.
    fn id(&self, item: &str, content: &str) -> Id {
        match self.round {
            0 => Id::captured(&self.source, &format!("{item} {content}")),
            round => Id::captured(&self.source, &format!("{item} {content} start {} round {round}", self.epoch)),
        }
    }
}

impl Folder {
    /// The next picture, when it is due.
    #[expect(clippy::should_implement_trait, reason = "it is what a source's `next` is")]
    pub fn next(&mut self) -> Option<Captured<Frame>> {
        let picture = self.next_picture()?;
        if let Some(pace) = &mut self.pace {
            pace.wait();
        }
        let captured = self.capture(picture);
        self.sequence += 1;
        Some(captured)
    }

    fn about(&self) -> String {
        match self.remaining() {
            1 => "1 picture".into(),
            many => format!("{many} pictures"),
        }
    }
}

/// The file, and whether that is all of it: one byte more than `max` is read, and never more.
fn read_at_most(path: &Path, max: u64) -> std::io::Result<(Vec<u8>, bool)> {
    let mut body = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut body)?;
    let whole = body.len() as u64 <= max;
    Ok((body, whole))
}

fn unix_ns() -> u64 {
    // A clock before 1970 is 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

fn hex(bytes: &[u8]) -> String {
    let mut written = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(written, "{byte:02x}").expect("a String takes all that is written");
    }
    written
}

#[cfg(test)]
mod tests;
