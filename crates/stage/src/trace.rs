//! Traces: for each message that a stage takes one `receive` span, below it `process`, and below that the model's work, a
//! `publish` for each output and the `ack`. What the next stage receives is the child of the `publish` that sent it, so that a
//! captured item has one trace from capture to its outcomes. Names are those of the conventions for messaging
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>).
//!
//! A message notes little more than times while it is handled; its spans are made when it is done, and only if they are wanted:
//! its trace is sampled, or it failed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use causeway_bus::{Outgoing, Stored};
use causeway_schemas::{Id, header};
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use opentelemetry_semantic_conventions::attribute as name;

use crate::export::{Export, Identity, Sampling, SpanCounts};
use crate::held::Held;
use crate::outcomes::link_of;
use crate::runs::Run;

/// Makes the spans of a stage; makes none where no collector is named.
#[derive(Clone)]
pub(crate) struct Tracer(Option<Arc<Inner>>);

struct Inner {
    export: Export,
    sampling: Sampling,
    scope: InstrumentationScope,
    /// What every span says: the system, and which server.
    always: Vec<KeyValue>,
    /// The stage's durable.
    durable: String,
}

/// A place in a trace, as `traceparent` writes it: `00-<trace id>-<span id>-<flags>` (<https://www.w3.org/TR/trace-context/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace: TraceId,
    span: SpanId,
    sampled: bool,
}

/// What a message notes of itself from its delivery to its ack.
pub(crate) struct Trace {
    tracer: Arc<Inner>,
    id: TraceId,
    sampled: bool,
    /// The `publish` that sent it, if it says so.
    parent: Option<TraceContext>,
    receive: SpanId,
    process: SpanId,
    received: Instant,
    held: Instant,
    work: Mutex<Option<Arc<Work>>>,
}

/// One call of `process`: what all messages of the batch share.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) began: Instant,
    /// Messages of the batch.
    pub(crate) count: usize,
    /// What models did in it.
    pub(crate) runs: Vec<Run>,
}

/// How a message was stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Published {
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    pub(crate) stored: Stored,
}

/// How an input was answered to the broker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// `ack` or `nak`.
    pub(crate) operation: &'static str,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
}

/// Why something failed: a short fixed name and the reason for a person.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wrong<'a> {
    pub(crate) kind: &'a str,
    pub(crate) detail: &'a str,
}

impl TraceContext {
    /// Reads a `traceparent`; `None` for what is none.
    pub(crate) fn read(traceparent: &str) -> Option<Self> {
        let parts: Vec<&str> = traceparent.split('-').collect();
        let ["00", trace, span, flags] = parts[..] else { return None };
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        let valid = trace != TraceId::INVALID && span != SpanId::INVALID;
        valid.then(|| Self { trace, span, sampled: flags.is_sampled() })
    }

    fn write(self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }

    fn context(self) -> SpanContext {
        let flags = TraceFlags::default().with_sampled(self.sampled);
        SpanContext::new(self.trace, self.span, flags, true, TraceState::default())
    }
}

/// The trace of a captured item. It is the item's own id, by which it is found; a run anew has one of its own.
fn trace_of(id: Id, generation: u32) -> TraceId {
    let id = if generation == 0 { id } else { id.derived("trace", generation as usize) };
    TraceId::from_bytes(id.bits().to_be_bytes())
}

impl Tracer {
    /// Starts exporting, if the environment names a collector.
    pub(crate) fn start(identity: &Identity<'_>, counts: SpanCounts) -> Self {
        let Some(export) = Export::start(identity, counts) else { return Self(None) };
        let scope = InstrumentationScope::builder("causeway").with_version(env!("CARGO_PKG_VERSION"));
        let mut always = vec![KeyValue::new(name::MESSAGING_SYSTEM, "nats")];
        if let Some((host, port)) = identity.server() {
            always.push(KeyValue::new(name::SERVER_ADDRESS, host));
            always.push(KeyValue::new(name::SERVER_PORT, i64::from(port)));
        }
        Self(Some(Arc::new(Inner {
            export,
            sampling: Sampling::of_environment(),
            scope: scope.with_schema_url(opentelemetry_semantic_conventions::SCHEMA_URL).build(),
            always,
            durable: identity.stage.into(),
        })))
    }

    /// Sends what waits; returns after a few seconds at most.
    pub(crate) async fn end(&self) {
        if let Some(inner) = &self.0 {
            inner.export.flush().await;
        }
    }

    /// Where the trace of a captured item begins: whether it is sampled is decided here, for all stages.
    pub(crate) fn capture(&self, id: Id, generation: u32) -> TraceContext {
        let trace = trace_of(id, generation);
        match &self.0 {
            Some(inner) => TraceContext { trace, span: new_span(), sampled: inner.sampling.takes(trace) },
            // The trace is named all the same: by whoever looks for the item.
            None => TraceContext { trace, span: SpanId::from(id.derived("trace", 0).bits() as u64), sampled: false },
        }
    }

    /// The span of a captured item that was stored, or of the dead letter that it became.
    pub(crate) fn captured(
        &self,
        place: TraceContext,
        outgoing: &Outgoing,
        published: Published,
        wrong: Option<Wrong<'_>>,
    ) {
        if let Some(inner) = self.0.as_ref().filter(|_| place.sampled || wrong.is_some()) {
            let spans = Spans::new(inner, place.trace);
            inner.export.send(vec![spans.publish(None, place.span, outgoing, published, wrong)]);
        }
    }

    /// The trace of a message that was delivered: its own, or a new one where it names none.
    pub(crate) fn receive(&self, id: Id, traceparent: Option<&str>, received: Instant) -> Option<Trace> {
        let inner = self.0.as_ref()?;
        let parent = traceparent.and_then(TraceContext::read);
        let trace = parent.map_or_else(|| trace_of(id, 0), |parent| parent.trace);
        Some(Trace {
            tracer: Arc::clone(inner),
            id: trace,
            sampled: parent.map_or_else(|| inner.sampling.takes(trace), |parent| parent.sampled),
            parent,
            receive: new_span(),
            process: new_span(),
            received,
            held: Instant::now(),
            work: Mutex::new(None),
        })
    }
}

fn new_span() -> SpanId {
    RandomIdGenerator::default().new_span_id()
}

impl TraceContext {
    /// What a message that is published here carries.
    pub(crate) fn traceparent(self) -> String {
        self.write()
    }

    /// The same in a trace that is exported whatever was decided, since it failed.
    pub(crate) fn failed(self) -> Self {
        Self { sampled: true, ..self }
    }
}

impl Trace {
    /// It was handled in this call of `process`, the last one counts.
    pub(crate) fn worked(&self, work: &Arc<Work>) {
        *self.work.lock().expect("no holder of the times panics") = Some(Arc::clone(work));
    }

    /// Where an output of it is published.
    pub(crate) fn output(&self) -> TraceContext {
        TraceContext { trace: self.id, span: new_span(), sampled: self.sampled }
    }

    /// The id of its trace if that is sampled: for an exemplar.
    pub(crate) fn exemplar(&self) -> Option<String> {
        self.sampled.then(|| self.id.to_string())
    }

    /// It is done: its spans are sent, if they are wanted.
    pub(crate) fn end(
        &self,
        held: &Held,
        published: &[(&Outgoing, Published)],
        settled: Settled,
        wrong: Option<Wrong<'_>>,
    ) {
        if !self.sampled && wrong.is_none() {
            return;
        }
        let spans = Spans::new(&self.tracer, self.id);
        let work = self.work.lock().expect("no holder of the times panics").take();
        let mut made = vec![
            spans.receive(self, held),
            spans.process(self, held, work.as_deref(), settled.ended, wrong),
            spans.settle(self, held, settled),
        ];
        made.extend(work.as_deref().and_then(|work| spans.inference(self, work)));
        for (outgoing, published) in published {
            let span = outgoing.place().map_or_else(new_span, |place| place.span);
            made.push(spans.publish(Some(self.process), span, outgoing, *published, None));
        }
        self.tracer.export.send(made);
    }
}

/// Where an outgoing message says that it is published.
trait Placed {
    fn place(&self) -> Option<TraceContext>;
}

impl Placed for Outgoing {
    fn place(&self) -> Option<TraceContext> {
        let (_, traceparent) = self.headers.iter().find(|(name, _)| *name == header::TRACEPARENT)?;
        TraceContext::read(traceparent)
    }
}

/// Makes spans of one trace out of times.
struct Spans<'a> {
    tracer: &'a Inner,
    trace: TraceId,
    /// The same moment on both clocks: what was noted is monotonic, what is exported is the wall's.
    now: (Instant, SystemTime),
}

impl<'a> Spans<'a> {
    fn new(tracer: &'a Inner, trace: TraceId) -> Self {
        Self { tracer, trace, now: (Instant::now(), SystemTime::now()) }
    }

    fn at(&self, moment: Instant) -> SystemTime {
        self.now.1 - self.now.0.saturating_duration_since(moment)
    }

    /// The span of an input's delivery, until its whole body is there.
    fn receive(&self, trace: &Trace, held: &Held) -> SpanData {
        let mut span = self.messaging("receive", "receive", &link_of(&held.delivery.subject), SpanKind::Client);
        self.of_input(&mut span, held);
        span.attributes.push(KeyValue::new("causeway.delivered", held.delivery.delivered as i64));
        span.attributes.push(KeyValue::new("causeway.queue.duration", held.queued().as_secs_f64()));
        self.placed(&mut span, trace.receive, SpanId::INVALID, trace.received, trace.held);
        match trace.parent {
            Some(parent) if parent.sampled => {
                (span.parent_span_id, span.parent_span_is_remote) = (parent.span, true);
            }
            // What sent it is not exported: it is named, and the spans of the failure stand on their own.
            Some(parent) => {
                span.links = SpanLinks::default();
                span.links.links.push(Link::with_context(parent.context()));
            }
            None => {}
        }
        span
    }

    /// From the moment a worker took the message until it was answered.
    fn process(
        &self,
        trace: &Trace,
        held: &Held,
        work: Option<&Work>,
        ended: Instant,
        wrong: Option<Wrong<'_>>,
    ) -> SpanData {
        let mut span = self.messaging("process", "process", &link_of(&held.delivery.subject), SpanKind::Consumer);
        self.of_input(&mut span, held);
        if let Some(count) = work.map(|work| work.count).filter(|&count| count > 1) {
            span.attributes.push(KeyValue::new(name::MESSAGING_BATCH_MESSAGE_COUNT, count as i64));
        }
        fail(&mut span, wrong);
        let began = work.map_or(trace.held, |work| work.began);
        self.placed(&mut span, trace.process, trace.receive, began, ended);
        span
    }

    fn settle(&self, trace: &Trace, held: &Held, settled: Settled) -> SpanData {
        let mut span = self.messaging(settled.operation, "settle", &link_of(&held.delivery.subject), SpanKind::Client);
        self.of_input(&mut span, held);
        self.placed(&mut span, new_span(), trace.process, settled.began, settled.ended);
        span
    }

    /// One span for what models did for the batch: from its first run to the end of its last.
    fn inference(&self, trace: &Trace, work: &Work) -> Option<SpanData> {
        let (first, last) = (work.runs.first()?, work.runs.last()?);
        let compute: Duration = work.runs.iter().map(|run| run.took).sum();
        let queue = work.began.saturating_duration_since(trace.held);
        let mut span = self.empty(format!("causeway.inference {}", first.model), SpanKind::Internal);
        span.attributes = vec![
            KeyValue::new("causeway.model.name", first.model.clone()),
            KeyValue::new("causeway.model.version", first.version.clone()),
            KeyValue::new("causeway.inference.queue.duration", queue.as_secs_f64()),
            KeyValue::new("causeway.inference.compute.duration", compute.as_secs_f64()),
            KeyValue::new("causeway.inference.runs", work.runs.len() as i64),
            KeyValue::new(name::MESSAGING_BATCH_MESSAGE_COUNT, work.count as i64),
        ];
        self.placed(&mut span, new_span(), trace.process, first.began, last.began + last.took);
        Some(span)
    }

    fn publish(
        &self,
        parent: Option<SpanId>,
        id: SpanId,
        outgoing: &Outgoing,
        published: Published,
        wrong: Option<Wrong<'_>>,
    ) -> SpanData {
        let mut span = self.messaging("publish", "send", &link_of(&outgoing.subject), SpanKind::Producer);
        if let Some((_, id)) = outgoing.headers.iter().find(|(name, _)| *name == header::ID) {
            span.attributes.push(KeyValue::new(name::MESSAGING_MESSAGE_ID, id.clone()));
        }
        span.attributes.push(KeyValue::new(name::MESSAGING_MESSAGE_BODY_SIZE, outgoing.body.len() as i64));
        if published.stored == Stored::Already {
            span.attributes.push(KeyValue::new("causeway.already_stored", true));
        }
        fail(&mut span, wrong);
        self.placed(&mut span, id, parent.unwrap_or(SpanId::INVALID), published.began, published.ended);
        span
    }

    fn messaging(&self, operation: &'static str, kind: &'static str, link: &str, span_kind: SpanKind) -> SpanData {
        let mut span = self.empty(format!("{operation} {link}"), span_kind);
        span.attributes.extend_from_slice(&self.tracer.always);
        span.attributes.push(KeyValue::new(name::MESSAGING_OPERATION_NAME, operation));
        span.attributes.push(KeyValue::new(name::MESSAGING_OPERATION_TYPE, kind));
        span.attributes.push(KeyValue::new(name::MESSAGING_DESTINATION_NAME, link.to_owned()));
        span
    }

    fn of_input(&self, span: &mut SpanData, held: &Held) {
        span.attributes.push(KeyValue::new(name::MESSAGING_CONSUMER_GROUP_NAME, self.tracer.durable.clone()));
        span.attributes.push(KeyValue::new(name::MESSAGING_MESSAGE_ID, held.id().to_string()));
        span.attributes.push(KeyValue::new(name::MESSAGING_MESSAGE_BODY_SIZE, held.body.len() as i64));
    }

    fn placed(&self, span: &mut SpanData, id: SpanId, parent: SpanId, began: Instant, ended: Instant) {
        span.span_context = SpanContext::new(self.trace, id, TraceFlags::SAMPLED, false, TraceState::default());
        span.parent_span_id = parent;
        (span.start_time, span.end_time) = (self.at(began), self.at(ended));
    }

    fn empty(&self, name: String, span_kind: SpanKind) -> SpanData {
        SpanData {
            span_context: SpanContext::NONE,
            parent_span_id: SpanId::INVALID,
            parent_span_is_remote: false,
            span_kind,
            name: name.into(),
            start_time: self.now.1,
            end_time: self.now.1,
            attributes: Vec::with_capacity(10),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: self.tracer.scope.clone(),
        }
    }
}

fn fail(span: &mut SpanData, wrong: Option<Wrong<'_>>) {
    if let Some(Wrong { kind, detail }) = wrong {
        span.attributes.push(KeyValue::new(name::ERROR_TYPE, kind.to_owned()));
        span.status = Status::error(detail.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_read_or_left() {
        let written = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let place = TraceContext::read(written).unwrap();
        assert!(place.sampled);
        assert_eq!(place.write(), written);
        assert!(!TraceContext::read(&written.replace("-01", "-00")).unwrap().sampled);
        for wrong in ["", "00-0-0-01", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-zz-zz-01"] {
            assert!(TraceContext::read(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn the_trace_of_an_item_is_its_id_and_that_of_a_run_anew_is_not() {
        let id = Id::captured("capture", "a.jpg");
        assert_eq!(trace_of(id, 0).to_string(), format!("{:032x}", id.bits()));
        assert_ne!(trace_of(id, 1), trace_of(id, 0));
        assert_ne!(trace_of(id, 1), trace_of(id, 2));
    }

    #[test]
    fn without_a_collector_nothing_is_sampled_and_nothing_is_noted() {
        let tracer = Tracer(None);
        let place = tracer.capture(Id::captured("capture", "a.jpg"), 0);
        assert!(place.traceparent().ends_with("-00"));
        let id = Id::captured("capture", "a.jpg");
        assert!(tracer.receive(id, Some(&place.traceparent()), Instant::now()).is_none());
    }
}
