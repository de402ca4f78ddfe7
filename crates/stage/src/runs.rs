//! What models did during a call of `process`: `causeway-inference` tells every run as an event, a layer of the log notes those
//! of the thread that asks.

use std::cell::RefCell;
use std::fmt;
use std::time::{Duration, Instant};

use tracing::field::{Field, Visit};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::registry::LookupSpan;

/// Where the events come from (`Session::run`).
const TARGET: &str = "causeway_inference::run";

/// One run of a model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Run {
    pub(crate) model: String,
    pub(crate) version: String,
    pub(crate) began: Instant,
    pub(crate) took: Duration,
}

thread_local! {
    /// The runs of this thread, while somebody wants them.
    static RUNS: RefCell<Option<Vec<Run>>> = const { RefCell::new(None) };
}

/// Calls `work` and gives what models did in it, on this thread.
pub(crate) fn noted<T>(work: impl FnOnce() -> T) -> (T, Vec<Run>) {
    RUNS.set(Some(Vec::new()));
    let done = work();
    (done, RUNS.take().unwrap_or_default())
}

/// The layer that notes them.
pub(crate) fn layer<S: tracing::Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Notes.with_filter(Targets::new().with_target(TARGET, tracing::Level::DEBUG))
}

struct Notes;

impl<S: tracing::Subscriber> Layer<S> for Notes {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        RUNS.with_borrow_mut(|runs| {
            let Some(runs) = runs else { return };
            let mut fields = Fields::default();
            event.record(&mut fields);
            let took = Duration::from_nanos(fields.took_ns);
            let now = Instant::now();
            let began = now.checked_sub(took).unwrap_or(now);
            runs.push(Run { model: fields.model, version: fields.version, began, took });
        });
    }
}

#[derive(Default)]
struct Fields {
    model: String,
    version: String,
    took_ns: u64,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "took_ns" {
            self.took_ns = value;
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "model" => self.model = value.into(),
            "version" => self.version = value.into(),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn runs_are_noted_while_they_are_wanted() {
        let run = || tracing::debug!(target: TARGET, model = "sface", version = "1", took_ns = 5_000_u64, "model run");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer()), || {
            run();
            let ((), runs) = noted(|| {
                run();
                run();
                tracing::debug!(target: "elsewhere", took_ns = 1_u64, "something else");
            });
            assert_eq!(runs.len(), 2);
            assert_eq!((runs[0].model.as_str(), runs[0].version.as_str()), ("sface", "1"));
            assert_eq!(runs[0].took, Duration::from_micros(5));
            assert_eq!(noted(|| ()).1, []);
        });
    }
}
