use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::{eventually, free_port, may_skip};

/// An OpenTelemetry collector that prints every span it is sent. Dropped, it is killed.
pub struct Collector {
    _child: Child,
    port: u16,
    spans: Arc<Mutex<Vec<Span>>>,
}

/// A span as the collector has it.
#[derive(Debug, Clone, Default)]
pub struct Span {
    /// `service.name` of its resource.
    pub service: String,
    /// All attributes of its resource.
    pub resource: BTreeMap<String, String>,
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits; empty for a root.
    pub parent: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// `SPAN_KIND_…`.
    pub kind: String,
    /// Unix time in ns.
    pub start: u64,
    /// Unix time in ns.
    pub end: u64,
    /// Whether its status is an error.
    pub failed: bool,
    /// Its attributes, values without their types.
    pub attributes: BTreeMap<String, String>,
    /// How many spans it links to.
    pub links: usize,
}

impl Collector {
    /// Starts one; `None`, said plainly, where there is none (never under CI).
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start() -> Option<Self> {
        let Some(program) = std::env::var_os("CAUSEWAY_ROTEL") else {
            may_skip("the collector rotel is not in .tools/venv: there is no build of it for this platform");
            return None;
        };
        let (grpc, http) = (free_port(), free_port());
        let mut command = Command::new(program);
        command.args([
            "start",
            "--exporter",
            "blackhole",
            "--debug-log",
            "traces",
            "--debug-log-verbosity",
            "detailed",
        ]);
        command.arg("--otlp-grpc-endpoint").arg(format!("127.0.0.1:{grpc}"));
        command.arg("--otlp-http-endpoint").arg(format!("127.0.0.1:{http}"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("the collector can be run");
        let printed = BufReader::new(child.stdout.take().expect("its output"));
        let spans = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(read(printed, Arc::clone(&spans)));
        eventually("the collector", async || tokio::net::TcpStream::connect(("127.0.0.1", grpc)).await.ok()).await;
        Some(Self { _child: child, port: grpc, spans })
    }

    /// What points a program at it.
    pub fn env(&self) -> (&'static str, String) {
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{}", self.port))
    }

    /// What has come so far.
    ///
    /// # Panics
    /// When the reader of its output has.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().expect("no reader panics").clone()
    }

    /// What has come once `enough` says so of it; what comes is whole, but a moment later than it was sent.
    pub async fn spans_once(&self, what: &str, enough: impl Fn(&[Span]) -> bool) -> Vec<Span> {
        eventually(what, async || Some(self.spans()).filter(|spans| enough(spans))).await
    }
}

/// Reads what it prints, as `--debug-log-verbosity detailed` has it.
async fn read(printed: BufReader<tokio::process::ChildStdout>, spans: Arc<Mutex<Vec<Span>>>) {
    let mut lines = printed.lines();
    let mut resource = BTreeMap::new();
    let mut span: Option<Span> = None;
    let mut in_links = false;
    while let Ok(Some(line)) = lines.next_line().await {
        if line.starts_with("ResourceSpans #") {
            finish(&spans, span.take());
            resource = BTreeMap::new();
        } else if line.starts_with("Span #") {
            finish(&spans, span.take());
            in_links = false;
            let service = resource.get("service.name").cloned().unwrap_or_default();
            span = Some(Span { service, resource: resource.clone(), ..Span::default() });
        } else if line.starts_with("SpanLink #") {
            in_links = true;
            if let Some(span) = &mut span {
                span.links += 1;
            }
        } else if let Some((key, value)) = line.trim().strip_prefix("-> ").and_then(|pair| pair.split_once(": ")) {
            let value = value.split_once('(').map_or(value, |(_, value)| value.trim_end_matches(')'));
            match &mut span {
                None => _ = resource.insert(key.into(), value.into()),
                Some(span) if !in_links => {
                    span.attributes.insert(key.into(), value.into());
                }
                Some(_) => {}
            }
        } else if let (Some(span), Some((key, value))) = (&mut span, line.split_once(':')) {
            let value = value.trim();
            match key.trim() {
                "Trace ID" => span.trace = value.into(),
                "Parent ID" => span.parent = value.into(),
                "ID" => span.id = value.into(),
                "Name" => span.name = value.into(),
                "Kind" => span.kind = value.into(),
                "Start time" => span.start = value.parse().unwrap_or(0),
                "End time" => span.end = value.parse().unwrap_or(0),
                "Status code" => span.failed = value == "STATUS_CODE_ERROR",
                _ => {}
            }
        }
        // The last one of a batch is not told from one that goes on: it is whole with its last attribute.
        if let Some(last) = span.as_ref().filter(|span| is_whole(span)) {
            let last = last.clone();
            let mut spans = spans.lock().expect("no reader panics");
            match spans.last_mut().filter(|known| known.id == last.id) {
                Some(known) => *known = last,
                None => spans.push(last),
            }
        }
    }
}

/// Every span of ours has attributes behind all else.
fn is_whole(span: &Span) -> bool {
    !span.attributes.is_empty()
}

fn finish(spans: &Mutex<Vec<Span>>, span: Option<Span>) {
    let Some(span) = span else { return };
    let mut spans = spans.lock().expect("no reader panics");
    if spans.last().is_none_or(|known| known.id != span.id) {
        spans.push(span);
    }
}
