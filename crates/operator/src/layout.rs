//! What a pipeline wants on the bus of the site that it is seen from.

use causeway_bus::{Applied, BucketWish, Bus, BusError, DurableWish, Retention, StreamWish, TakerSort, names};
use causeway_pipelines::{Flow, Phase, Pipeline, Plan, Share, StageSpec, Who};
use std::time::Duration;

/// A replica that has not said how it is for this long is forgotten.
const REPLICA_AGE: Duration = Duration::from_secs(15);
/// A mark is taken back with the answer; one that is this old is of a message that is gone.
const ATTEMPT_AGE: Duration = Duration::from_hours(24);

/// The streams of a pipeline that lie here, in graph order.
pub(crate) fn streams(pipeline: &Pipeline) -> Vec<StreamWish> {
    if pipeline.placement.phase() == Some(Phase::HandOver) {
        return handed_over(streams(&pipeline.before()), streams(&pipeline.after()));
    }
    let plan = pipeline.plan();
    let wish = |name: String, subjects, retention, durables| StreamWish {
        name,
        subjects,
        retention,
        durables,
        copies: pipeline.copies,
        ends: false,
    };
    let mut wishes: Vec<StreamWish> = Vec::new();
    let mut refused = Vec::new();
    for stage in &pipeline.stages {
        let Some(share) = plan.share(Flow::Stage(&stage.name), &pipeline.here) else { continue };
        let name = names::stream(&pipeline.name, &stage.name);
        let retention = retention(pipeline, stage);
        if !share.takers.is_empty() {
            refused.extend(advisories(&name));
        }
        let durables = durables(pipeline, &stage.link, &share);
        wishes.push(wish(name, vec![names::link(&pipeline.name, &stage.link)], retention, durables));
    }
    for (link, retention, durables) in of_ends(pipeline, &plan) {
        let name = names::stream(&pipeline.name, link);
        wishes.push(wish(name, vec![names::link(&pipeline.name, link)], retention, durables));
    }
    // The state of one that is on its way here is made otherwise: see `agent::moves`.
    for fold in pipeline.stages.iter().filter(|stage| stage.folds && stage.sites.contains(&pipeline.here)) {
        let (pipeline_name, fold) = (&pipeline.name, &fold.name);
        for (name, subject) in [
            (names::changelog(pipeline_name, fold), names::changelog_subject(pipeline_name, fold)),
            (names::snapshots(pipeline_name, fold), names::snapshots_subject(pipeline_name, fold)),
        ] {
            wishes.push(wish(name, vec![subject], Retention::Changelog, Vec::new()));
        }
    }
    // A move changes which streams lie here, and nothing of what is said of them may be missed.
    if pipeline.is_split() {
        refused =
            pipeline.stages.iter().flat_map(|stage| advisories(&names::stream(&pipeline.name, &stage.name))).collect();
    }
    // A stream without subjects would take what is called like it.
    if !refused.is_empty() {
        wishes.push(wish(names::advisories(&pipeline.name), refused, outcome(pipeline), Vec::new()));
    }
    wishes
}

/// What there will be, and of what was before what has not ended yet.
fn handed_over(before: Vec<StreamWish>, mut after: Vec<StreamWish>) -> Vec<StreamWish> {
    for mut old in before {
        let new = after.iter_mut().find(|new| new.name == old.name);
        let stays =
            |name: &str| new.as_ref().is_some_and(|new| new.durables.iter().any(|durable| durable.name == name));
        old.durables.retain(|durable| !stays(&durable.name));
        old.durables.iter_mut().for_each(|durable| durable.ends = true);
        match new {
            Some(new) => new.durables.append(&mut old.durables),
            None => after.push(StreamWish { ends: true, ..old }),
        }
    }
    after
}

/// The durables of a stream that lies here.
pub(crate) fn durables_of(pipeline: &Pipeline, stream: &str) -> Vec<DurableWish> {
    streams(pipeline).into_iter().find(|wish| wish.name == stream).map(|wish| wish.durables).unwrap_or_default()
}

/// What fills a stream: a stage, or `empty` and its like.
pub(crate) fn filled_by<'a>(pipeline: &Pipeline, stream: &'a str) -> &'a str {
    stream.strip_prefix(&names::stream(&pipeline.name, "")).unwrap_or(stream)
}

/// Empties, dead letters, and receipts of those that lie elsewhere.
fn of_ends(pipeline: &Pipeline, plan: &Plan<'_>) -> Vec<(&'static str, Retention, Vec<DurableWish>)> {
    // A letter of a message that was sent again, and fails again, takes the place of the one before.
    let newest = Retention::Newest { bytes: pipeline.keep_outcomes.bytes, age: pipeline.keep_outcomes.age };
    let share = plan.share(Flow::Ends, &pipeline.here);
    let carried = |link| share.as_ref().map(|share| (link, outcome(pipeline), durables(pipeline, link, share)));
    let receipts = carried(names::RECEIPT).filter(|_| pipeline.is_split());
    carried(names::EMPTY).into_iter().chain([(names::DEAD, newest, Vec::new())]).chain(receipts).collect()
}

/// Kept for whoever reads it.
fn outcome(pipeline: &Pipeline) -> Retention {
    Retention::Outcome { bytes: pipeline.keep_outcomes.bytes, age: pipeline.keep_outcomes.age }
}

fn retention(pipeline: &Pipeline, stage: &StageSpec) -> Retention {
    if pipeline.is_final(&stage.name) {
        outcome(pipeline)
    } else if pipeline.captures_here(stage) {
        Retention::Capture { bytes: pipeline.keep_captured.bytes }
    } else {
        Retention::Link { bytes: stage.link_bytes }
    }
}

/// Who takes here: stages, and relays for other sites.
fn durables(pipeline: &Pipeline, link: &str, share: &Share) -> Vec<DurableWish> {
    let wish = |taker: &causeway_pipelines::Taker| {
        let sort = match &taker.who {
            Who::Stage(name) if pipeline.stage(name).is_some_and(|stage| stage.folds) => TakerSort::Pinned,
            Who::Stage(_) => TakerSort::Shared,
            Who::Site(_) => TakerSort::Relay,
        };
        let name = durable_of(&taker.who);
        let some = share.some_of(taker);
        let subjects = some.iter().map(|site| names::link_of_site(&pipeline.name, link, site)).collect();
        DurableWish { name, taker: sort, subjects, ends: false }
    };
    share.takers.iter().map(wish).collect()
}

/// The durable of a taker.
pub(crate) fn durable_of(who: &Who) -> String {
    match who {
        Who::Stage(name) => name.clone(),
        Who::Site(site) => names::relay(site),
    }
}

/// What the broker says, once and to nobody in particular, when it gives up on a message of a stream.
fn advisories(stream: &str) -> [String; 2] {
    ["MAX_DELIVERIES", "MSG_TERMINATED"].map(|what| format!("$JS.EVENT.ADVISORY.CONSUMER.{what}.{stream}.>"))
}

/// The buckets of a pipeline.
pub(crate) fn buckets(pipeline: &Pipeline) -> Vec<BucketWish> {
    let table =
        |name: &str, age| BucketWish::Table { name: names::bucket(&pipeline.name, name), age, copies: pipeline.copies };
    vec![
        table(names::PEOPLE, None),
        table(names::CONTROL, None),
        table(names::PLACEMENT, None),
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
