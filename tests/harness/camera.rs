use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::Tools;

/// Frames a second of the videos that tests make.
pub const FPS: u32 = 25;

/// Makes a video of so many frames; each shows its number, which [`frame_number`] reads again. `how` are `ffmpeg`'s options for
/// the codec.
///
/// # Panics
/// When it cannot be made.
pub fn make_video(tools: &Tools, to: &Path, frames: u32, how: &[&str]) {
    // Ten bars of 32 px: bit by bit, white is 1.
    let bars = "geq=lum='16+219*mod(floor(N/pow(2,floor(X/32))),2)':cb=128:cr=128";
    let source = format!("nullsrc=size=320x64:rate={FPS},format=yuv420p,{bars}");
    let frames = frames.to_string();
    let mut arguments = vec!["-f", "lavfi", "-i", &source, "-frames:v", &frames];
    arguments.extend(how);
    ffmpeg(tools, &arguments, to);
}

/// Runs `ffmpeg` to make a file.
///
/// # Panics
/// When it fails.
pub fn ffmpeg(tools: &Tools, arguments: &[&str], to: &Path) {
    let mut command = std::process::Command::new(program(tools));
    command.args(["-nostdin", "-hide_banner", "-loglevel", "error", "-y"]).args(arguments).arg(to);
    let output = command.output().expect("ffmpeg can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn program(tools: &Tools) -> PathBuf {
    tools.env.iter().find(|(name, _)| name == "CAUSEWAY_FFMPEG").map(|(_, value)| value.into()).expect("an ffmpeg")
}

/// The number that a frame of [`make_video`] shows; `luma` gives the brightness of a pixel, 0..255.
pub fn frame_number(luma: impl Fn(u32, u32) -> u8) -> u32 {
    (0..10).map(|bit| u32::from(luma(bit * 32 + 16, 32) > 127) << bit).sum()
}

/// A camera: shows a video in real time, over and over, to whoever connects, by HTTP or by RTSP over TCP, from where it is now.
/// It asks for a user and a password where it has one. Dropped, it is gone.
pub struct Camera {
    port: u16,
    control: Arc<Control>,
    _serving: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Control {
    /// An MPEG transport stream, for RTSP.
    video: Vec<u8>,
    /// JPEGs, for HTTP.
    pictures: Vec<Vec<u8>>,
    lasts: Duration,
    began: Instant,
    /// `user:password` in base64.
    user: Option<String>,
    /// Raised to cut every connection.
    cuts: watch::Sender<u64>,
    /// Answers nothing new: it is there and hangs.
    hangs: watch::Sender<bool>,
}

/// A packet of MPEG-TS, bytes.
const TS: usize = 188;
/// Packets that are sent at once: what fits an RTP packet on Ethernet.
const AT_ONCE: usize = 7;

impl Camera {
    /// Starts one that shows `video`, an MPEG-TS of so many frames, or what lies beside it as `.mjpeg` to whoever asks by HTTP. `user` is `user:password` in base64.
    ///
    /// # Panics
    /// When it cannot.
    pub async fn start(video: &Path, frames: u32, user: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let control = Arc::new(Control {
            video: std::fs::read(video).expect("a video"),
            pictures: pictures(&std::fs::read(video.with_extension("mjpeg")).unwrap_or_default()),
            lasts: Duration::from_secs(1) * frames / FPS,
            began: Instant::now(),
            user: user.map(Into::into),
            cuts: watch::channel(0).0,
            hangs: watch::channel(false).0,
        });
        let serving = tokio::spawn(serve(listener, Arc::clone(&control)));
        Self { port, control, _serving: AbortOnDrop(serving) }
    }

    /// Its address; `user` as it stands in a URL: `ada:secret@`.
    pub fn url(&self, scheme: &str, user: &str) -> String {
        format!("{scheme}://{user}127.0.0.1:{}/live", self.port)
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.control.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// From now on it sends nothing more, or again.
    pub fn hang(&self, hangs: bool) {
        self.control.hangs.send_replace(hangs);
    }
}

async fn serve(listener: TcpListener, control: Arc<Control>) {
    while let Ok((stream, _)) = listener.accept().await {
        let control = Arc::clone(&control);
        tokio::spawn(async move {
            let mut cuts = control.cuts.subscribe();
            cuts.mark_unchanged();
            tokio::select! {
                _ = cuts.changed() => {}
                _ = show(stream, &control) => {}
            }
        });
    }
}

async fn show(mut stream: TcpStream, control: &Control) -> std::io::Result<()> {
    loop {
        let request = read_request(&mut stream).await?;
        let is_http = request.contains(" HTTP/1.");
        let may = control.user.as_ref().is_none_or(|user| request.contains(&format!("Authorization: Basic {user}")));
        let sequence = request.lines().find(|line| line.starts_with("CSeq:")).unwrap_or("CSeq: 0").to_owned();
        let answer = |status: &str, more: &str| {
            let protocol = if is_http { "HTTP/1.1" } else { "RTSP/1.0" };
            format!("{protocol} {status}\r\n{sequence}\r\n{more}\r\n")
        };
        let method = request.split(' ').next().unwrap_or_default();
        if !may && method != "OPTIONS" {
            let more = "WWW-Authenticate: Basic realm=\"camera\"\r\nContent-Length: 0\r\n";
            stream.write_all(answer("401 Unauthorized", more).as_bytes()).await?;
            continue;
        }
        match method {
            "GET" => {
                let more = "Content-Type: multipart/x-mixed-replace;boundary=frame\r\n";
                stream.write_all(answer("200 OK", more).as_bytes()).await?;
                return show_pictures(&mut stream, control).await;
            }
            "OPTIONS" => {
                let more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n";
                stream.write_all(answer("200 OK", more).as_bytes()).await?;
            }
            "DESCRIBE" => {
                // RFC 3551: 33 is an MPEG-TS at 90 kHz.
                let sdp = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track1\r\n";
                let more = format!("Content-Type: application/sdp\r\nContent-Length: {}\r\n", sdp.len());
                stream.write_all((answer("200 OK", &more) + sdp).as_bytes()).await?;
            }
            "SETUP" if !request.contains("TCP") => {
                stream.write_all(answer("461 Unsupported Transport", "").as_bytes()).await?;
            }
            "SETUP" => {
                let more = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n";
                stream.write_all(answer("200 OK", more).as_bytes()).await?;
            }
            "PLAY" => {
                stream.write_all(answer("200 OK", "Session: 1\r\n").as_bytes()).await?;
                return play(&mut stream, control).await;
            }
            _ => return Ok(()),
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

/// Sends what the camera sees now, packet by packet, until the connection ends.
async fn play(stream: &mut TcpStream, control: &Control) -> std::io::Result<()> {
    let mut hangs = control.hangs.subscribe();
    let pieces = control.video.len() / TS;
    let (mut piece, mut sequence) = (0, 0_u16);
    let now = || control.began.elapsed().as_secs_f64() / control.lasts.as_secs_f64();
    let begin = (now().fract() * pieces as f64) as usize;
    let round = now().floor();
    loop {
        let due = ((now() - round) * pieces as f64) as usize - begin;
        while piece + AT_ONCE <= due {
            let at = |piece: usize| (begin + piece) % pieces * TS;
            let mut body = Vec::with_capacity(AT_ONCE * TS);
            for each in piece..piece + AT_ONCE {
                body.extend_from_slice(&control.video[at(each)..at(each) + TS]);
            }
            stream.write_all(&rtp(sequence, body.len())).await?;
            sequence = sequence.wrapping_add(1);
            stream.write_all(&body).await?;
            piece += AT_ONCE;
        }
        let _ = hangs.wait_for(|hangs| !hangs).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// RFC 2326, 10.12: `$`, the channel, the length; then RFC 3550's header, payload type 33.
fn rtp(sequence: u16, body: usize) -> Vec<u8> {
    let length = u16::try_from(body + 12).expect("a packet").to_be_bytes();
    let mut packet = vec![b'$', 0, length[0], length[1], 0x80, 33];
    packet.extend(sequence.to_be_bytes());
    packet.extend((u32::from(sequence) * 900).to_be_bytes());
    packet.extend(1_u32.to_be_bytes());
    packet
}

/// Motion JPEG over HTTP, as most cameras have it: one picture after the other, each when it is its time.
async fn show_pictures(stream: &mut TcpStream, control: &Control) -> std::io::Result<()> {
    let mut hangs = control.hangs.subscribe();
    let now = || (control.began.elapsed().as_secs_f64() * f64::from(FPS)) as usize;
    let mut next = now();
    loop {
        while next < now() {
            let picture = &control.pictures[next % control.pictures.len()];
            let head = format!("--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", picture.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(picture).await?;
            stream.write_all(b"\r\n").await?;
            next += 1;
        }
        if *hangs.borrow() {
            let _ = hangs.wait_for(|hangs| !hangs).await;
            next = now();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The JPEGs of a file that holds one after the other: each ends with the marker EOI before the next one's SOI.
fn pictures(file: &[u8]) -> Vec<Vec<u8>> {
    let mut pictures = Vec::new();
    let mut begin = 0;
    for at in 1..file.len().saturating_sub(3) {
        if file[at..].starts_with(b"\xff\xd9\xff\xd8") {
            pictures.push(file[begin..at + 2].to_vec());
            begin = at + 2;
        }
    }
    pictures.push(file[begin..].to_vec());
    pictures
}
