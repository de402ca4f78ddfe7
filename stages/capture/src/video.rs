use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use causeway_imaging::probe;
use causeway_pipelines::{CaptureOptions, OnFull};
use causeway_schemas::{Capture, Frame, Id};
use causeway_stage::{Captured, Context, Reporter, Unreadable};
use sha2::{Digest, Sha256};

use crate::address::Address;
use crate::clock::CameraClock;
use crate::ffmpeg::{Call, Ended, Killer};
use crate::pace::Pace;
use crate::packets::Packet;
use crate::queue::{Put, Queue};
use crate::why::Why;
use crate::{LONGEST_PICTURE, hex, unix_ns};

/// The frames of a video: of a file, a camera, a stream or standard input. `next` waits for the next one; what is live never
/// ends. A thread reads ahead of it, as far as `buffer`.
pub(crate) struct Video {
    source: String,
    naming: Naming,
    queue: Arc<Queue<Grabbed>>,
    /// The `ffmpeg` that runs now.
    running: Arc<Mutex<Option<Killer>>>,
    reader: Option<JoinHandle<()>>,
    pace: Option<Pace>,
    max_bytes: u64,
    max_pixels: u64,
    shown: String,
}

/// What a frame's id is made of.
#[derive(Debug, Clone)]
enum Naming {
    /// Its file, the content and the place in it: the same whenever the file is read. Further rounds are of this start.
    File { item: String, sha256: String, epoch: u64 },
    /// The start of the source and its place since: a camera is never read twice.
    Epoch(u64),
}

/// A frame on its way from `ffmpeg` to the link.
struct Grabbed {
    /// From 0. Dropped frames have theirs too, so that a gap shows.
    sequence: u64,
    /// How often the file was read to its end before.
    round: u64,
    /// Its timestamp in the video, ms.
    ms: u64,
    /// How many frames before it have the same timestamp.
    among: u32,
    captured_at: u64,
    packet: Packet,
}

/// The thread that reads.
struct Reader {
    call: Call,
    /// How to call it once it is known that the video has an end.
    timed: Option<Call>,
    address: Address,
    queue: Arc<Queue<Grabbed>>,
    running: Arc<Mutex<Option<Killer>>>,
    reporter: Reporter,
    repeat: bool,
    /// When a file was written last, Unix ns.
    written_at: u64,
    progress: Progress,
}

/// How far it has read.
#[derive(Default)]
struct Progress {
    sequence: u64,
    round: u64,
    /// Frames of this round that were given; they are passed over when the video is read again from its beginning.
    given: u64,
    /// Whether it has an end and can be read from its beginning again.
    has_end: bool,
    clock: CameraClock,
    last_ms: Option<u64>,
    among: u32,
}

/// First and longest pause before a stream is opened again.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// A stream that ran for this long is opened again after the first pause.
const SETTLED: Duration = Duration::from_secs(10);
/// Attempts at a file at whose same frame `ffmpeg` ends again and again.
const ATTEMPTS: u32 = 3;

impl Video {
    /// Opens what `options` name; `None` where that is pictures.
    pub(crate) fn open(options: &CaptureOptions, ctx: &Context) -> anyhow::Result<Option<Self>> {
        let Some(address) = Address::of(options, &ctx.path(Path::new("")))? else { return Ok(None) };
        let shown = address.shown();
        ensure!(
            options.max_bytes.as_u64() <= LONGEST_PICTURE,
            "cannot capture with max_bytes = {}: the longest picture that a frame carries is {LONGEST_PICTURE} bytes",
            options.max_bytes.as_u64()
        );
        let is_file = matches!(address, Address::File(_));
        ensure!(
            is_file || !options.repeat,
            "cannot capture from {shown} with `repeat`: only folders and files begin anew"
        );
        ensure!(
            is_file || options.rate.is_none(),
            "cannot capture from {shown} at a `rate`: what is live comes as it comes; thin it with `fps`"
        );
        if let Address::Stdin = address
            && std::io::IsTerminal::is_terminal(&std::io::stdin())
        {
            bail!("cannot capture from standard input: it is a terminal; pipe a video into it");
        }
        let by_arrival = matches!(&address, Address::Url(url) if !url.is_timed());
        let call = Call::new(options, &address, ctx.threads(), by_arrival)?;
        // What turns out to have an end goes by its own time.
        let timed = by_arrival.then(|| Call::new(options, &address, ctx.threads(), false)).transpose()?;
        let (naming, written_at) = match &address {
            Address::File(path) => {
                let (sha256, written_at) = look_at(path).with_context(|| format!("cannot capture from {shown}"))?;
                let item = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                (Naming::File { item, sha256, epoch: ctx.epoch() }, written_at)
            }
            _ => (Naming::Epoch(ctx.epoch()), 0),
        };
        let waits = if address.is_live() { OnFull::KeepLatest } else { OnFull::Block };
        let queue = Arc::new(Queue::new(options.buffer, options.on_full.unwrap_or(waits)));
        let running = Arc::default();
        let reader = Reader {
            call,
            timed,
            address,
            queue: Arc::clone(&queue),
            running: Arc::clone(&running),
            reporter: ctx.reporter(),
            repeat: options.repeat,
            written_at,
            progress: Progress { has_end: is_file, ..Progress::default() },
        };
        Ok(Some(Self {
            source: ctx.source().into(),
            naming,
            queue,
            running,
            reader: Some(std::thread::Builder::new().name("video".into()).spawn(move || reader.run())?),
            pace: options.rate.map(Pace::new).transpose()?,
            max_bytes: options.max_bytes.as_u64(),
            max_pixels: options.max_pixels,
            shown,
        }))
    }

    /// The next frame; `None` once there will be none.
    pub(crate) fn next(&mut self) -> Option<Captured<Frame>> {
        let (grabbed, dropped) = self.queue.take()?;
        if let Some(dropped) = dropped {
            tracing::info!(dropped, "frames are kept again");
        }
        if let Some(pace) = &mut self.pace {
            pace.wait();
        }
        Some(self.capture(grabbed))
    }

    /// Why it ended, where that was not its end.
    pub(crate) fn end(&self) -> anyhow::Result<()> {
        self.queue.ended().map_err(|why| anyhow::anyhow!("cannot capture from {}: {why}", self.shown))
    }

    fn capture(&self, grabbed: Grabbed) -> Captured<Frame> {
        let (item, of) = self.names(&grabbed);
        let Grabbed { sequence, captured_at, packet, round, .. } = grabbed;
        let id = Id::captured(&self.source, &of);
        let repeats = round == 0 && matches!(self.naming, Naming::File { .. });
        let refused = |reason: &'static str, detail: String, body: Vec<u8>| {
            let item = item.clone();
            Captured { id, repeats, message: Err(Unreadable { item, reason, detail, body }) }
        };
        if packet.len as u64 > self.max_bytes {
            let detail = format!("the frame has {} bytes, more than max_bytes = {}", packet.len, self.max_bytes);
            return refused("too-long", detail, packet.jpeg);
        }
        if let Err(error) = probe(&packet.jpeg, self.max_pixels) {
            return refused(error.reason(), error.to_string(), packet.jpeg);
        }
        let epoch = match self.naming {
            Naming::File { .. } if round == 0 => 0,
            Naming::File { epoch, .. } | Naming::Epoch(epoch) => epoch,
        };
        let capture = Capture { source: self.source.clone(), item, epoch, sequence, captured_at };
        Captured { id, repeats, message: Ok(Frame { capture, image: packet.jpeg }) }
    }

    /// What a frame is called, and what its id is made of.
    fn names(&self, grabbed: &Grabbed) -> (String, String) {
        match &self.naming {
            Naming::File { item, sha256, epoch } => {
                let among = if grabbed.among == 0 { String::new() } else { format!("+{}", grabbed.among) };
                let item = format!("{item}@{}.{:03}s{among}", grabbed.ms / 1000, grabbed.ms % 1000);
                let of = match grabbed.round {
                    0 => format!("{item} {sha256}"),
                    round => format!("{item} {sha256} start {epoch} round {round}"),
                };
                (item, of)
            }
            Naming::Epoch(epoch) => {
                let item = format!("start {epoch} frame {}", grabbed.sequence);
                (item.clone(), item)
            }
        }
    }
}

impl Drop for Video {
    fn drop(&mut self) {
        self.queue.close();
        if let Ok(running) = self.running.lock()
            && let Some(killer) = &*running
        {
            killer.kill();
        }
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// What is to be done after an `ffmpeg` has ended.
enum Then {
    Again { pause: Duration },
    End(Result<(), String>),
}

impl Reader {
    fn run(mut self) {
        let mut attempts = 0;
        let mut pauses = pauses();
        let mut lost: Option<Instant> = None;
        loop {
            let (began, given) = (Instant::now(), self.progress.given);
            let ended = match self.read(&mut lost) {
                Ok(Some(ended)) => ended,
                Ok(None) => return,
                Err(error) => return self.queue.end(Err(format!("{error:#}"))),
            };
            let frames = self.progress.given - given;
            if began.elapsed() > SETTLED {
                pauses = self::pauses();
            }
            attempts = if frames > 0 { 1 } else { attempts + 1 };
            match self.then(&ended, frames, attempts, &mut pauses, &mut lost) {
                Then::Again { pause } => {
                    if !self.queue.pause(pause) {
                        return;
                    }
                }
                Then::End(how) => return self.queue.end(how),
            }
        }
    }

    /// Runs one `ffmpeg` to its end; `None` when nobody takes its frames any more.
    fn read(&mut self, lost: &mut Option<Instant>) -> anyhow::Result<Option<Ended>> {
        let mut ffmpeg = self.call.start()?;
        *self.running.lock().expect("no holder of it panics") = Some(ffmpeg.killer());
        tracing::debug!(pid = ffmpeg.pid(), "ffmpeg starts");
        self.progress.clock.begin_anew();
        let mut pass_over = if self.progress.has_end { self.progress.given } else { 0 };
        let mut ms = Ms::default();
        while let Some(packets) = ffmpeg.next() {
            let duration = ffmpeg.said().duration;
            if duration.is_some()
                && let Some(timed) = self.timed.take()
            {
                drop(ffmpeg);
                self.call = timed;
                return self.read(lost);
            }
            for packet in packets {
                let at = ms.of(packet.ms);
                if pass_over > 0 {
                    pass_over -= 1;
                    continue;
                }
                if let Some(since) = lost.take() {
                    tracing::info!(source = self.address.shown(), gone_s = since.elapsed().as_secs(), "stream is back");
                    self.reporter.goes_on();
                }
                if !self.put(packet, at, duration) {
                    return Ok(None);
                }
            }
        }
        *self.running.lock().expect("no holder of it panics") = None;
        Ok(Some(ffmpeg.end()))
    }

    /// Puts a frame; `false` when nobody takes any more.
    fn put(&mut self, packet: Packet, ms: u64, duration: Option<Duration>) -> bool {
        let progress = &mut self.progress;
        progress.among = if progress.last_ms == Some(ms) { progress.among + 1 } else { 0 };
        progress.last_ms = Some(ms);
        let captured_at = match &self.address {
            // It was written last when its last frame was.
            Address::File(_) => {
                let began = self.written_at.saturating_sub(duration.map_or(0, |duration| duration.as_nanos() as u64));
                began + ms * 1_000_000
            }
            _ => progress.clock.at(ms * 1_000_000, unix_ns()),
        };
        let Progress { sequence, round, among, .. } = *progress;
        progress.sequence += 1;
        progress.given += 1;
        match self.queue.put(Grabbed { sequence, round, ms, among, captured_at, packet }) {
            Put::Kept => true,
            Put::Closed => false,
            Put::Dropped { first } => {
                if first {
                    tracing::warn!(sequence, "frames are dropped: the link takes fewer than come");
                }
                self.reporter.dropped(1);
                true
            }
        }
    }

    fn then(
        &mut self,
        ended: &Ended,
        frames: u64,
        attempts: u32,
        pauses: &mut ExponentialBackoff,
        lost: &mut Option<Instant>,
    ) -> Then {
        let is_live = self.address.is_live();
        let why = Why::of(ended, if is_live { frames } else { self.progress.given });
        // A URL that told how long it is, is a file on the network, and is read once.
        self.progress.has_end |= is_live && ended.said.duration.is_some() && !self.is_rtsp();
        if (self.progress.has_end || !is_live) && ended.is_well() && self.progress.given > 0 {
            if !self.repeat {
                return Then::End(Ok(()));
            }
            self.progress.round += 1;
            self.progress.given = 0;
            self.progress.last_ms = None;
            return Then::Again { pause: Duration::ZERO };
        }
        if !is_live {
            if (ended.was_killed() || ended.stalled) && attempts < ATTEMPTS {
                tracing::warn!(
                    why = why.words,
                    frames = self.progress.given,
                    "ffmpeg ended; going on from where it was"
                );
                return Then::Again { pause: RETRY_PAUSE.0 };
            }
            let given = self.progress.given;
            let words = if given > 0 { format!("{}, after {given} frames", why.words) } else { why.words };
            return Then::End(Err(words));
        }
        let pause = if why.is_refusal { RETRY_PAUSE.1 } else { pauses.next().unwrap_or(RETRY_PAUSE.1) };
        let shown = self.address.shown();
        if lost.is_none() || frames > 0 {
            tracing::warn!(source = shown, why = why.words, "stream lost; it is opened again and again");
            *lost = Some(Instant::now());
        }
        self.reporter.waits(&format!("{shown}: {}", why.words));
        Then::Again { pause }
    }

    fn is_rtsp(&self) -> bool {
        matches!(&self.address, Address::Url(url) if url.is_rtsp())
    }
}

/// Timestamps of 32 bits, ms, which begin anew every 49 days, as such of 64.
#[derive(Default)]
struct Ms {
    last: u32,
    sum: u64,
}

impl Ms {
    fn of(&mut self, ms: u32) -> u64 {
        // A step back is none forward of 49 days.
        let step = ms.wrapping_sub(self.last);
        if step < u32::MAX / 2 {
            self.sum += u64::from(step);
            self.last = ms;
        }
        self.sum
    }
}

fn pauses() -> ExponentialBackoff {
    let builder = ExponentialBuilder::new().with_min_delay(RETRY_PAUSE.0).with_max_delay(RETRY_PAUSE.1);
    builder.with_factor(2.0).without_max_times().with_jitter().build()
}

/// A file's SHA-256 and when it was written last, Unix ns.
fn look_at(path: &Path) -> anyhow::Result<(String, u64)> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    ensure!(metadata.is_file(), "it is no file");
    ensure!(metadata.len() > 0, "the file is empty");
    let (mut sha256, mut piece) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut piece)? {
            0 => break,
            len => sha256.update(&piece[..len]),
        }
    }
    let written = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok((hex(&sha256.finalize()), written.as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_go_on_after_49_days() {
        let mut ms = Ms::default();
        assert_eq!([0, 40, u32::MAX].map(|at| ms.of(at)), [0, 40, 40], "no step of 49 days");
        let mut ms = Ms { last: u32::MAX - 9, sum: 1000 };
        assert_eq!([u32::MAX, 30].map(|at| ms.of(at)), [1009, 1040]);
    }
}
