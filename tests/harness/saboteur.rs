use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use causeway_schemas::{Id, header};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::eventually;

/// How a stage is made to break the delivery contract, though it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// Nothing is changed.
    None,
    /// An output's id is drawn, not derived from its input's.
    DrawnIds,
    /// An input is acked when it comes, before its outputs are stored.
    EarlyAck,
    /// An outcome is published whether or not it is there.
    NotIfAbsent,
    /// A change is appended whatever was appended before it.
    NoFence,
}

/// What of a stage's is kept back until [`Saboteur::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBack {
    /// Nothing.
    Nothing,
    /// Its outputs.
    Outputs,
    /// What a fold appends to its changelog.
    Changes,
    /// Its acks, but not the word that it is at work.
    Acks,
}

/// A man in the middle: stands between a stage and its server, and changes what the stage says in the protocol of NATS.
/// Dropped, it cuts its connections.
pub struct Saboteur {
    port: u16,
    state: Arc<State>,
    _serving: JoinSet<()>,
}

struct State {
    sabotage: Sabotage,
    held_back: HeldBack,
    /// Frames that are let through before the first is kept back.
    after: u64,
    seen: AtomicU64,
    kept: AtomicU64,
    released: AtomicBool,
    release: Notify,
}

/// A message of the protocol: its line without the end, and what follows it.
struct Frame {
    line: String,
    payload: Vec<u8>,
    /// Bytes of `payload` that are headers.
    headers: usize,
}

impl Saboteur {
    /// Stands before the server at `address`. Of what `held_back` names, the first `after` go through.
    ///
    /// # Panics
    /// When it cannot listen.
    pub async fn before(address: &str, sabotage: Sabotage, held_back: HeldBack, after: u64) -> Self {
        let server = address.strip_prefix("nats://").expect("an address").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let port = listener.local_addr().expect("it has one").port();
        let (seen, kept, released) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let state = State { sabotage, held_back, after, seen, kept, released, release: Notify::new() };
        let state = Arc::new(state);
        let mut serving = JoinSet::new();
        let shared = Arc::clone(&state);
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&server).await else { continue };
                connections.spawn(between(client, server, Arc::clone(&shared)));
            }
        });
        Self { port, state, _serving: serving }
    }

    /// Where stages connect to.
    pub fn address(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Waits until so many frames are kept back.
    pub async fn kept(&self, frames: u64) {
        let kept = &self.state.kept;
        eventually("what is to be kept back", async || (kept.load(Ordering::SeqCst) >= frames).then_some(())).await;
    }

    /// Lets what was kept back go on, as it was.
    pub fn release(&self) {
        self.state.released.store(true, Ordering::SeqCst);
        self.state.release.notify_waiters();
    }
}

async fn between(client: TcpStream, server: TcpStream, state: Arc<State>) {
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let to_server = Arc::new(Mutex::new(server_out));
    // Whichever side ends, the other one does too.
    tokio::select! {
        () = outward(client_in, Arc::clone(&to_server), Arc::clone(&state)) => {}
        () = inward(server_in, client_out, to_server, state) => {}
    }
}

/// What the stage says.
async fn outward(client: impl AsyncRead + Unpin, server: Arc<Mutex<OwnedWriteHalf>>, state: Arc<State>) {
    let mut client = BufReader::new(client);
    let mut waiting = JoinSet::new();
    while let Some(frame) = read(&mut client).await {
        let bytes = written(&changed(frame.clone_parts(), state.sabotage));
        if state.keeps(&frame) {
            let (server, state) = (Arc::clone(&server), Arc::clone(&state));
            waiting.spawn(async move {
                let release = state.release.notified();
                tokio::pin!(release);
                release.as_mut().enable();
                state.kept.fetch_add(1, Ordering::SeqCst);
                if !state.released.load(Ordering::SeqCst) {
                    release.await;
                }
                let _ = server.lock().await.write_all(&bytes).await;
            });
        } else if server.lock().await.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// What the server says.
async fn inward(
    server: impl AsyncRead + Unpin,
    mut client: OwnedWriteHalf,
    to_server: Arc<Mutex<OwnedWriteHalf>>,
    state: Arc<State>,
) {
    let mut server = BufReader::new(server);
    while let Some(frame) = read(&mut server).await {
        if state.sabotage == Sabotage::EarlyAck
            && let Some(reply) = frame.line.split(' ').find(|word| word.starts_with("$JS.ACK."))
        {
            let ack = format!("PUB {reply} 4\r\n+ACK\r\n");
            let _ = to_server.lock().await.write_all(ack.as_bytes()).await;
        }
        if client.write_all(&written(&frame)).await.is_err() {
            return;
        }
    }
}

impl State {
    /// Whether a frame is kept back.
    fn keeps(&self, frame: &Frame) -> bool {
        let is_meant = match self.held_back {
            HeldBack::Nothing => false,
            HeldBack::Outputs => frame.is_output(),
            HeldBack::Changes => frame.is_change(),
            HeldBack::Acks => frame.is_ack(),
        };
        is_meant && self.seen.fetch_add(1, Ordering::SeqCst) >= self.after && !self.released.load(Ordering::SeqCst)
    }
}

impl Frame {
    fn clone_parts(&self) -> Self {
        Self { line: self.line.clone(), payload: self.payload.clone(), headers: self.headers }
    }

    fn subject(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    fn has(&self, name: &str) -> bool {
        let headers = String::from_utf8_lossy(&self.payload[..self.headers]);
        headers.lines().any(|line| line.split(':').next() == Some(name))
    }

    /// Something that has an id of ours.
    fn is_output(&self) -> bool {
        self.line.starts_with("HPUB ") && self.has(header::ID)
    }

    /// An entry of a changelog.
    fn is_change(&self) -> bool {
        self.line.starts_with("HPUB ") && self.has(LAST_SEQUENCE)
    }

    /// Not `+WPI`, which says that a message is being worked at.
    fn is_ack(&self) -> bool {
        self.subject().starts_with("$JS.ACK.") && (self.payload.is_empty() || self.payload.starts_with(b"+ACK"))
    }
}

const LAST_SEQUENCE: &str = "Nats-Expected-Last-Sequence";
const LAST_MESSAGE: &str = "Nats-Expected-Last-Msg-Id";
const LAST_SUBJECT_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";

fn changed(mut frame: Frame, sabotage: Sabotage) -> Frame {
    match sabotage {
        Sabotage::NotIfAbsent if frame.is_output() => without(&mut frame, LAST_SUBJECT_SEQUENCE),
        Sabotage::NoFence if frame.is_change() => {
            without(&mut frame, LAST_SEQUENCE);
            without(&mut frame, LAST_MESSAGE);
        }
        Sabotage::DrawnIds if frame.is_output() => draw(&mut frame),
        _ => {}
    }
    frame
}

fn headers(frame: &Frame) -> Vec<String> {
    let text = String::from_utf8_lossy(&frame.payload[..frame.headers]);
    text.trim_end_matches("\r\n").split("\r\n").map(str::to_owned).collect()
}

fn with_headers(frame: &mut Frame, lines: &[String]) {
    let text = format!("{}\r\n\r\n", lines.join("\r\n"));
    let body = frame.payload.split_off(frame.headers);
    frame.headers = text.len();
    frame.payload = text.into_bytes();
    frame.payload.extend(body);
}

fn without(frame: &mut Frame, name: &str) {
    let lines: Vec<String> = headers(frame).into_iter().filter(|line| line.split(':').next() != Some(name)).collect();
    with_headers(frame, &lines);
}

/// Gives an output an id that nobody else would give it, wherever it stands.
fn draw(frame: &mut Frame) {
    static DRAWN: AtomicU64 = AtomicU64::new(0);
    let lines = headers(frame);
    let named = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let id = named(header::ID).expect("an output has one").to_owned();
    let drawn = Id::stored("drawn", DRAWN.fetch_add(1, Ordering::SeqCst)).to_string();
    let of_itself = |line: &String| {
        let is_id = ["Nats-Msg-Id", header::ID].iter().any(|name| line.split(':').next() == Some(name));
        if is_id { line.replace(&id, &drawn) } else { line.clone() }
    };
    let lines: Vec<String> = lines.iter().map(of_itself).collect();
    frame.line = frame.line.replace(&id, &drawn);
    with_headers(frame, &lines);
}

/// The next frame; `None` at the end.
async fn read(from: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Frame> {
    let mut line = Vec::new();
    from.read_until(b'\n', &mut line).await.ok().filter(|&read| read > 0)?;
    let line = String::from_utf8(line).expect("the protocol's lines are text").trim_end().to_owned();
    let words: Vec<&str> = line.split(' ').collect();
    let number = |back: usize| words[words.len() - back].parse::<usize>().expect("a length");
    let (headers, length) = match words[0] {
        "PUB" | "MSG" => (0, Some(number(1))),
        "HPUB" | "HMSG" => (number(2), Some(number(1))),
        _ => (0, None),
    };
    let mut payload = Vec::new();
    if let Some(length) = length {
        payload.resize(length + 2, 0);
        from.read_exact(&mut payload).await.ok()?;
        payload.truncate(length);
    }
    Some(Frame { line, payload, headers })
}

fn written(frame: &Frame) -> Vec<u8> {
    let words: Vec<&str> = frame.line.split(' ').collect();
    let (mut bytes, lengths) = match words[0] {
        "PUB" | "MSG" => (words[..words.len() - 1].join(" "), format!(" {}", frame.payload.len())),
        "HPUB" | "HMSG" => (words[..words.len() - 2].join(" "), format!(" {} {}", frame.headers, frame.payload.len())),
        _ => return format!("{}\r\n", frame.line).into_bytes(),
    };
    bytes.push_str(&lengths);
    let mut bytes = bytes.into_bytes();
    bytes.extend(b"\r\n");
    bytes.extend(&frame.payload);
    bytes.extend(b"\r\n");
    bytes
}
