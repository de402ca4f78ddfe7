use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, BusError, PublishError, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Id, header};
use causeway_stage::again;
use futures::StreamExt as _;

use crate::when::Span;

/// Bytes that the broker takes for a message beside its body: its headers, subject and record.
pub(super) const BESIDE: u64 = 2048;

/// What is to be replayed.
pub(super) struct Wanted<'a> {
    /// When it was captured, by the broker's clock.
    pub(super) span: Span,
    /// Beginnings of ids; none: all.
    pub(super) ids: &'a [String],
}

/// The copy of a captured item.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) id: Id,
    stream: String,
    sequence: u64,
    /// Length of its body as stored, bytes.
    pub(super) size: u64,
}

/// What was captured in that time under those ids, in the order of its capture; the first copy of each.
pub(super) async fn find(bus: &Bus, pipeline: &Pipeline, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Input>> {
    let mut found: BTreeMap<Id, (u64, Input)> = BTreeMap::new();
    for source in pipeline.stages.iter().filter(|stage| pipeline.captures_here(stage)) {
        let stream = names::stream(&pipeline.name, &source.name);
        let mut records = bus.scan(&stream, 1, true).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            let id = record.headers.id(header::ID).unwrap_or_else(|| Id::stored(&stream, record.sequence));
            let named = || wanted.ids.iter().any(|begin| id.to_string().starts_with(begin));
            if wanted.span.has(record.stored_at) && (wanted.ids.is_empty() || named()) {
                let input = Input { id, stream: stream.clone(), sequence: record.sequence, size: record.size };
                found.entry(id).or_insert((record.stored_at, input));
            }
        }
    }
    for begin in wanted.ids {
        match found.keys().filter(|id| id.to_string().starts_with(begin)).count() {
            0 => bail!(
                "cannot find a captured item whose id begins with `{begin}`{}: its copy is not kept, or it is the id of \
                 something made of one (`captured as` in `causeway dlq show` is the one)",
                if wanted.span == Span::default() { "" } else { " in that time" }
            ),
            1 => {}
            many => bail!("cannot tell which captured item `{begin}` is: {many} begin so"),
        }
    }
    let mut found: Vec<_> = found.into_values().collect();
    found.sort_by_key(|(stored_at, input)| (*stored_at, input.sequence));
    Ok(found.into_iter().map(|(_, input)| input).collect())
}

/// Stores a copy of an input in the run's own capture stream.
pub(super) async fn send(live: &Bus, run: &Bus, input: &Input, name: &str, generation: u32) -> anyhow::Result<()> {
    let gone = || format!("the copy of {} went while it was replayed", input.id);
    let record = live.message_at(&input.stream, input.sequence).await?.with_context(gone)?;
    let body = match live.body(&record.headers, record.body.clone()).await {
        Err(BusError::NoBody(_)) => bail!("{}", gone()),
        other => other?,
    };
    let place = record.subject.split_once('.').map_or(record.subject.as_str(), |(_, place)| place);
    let subject = format!("{}.{place}", run.pipeline());
    let mut outgoing = again(&subject, input.id, generation, |name| record.headers.get(name), body);
    // A trace of its own, and the name of the run, which all that is made of it inherits.
    outgoing.headers.retain(|(name, _)| ![header::TRACEPARENT, header::RUN].contains(name));
    outgoing.headers.push((header::RUN, name.into()));
    loop {
        match run.publish(&outgoing).await {
            Err(PublishError::Unsure { .. }) => {}
            other => return Ok(other.map(|_| ())?),
        }
    }
}
