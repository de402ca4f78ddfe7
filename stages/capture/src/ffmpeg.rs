use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use causeway_pipelines::{CaptureOptions, Transport};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::address::{Address, Url};
use crate::packets::{Packet, Packets};

/// How `ffmpeg` is called for a video.
pub(crate) struct Call {
    program: PathBuf,
    address: Address,
    arguments: Vec<OsString>,
    /// What is written to its standard input: the URL, where it holds a secret.
    script: Option<String>,
    max_bytes: usize,
    stall: Duration,
}

/// An `ffmpeg` that runs. Dropped, it is killed.
pub(crate) struct Ffmpeg {
    child: Arc<Mutex<Child>>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    packets: Packets,
    address: Address,
    stall: Duration,
    /// It has given a frame.
    is_open: bool,
    longest_wait: Duration,
    /// The beginning of a line of stderr.
    line: Vec<u8>,
    /// Where a pipe is read into.
    piece: Vec<u8>,
    said: Said,
    malformed: Option<String>,
}

/// Kills an `ffmpeg` from another thread.
#[derive(Clone)]
pub(crate) struct Killer(Arc<Mutex<Child>>);

/// What `ffmpeg` said of the video.
#[derive(Debug, Default, Clone)]
pub(crate) struct Said {
    /// Its last lines, without secrets.
    pub(crate) tail: Vec<String>,
    /// How long the video is; `None` for what has no known end.
    pub(crate) duration: Option<Duration>,
    /// Frames decoded so far, before any were left out.
    pub(crate) decoded: u64,
}

/// How an `ffmpeg` ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: Option<ExitStatus>,
    /// It gave nothing for too long and was killed.
    pub(crate) stalled: bool,
    pub(crate) said: Said,
}

/// How long a stream may take to its first frame at least: `ffmpeg` looks at up to five seconds of it first.
const OPENING: Duration = Duration::from_secs(12);
/// Lines of `ffmpeg` that are kept to tell why it ended, and characters of each.
const LINES_KEPT: usize = 16;
const LONGEST_LINE: usize = 400;
/// Bytes that are read from a pipe at once: what a pipe of Linux holds.
const PIECE: usize = 64 << 10;
/// Protocols that a stream may lead to: never the files of this machine.
const PROTOCOLS: &str = "pipe,fd,rtsp,rtsps,rtp,srtp,udp,tcp,tls,http,https,httpproxy,crypto,data";

impl Call {
    /// Finds `ffmpeg` and says what it is to do.
    /// Timestamps are those of the video, or where `by_arrival`, the times at which its frames come.
    pub(crate) fn new(
        options: &CaptureOptions,
        address: &Address,
        threads: usize,
        by_arrival: bool,
    ) -> anyhow::Result<Self> {
        let mut call = Self {
            program: find()?,
            address: address.clone(),
            arguments: Vec::new(),
            script: None,
            max_bytes: options.max_bytes.as_u64() as usize,
            stall: Duration::from_millis(options.stall_ms),
        };
        call.say(["-nostdin", "-nostats", "-hide_banner", "-loglevel", "info"]);
        call.say(["-threads", &threads.to_string()]);
        match address {
            Address::File(path) => {
                let mut file = OsString::from("file:");
                file.push(path);
                call.say(["-i"]);
                call.arguments.push(file);
            }
            Address::Device(path) => {
                call.say(["-f", "v4l2", "-i"]);
                call.arguments.push(path.into());
            }
            Address::Stdin => call.say(["-i", "pipe:0"]),
            Address::Url(url) => call.say_url(url, options),
        }
        // The first picture track, not the cover of a song.
        call.say(["-map", "0:V:0", "-map_metadata", "-1", "-filter:v", &filters(options, by_arrival)]);
        // Frames as they are, with their times in ms; none is made up to fill a gap.
        call.say(["-fps_mode", "passthrough", "-enc_time_base", "1:1000"]);
        call.say(["-c:v", "mjpeg", "-q:v", &quantiser(options.quality).to_string(), "-flags:v", "+bitexact"]);
        call.say(["-f", "smjpeg", "-fflags", "+bitexact", "-flush_packets", "1", "pipe:1"]);
        Ok(call)
    }

    fn say<const N: usize>(&mut self, arguments: [&str; N]) {
        self.arguments.extend(arguments.map(OsString::from));
    }

    /// A URL with a secret in it goes through a pipe: every user of the machine can read the arguments of a process.
    fn say_url(&mut self, url: &Url, options: &CaptureOptions) {
        let micros = (self.stall.as_micros()).to_string();
        let transport = match options.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        let of_scheme: &[(&str, &str)] = if url.is_rtsp() {
            &[("rtsp_transport", transport), ("timeout", &micros)]
        } else {
            &[("rw_timeout", &micros)]
        };
        self.say(["-protocol_whitelist", PROTOCOLS]);
        if url.is_secret() {
            let mut script = format!("ffconcat version 1.0\nfile '{}'\n", url.whole());
            script.extend(of_scheme.iter().map(|(name, value)| format!("option {name} {value}\n")));
            self.script = Some(script);
            self.say(["-f", "concat", "-safe", "0", "-i", "pipe:0"]);
        } else {
            for (name, value) in of_scheme {
                self.say([&format!("-{name}"), value]);
            }
            self.say(["-i", url.whole()]);
        }
    }

    /// Starts it. It ends with the thread that calls this.
    pub(crate) fn start(&self) -> anyhow::Result<Ffmpeg> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(match (&self.address, &self.script) {
            (Address::Stdin, _) => Stdio::inherit(),
            (_, Some(_)) => Stdio::piped(),
            (_, None) => Stdio::null(),
        });
        // Ctrl-C goes to the whole group of a terminal; this one is ended by us.
        command.process_group(0);
        causeway_stage::die_with_parent(&mut command);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.program.display()))?;
        if let (Some(mut stdin), Some(script)) = (child.stdin.take(), &self.script) {
            // It fits the pipe. Who does not read it has ended, which is told later.
            let _ = stdin.write_all(script.as_bytes());
        }
        Ok(Ffmpeg {
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            child: Arc::new(Mutex::new(child)),
            packets: Packets::new(self.max_bytes),
            address: self.address.clone(),
            stall: self.stall,
            is_open: false,
            longest_wait: self.stall,
            line: Vec::new(),
            piece: Vec::new(),
            said: Said::default(),
            malformed: None,
        })
    }
}

impl Ffmpeg {
    pub(crate) fn killer(&self) -> Killer {
        Killer(Arc::clone(&self.child))
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.lock().map_or(0, |child| child.id())
    }

    /// What it said of the video so far.
    pub(crate) fn said(&self) -> &Said {
        &self.said
    }

    /// Reads until there are frames, and gives them; `None` at the end. Nothing is read while nobody calls: then `ffmpeg` waits.
    pub(crate) fn next(&mut self) -> Option<Vec<Packet>> {
        let mut since = Instant::now();
        if !self.is_open {
            // It may take longer to open a stream than for its next frame to come.
            self.longest_wait = self.stall.max(OPENING);
        }
        let mut piece = std::mem::take(&mut self.piece);
        piece.resize(PIECE, 0);
        let given = self.read(&mut piece, &mut since);
        self.piece = piece;
        given
    }

    fn read(&mut self, piece: &mut [u8], since: &mut Instant) -> Option<Vec<Packet>> {
        loop {
            if self.stdout.is_none() && self.stderr.is_none() {
                return None;
            }
            let left = self.longest_wait.saturating_sub(since.elapsed());
            if left.is_zero() {
                return None;
            }
            let (frames_come, lines_come) = match self.wait(left) {
                Ok(come) => come,
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            };
            if lines_come {
                match self.stderr.as_mut().map(|stderr| stderr.read(piece)) {
                    Some(Ok(len @ 1..)) => {
                        let decoded = self.said.decoded;
                        self.hear(&piece[..len]);
                        // A still picture gives no frames where only changes are asked for: that it is decoded is enough.
                        if self.said.decoded > decoded {
                            *since = Instant::now();
                        }
                    }
                    _ => self.stderr = None,
                }
            }
            if frames_come {
                match self.stdout.as_mut().map(|stdout| stdout.read(piece)) {
                    Some(Ok(len @ 1..)) => {
                        *since = Instant::now();
                        let mut given = Vec::new();
                        if let Err(error) = self.packets.take(&piece[..len], |packet| given.push(packet)) {
                            self.malformed = Some(error.to_string());
                            return None;
                        }
                        if !given.is_empty() {
                            (self.is_open, self.longest_wait) = (true, self.stall);
                            return Some(given);
                        }
                    }
                    _ => self.stdout = None,
                }
            }
        }
    }

    /// Whether there are frames or lines to be read, or an end of them.
    fn wait(&self, longest: Duration) -> Result<(bool, bool), Errno> {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let (stdout, stderr) = (self.stdout.as_ref(), self.stderr.as_ref());
        let mut polled: Vec<PollFd<'_>> =
            [stdout.map(|it| wanted(it.as_fd())), stderr.map(|it| wanted(it.as_fd()))].into_iter().flatten().collect();
        let timeout = PollTimeout::try_from(longest + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        poll(&mut polled, timeout)?;
        let mut come = polled.iter().map(|fd| fd.any() == Some(true));
        let mut next = |is_there: bool| is_there && come.next() == Some(true);
        Ok((next(stdout.is_some()), next(stderr.is_some())))
    }

    /// Waits until it has ended, which it is made to where it still runs.
    pub(crate) fn end(mut self) -> Ended {
        let stalled = self.stdout.is_some() && self.malformed.is_none();
        let status = if stalled || self.malformed.is_some() {
            self.killer().kill();
            self.child.lock().ok().and_then(|mut child| child.wait().ok())
        } else {
            // Both pipes are at their end: it ends now, or is a program that closed them and stays.
            self.wait_for_end()
        };
        let line = std::mem::take(&mut self.line);
        self.hear_line(&line);
        self.said.tail.extend(self.malformed.take());
        Ended { status, stalled, said: std::mem::take(&mut self.said) }
    }

    fn wait_for_end(&self) -> Option<ExitStatus> {
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if let Ok(Some(status)) = self.child.lock().ok()?.try_wait() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.killer().kill();
        self.child.lock().ok()?.wait().ok()
    }

    fn hear(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                let line = std::mem::take(&mut self.line);
                self.hear_line(&line);
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            }
        }
    }

    fn hear_line(&mut self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.starts_with("frame:") {
            self.said.decoded += 1;
        } else if let Some(duration) = line.strip_prefix("Duration: ") {
            self.said.duration = self.said.duration.or_else(|| read_duration(duration));
        } else if !line.is_empty() && !line.starts_with(ALIVE) {
            if self.said.tail.len() == LINES_KEPT {
                self.said.tail.remove(0);
            }
            self.said.tail.push(self.address.redact(line));
        }
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        if let Ok(mut child) = self.child.lock() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Killer {
    /// Does nothing where it has ended already.
    pub(crate) fn kill(&self) {
        if let Ok(mut child) = self.0.lock() {
            let _ = child.kill();
        }
    }
}

impl Ended {
    /// Whether it was ended from outside or by a fault of its own, and not by what it read.
    pub(crate) fn was_killed(&self) -> bool {
        self.status.is_none_or(|status| status.signal().is_some())
    }

    pub(crate) fn is_well(&self) -> bool {
        !self.stalled && self.status.is_some_and(|status| status.success())
    }
}

/// The mark on every decoded frame, which makes `ffmpeg` write a line for it.
const ALIVE: &str = "causeway=";

/// What happens to the frames: counted, thinned by time, then by change, then made what JPEG wants (full range, the matrix of
/// BT.601, as JFIF asks).
fn filters(options: &CaptureOptions, by_arrival: bool) -> String {
    let mut filters = vec![
        format!("metadata=mode=add:key={}:value=1", ALIVE.trim_end_matches('=')),
        format!("metadata=mode=print:key={}:file='pipe\\:2':direct=1", ALIVE.trim_end_matches('=')),
    ];
    if by_arrival {
        filters.push("settb=1/1000".into());
        // Two that come in the same ms are one ms apart: a muxer takes no timestamp twice.
        filters.push("setpts='if(isnan(PREV_OUTPTS)\\,0\\,max((RTCTIME-RTCSTART)/1000\\,PREV_OUTPTS+1))'".into());
    }
    if let Some(fps) = options.fps {
        // The first frame in each period; a period is counted from 0, wherever reading begins. The thousandth makes up for
        // timestamps that are a trifle below the period they begin.
        filters.push(format!(
            "select='isnan(prev_selected_t)+gt(floor(t*{fps}+0.001)\\,floor(prev_selected_t*{fps}+0.001))'"
        ));
    }
    if let Some(scene) = options.scene {
        filters.push(format!("select='eq(n\\,0)+gt(scene\\,{scene})'"));
    }
    filters.push("scale=out_color_matrix=smpte170m:out_range=full".into());
    filters.push("format=yuvj420p".into());
    filters.join(",")
}

/// The quantiser of `ffmpeg`'s encoder, 2 (best) to 31, for a quality as the usual JPEG encoder counts it (1..100): by the means of
/// their tables, `ffmpeg`'s at q is that one's at 100 − 2.9 q.
fn quantiser(quality: u8) -> u8 {
    (f32::from(100 - quality.min(100)) / 2.9).round().clamp(2.0, 31.0) as u8
}

/// `00:01:02.50, start: …`; `N/A` where it is not known.
pub(crate) fn read_duration(text: &str) -> Option<Duration> {
    let mut parts = text.split(',').next()?.split(':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    let seconds = part()? * 3600.0 + part()? * 60.0 + part()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// `$CAUSEWAY_FFMPEG`, else the one in PATH.
fn find() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("CAUSEWAY_FFMPEG") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join("ffmpeg"));
    found.find(|path| path.is_file()).context(
        "cannot read a video without ffmpeg: there is none in PATH, and $CAUSEWAY_FFMPEG names none; `./dev build` brings it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quality_is_a_quantiser() {
        assert_eq!([100, 94, 90, 85, 50, 1].map(quantiser), [2, 2, 3, 5, 17, 31]);
    }

    #[test]
    fn a_duration_is_read_or_unknown() {
        assert_eq!(read_duration("00:01:02.50, start: 0.0, bitrate: 60 kb/s"), Some(Duration::from_millis(62_500)));
        assert_eq!(read_duration("N/A, start: 1.48, bitrate: N/A"), None);
    }

    #[test]
    fn a_secret_is_no_argument() {
        let options =
            CaptureOptions { input: Some("rtsp://ada:hunter22@camera/1".into()), ..CaptureOptions::default() };
        let address = Address::of(&options, std::path::Path::new("/")).unwrap().unwrap();
        let call = Call::new(&options, &address, 1, false).unwrap();
        assert!(!format!("{:?}", call.arguments).contains("hunter22"));
        assert!(call.script.unwrap().starts_with("ffconcat version 1.0\nfile 'rtsp://ada:hunter22@camera/1'\n"));
    }
}
