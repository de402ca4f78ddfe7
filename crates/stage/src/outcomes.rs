//! Outcomes as the runtime writes and reads them: empties, dead letters, and which captured items are complete.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use causeway_bus::{Bus, BusError, Outgoing, names};
use causeway_pipelines::{Flow, Ledger, Outcome, Pipeline};
use causeway_schemas::{Capture, Codec, DeadLetter, Empty, Id, Message, Meta, Receipt, encode, header};
use futures::StreamExt as _;

/// Where a message's children go: the site of its capture and the name of its source, as they stand in its subject.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) site: String,
    pub(crate) key: String,
}

impl Place {
    /// Out of `<pipeline>.<link>.<site>.<key>…`; what a stranger published elsewhere is `unknown`.
    pub(crate) fn of(subject: &str) -> Self {
        let mut tokens = subject.split('.').skip(2);
        let mut token = || tokens.next().filter(|token| !token.is_empty()).unwrap_or("unknown").to_owned();
        Self { site: token(), key: token() }
    }

    pub(crate) fn subject(&self, pipeline: &str, link: &str) -> String {
        format!("{pipeline}.{link}.{}.{}", self.site, self.key)
    }
}

/// An output of a stage, ready to be stored: on a link, or as an outcome where nobody takes it.
pub(crate) fn output<M: Message>(
    pipeline: &Pipeline,
    stage: &str,
    link: &str,
    place: &Place,
    meta: &Meta,
    message: &M,
) -> Outgoing {
    let last = pipeline.is_final(stage);
    let codec = if last { Codec::Json } else { Codec::Bincode };
    outgoing(&place.subject(&pipeline.name, link), meta, codec, encode(message, codec), last)
}

/// The `empty.v1` of an input that rightly gave nothing.
pub(crate) fn empty(
    pipeline: &Pipeline,
    stage: &str,
    place: &Place,
    parent: &Meta,
    capture: Capture,
    reason: &str,
    detail: String,
) -> Outgoing {
    let meta = parent.child(stage, Empty::kind(), 0, 1);
    let message = Empty { capture, stage: stage.into(), reason: reason.into(), detail };
    let subject = place.subject(&pipeline.name, names::EMPTY);
    outgoing(&subject, &meta, Codec::Json, encode(&message, Codec::Json), true)
}

/// What is stored where a message is set aside: its letter, and where there are other sites a receipt for them.
pub(crate) fn set_aside(pipeline: &Pipeline, place: &Place, meta: &Meta, letter: &DeadLetter) -> Vec<Outgoing> {
    let dead = dead(&pipeline.name, place, meta, letter);
    if pipeline.is_split() { vec![dead, receipt(pipeline, place, meta, letter)] } else { vec![dead] }
}

fn receipt(pipeline: &Pipeline, place: &Place, meta: &Meta, letter: &DeadLetter) -> Outgoing {
    let DeadLetter { stage, reason, at, .. } = letter;
    let meta = Meta { kind: Receipt::KIND.into(), stage: stage.clone(), ..meta.clone() };
    let receipt = Receipt { stage: stage.clone(), site: pipeline.here.clone(), reason: reason.clone(), at: *at };
    let subject = format!("{}.{stage}", place.subject(&pipeline.name, names::RECEIPT));
    of_stage(outgoing(&subject, &meta, Codec::Json, encode(&receipt, Codec::Json), true), stage)
}

/// Its dedupe id names the stage too: two can say the same of one message.
fn of_stage(mut outgoing: Outgoing, stage: &str) -> Outgoing {
    if let Some((_, value)) = outgoing.headers.iter_mut().find(|(name, _)| *name == header::MSG_ID) {
        *value = format!("{value}.{stage}");
    }
    outgoing
}

/// A dead letter. Its id is that of the message it sets aside.
fn dead(pipeline: &str, place: &Place, meta: &Meta, letter: &DeadLetter) -> Outgoing {
    let subject = place.subject(pipeline, names::DEAD);
    let meta = Meta { kind: DeadLetter::KIND.into(), stage: letter.stage.clone(), ..meta.clone() };
    // Two stages can set the same message aside, each for its own takers: the stage is part of the subject.
    let subject = format!("{subject}.{}", letter.stage);
    let mut outgoing = outgoing(&subject, &meta, Codec::Json, encode(letter, Codec::Json), true);
    // Of a message that was sent again and failed again, the newer letter takes the place of the older.
    outgoing.if_absent = false;
    of_stage(outgoing, &letter.stage)
}

fn outgoing(subject: &str, meta: &Meta, codec: Codec, body: Vec<u8>, last: bool) -> Outgoing {
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, codec.content_type().into()));
    if last {
        headers.extend(event(subject, meta));
    }
    let subject = if last { format!("{subject}.{}", meta.id) } else { subject.to_owned() };
    Outgoing { subject, headers, body: Bytes::from(body), if_absent: last }
}

/// What an outcome says to programs that know CloudEvents and not us.
/// (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md>, binary mode)
fn event(subject: &str, meta: &Meta) -> [(&'static str, String); 6] {
    let mut tokens = subject.split('.');
    let (pipeline, mut place) = (tokens.next().unwrap_or_default(), tokens.skip(1));
    let mut token = || place.next().unwrap_or_default();
    [
        (header::EVENT_VERSION, "1.0".into()),
        (header::EVENT_TYPE, format!("causeway.{}", meta.kind)),
        (header::EVENT_SOURCE, format!("/{pipeline}/{}/{}", token(), token())),
        (header::EVENT_ID, meta.id.to_string()),
        (header::EVENT_TIME, humantime::format_rfc3339_millis(SystemTime::now()).to_string()),
        (header::EVENT_SUBJECT, meta.root.to_string()),
    ]
}

/// What the headers of a message that nobody can read stand in for.
pub fn meta_of_unreadable(id: Id) -> Meta {
    Meta::captured(id, "unknown", DeadLetter::KIND.into(), 0)
}

/// The pipeline and the link of a subject.
pub(crate) fn link_of(subject: &str) -> String {
    subject.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// Unix time in ns.
pub fn now_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos() as u64)
}

/// The streams that outcomes of this pipeline are in, at the site that it is seen from: each final stage's, the empties', the dead
/// letters', and the receipts of those that lie elsewhere.
pub fn outcome_streams(pipeline: &Pipeline) -> Vec<String> {
    let plan = pipeline.plan();
    let is_here = |flow| plan.share(flow, &pipeline.here).is_some();
    let finals = pipeline.stages.iter().map(|stage| stage.name.as_str()).filter(|name| pipeline.is_final(name));
    let finals = finals.filter(|name| is_here(Flow::Stage(name)));
    let empties = is_here(Flow::Ends).then_some(names::EMPTY);
    let receipts = empties.filter(|_| pipeline.is_split()).map(|_| names::RECEIPT);
    finals.chain(empties).chain([names::DEAD]).chain(receipts).map(|name| names::stream(&pipeline.name, name)).collect()
}

/// What fills the streams of a flow: its stage, or what stages say of items that end.
pub fn links_of(flow: Flow<'_>) -> Vec<&str> {
    match flow {
        Flow::Stage(name) => vec![name],
        Flow::Ends => vec![names::EMPTY, names::RECEIPT],
    }
}

/// The ledger of all outcomes that are stored now.
pub async fn read_ledger(bus: &Bus, pipeline: &Pipeline) -> Result<Ledger, BusError> {
    let mut ledger = Ledger::new(pipeline);
    for stream in outcome_streams(pipeline) {
        let mut records = bus.scan(&stream, 1, true).await?;
        while let Some(record) = records.next().await {
            if let Some(outcome) = outcome_of(&record?.headers) {
                ledger.outcome(&outcome);
            }
        }
    }
    Ok(ledger)
}

/// What the headers of an outcome say to a ledger.
pub fn outcome_of(headers: &causeway_bus::Headers) -> Option<Outcome> {
    let meta = headers.meta().ok()?;
    Some(Outcome { root: meta.root, stage: meta.stage, part: meta.part })
}
