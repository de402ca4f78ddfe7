use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::object_store::{InfoErrorKind, ObjectInfo};
use async_nats::{ConnectError, ConnectErrorKind};
use causeway_schemas::header;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::address::{is_local, redact};
use crate::publish::hex;
use crate::{Headers, names};

/// A connection to the NATS server of one site, for one pipeline.
#[derive(Clone)]
pub struct Bus {
    pub(crate) js: jetstream::Context,
    pub(crate) client: async_nats::Client,
    pub(crate) pipeline: Arc<str>,
    /// How often it was connected.
    connections: watch::Receiver<u64>,
    /// Whether it makes no consumers: the right to make one is the right to read.
    pub(crate) reads_directly: bool,
}

/// How to sign in.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// A file with NATS credentials: `.creds`, or the seed of an `nkey`. Where `ca.pem` stands beside it, that vouches for the server. With an
    /// `nkey` a server on another machine has to talk TLS.
    pub file: Option<PathBuf>,
}

impl Credentials {
    /// Those of somebody: `path` is a file, or a folder that has a key for each (`causeway keys`).
    pub fn of(path: Option<&Path>, name: &str) -> Self {
        Self { file: path.map(|path| if path.is_dir() { path.join(format!("{name}.nk")) } else { path.to_owned() }) }
    }

    /// Who vouches for servers.
    fn authority(&self) -> Option<PathBuf> {
        self.file.as_ref().map(|file| file.with_file_name(CA)).filter(|file| file.exists())
    }
}

/// The certificate of who vouches for servers, beside the credentials.
const CA: &str = "ca.pem";
/// How the seed of a user's `nkey` begins. (<https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/nkey_auth>)
const SEED: &str = "SU";

/// What went wrong on the bus.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No connection.
    #[error("cannot reach the NATS server at {address}: {why}")]
    Unreachable {
        /// Where.
        address: String,
        /// Why.
        why: String,
    },
    /// The server has no JetStream.
    #[error("cannot use the NATS server at {0}: JetStream is not enabled there; start it with `-js`")]
    NoJetStream(String),
    /// A body is not in the object store, since it never was or its time is over; or it is longer than any that is read.
    #[error("cannot have the body {0} from the object store")]
    NoBody(String),
    /// The server cannot read how far a durable was, and makes none in its place while that file lies there (nats-server 2.15.1).
    #[error(
        "cannot make the durable {durable} of {stream}: the broker cannot read how far it was; remove the file \
         obs/{durable}/o.dat of this stream in the broker's store and try again: what was handled is delivered once more"
    )]
    DurableState {
        /// The stream.
        stream: String,
        /// The durable.
        durable: String,
    },
    /// A request failed.
    #[error("cannot {what}: {why}")]
    Request {
        /// What was wanted, after "cannot".
        what: String,
        /// What the server or client said.
        why: String,
    },
}

impl BusError {
    pub(crate) fn request(what: impl Into<String>, why: impl std::fmt::Display) -> Self {
        Self::Request { what: what.into(), why: why.to_string() }
    }
}

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same to another site: an attempt that began while the link was cut is repeated by TCP ever more seldom, a new one goes at once.
/// Long enough for the six round trips of TLS over a satellite.
const CONNECT_ACROSS_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long the broker may take to answer before a publish or request counts as failed and is tried again.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Why a request failed whose answer does not come any more.
pub(crate) const RENEWED: &str = "the connection was renewed";
/// A question that every broker with JetStream answers.
const ACCOUNT_INFO: &str = "$JS.API.INFO";
/// Longer than anybody waits.
const PATIENCE: Duration = Duration::from_hours(1);
/// A dead connection is noticed after two of these.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// To another site: on a slow link the answer waits behind a long message, and whoever carries notices by itself.
const PING_ACROSS_INTERVAL: Duration = Duration::from_mins(1);
/// Most publishes that wait for their ack: 1,000 was fine, 25,000 starved the consumers (nats.rs #1285).
const PUBLISH_WINDOW: usize = 1024;
/// Longest body in the object store that is read, bytes: the longest of all kinds, with the text form of a dead letter.
const MAX_BODY: usize = 128 << 20;
/// Chunks of a body that are asked for at once, and their bytes.
const CHUNKS: (usize, u64) = (64, 8 << 20);
/// How long a copy of a stream may be behind its leader, and when it is looked again.
const COPY_BEHIND: Duration = Duration::from_secs(2);
const COPY_PAUSE: Duration = Duration::from_millis(100);
/// First and longest pause between attempts to reconnect.
const RECONNECT_PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Longest pause between attempts to reach another site.
const RECONNECT_ACROSS_PAUSE: Duration = Duration::from_millis(250);

impl Bus {
    /// Connects to `address` (`nats://host:port`, several with commas) as `name`, once. A connection that was made is
    /// renewed for ever.
    pub async fn connect(
        address: &str,
        credentials: &Credentials,
        pipeline: &str,
        name: &str,
    ) -> Result<Self, BusError> {
        Dial::here(address, credentials, pipeline, name).connect().await
    }

    /// The same, for somebody who may not make consumers: of messages whose headers are asked for the bodies come too.
    #[must_use]
    pub fn without_consumers(self) -> Self {
        Self { reads_directly: true, ..self }
    }

    /// The same connection, on which so many publishes may wait for their acks as long as it takes: who publishes measures that.
    pub(crate) fn patient(&self, on_the_way: usize) -> Self {
        let js = ContextBuilder::new().timeout(PATIENCE).max_ack_inflight(on_the_way).build(self.client.clone());
        Self { js, ..self.clone() }
    }

    /// Comes back when the broker has answered a question, whatever it answers; of a connection that was renewed, on the new one.
    pub(crate) async fn is_asked(&self) {
        let mut connections = self.connections();
        loop {
            let asked = async {
                match self.client.connection_state() {
                    State::Connected => drop(self.client.request(ACCOUNT_INFO, bytes::Bytes::new()).await),
                    State::Pending | State::Disconnected => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = connections.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                () = asked => return,
            }
        }
    }

    /// Whether it is connected.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Bytes that ever came in on this connection, of whatever it was.
    pub(crate) fn received(&self) -> u64 {
        self.client.statistics().in_bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What some work gives; `None` where the connection was renewed, or ended, meanwhile: what was asked for on the old one is not
    /// answered any more.
    pub async fn unless_renewed<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut connections = self.connections();
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = connections.changed() => None,
        }
    }

    /// What the broker answers to something that may be asked twice. It is asked again at once on a new connection: a broker that was
    /// killed never answers, and what waits for it would wait for as long as an answer may take.
    pub(crate) async fn asked<T, F: Future<Output = T>>(&self, question: impl Fn() -> F) -> T {
        loop {
            let mut connections = self.connections();
            tokio::select! {
                biased;
                answer = question() => return answer,
                renewed = connections.changed() => if renewed.is_err() {
                    // It has ended, and whatever it is asked says so.
                    return question().await;
                },
            }
        }
    }

    /// Whether the connection has ended for good.
    pub(crate) fn has_ended(&self) -> bool {
        self.connections.has_changed().is_err()
    }

    /// Changes whenever the connection was renewed: what was asked for on the old one is not answered any more.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        connections
    }

    /// The pipeline whose streams it uses.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Longest message the server takes, bytes.
    pub fn max_payload(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Sends what is still buffered.
    pub async fn flush(&self) {
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "flush failed");
        }
    }

    /// Sends what is still buffered and ends the connection.
    pub async fn close(&self) {
        if let Err(error) = self.client.drain().await {
            tracing::debug!(%error, "drain failed");
        }
    }

    /// The body of a message: itself, or the object that its header names.
    pub async fn body(&self, headers: &Headers, body: bytes::Bytes) -> Result<bytes::Bytes, BusError> {
        match headers.get(header::BODY) {
            Some(reference) => self.body_by_reference(reference).await,
            None => Ok(body),
        }
    }

    /// A body that is kept in the object store: what has its name, which is its SHA-256. Read without a consumer.
    pub async fn body_by_reference(&self, reference: &str) -> Result<bytes::Bytes, BusError> {
        let what = || format!("fetch the body {reference} from the object store");
        let look = || async {
            let store = self.js.get_object_store(names::bodies(&self.pipeline)).await;
            let store = store.map_err(|error| BusError::request(what(), error))?;
            store.info(reference).await.map_err(|error| match error.kind() {
                InfoErrorKind::NotFound | InfoErrorKind::InvalidName => BusError::NoBody(reference.into()),
                _ => BusError::request(what(), error),
            })
        };
        let object = self.asked(look).await?;
        // Bounded before it is read; `with_capacity` of what a stranger wrote would be theirs to choose.
        let ObjectInfo { size, nuid, .. } = object;
        if size > MAX_BODY {
            return Err(BusError::NoBody(format!("{reference}: it has {size} bytes, at most {MAX_BODY} are read")));
        }
        let (stream, _) = names::bodies_of(&self.pipeline);
        let chunks = names::chunks_of_body(&self.pipeline, &nuid);
        let (mut whole, mut next, began) = (Vec::with_capacity(size), 1, Instant::now());
        while whole.len() < size {
            let some = self.batch_of(&stream, &chunks, next, CHUNKS.0, CHUNKS.1).await?;
            let Some(last) = some.last() else {
                // A copy of the stream may be behind.
                if began.elapsed() > COPY_BEHIND {
                    break;
                }
                tokio::time::sleep(COPY_PAUSE).await;
                continue;
            };
            next = last.sequence + 1;
            for chunk in some {
                whole.extend_from_slice(&chunk.body);
            }
        }
        if hex(&Sha256::digest(&whole)) != reference {
            let read = whole.len();
            return Err(BusError::NoBody(format!(
                "{reference}: the {read} bytes that are there are not what was stored"
            )));
        }
        Ok(whole.into())
    }
}

/// How a broker is reached, again and again.
#[derive(Clone)]
pub(crate) struct Dial {
    address: String,
    credentials: Credentials,
    pipeline: String,
    name: String,
    /// How long an attempt may take, and the longest pause between two.
    patience: (Duration, Duration),
    /// How often the client asks whether the connection lives.
    ping: Duration,
    /// Of somebody who may not make consumers.
    reads_directly: bool,
}

impl Dial {
    /// To the site's own.
    fn here(address: &str, credentials: &Credentials, pipeline: &str, name: &str) -> Self {
        Self {
            address: address.into(),
            credentials: credentials.clone(),
            pipeline: pipeline.into(),
            name: name.into(),
            patience: (CONNECT_TIMEOUT, RECONNECT_PAUSE.1),
            ping: PING_INTERVAL,
            reads_directly: false,
        }
    }

    /// To another site, over a link that may be cut at any time and is to be used as soon as it is there again.
    pub(crate) fn across(address: &str, credentials: &Credentials, pipeline: &str, name: &str) -> Self {
        let patience = (CONNECT_ACROSS_TIMEOUT, RECONNECT_ACROSS_PAUSE);
        Self {
            patience,
            ping: PING_ACROSS_INTERVAL,
            reads_directly: true,
            ..Self::here(address, credentials, pipeline, name)
        }
    }

    /// Connects, once. A connection that was made is renewed for ever.
    pub(crate) async fn connect(&self) -> Result<Bus, BusError> {
        let Self { address, credentials, pipeline, name, patience: (timeout, longest_pause), ping, reads_directly } =
            self;
        let (timeout, longest_pause) = (*timeout, *longest_pause);
        let unreachable = |why: String| BusError::Unreachable { address: redact(address), why };
        let (connected, connections) = watch::channel(0);
        let connected = Arc::new(connected);
        let mut options = async_nats::ConnectOptions::new()
            .name(name)
            .connection_timeout(timeout)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .ping_interval(*ping)
            .max_reconnects(None)
            .reconnect_delay_callback(move |attempt| {
                let doubled = RECONNECT_PAUSE.0 * 2_u32.saturating_pow(attempt.min(8) as u32);
                doubled.min(longest_pause)
            })
            .event_callback(move |event| {
                let connected = Arc::clone(&connected);
                async move {
                    match event {
                        async_nats::Event::Connected => connected.send_modify(|count| *count += 1),
                        async_nats::Event::Disconnected => tracing::warn!("connection lost; it is renewed"),
                        other => tracing::debug!(event = %other, "connection event"),
                    }
                }
            });
        // Who has a key of his own talks in plain text on his own machine alone.
        let mut is_keyed = false;
        if let Some(file) = &credentials.file {
            let text = std::fs::read_to_string(file)
                .map_err(|error| unreachable(format!("credentials {}: {error}", file.display())))?;
            options = match text.trim() {
                seed if seed.starts_with(SEED) => {
                    is_keyed = true;
                    options.nkey(seed.into())
                }
                text => options.credentials(text).map_err(|error| unreachable(error.to_string()))?,
            };
        }
        let addresses: Vec<&str> = address.split(',').map(str::trim).collect();
        if let Some(authority) = credentials.authority() {
            options = options.add_root_certificates(authority);
        }
        if is_keyed {
            options = options.require_tls(!addresses.iter().all(|one| is_local(one)));
        }
        let client = options.connect(addresses).await.map_err(|error| unreachable(why(&error, credentials)))?;
        let js = ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .max_ack_inflight(PUBLISH_WINDOW)
            .backpressure_on_inflight(true)
            .build(client.clone());
        let bus = Bus { js, client, pipeline: pipeline.as_str().into(), connections, reads_directly: *reads_directly };
        bus.js.query_account().await.map_err(|_| BusError::NoJetStream(redact(address)))?;
        Ok(bus)
    }
}

/// Why a server does not let somebody in, for a person.
fn why(error: &ConnectError, credentials: &Credentials) -> String {
    let (said, file) = (error_chain(error), credentials.file.as_ref().map(|file| file.display().to_string()));
    let key = file.as_deref().unwrap_or("none was named");
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation => format!(
            "the server does not know this key ({key}): it is another site's or somebody else's, or it was made after the server's \
             configuration; see `causeway keys` and `causeway deploy nats`"
        ),
        ConnectErrorKind::Authentication => format!("the key {key} cannot be used: {said}"),
        _ if ["UnknownIssuer", "BadSignature"].iter().any(|sort| said.contains(sort)) => {
            let authority = credentials
                .authority()
                .map_or("nobody that this machine trusts".into(), |authority| authority.display().to_string());
            format!(
                "its certificate is not one that {authority} vouches for: another server answers there, or its certificate is of other keys ({said})"
            )
        }
        _ if said.contains("certificate expired") => {
            format!(
                "the time of its certificate is over; make another one with `causeway keys --rotate server` ({said})"
            )
        }
        _ if said.contains("not valid for name") => format!(
            "its certificate is not for that name; say the name with `causeway keys --site SITE --host NAME` ({said})"
        ),
        // What it says is no handshake.
        _ if said.contains("InvalidContentType") => {
            format!(
                "it talks in plain text, and {key} is for a server that does not: it is not signed in there ({said})"
            )
        }
        _ => said,
    }
}

/// An error with all that caused it, in one line.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
