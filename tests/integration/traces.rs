//! One trace a photo, from its capture to its outcomes, as a real collector receives it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use harness::{Collector, Running, Span, Tools, copy_photos, drained_within};

/// Runs the face pipeline over a folder to its end, with traces.
async fn run(tools: &Tools, collector: &Collector, input: &Path, more: &[(&str, String)]) -> serde_json::Value {
    let home = tempfile::tempdir().expect("a folder");
    let arguments =
        ["up", "pipelines/faces.toml", "--input", input.to_str().expect("a path"), "--until-drained", "--json"];
    let env = [&[collector.env()], more].concat();
    Running::start_in(tools, home.path(), &arguments, &env).finish().await.ok().json()
}

fn by_trace(spans: &[Span]) -> BTreeMap<&str, Vec<&Span>> {
    let mut traces: BTreeMap<&str, Vec<&Span>> = BTreeMap::new();
    for span in spans {
        traces.entry(&span.trace).or_default().push(span);
    }
    traces
}

fn named<'a>(spans: &[&'a Span], name: &str) -> Vec<&'a Span> {
    spans.iter().copied().filter(|span| span.name == name).collect()
}

/// One root a trace, every other span's parent is there, and none begins before it.
fn assert_whole(spans: &[Span]) {
    let known: HashMap<_, _> = spans.iter().map(|span| ((span.trace.as_str(), span.id.as_str()), span)).collect();
    assert_eq!(known.len(), spans.len(), "no span comes twice");
    for (trace, spans) in by_trace(spans) {
        let (roots, others): (Vec<&Span>, Vec<&Span>) = spans.into_iter().partition(|span| span.parent.is_empty());
        assert_eq!(roots.len(), 1, "{trace}: {roots:#?}");
        for span in others {
            let parent = known.get(&(trace, span.parent.as_str()));
            let parent = parent.unwrap_or_else(|| panic!("an orphan: {span:#?}"));
            assert!(span.start >= parent.start && span.start <= span.end, "{span:#?} {parent:#?}");
        }
    }
}

/// How many spans of each name a photo with so many faces gives; one without any gives an empty.
fn expected(faces: usize) -> BTreeMap<&'static str, usize> {
    let mut names = BTreeMap::from([
        ("publish faces.frame", 1),
        ("receive faces.frame", 1),
        ("process faces.frame", 1),
        ("causeway.inference yunet", 1),
        ("ack faces.frame", 1),
    ]);
    if faces == 0 {
        names.insert("publish faces.empty", 1);
        return names;
    }
    for name in
        ["publish faces.crop", "receive faces.crop", "process faces.crop", "causeway.inference sface", "ack faces.crop"]
    {
        names.insert(name, faces);
    }
    names.extend([
        ("publish faces.feature", faces),
        ("publish faces.decision", faces),
        ("publish faces.assignment", faces),
    ]);
    // `classify` and `cluster` both take it.
    names.extend(["receive faces.feature", "process faces.feature", "ack faces.feature"].map(|name| (name, 2 * faces)));
    names
}

fn assert_complete(spans: &[Span]) {
    for (trace, spans) in by_trace(spans) {
        let faces = named(&spans, "publish faces.crop").len();
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for span in &spans {
            *names.entry(&span.name).or_default() += 1;
        }
        assert_eq!(names, expected(faces), "{trace}");
    }
}

fn outcomes(spans: &[Span]) -> usize {
    spans
        .iter()
        .filter(|span| {
            ["publish faces.decision", "publish faces.assignment", "publish faces.empty"].contains(&&*span.name)
        })
        .count()
}

#[tokio::test]
async fn a_photo_has_one_whole_trace() {
    let Some(collector) = Collector::start().await else { return };
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    for photo in ["hanks-close-up.png", "astronaut.png", "cat.png"] {
        std::fs::copy(tools.photos().join("input").join(photo), input.path().join(photo)).expect("it is copied");
    }
    let summary = run(&tools, &collector, input.path(), &[]).await;
    assert_eq!((&summary["photos"], &summary["faces"]), (&3.into(), &2.into()), "{summary}");
    // Every replica has sent what it had before it ended: what is missing now is only not read yet.
    let all: usize = 2 * expected(1).values().sum::<usize>() + expected(0).values().sum::<usize>();
    let spans = collector.spans_once("all spans", |spans| spans.len() >= all).await;
    assert_eq!(by_trace(&spans).len(), 3);
    assert_whole(&spans);
    assert_complete(&spans);
    assert_conventions(&spans);
}

/// What <https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/> asks for.
fn assert_conventions(spans: &[Span]) {
    let services: BTreeSet<_> = spans.iter().map(|span| span.service.as_str()).collect();
    let stages = ["capture", "classify", "cluster", "extract", "preprocess"].map(|stage| format!("causeway-{stage}"));
    assert_eq!(services, stages.iter().map(String::as_str).collect());
    for span in spans {
        for key in ["service.namespace", "service.instance.id", "service.version", "host.name", "process.pid"] {
            assert!(span.resource.contains_key(key), "{key} of {span:#?}");
        }
        assert_eq!(span.resource["service.namespace"], "faces");
        let attribute = |key: &str| span.attributes.get(key).map_or("", String::as_str);
        let (operation, destination) = span.name.split_once(' ').expect("an operation and what it is done to");
        let (kind, sort) = match operation {
            "publish" => ("PRODUCER", "send"),
            "receive" => ("CLIENT", "receive"),
            "process" => ("CONSUMER", "process"),
            "ack" => ("CLIENT", "settle"),
            "causeway.inference" => {
                assert_eq!(span.kind, "SPAN_KIND_INTERNAL");
                assert_eq!(attribute("causeway.model.name"), destination);
                assert_ne!(attribute("causeway.model.version"), "");
                let compute: f64 = attribute("causeway.inference.compute.duration").parse().expect("seconds");
                let queue: f64 = attribute("causeway.inference.queue.duration").parse().expect("seconds");
                let whole = (span.end - span.start) as f64 / 1e9;
                assert!(compute > 0.0 && compute <= whole + 1e-3 && queue >= 0.0, "{span:#?}");
                continue;
            }
            _ => panic!("{span:#?}"),
        };
        assert_eq!(span.kind, format!("SPAN_KIND_{kind}"), "{span:#?}");
        assert_eq!(attribute("messaging.system"), "nats");
        assert_eq!(attribute("messaging.operation.name"), operation);
        assert_eq!(attribute("messaging.operation.type"), sort);
        // Few destinations, however many messages: a link, without place, source and id.
        assert_eq!(attribute("messaging.destination.name"), destination);
        assert_eq!(destination.split('.').count(), 2, "{destination}");
        assert_eq!(attribute("messaging.message.id").len(), 26, "{span:#?}");
        assert!(attribute("messaging.message.body.size").parse::<u64>().expect("bytes") > 0);
        assert_eq!(attribute("server.address"), "127.0.0.1");
        let stage = span.service.strip_prefix("causeway-").expect("a stage");
        assert_eq!(attribute("messaging.consumer.group.name"), if kind == "PRODUCER" { "" } else { stage });
        assert!(!span.failed && attribute("error.type").is_empty(), "{span:#?}");
    }
}

#[tokio::test]
async fn what_fails_is_told_even_where_nothing_is_sampled() {
    let Some(collector) = Collector::start().await else { return };
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photo = std::fs::read(tools.photos().join("input/astronaut.png")).expect("a photo");
    std::fs::write(input.path().join("whole.png"), &photo).expect("it is written");
    std::fs::write(input.path().join("torn.png"), &photo[..photo.len() / 2]).expect("it is written");
    std::fs::write(input.path().join("text.jpg"), "no picture").expect("it is written");
    let never =
        [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio".into()), ("OTEL_TRACES_SAMPLER_ARG", "0".to_owned())];
    let summary = run(&tools, &collector, input.path(), &never).await;
    assert_eq!((&summary["dead_letters"], &summary["faces"]), (&2.into(), &1.into()), "{summary}");
    let spans = collector.spans_once("the dead letters", |spans| spans.len() >= 5).await;
    assert_whole(&spans);
    let mut traces: Vec<Vec<(&str, &str)>> = Vec::new();
    for (_, spans) in by_trace(&spans) {
        let mut names: Vec<_> = spans.iter().map(|span| (span.name.as_str(), error_of(span))).collect();
        names.sort_unstable();
        traces.push(names);
    }
    traces.sort();
    let torn = [
        ("ack faces.frame", ""),
        ("causeway.inference yunet", ""),
        ("process faces.frame", "truncated"),
        ("publish faces.dead", ""),
        ("receive faces.frame", ""),
    ];
    // It may have been in a batch for which no model ran.
    let without_model: Vec<_> = torn.iter().copied().filter(|(name, _)| !name.starts_with("causeway")).collect();
    assert!(traces[0] == torn || traces[0] == without_model, "{traces:#?}");
    assert_eq!(traces[1..], [vec![("publish faces.dead", "not-an-image")]], "nothing of the whole photo");
    let top = spans.iter().find(|span| span.name == "receive faces.frame").expect("a delivery");
    assert_eq!((top.parent.as_str(), top.links), ("", 1), "what sent it is not exported, but named");
}

fn error_of(span: &Span) -> &str {
    let error = span.attributes.get("error.type").map_or("", String::as_str);
    assert_eq!(span.failed, !error.is_empty(), "{span:#?}");
    error
}

#[tokio::test]
#[ignore = "a thousand photos take minutes"]
async fn a_thousand_photos_have_no_orphan() {
    let Some(collector) = Collector::start().await else { return };
    let tools = Tools::find();
    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 125);
    assert_eq!(photos, 1000);
    let home = tempfile::tempdir().expect("a folder");
    let arguments = ["up", "pipelines/faces.toml", "--input", input.path().to_str().expect("a path"), "--json"];
    let running = Running::start_in(&tools, home.path(), &arguments, &[collector.env()]);
    let pipeline =
        causeway_pipelines::Pipeline::load(harness::workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let bus = running.bus(&pipeline.name).await;
    drained_within(Duration::from_mins(30), &bus, &pipeline, photos).await;
    let summary = running.stop().await.ok().json();
    assert_eq!(summary["photos"], 1000, "{summary}");
    let faces = usize::try_from(summary["faces"].as_u64().expect("faces")).expect("a count");
    let empties = usize::try_from(summary["empties"].as_u64().expect("empties")).expect("a count");
    let spans = collector.spans_once("all outcomes", |spans| outcomes(spans) == 2 * faces + empties).await;
    assert_eq!(by_trace(&spans).len(), photos);
    assert_whole(&spans);
    assert_complete(&spans);
}
