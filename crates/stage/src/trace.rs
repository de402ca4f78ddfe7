//! Spans of a message: one a stage, from its delivery to its ack, each the child of the stage's before it.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// Whether spans go to a collector; else none are made.
static EXPORTING: AtomicBool = AtomicBool::new(false);

/// From now on spans are made.
pub(crate) fn export() {
    EXPORTING.store(true, Ordering::Relaxed);
}

/// The span of one message in one stage, named after the conventions for messaging
/// (<https://opentelemetry.io/docs/specs/semconv/messaging/>).
pub(crate) fn process(stage: &str, subject: &str, id: &str, traceparent: Option<&str>) -> Span {
    if !EXPORTING.load(Ordering::Relaxed) {
        return Span::none();
    }
    let span = tracing::info_span!(
        "process",
        otel.name = format!("process {stage}"),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.r#type = "process",
        messaging.destination.name = subject,
        messaging.message.id = id,
    );
    if let Some(parent) = traceparent.and_then(read) {
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(parent));
    }
    span
}

/// The W3C trace context that children of a span carry; `None` where there is no span.
pub(crate) fn traceparent(span: &Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    let (trace, span) = (context.trace_id(), context.span_id());
    context.is_valid().then(|| format!("00-{trace}-{span}-{:02x}", context.trace_flags().to_u8()))
}

/// `00-<trace id>-<span id>-<flags>` (<https://www.w3.org/TR/trace-context/>).
fn read(traceparent: &str) -> Option<SpanContext> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else { return None };
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_context_is_read_or_left() {
        let context = read("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01").unwrap();
        assert!(context.is_sampled() && context.is_remote());
        for wrong in ["", "00-0-0-01", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-zz-zz-01"] {
            assert!(read(wrong).is_none(), "{wrong}");
        }
    }
}
