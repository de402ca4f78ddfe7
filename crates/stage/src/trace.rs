//! Traces: for each message that a stage takes one `receive` span, below it `process`, and below that the model's work, a
//! `publish` for each output and the `ack`. What the next stage receives is the child of the `publish` that sent it, so that a
//! captured item has one trace from capture to its outcomes. Names are those of the conventions for messaging
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>).
//!
//! A message notes little more than times while it is handled; its spans are made when it is done, and only if they are wanted:
//! its trace is sampled, or it failed.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use causeway_bus::{Outgoing, Stored};
use causeway_schemas::{Id, header};
use opentelemetry::trace::{SpanContext, SpanId, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use opentelemetry_semantic_conventions::attribute as name;

use crate::export::{Export, Identity, Sampling, SpanCounts};
use crate::held::Held;
use crate::runs::Run;
use crate::spans::Spans;

/// Makes the spans of a stage; makes none where no collector is named.
#[derive(Clone)]
pub(crate) struct Tracer(Option<Arc<Inner>>);

pub(crate) struct Inner {
    export: Export,
    sampling: Sampling,
    pub(crate) scope: InstrumentationScope,
    /// What every span says: the system, and which server.
    pub(crate) always: Vec<KeyValue>,
    /// The stage's durable.
    pub(crate) durable: String,
}

/// A place in a trace, as `traceparent` writes it: `00-<trace id>-<span id>-<flags>` (<https://www.w3.org/TR/trace-context/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace: TraceId,
    pub(crate) span: SpanId,
    pub(crate) sampled: bool,
}

/// What a message notes of itself from its delivery to its ack.
pub(crate) struct Trace {
    tracer: Arc<Inner>,
    id: TraceId,
    sampled: bool,
    /// The `publish` that sent it, if it says so.
    pub(crate) parent: Option<TraceContext>,
    pub(crate) receive: SpanId,
    pub(crate) process: SpanId,
    pub(crate) received: Instant,
    pub(crate) held: Instant,
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

    /// What a message that is published here carries.
    pub(crate) fn traceparent(self) -> String {
        format!("00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }

    /// The same in a trace that is exported whatever was decided, since it failed.
    pub(crate) fn failed(self) -> Self {
        Self { sampled: true, ..self }
    }

    pub(crate) fn context(self) -> SpanContext {
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

pub(crate) fn new_span() -> SpanId {
    RandomIdGenerator::default().new_span_id()
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
            let span = place_of(outgoing).map_or_else(new_span, |place| place.span);
            made.push(spans.publish(Some(self.process), span, outgoing, *published, None));
        }
        self.tracer.export.send(made);
    }
}

/// Where an outgoing message says that it is published.
fn place_of(outgoing: &Outgoing) -> Option<TraceContext> {
    let (_, traceparent) = outgoing.headers.iter().find(|(name, _)| *name == header::TRACEPARENT)?;
    TraceContext::read(traceparent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_read_or_left() {
        let written = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let place = TraceContext::read(written).unwrap();
        assert!(place.sampled);
        assert_eq!(place.traceparent(), written);
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
