//! What a pipeline wants on the bus.

use causeway_bus::{Applied, BucketWish, Bus, BusError, DurableWish, Retention, StreamWish, names};
use causeway_pipelines::{Pipeline, StageSpec};
use std::time::Duration;

/// A replica that has not said how it is for this long is forgotten.
const REPLICA_AGE: Duration = Duration::from_secs(15);
/// A mark is taken back with the answer; one that is this old is of a message that is gone.
const ATTEMPT_AGE: Duration = Duration::from_hours(24);

/// The streams of a pipeline, in graph order.
pub(crate) fn streams(pipeline: &Pipeline) -> Vec<StreamWish> {
    let outcome = Retention::Outcome { bytes: pipeline.keep_outcomes.bytes, age: pipeline.keep_outcomes.age };
    let mut wishes: Vec<StreamWish> = pipeline.stages.iter().map(|stage| of_stage(pipeline, stage, outcome)).collect();
    // A letter of a message that was sent again, and fails again, takes the place of the one before.
    let newest = Retention::Newest { bytes: pipeline.keep_outcomes.bytes, age: pipeline.keep_outcomes.age };
    for (link, retention) in [(names::EMPTY, outcome), (names::DEAD, newest)] {
        wishes.push(StreamWish {
            name: names::stream(&pipeline.name, link),
            subjects: vec![names::link(&pipeline.name, link)],
            retention,
            durables: Vec::new(),
            copies: pipeline.copies,
        });
    }
    for fold in pipeline.stages.iter().filter(|stage| stage.folds) {
        let (pipeline_name, fold) = (&pipeline.name, &fold.name);
        for (name, subject) in [
            (names::changelog(pipeline_name, fold), names::changelog_subject(pipeline_name, fold)),
            (names::snapshots(pipeline_name, fold), names::snapshots_subject(pipeline_name, fold)),
        ] {
            wishes.push(StreamWish {
                name,
                subjects: vec![subject],
                retention: Retention::Changelog,
                durables: Vec::new(),
                copies: pipeline.copies,
            });
        }
    }
    wishes.push(StreamWish {
        name: names::advisories(&pipeline.name),
        subjects: advisories(pipeline),
        retention: outcome,
        durables: Vec::new(),
        copies: pipeline.copies,
    });
    wishes
}

fn of_stage(pipeline: &Pipeline, stage: &StageSpec, outcome: Retention) -> StreamWish {
    let retention = if pipeline.is_final(&stage.name) {
        outcome
    } else if stage.is_source() {
        Retention::Capture { bytes: pipeline.keep_captured.bytes }
    } else {
        Retention::Link { bytes: stage.link_bytes }
    };
    let takers = pipeline.takers(&stage.name);
    StreamWish {
        name: names::stream(&pipeline.name, &stage.name),
        subjects: vec![names::link(&pipeline.name, &stage.link)],
        retention,
        durables: takers.map(|taker| DurableWish { name: taker.name.clone(), pinned: taker.folds }).collect(),
        copies: pipeline.copies,
    }
}

/// What the broker says, once and to nobody in particular, when it gives up on a message.
fn advisories(pipeline: &Pipeline) -> Vec<String> {
    let links = pipeline.stages.iter().filter(|stage| !pipeline.is_final(&stage.name));
    links
        .flat_map(|stage| {
            let stream = names::stream(&pipeline.name, &stage.name);
            ["MAX_DELIVERIES", "MSG_TERMINATED"].map(|what| format!("$JS.EVENT.ADVISORY.CONSUMER.{what}.{stream}.>"))
        })
        .collect()
}

/// The buckets of a pipeline.
pub(crate) fn buckets(pipeline: &Pipeline) -> Vec<BucketWish> {
    let table =
        |name: &str, age| BucketWish::Table { name: names::bucket(&pipeline.name, name), age, copies: pipeline.copies };
    vec![
        table(names::PEOPLE, None),
        table(names::CONTROL, None),
        table(names::ATTEMPTS, Some(ATTEMPT_AGE)),
        table(names::REPLICAS, Some(REPLICA_AGE)),
        BucketWish::Bodies {
            name: names::bodies(&pipeline.name),
            age: pipeline.keep_outcomes.age,
            copies: pipeline.copies,
        },
    ]
}

/// Makes one table of a pipeline unless it is there: for who needs it before the pipeline ever ran.
pub(crate) async fn apply_table(bus: &Bus, pipeline: &Pipeline, table: &str) -> Result<(), BusError> {
    let bucket = names::bucket(&pipeline.name, table);
    for wish in buckets(pipeline) {
        if matches!(&wish, BucketWish::Table { name, .. } if *name == bucket) {
            bus.apply_bucket(&wish).await?;
        }
    }
    Ok(())
}

/// Makes or compares everything a pipeline wants; gives each name with what was done.
pub(crate) async fn apply(bus: &Bus, pipeline: &Pipeline) -> Result<Vec<(String, Applied)>, BusError> {
    let mut done = Vec::new();
    for wish in streams(pipeline) {
        let applied = bus.apply_stream(&wish).await?;
        done.push((wish.name, applied));
    }
    for wish in buckets(pipeline) {
        let applied = bus.apply_bucket(&wish).await?;
        let (BucketWish::Table { name, .. } | BucketWish::Bodies { name, .. }) = wish;
        done.push((name, applied));
    }
    Ok(done)
}
