//! Carrying what is stored at one site to another: the same subjects, headers and bodies, so the same ids.

mod bring;
mod budget;
mod end;
mod lane;
mod line;
mod ranges;
mod table;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_nats::HeaderMap;
use async_nats::jetstream::message::PublishMessage;
use bytes::Bytes;
use causeway_schemas::header;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

pub use self::budget::Budget;
pub use self::end::End;
use self::lane::Lane;
pub use self::line::Line;
use self::ranges::Ranges;
pub use self::table::Keys;
use self::window::{LEAST_RATE, Window};
use crate::layout::RELAY_PROGRESS_EVERY;
use crate::publish::HEADER_ROOM;
use crate::{Bus, BusError, Delivery, Headers, PublishError, Pull, Record, Stored, names};

/// Messages that are held at once, at most.
const HELD: usize = 512;
/// Bytes that are held at once, about: enough for 100 Mbit/s over 300 ms, little enough for a small box.
const HELD_BYTES: u64 = 4 << 20;
/// The same of a broker a link away: what is on the way holds up the answers behind it, and each is kept alive over the link.
const HELD_ACROSS: usize = 128;
const HELD_ACROSS_BYTES: u64 = 256 << 10;
/// How large a message is taken to be before one was seen, bytes.
const FIRST_SIZE: u64 = 32 << 10;
/// First and longest pause before what was refused is sent again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// How long one message may go unanswered while others are answered.
const LOST: Duration = Duration::from_secs(30);
/// What a message takes beside subject, headers and body, bytes.
const FRAME: u64 = 64;
/// What is new goes first, if that is asked for, when more than this wait: the first number for any time, the second for a second or more.
const FAR_BEHIND: (u64, u64) = (2 * HELD as u64, 64);
/// That second: a link that is up is never so far behind.
const LONG: Duration = Duration::from_secs(1);
/// When fewer wait, there is nothing that it could go before.
const NOT_FAR_BEHIND: u64 = 32;
/// First and longest time for which a message is left alone that the other broker refuses; others go on.
const REFUSED: (Duration, Duration) = (Duration::from_millis(250), Duration::from_mins(1));
/// How long the answers to what is on its way are waited for at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take to read a long body here, and how often it is tried.
const FETCH: Duration = Duration::from_secs(30);
const FETCHES: u32 = 3;
/// Of a long body no more is on its way at once than two chunks of the object store, bytes.
const CHUNKS: u64 = 256 << 10;
/// Headers that say what held where the message was stored, or that the broker adds when it is read there.
const OF_ITS_PLACE: [&str; 11] = [
    "Nats-Expected-Last-Msg-Id",
    "Nats-Expected-Last-Sequence",
    "Nats-Expected-Last-Subject-Sequence-Subject",
    "Nats-Expected-Stream",
    "Nats-Stream",
    "Nats-Subject",
    "Nats-Sequence",
    "Nats-Time-Stamp",
    "Nats-Num-Pending",
    "Nats-Last-Sequence",
    "Nats-UpTo-Sequence",
];
/// Puts an outcome only if it is absent.
const IF_ABSENT: &str = "Nats-Expected-Last-Subject-Sequence";

/// What a carrier has done, and what it waits for.
#[derive(Debug, Default)]
pub struct Carried {
    messages: AtomicU64,
    bytes: AtomicU64,
    again: AtomicU64,
    held: AtomicU64,
    waiting: AtomicU64,
    trouble: Mutex<Option<String>>,
    one_way: AtomicBool,
}

impl Carried {
    /// Messages that are stored over there.
    pub fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Bytes that were sent for it: subjects, headers, bodies, also of what was sent twice.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Messages that were sent again.
    pub fn again(&self) -> u64 {
        self.again.load(Ordering::Relaxed)
    }

    /// Messages that are held now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Messages that waited behind the last one that was taken.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Why nothing goes on; `None` while all is well.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("nobody panics with it").clone()
    }

    /// Says whether nothing of the stream crosses the other way. Otherwise what has just come from there is not carried back: it would go
    /// round.
    pub fn set_one_way(&self, one_way: bool) {
        self.one_way.store(one_way, Ordering::Relaxed);
    }

    /// Whether a message with these headers has just come from where it would go.
    fn goes_round(&self, headers: &Headers, to: &str) -> bool {
        !self.one_way.load(Ordering::Relaxed) && headers.get(header::VIA) == Some(to)
    }

    fn say(&self, trouble: Option<&str>) {
        *self.trouble.lock().expect("nobody panics with it") = trouble.map(Into::into);
    }
}

/// What goes first when much waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum First {
    /// What has waited longest.
    #[default]
    Oldest,
    /// What is stored from now on; what waits has the rest of the way.
    Newest,
}

/// What is carried: what a durable of a stream gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The stream, at either site.
    pub stream: String,
    /// The durable, at the near one.
    pub durable: String,
    /// The site that it comes from, and the one that it goes to.
    pub sites: (String, String),
    /// Of which sites' captures, where not of all.
    pub captured: Vec<String>,
    /// What goes first when much waits.
    pub first: First,
}

/// Carries one stream from the site of one bus to another. Each message is acked here once it is stored there; what is not is sent
/// again for as long as it takes.
pub struct Carrier {
    from: End,
    to: End,
    /// The connections that there are now.
    near: Bus,
    far: Bus,
    way: Way,
    budget: Arc<Budget>,
    window: Window,
    carried: Arc<Carried>,
    /// What the durable gave and is not acked, by its place in the stream.
    held: BTreeMap<u64, Holding>,
    /// What is held and on nobody's way.
    due: BTreeSet<u64>,
    /// What the other broker refused, and when it is due again.
    later: BTreeSet<(Instant, u64)>,
    /// While much waits: what is newer and goes before it.
    lane: Option<Lane>,
    /// What was stored over there before the durable gave it.
    ahead: Ranges,
    /// A body that a message refers to, on its way out of the object store here.
    fetching: Option<BoxFuture<'static, Fetched>>,
    fetched: Option<Fetched>,
    /// How much of long bodies has gone over, and how much it was when that was looked at.
    uploaded: (Arc<AtomicU64>, u64),
    pause: Duration,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    acks: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Ends when it may be sent again.
    rest: Option<BoxFuture<'static, ()>>,
}

/// A message from its delivery to its ack.
struct Holding {
    delivery: Arc<Delivery>,
    /// Bytes on the wire.
    size: u64,
    was_sent: bool,
    /// How often the other broker refused it.
    refused: u32,
}

/// The long body of this name, which is its content; `None` where it is not to be had.
struct Fetched {
    reference: String,
    body: Option<Bytes>,
}

/// What became of a message that was sent.
struct Answer {
    sequence: u64,
    /// When it was stored here: with the number it says which message it is.
    stored_at: u64,
    size: u64,
    sent_at: Instant,
    /// Whether it went in chunks: the time says nothing of the link.
    is_long: bool,
    /// Whether it is an outcome, put if absent.
    if_absent: bool,
    stored: Result<Stored, PublishError>,
}

/// What is sent next.
#[derive(Clone, Copy)]
struct Next {
    sequence: u64,
    is_new: bool,
    size: u64,
}

impl Carrier {
    /// From one end to the other, one of which is a link away.
    pub fn new(from: &End, to: &End, way: &Way, budget: &Arc<Budget>) -> Self {
        Self {
            from: from.clone(),
            to: to.clone(),
            near: from.bus(),
            far: to.bus().patient(2 * HELD),
            way: way.clone(),
            budget: Arc::clone(budget),
            window: Window::new(),
            carried: Arc::default(),
            held: BTreeMap::new(),
            due: BTreeSet::new(),
            later: BTreeSet::new(),
            lane: None,
            ahead: Ranges::default(),
            fetching: None,
            fetched: None,
            uploaded: (Arc::default(), 0),
            pause: PAUSE.0,
            answers: FuturesUnordered::new(),
            acks: FuturesUnordered::new(),
            rest: None,
        }
    }

    /// What it has done; told while it runs.
    pub fn carried(&self) -> Arc<Carried> {
        Arc::clone(&self.carried)
    }

    /// Carries until `stop` comes, then waits a little for the answers to what is on its way. What is held then comes again to the next
    /// one.
    ///
    /// # Panics
    /// When what pulls does.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let (coming, mut deliveries) = mpsc::unbounded_channel();
        // Dropped with this, it ends.
        let mut pulling = JoinSet::new();
        pulling.spawn(pull(self.from.clone(), self.way.clone(), Arc::clone(&self.carried), coming));
        let (mut near_renewals, mut renewals) = (self.from.renewals(), self.to.renewals());
        (self.near, self.far) = (self.from.bus(), self.to.bus().patient(2 * HELD));
        let mut alive = tokio::time::interval(RELAY_PROGRESS_EVERY);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut stop = pin!(stop);
        let mut until: Option<Instant> = None;
        while until.is_none() || !self.answers.is_empty() || !self.acks.is_empty() {
            let goes_on = until.is_none();
            let next = if goes_on { self.next() } else { None };
            let sends_at = next.map(|_| self.budget.ready_at());
            let later_at = self.later.first().map(|(at, _)| *at).filter(|_| goes_on);
            let dead_at = self.window.dead_at().filter(|_| self.rest.is_none());
            tokio::select! {
                biased;
                () = &mut stop, if goes_on => {
                    until = Some(Instant::now() + DRAIN);
                    pulling.abort_all();
                }
                () = at(until) => return,
                Some(answer) = self.answers.next() => self.answered(answer),
                Some(()) = self.acks.next() => {}
                _ = alive.tick() => self.keep_alive().await,
                Ok(()) = near_renewals.changed() => self.near = self.from.bus(),
                Ok(()) = renewals.changed() => self.far = self.to.bus().patient(2 * HELD),
                () = now_or_never(&mut self.rest) => {
                    self.rest = None;
                    self.window.goes_on();
                    self.looks_how_far_behind();
                }
                () = at(dead_at) => if self.is_uploading() { self.window.goes_on() } else { self.asks() },
                fetched = now_or_never(&mut self.fetching) => {
                    self.fetching = None;
                    self.fetched = Some(fetched);
                }
                // At once: what waits here nobody keeps alive.
                Some((delivery, size)) = deliveries.recv(), if goes_on => self.hold(delivery, size),
                Some(ended) = pulling.join_next(), if goes_on => {
                    if let Err(error) = ended {
                        std::panic::resume_unwind(error.into_panic());
                    }
                }
                () = at(later_at) => {
                    self.due.extend(self.later.pop_first().map(|(_, sequence)| sequence));
                }
                read = read(&mut self.lane), if goes_on => self.is_read(read),
                () = at(sends_at) => {
                    if let Some(next) = next && self.budget.take(next.size).is_ok() {
                        self.send(next).await;
                    }
                }
            }
            self.carried.held.store(self.held.len() as u64, Ordering::Relaxed);
        }
    }

    fn hold(&mut self, delivery: Delivery, size: u64) {
        let Delivery { sequence, stored_at, pending, .. } = delivery;
        self.carried.waiting.store(pending, Ordering::Relaxed);
        if let Some(lane) = &mut self.lane {
            lane.is_given(sequence);
        }
        let delivery = Arc::new(delivery);
        match self.held.get_mut(&sequence) {
            // It came again since it was not kept alive in time: the newer delivery is the one to ack.
            Some(holding) if holding.delivery.stored_at == stored_at => {
                holding.delivery = delivery;
                return;
            }
            // Otherwise the stream was set back, and this is another message.
            _ => self.held.insert(sequence, Holding { delivery, size, was_sent: false, refused: 0 }),
        };
        let is_over = self.ahead.contains(sequence, stored_at) || self.came_from_there(sequence);
        if is_over {
            self.acknowledge(sequence);
        } else if self.lane.as_ref().is_none_or(|lane| !lane.has(sequence, stored_at)) {
            self.due.insert(sequence);
        }
        if self.lane.is_none() && !is_over && is_far_behind(self.behind(), stored_at) {
            self.may_open_lane();
        }
    }

    /// How many wait to be sent, here or with the durable.
    fn behind(&self) -> u64 {
        self.carried.waiting() + self.due.len() as u64
    }

    /// After a pause what is held already may be much.
    fn looks_how_far_behind(&mut self) {
        let oldest = self.due.first().and_then(|sequence| self.held.get(sequence));
        let is_far = |oldest: &Holding| is_far_behind(self.behind(), oldest.delivery.stored_at);
        if self.lane.is_none() && oldest.is_some_and(is_far) {
            self.may_open_lane();
        }
    }

    fn may_open_lane(&mut self) {
        if self.way.first == First::Newest && self.rest.is_none() {
            self.open_lane();
        }
    }

    /// Whether it has just come from where it would go: the subject says where it was captured, not where it was made.
    fn came_from_there(&self, sequence: u64) -> bool {
        let held = self.held.get(&sequence);
        held.is_some_and(|holding| self.carried.goes_round(&holding.delivery.headers, &self.way.sites.1))
    }

    /// From now on what is stored goes first.
    fn open_lane(&mut self) {
        let (stream, waiting) = (&self.way.stream, self.carried.waiting());
        tracing::info!(stream, waiting, "far behind: what is stored from now on goes first");
        self.lane = Some(Lane::open(self.near.clone(), stream.clone()));
    }

    /// The durable gives what is not sent yet; what it has given already is sent as all else. What is under way is answered.
    fn close_lane(&mut self) {
        let Some(lane) = self.lane.take() else { return };
        self.due.extend(self.held.keys().filter(|sequence| lane.has_due(**sequence)));
    }

    fn is_read(&mut self, read: lane::Read) {
        let Some(lane) = &mut self.lane else { return };
        let Way { captured, sites: (_, to), .. } = &self.way;
        let is_asked = |subject: &str| {
            let site = names::site_of(subject);
            captured.is_empty() || captured.iter().any(|known| known == site)
        };
        let is_left_out = |record: &Record| {
            let came_from_there = self.carried.goes_round(&record.headers, to);
            came_from_there || !is_asked(&record.subject)
        };
        lane.take(self.near.clone(), self.way.stream.clone(), read, is_left_out);
    }

    async fn keep_alive(&mut self) {
        // What is said while nobody hears it would only fill the connection's queue.
        if !self.near.is_connected() {
            return;
        }
        let said = async {
            for holding in self.held.values() {
                holding.delivery.progress_on(&self.near).await;
            }
        };
        // A connection that takes nothing more must not hold up the rest.
        let _ = tokio::time::timeout(RELAY_PROGRESS_EVERY, said).await;
    }

    /// What is sent next, if anything may be.
    fn next(&mut self) -> Option<Next> {
        if self.rest.is_some() {
            return None;
        }
        let lane = self.lane.as_ref();
        // The durable may give what is new before it is read; what is read is not overtaken, even where it may not go yet.
        let until = lane.and_then(Lane::first_due).unwrap_or(u64::MAX);
        let given = lane.and_then(Lane::first).and_then(|first| self.due.range(first..until.max(first)).next());
        let mut next = match (given, lane.and_then(Lane::next)) {
            (None, Some((sequence, size))) => Next { sequence, is_new: true, size },
            (given, _) => {
                let sequence = *given.or_else(|| self.due.range(..until).next())?;
                Next { sequence, is_new: false, size: self.held.get(&sequence).map_or(0, |holding| holding.size) }
            }
        };
        if let Some(reference) = self.reference(next) {
            match &self.fetched {
                Some(fetched) if fetched.reference == reference => {
                    next.size += fetched.body.as_ref().map_or(0, |body| body.len() as u64);
                }
                _ => {
                    let from = self.from.clone();
                    self.fetching.get_or_insert_with(|| fetch(from, reference).boxed());
                    return None;
                }
            }
        }
        Some(next).filter(|next| self.window.has_room(next.size))
    }

    /// The body that the message refers to.
    fn reference(&self, Next { sequence, is_new, .. }: Next) -> Option<String> {
        let headers = if is_new {
            &self.lane.as_ref()?.peek(sequence)?.headers
        } else {
            &self.held.get(&sequence)?.delivery.headers
        };
        headers.get(header::BODY).map(ToOwned::to_owned)
    }

    async fn send(&mut self, Next { sequence, is_new, size }: Next) {
        let (subject, headers, body, stored_at) = if is_new {
            let Some(record) = self.lane.as_mut().and_then(|lane| lane.send(sequence)) else { return };
            (record.subject, record.headers, record.body, record.stored_at)
        } else {
            self.due.remove(&sequence);
            let Some(holding) = self.held.get_mut(&sequence) else { return };
            if std::mem::replace(&mut holding.was_sent, true) {
                self.carried.again.fetch_add(1, Ordering::Relaxed);
            }
            let delivery = &holding.delivery;
            (delivery.subject.clone(), delivery.headers.clone(), delivery.body.clone(), delivery.stored_at)
        };
        let reference = headers.get(header::BODY);
        let fetched = self.fetched.take_if(|fetched| Some(&*fetched.reference) == reference);
        let long = fetched.and_then(|fetched| fetched.body);
        self.carried.bytes.fetch_add(size, Ordering::Relaxed);
        // A message that is longer than what the other broker takes goes by reference there, whatever it did here: chunk by chunk.
        let is_long = long.is_some() || body.len() + HEADER_ROOM > self.far.max_payload();
        let size = if is_long { size.min(CHUNKS) } else { size };
        self.window.sent(size);
        let sent_at = Instant::now();
        let (headers, if_absent) = forwarded(&headers, &self.way.sites.0);
        let answer = move |stored| Answer { sequence, stored_at, size, sent_at, is_long, if_absent, stored };
        let unsure = |why: &str| Err(PublishError::Unsure { subject: "it".into(), why: why.into() });
        let (far, mut renewals) = (self.far.clone(), self.to.renewals());
        let patience = LOST + Duration::from_secs_f64(long.as_ref().unwrap_or(&body).len() as f64 / LEAST_RATE);
        let stored = if is_long {
            let (body, uploaded) = (long.unwrap_or(body), Arc::clone(&self.uploaded.0));
            async move { far.put(&subject, headers, body, &uploaded).await }.boxed()
        } else {
            let message = PublishMessage::build().headers(headers).payload(body);
            // In order: handed over here, and waited for there.
            match far.send(&subject, message).await {
                Ok(sent) => sent.wait().boxed(),
                Err(error) => std::future::ready(Err(error)).boxed(),
            }
        };
        let answered = async move {
            tokio::select! {
                biased;
                stored = stored => answer(stored),
                _ = renewals.changed() => answer(unsure("the connection was given up")),
                () = tokio::time::sleep(patience) => answer(unsure("there is no answer")),
            }
        };
        self.answers.push(answered.boxed());
    }

    fn answered(&mut self, answer: Answer) {
        let Answer { sequence, stored_at, size, sent_at, is_long, if_absent, stored } = answer;
        if stored.is_err() || is_long {
            self.window.gone(size);
        } else {
            self.window.answered(size, sent_at.elapsed(), self.lane.is_some());
        }
        let error = match stored {
            Err(PublishError::Fenced { .. }) if if_absent => None,
            stored => stored.err(),
        };
        // An outcome that is there already is stored.
        let Some(error) = error else { return self.stored(sequence, stored_at) };
        let new = self.lane.as_mut().and_then(|lane| lane.answered(sequence));
        if concerns_it_alone(&error) {
            // One that the durable has not given yet is sent when it does.
            if let Some(holding) = self.held.get_mut(&sequence) {
                holding.refused = holding.refused.saturating_add(1);
                let pause = REFUSED.0.saturating_mul(1 << holding.refused.min(8)).min(REFUSED.1);
                self.later.insert((Instant::now() + pause, sequence));
                self.carried.say(Some(&format!("at {}: {error}", self.way.sites.1)));
            }
            return;
        }
        if self.held.contains_key(&sequence) {
            self.due.insert(sequence);
        } else if let (Some(record), Some(lane)) = (new, &mut self.lane) {
            lane.is_due(record);
        }
        self.rests(&error);
    }

    /// One pause for all that failed together.
    fn rests(&mut self, error: &PublishError) {
        if self.rest.is_some() {
            return;
        }
        tracing::debug!(%error, "not carried; it is sent again");
        if matches!(error, PublishError::Unsure { .. }) {
            return self.asks();
        }
        let pause = self.pause;
        self.pause = (self.pause * 2).min(PAUSE.1);
        self.window.refused();
        self.carried.say(Some(&format!("at {}: {error}", self.way.sites.1)));
        self.rest = Some(tokio::time::sleep(pause).boxed());
    }

    /// Whether something of a long body has gone over since that was asked.
    fn is_uploading(&mut self) -> bool {
        let (now, before) = (self.uploaded.0.load(Ordering::Relaxed), self.uploaded.1);
        self.uploaded.1 = now;
        now > before
    }

    /// Nothing is sent until the other site answers a question.
    fn asks(&mut self) {
        self.carried.say(Some(&format!("{} does not answer", self.way.sites.1)));
        self.window.begin_anew();
        // What is new when it does is newer.
        self.close_lane();
        let to = self.to.clone();
        self.rest = Some(
            async move {
                // Not again and again where it answers this and nothing else.
                tokio::time::sleep(PAUSE.0).await;
                to.until_it_answers().await;
            }
            .boxed(),
        );
    }

    fn stored(&mut self, sequence: u64, stored_at: u64) {
        self.pause = (self.pause / 2).max(PAUSE.0);
        self.carried.messages.fetch_add(1, Ordering::Relaxed);
        self.carried.say(None);
        if let Some(lane) = &mut self.lane {
            lane.answered(sequence);
        }
        match self.held.get(&sequence) {
            Some(holding) if holding.delivery.stored_at == stored_at => {
                self.due.remove(&sequence);
                self.acknowledge(sequence);
            }
            // The stream was set back meanwhile: what has its number now is another message.
            Some(_) => {}
            None => self.ahead.insert(sequence, stored_at),
        }
    }

    fn acknowledge(&mut self, sequence: u64) {
        let Some(holding) = self.held.remove(&sequence) else { return };
        // The durable gives what is behind it later.
        self.ahead.remove(sequence);
        if self.lane.is_some() && self.behind() < NOT_FAR_BEHIND {
            self.close_lane();
        }
        let near = self.near.clone();
        // A lost ack would have it carried once more.
        self.acks.push(async move { holding.delivery.ack_surely(&near).await }.boxed());
    }
}

/// Whether others may be stored although this one was not.
fn concerns_it_alone(error: &PublishError) -> bool {
    matches!(error, PublishError::Refused { .. } | PublishError::Contended { .. } | PublishError::Fenced { .. })
}

/// Comes then; never where it is not known.
async fn at(then: Option<Instant>) {
    match then {
        // A timer ends with the next whole millisecond: one a message would be 600 messages a second.
        Some(then) if then <= Instant::now() => {}
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// What comes out of it, if it is there.
async fn now_or_never<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// What the lane has read, if there is one.
async fn read(lane: &mut Option<Lane>) -> lane::Read {
    match lane {
        Some(lane) => lane.read().await,
        None => std::future::pending().await,
    }
}

/// Takes a body out of the object store. One that is not there goes without: whoever takes the message says so.
async fn fetch(from: End, reference: String) -> Fetched {
    let mut tries = 0;
    while tries < FETCHES {
        let (mut replaced, bus) = (from.replacements(), from.bus());
        // Over a link it takes as long as it takes; that it is cut the line finds out.
        let in_vain =
            async { if from.is_across() { is_told(&mut replaced).await } else { tokio::time::sleep(FETCH).await } };
        tokio::select! {
            biased;
            fetched = bus.body_by_reference(&reference) => match fetched {
                Ok(body) => return Fetched { reference, body: Some(body) },
                Err(BusError::NoBody(_)) => break,
                Err(error) => tracing::debug!(%error, "a body is not read; it is tried again"),
            },
            () = in_vain => tracing::debug!(reference, "a body is not read in time; it is tried again"),
        }
        if from.is_across() {
            from.until_it_answers().await;
        } else {
            tries += 1;
        }
        tokio::time::sleep(PAUSE.1).await;
    }
    Fetched { reference, body: None }
}

/// Pulls for ever, no more at once than may be held; gives each message with its size.
async fn pull(from: End, way: Way, carried: Arc<Carried>, coming: mpsc::UnboundedSender<(Delivery, u64)>) {
    let mut mean = FIRST_SIZE as f64;
    let (bytes, most) = if from.is_across() { (HELD_ACROSS_BYTES, HELD_ACROSS) } else { (HELD_BYTES, HELD) };
    let held_of = |mean: f64| ((bytes as f64 / mean.max(1.0)) as usize).clamp(2, most);
    loop {
        let (mut replaced, bus) = (from.replacements(), from.bus());
        // What came on the connection before is held still.
        let held = held_of(mean).saturating_sub(carried.held() as usize).max(2);
        let mut pull = Pull::shared(&bus, &way.stream, &way.durable, held).of_bytes(bytes);
        if from.is_across() {
            pull = pull.over_slow(Duration::from_secs_f64(bus.max_payload() as f64 / LEAST_RATE));
        }
        loop {
            let pulled = tokio::select! {
                biased;
                pulled = pull.next_or_why() => pulled,
                // Another connection: what was asked for on this one does not come any more.
                () = is_told(&mut replaced) => break,
            };
            let delivery = match pulled {
                Ok(delivery) => delivery,
                Err(why) => {
                    // Of a link that is cut nobody says so.
                    if from.is_across() {
                        tracing::debug!(stream = way.stream, why, "the other site is asked whether it is there");
                        from.until_it_answers().await;
                    }
                    pull.rest(&why).await;
                    continue;
                }
            };
            let size = size_of(&delivery.subject, &delivery.headers, &delivery.body);
            mean += (size as f64 - mean) / 16.0;
            pull.set_held(held_of(mean));
            if coming.send((delivery, size)).is_err() {
                return;
            }
        }
    }
}

/// Comes when it is told of a change; never where there is nothing to tell.
async fn is_told(changes: &mut Option<watch::Receiver<u64>>) {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Whether so many wait behind one that was stored then (Unix time in ns), that what is new would come too late.
fn is_far_behind(waiting: u64, stored_at: u64) -> bool {
    let since = SystemTime::UNIX_EPOCH + Duration::from_nanos(stored_at);
    let is_long = || SystemTime::now().duration_since(since).is_ok_and(|age| age > LONG);
    waiting > FAR_BEHIND.0 || (waiting > FAR_BEHIND.1 && is_long())
}

/// What a message takes on the wire, bytes.
fn size_of(subject: &str, headers: &Headers, body: &[u8]) -> u64 {
    (subject.len() + headers.len() + body.len()) as u64 + FRAME
}

/// The headers as they were published, but for what held only where the message was stored, and with the site that it comes from; and
/// whether it is put if absent.
fn forwarded(headers: &Headers, from: &str) -> (HeaderMap, bool) {
    let (mut forwarded, mut if_absent) = (HeaderMap::new(), false);
    for (name, values) in headers.0.iter() {
        let text: &str = name.as_ref();
        if OF_ITS_PLACE.contains(&text) || text == header::VIA {
            continue;
        }
        // An outcome is put if absent, there as here. What somebody else expected of the subject held here.
        if text == IF_ABSENT {
            if_absent = values.iter().all(|value| value.as_str() == "0");
            if if_absent {
                forwarded.insert(IF_ABSENT, "0");
            }
            continue;
        }
        for value in values {
            forwarded.append(name.clone(), value.clone());
        }
    }
    forwarded.insert(header::VIA, from);
    (forwarded, if_absent)
}
