//! A broker that does what JetStream does, and what goes wrong on the way to it and back.

use std::collections::{BTreeMap, HashMap, HashSet};

use causeway_bus::{PublishError, Stored};
use causeway_schemas::{Id, Meta};

use crate::protocol::Marks;

use super::chance::Chance;

/// Ticks that a dedupe window lasts: shorter than a message can be on its way, so that nothing may depend on it.
const WINDOW: u64 = 40;
/// Ticks until a delivery that nobody acked comes again.
const ACK_WAIT: u64 = 60;

/// One stream with its takers.
#[derive(Default)]
pub(super) struct Link {
    pub(super) messages: Vec<Meta>,
    seen: HashMap<(Id, u32), u64>,
    takers: BTreeMap<&'static str, Durable>,
}

#[derive(Default)]
struct Durable {
    next: usize,
    /// Delivered and not acked: when it comes again, how often it was delivered.
    out: BTreeMap<usize, (u64, u64)>,
    acked: HashSet<usize>,
}

/// A delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) sequence: usize,
    pub(super) delivered: u64,
}

pub(super) struct Broker {
    pub(super) now: u64,
    links: BTreeMap<&'static str, Link>,
    /// Every outcome that a reader sees, by its subject: stage and id.
    pub(super) outcomes: BTreeMap<(String, Id), Vec<Meta>>,
    /// The changelog of the fold.
    pub(super) changelog: Vec<Id>,
    /// By stage and place in its stream: two copies of a message may be stored, and each is run.
    pub(super) marks: HashMap<(&'static str, usize), Marks>,
    /// Whether anything still goes wrong.
    pub(super) is_faulty: bool,
    /// Broken on purpose: outcomes are stored whether there is one or not.
    pub(super) forgets_if_absent: bool,
    /// Broken on purpose: whoever appends may.
    pub(super) has_no_fence: bool,
}

impl Broker {
    /// With a link for each of these stages, and these takers.
    pub(super) fn new(links: &[(&'static str, &[&'static str])]) -> Self {
        let links = links.iter().map(|&(from, takers)| {
            let takers = takers.iter().map(|&taker| (taker, Durable::default())).collect();
            (from, Link { takers, ..Link::default() })
        });
        Self {
            now: 0,
            links: links.collect(),
            outcomes: BTreeMap::new(),
            changelog: Vec::new(),
            marks: HashMap::new(),
            is_faulty: true,
            forgets_if_absent: false,
            has_no_fence: false,
        }
    }

    pub(super) fn link(&self, from: &str) -> &Link {
        &self.links[from]
    }

    /// Stores on a link, unless it is lost on the way; the answer may be lost too.
    pub(super) fn publish(
        &mut self,
        from: &'static str,
        meta: Meta,
        chance: &mut Chance,
    ) -> Result<Stored, PublishError> {
        if self.is_lost(chance) {
            return unsure();
        }
        let now = self.now;
        let link = self.links.get_mut(from).expect("a link");
        let key = (meta.id, meta.generation);
        let is_known = link.seen.get(&key).is_some_and(|at| now - at < WINDOW);
        let stored = if is_known {
            Stored::Already
        } else {
            link.seen.insert(key, now);
            link.messages.push(meta);
            Stored::At(link.messages.len() as u64)
        };
        if self.is_lost(chance) { unsure() } else { Ok(stored) }
    }

    /// Puts an outcome if it is absent.
    pub(super) fn put(&mut self, meta: Meta, chance: &mut Chance) -> Result<Stored, PublishError> {
        if self.is_lost(chance) {
            return unsure();
        }
        let there = self.outcomes.entry((meta.stage.clone(), meta.id)).or_default();
        let stored = if there.is_empty() || self.forgets_if_absent {
            there.push(meta);
            Stored::At(there.len() as u64)
        } else {
            Stored::Already
        };
        if self.is_lost(chance) { unsure() } else { Ok(stored) }
    }

    /// Appends to the changelog, if it has the length that the writer knows.
    pub(super) fn append(&mut self, last: u64, id: Id, chance: &mut Chance) -> Result<Stored, PublishError> {
        if self.is_lost(chance) {
            return unsure();
        }
        if self.changelog.len() as u64 != last && !self.has_no_fence {
            return Err(PublishError::Fenced { subject: String::new() });
        }
        self.changelog.push(id);
        if self.is_lost(chance) { unsure() } else { Ok(Stored::At(self.changelog.len() as u64)) }
    }

    /// What a taker is given: what came again or is next, in no certain order.
    pub(super) fn deliver(&mut self, from: &'static str, taker: &str, chance: &mut Chance) -> Option<Delivery> {
        let now = self.now;
        let link = self.links.get_mut(from).expect("a link");
        let durable = link.takers.get_mut(taker).expect("a taker");
        let due: Vec<usize> =
            durable.out.iter().filter(|(_, (at, _))| *at <= now).map(|(&sequence, _)| sequence).collect();
        let sequence = if !due.is_empty() && (durable.next == link.messages.len() || chance.one_in(2)) {
            due[chance.below(due.len())]
        } else if durable.next < link.messages.len() {
            durable.next += 1;
            durable.next - 1
        } else {
            return None;
        };
        let out = durable.out.entry(sequence).or_insert((0, 0));
        *out = (now + ACK_WAIT, out.1 + 1);
        let delivery = Delivery { sequence, delivered: out.1 };
        // What is lost on its way comes again when its time has come.
        (!self.is_lost(chance)).then_some(delivery)
    }

    /// Somebody is still at work on a delivery: its ack wait begins anew.
    pub(super) fn keep_alive(&mut self, from: &str, taker: &str, sequence: usize) {
        let again = self.now + ACK_WAIT;
        let durable = self.links.get_mut(from).and_then(|link| link.takers.get_mut(taker));
        if let Some(out) = durable.and_then(|durable| durable.out.get_mut(&sequence)) {
            out.0 = again;
        }
    }

    /// Takes an ack, unless it is lost. It counts whoever sends it, and whenever.
    pub(super) fn ack(&mut self, from: &'static str, taker: &str, sequence: usize, chance: &mut Chance) {
        if self.is_lost(chance) {
            return;
        }
        let durable = self.links.get_mut(from).expect("a link").takers.get_mut(taker).expect("a taker");
        durable.out.remove(&sequence);
        durable.acked.insert(sequence);
    }

    /// Whether every message was acked by every taker of its link.
    pub(super) fn is_drained(&self) -> bool {
        self.links.values().all(|link| {
            link.takers.values().all(|durable| durable.next == link.messages.len() && durable.out.is_empty())
        })
    }

    fn is_lost(&self, chance: &mut Chance) -> bool {
        self.is_faulty && chance.one_in(12)
    }
}

fn unsure<T>() -> Result<T, PublishError> {
    Err(PublishError::Unsure { subject: String::new(), why: String::new() })
}
