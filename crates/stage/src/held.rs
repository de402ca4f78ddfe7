use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use causeway_bus::{Delivery, PROGRESS_EVERY};
use causeway_pipelines::StageSpec;
use causeway_schemas::{Id, Meta, MetaError};

use crate::metrics::Status;
use crate::outcomes::Place;
use crate::trace;

/// An input from its delivery to its ack. While it lives it is kept alive on the broker.
pub(crate) struct Held {
    pub(crate) delivery: Delivery,
    /// The whole body, also where the message only referred to it.
    pub(crate) body: Bytes,
    pub(crate) meta: Result<Meta, MetaError>,
    pub(crate) place: Place,
    /// From its delivery until it is let go.
    span: tracing::Span,
    key: u64,
    all: Arc<Holding>,
}

/// All inputs that this replica holds.
pub(crate) struct Holding {
    next: AtomicU64,
    held: Mutex<HashMap<u64, Arc<Held>>>,
    status: Arc<Status>,
}

impl Holding {
    pub(crate) fn new(status: Arc<Status>) -> Arc<Self> {
        Arc::new(Self { next: AtomicU64::new(0), held: Mutex::default(), status })
    }

    pub(crate) fn hold(self: &Arc<Self>, delivery: Delivery, body: Bytes, spec: &StageSpec) -> Arc<Held> {
        let mut meta = delivery.headers.meta();
        if let Ok(meta) = &mut meta
            && meta.origin.is_none()
        {
            // The first taker says where the captured item lies.
            meta.origin = Some(format!("{}/{}/{}", spec.site, delivery.stream, delivery.sequence));
        }
        let place = Place::of(&delivery.subject);
        let id = delivery.id().to_string();
        let parent = meta.as_ref().ok().and_then(|meta| meta.traceparent.as_deref());
        let span = trace::process(&spec.name, &delivery.subject, &id, parent);
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.status.taken(delivery.delivered > 1);
        let held = Arc::new(Held { delivery, body, meta, place, span, key, all: Arc::clone(self) });
        self.held.lock().expect("no holder of the map panics").insert(key, Arc::clone(&held));
        held
    }

    /// Keeps everything that is held alive on the broker, for ever.
    pub(crate) async fn keep_alive(self: Arc<Self>) {
        let mut every = tokio::time::interval(PROGRESS_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let held: Vec<_> = self.held.lock().expect("no holder of the map panics").values().cloned().collect();
            for held in held {
                held.delivery.progress().await;
            }
        }
    }

    fn release(&self, key: u64) {
        if self.held.lock().expect("no holder of the map panics").remove(&key).is_some() {
            self.status.released();
        }
    }
}

impl Held {
    /// Everything it gave is stored: it is done.
    pub(crate) async fn ack(&self) {
        self.all.release(self.key);
        self.delivery.ack().await;
    }

    /// It comes again after `delay`.
    pub(crate) async fn retry_after(&self, delay: Duration) {
        self.all.release(self.key);
        self.delivery.retry_after(delay).await;
    }

    /// What output `index` of `count` of it starts with.
    pub(crate) fn child_meta(&self, parent: &Meta, stage: &str, kind: String, index: usize, count: usize) -> Meta {
        let mut meta = parent.child(stage, kind, index, count);
        meta.traceparent = trace::traceparent(&self.span).or(meta.traceparent);
        meta
    }

    /// Its own id, or one by its place for a message that carries none.
    pub(crate) fn id(&self) -> Id {
        match &self.meta {
            Ok(meta) => meta.id,
            Err(_) => self.delivery.id(),
        }
    }
}
