use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_bus::{Delivery, Outgoing, PROGRESS_EVERY};
use causeway_schemas::{Id, Meta, MetaError};

use crate::env::Env;
use crate::metrics::Status;
use crate::outcomes::{Place, now_ns};
use crate::trace::{Published, Settled, Trace, Tracer, Work, Wrong};

/// An input from its delivery to its ack. While it lives it is kept alive on the broker.
pub(crate) struct Held {
    pub(crate) delivery: Delivery,
    /// The whole body, also where the message only referred to it.
    pub(crate) body: Bytes,
    pub(crate) meta: Result<Meta, MetaError>,
    pub(crate) place: Place,
    /// What it notes for its spans, where those go anywhere.
    trace: Option<Trace>,
    /// How long it lay in its stream.
    queued: Duration,
    key: u64,
    all: Arc<Holding>,
}

/// All inputs that this replica holds.
pub(crate) struct Holding {
    next: AtomicU64,
    held: Mutex<HashMap<u64, Arc<Held>>>,
    status: Arc<Status>,
    tracer: Tracer,
}

impl Holding {
    pub(crate) fn new(env: &Env) -> Arc<Self> {
        let (status, tracer) = (Arc::clone(&env.status), env.tracer.clone());
        Arc::new(Self { next: AtomicU64::new(0), held: Mutex::default(), status, tracer })
    }

    /// Holds a delivery that came at `received`, with its whole body, at this site.
    pub(crate) fn hold(self: &Arc<Self>, delivery: Delivery, body: Bytes, received: Instant, site: &str) -> Arc<Held> {
        let queued = Duration::from_nanos(now_ns().saturating_sub(delivery.stored_at));
        let mut meta = delivery.headers.meta();
        if let Ok(meta) = &mut meta
            && meta.origin.is_none()
        {
            // The first taker says where the captured item lies.
            meta.origin = Some(format!("{site}/{}/{}", delivery.stream, delivery.sequence));
        }
        let place = Place::of(&delivery.subject);
        let parent = meta.as_ref().ok().and_then(|meta| meta.traceparent.as_deref());
        let root = meta.as_ref().map_or_else(|_| delivery.id(), |meta| meta.root);
        let trace = self.tracer.receive(root, parent, received);
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        self.status.taken(delivery.delivered > 1, queued);
        let held = Arc::new(Held { delivery, body, meta, place, trace, queued, key, all: Arc::clone(self) });
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
    pub(crate) async fn ack(&self) -> Settled {
        let began = Instant::now();
        self.all.release(self.key);
        self.delivery.ack().await;
        self.settled("ack", began)
    }

    /// It comes again after `delay`.
    pub(crate) async fn retry_after(&self, delay: Duration) -> Settled {
        let began = Instant::now();
        self.all.release(self.key);
        self.delivery.retry_after(delay).await;
        self.settled("nak", began)
    }

    fn settled(&self, operation: &'static str, began: Instant) -> Settled {
        let ended = Instant::now();
        self.all.status.settled(ended - began);
        Settled { operation, began, ended }
    }

    /// How long it lay in its stream before it was taken; by two clocks where the broker is elsewhere.
    pub(crate) fn queued(&self) -> Duration {
        self.queued
    }

    /// What it notes for its spans.
    pub(crate) fn trace(&self) -> Option<&Trace> {
        self.trace.as_ref()
    }

    /// It was handled in this call of `process`.
    pub(crate) fn worked(&self, work: &Arc<Work>) {
        if let Some(trace) = &self.trace {
            trace.worked(work);
        }
    }

    /// It is done: its spans go to the collector.
    pub(crate) fn traced(&self, published: &[(&Outgoing, Published)], settled: Settled, wrong: Option<Wrong<'_>>) {
        if let Some(trace) = &self.trace {
            trace.end(self, published, settled, wrong);
        }
    }

    /// What output `index` of `count` of it starts with.
    pub(crate) fn child_meta(&self, parent: &Meta, stage: &str, kind: String, index: usize, count: usize) -> Meta {
        let mut meta = parent.child(stage, kind, index, count);
        if let Some(trace) = &self.trace {
            meta.traceparent = Some(trace.output().traceparent());
        }
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
