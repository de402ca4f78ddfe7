//! What went wrong is seen and mended: dead letters are sent again or given up, what is lost is run again, and whoever is
//! killed when, there is one outcome or one letter.

mod drift;
mod letters;
mod net;
mod reconcile;
mod replay;
mod sites;

use std::collections::BTreeMap;

use causeway_bus::{Bus, Outgoing, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, DeadLetter, Feature, Id, Message as _, Meta, encode, header};
use futures::StreamExt as _;
use harness::{Finished, Site, Tools, causeway, face};

/// Runs `causeway COMMAND…` on the pipeline and the server of a site.
async fn command(tools: &Tools, site: &Site, arguments: &[&str]) -> Finished {
    let (file, nats) = (site.pipeline.file.display().to_string(), site.server.address());
    causeway(tools, &[arguments, &["--pipeline", &file, "--nats", &nats]].concat()).await
}

/// A feature that every stage takes, captured as `item`.
fn feature(item: &str) -> (Meta, Vec<u8>) {
    let feature = face("capture", item, &[0.5; 128]);
    let meta = Meta::captured(Id::captured("capture", item), "extract", Feature::kind(), 0);
    (meta, encode(&feature, Codec::Bincode))
}

/// The subject of features.
const FEATURES: &str = "faces.feature.edge.capture";

/// As if `stage` had set the feature aside for a fault of its own that is mended now.
async fn set_aside(bus: &Bus, stage: &str, item: &str) -> Meta {
    let (meta, body) = feature(item);
    let mut headers: Vec<_> = meta.to_headers().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    headers.push((header::CONTENT_TYPE.into(), Codec::Bincode.content_type().into()));
    let letter = DeadLetter {
        stage: stage.into(),
        reason: "panicked".into(),
        detail: "a fault that is mended now".into(),
        attempts: 1,
        models: Vec::new(),
        at: causeway_stage::now_ns(),
        subject: FEATURES.into(),
        headers,
        body,
    };
    let meta_of_letter = Meta { kind: DeadLetter::KIND.into(), stage: stage.into(), ..meta.clone() };
    let mut headers = meta_of_letter.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Json.content_type().into()));
    headers.retain(|(name, _)| *name != header::MSG_ID);
    let subject = format!("faces.dead.edge.capture.{stage}.{}", meta.id);
    let body = encode(&letter, Codec::Json).into();
    bus.publish(&Outgoing { subject, headers, body, if_absent: false }).await.expect("it is stored");
    meta
}

/// How often each subject of a stage's outcomes has a message.
async fn outcomes(bus: &Bus, stage: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    let mut records = bus.scan(&names::stream("faces", stage), 1, true).await.expect("a stream");
    while let Some(record) = records.next().await {
        *found.entry(record.expect("a record").subject).or_default() += 1;
    }
    found
}

/// The subject of the decision about a feature.
fn decision_of(feature: &Meta) -> String {
    format!("faces.decision.edge.capture.{}", feature.id.derived("classify", 0))
}

/// Nothing waits and nothing is held on the way to `stage`.
async fn is_idle(bus: &Bus, pipeline: &Pipeline, stage: &str) -> Option<()> {
    let from = &pipeline.stage(stage)?.from[0];
    let durable = bus.durable_state(&names::stream(&pipeline.name, from), stage).await.ok()??;
    (durable.pending + durable.unacked == 0).then_some(())
}
