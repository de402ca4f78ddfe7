//! Spans out of what a message noted of itself, named and described as the conventions for messaging have it
//! (<https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/>).

use std::time::{Duration, Instant, SystemTime};

use causeway_bus::{Outgoing, Stored};
use causeway_schemas::header;
use opentelemetry::KeyValue;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use opentelemetry_semantic_conventions::attribute as name;

use crate::held::Held;
use crate::outcomes::link_of;
use crate::trace::{Inner, Published, Settled, Trace, Work, Wrong, new_span};

/// Makes spans of one trace out of times.
pub(crate) struct Spans<'a> {
    tracer: &'a Inner,
    trace: TraceId,
    /// The same moment on both clocks: what was noted is monotonic, what is exported is the wall's.
    now: (Instant, SystemTime),
}

impl<'a> Spans<'a> {
    pub(crate) fn new(tracer: &'a Inner, trace: TraceId) -> Self {
        Self { tracer, trace, now: (Instant::now(), SystemTime::now()) }
    }

    fn at(&self, moment: Instant) -> SystemTime {
        self.now.1 - self.now.0.saturating_duration_since(moment)
    }

    /// The span of an input's delivery, until its whole body is there.
    pub(crate) fn receive(&self, trace: &Trace, held: &Held) -> SpanData {
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
    pub(crate) fn process(
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

    pub(crate) fn settle(&self, trace: &Trace, held: &Held, settled: Settled) -> SpanData {
        let mut span = self.messaging(settled.operation, "settle", &link_of(&held.delivery.subject), SpanKind::Client);
        self.of_input(&mut span, held);
        self.placed(&mut span, new_span(), trace.process, settled.began, settled.ended);
        span
    }

    /// One span for what models did for the batch: from its first run to the end of its last.
    pub(crate) fn inference(&self, trace: &Trace, work: &Work) -> Option<SpanData> {
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

    pub(crate) fn publish(
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
