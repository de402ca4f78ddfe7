//! Pipeline files as people write them, right and wrong.

use std::path::Path;
use std::time::Duration;

use causeway_pipelines::{
    CaptureOptions, ClassifyOptions, ClusterOptions, DEFAULT_KEEP_OUTCOMES, ExtractOptions, Fault, First, Keep,
    MAX_FILE_BYTES, Override, Pipeline, PipelineError, PreprocessOptions, StageSpec, Sync, USES, defaults,
};
use proptest::prelude::*;

const GOOD: &str = r#"
pipeline = "faces"
[keep]
captured = { age = "2h", bytes = "8MiB" }
[site.edge]
[site.cloud]
hub = true
[stage.capture]
input = "photos"
rate = 5
[stage.preprocess]
from = "capture"
model = "yunet"
gate = { min_score = 0.9 }
batch = { max = 4, wait_ms = 5 }
[stage.extract]
from = ["preprocess"]
model = "sface"
workers = 2
link_bytes = "1GiB"
max_process_ms = 1000
[stage.who]
uses = "classify"
from = "extract"
threshold = 0.5
[stage.cluster]
from = "extract"
"#;

fn load(text: &str, overrides: &[&str]) -> Result<Pipeline, PipelineError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    let overrides: Vec<Override> = overrides.iter().map(|set| set.parse().unwrap()).collect();
    Pipeline::load_with(&path, &overrides)
}

fn good(text: &str, overrides: &[&str]) -> Pipeline {
    load(text, overrides).unwrap_or_else(|error| panic!("{error}"))
}

fn faults(text: &str, overrides: &[&str]) -> Vec<Fault> {
    load(text, overrides).err().map_or(Vec::new(), |error| error.faults().to_vec())
}

#[test]
fn copies_are_of_an_odd_number_and_the_server_syncs_as_it_is_told() {
    let with = |keep: &str| GOOD.replace("[keep]", &format!("[keep]\n{keep}"));
    let pipeline = good(GOOD, &[]);
    assert_eq!((pipeline.copies, pipeline.sync), (1, Sync::Every(Duration::from_mins(2))));
    let pipeline = good(&with("copies = 3\nsync = \"always\""), &[]);
    assert_eq!((pipeline.copies, pipeline.sync), (3, Sync::Always));
    let told: Vec<String> = faults(&with("copies = 2"), &[]).iter().map(|fault| fault.message.clone()).collect();
    assert_eq!(told, ["`keep.copies` is 2: it must be 1, 3 or 5, as most of them have to agree"]);
    assert_eq!(good(&with("sync = \"10s\""), &[]).sync, Sync::Every(Duration::from_secs(10)));
    for wrong in ["never", "1ms", "2h"] {
        let told = faults(&with(&format!("sync = {wrong:?}")), &[]);
        let why = "\"always\" or a duration of 100ms to 1h, such as \"10s\"";
        assert!(told.len() == 1 && told[0].message.contains(why), "{told:?}");
    }
}

/// Line and column of the mark `¦`, and the text without it.
fn unmark(text: &str) -> (usize, usize, String) {
    let at = text.find('¦').expect("a mark says where the fault is");
    let before = &text[..at];
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (before.matches('\n').count() + 1, column, text.replace('¦', ""))
}

/// `GOOD` with `from` replaced by `to` has this one fault, at the mark in `to`.
#[track_caller]
fn one_fault(from: &str, to: &str, stage: Option<&str>, key: Option<&str>, message: &str, help: Option<&str>) {
    assert!(GOOD.contains(from), "{from}");
    let (line, column, text) = unmark(&GOOD.replacen(from, to, 1));
    let faults = faults(&text, &[]);
    let [fault] = &faults[..] else { panic!("one fault of {to:?}, not {faults:#?}") };
    assert_eq!((fault.line, fault.column), (line, column), "{fault}");
    assert_eq!((fault.stage.as_deref(), fault.key.as_deref()), (stage, key), "{fault}");
    assert!(fault.message.contains(message), "{fault}");
    assert!(fault.file.ends_with("p.toml"), "{fault}");
    match help {
        Some(help) => assert!(fault.help.as_ref().is_some_and(|found| found.contains(help)), "{fault}"),
        None => assert_eq!(fault.help, None, "{fault}"),
    }
}

#[test]
fn every_pipeline_of_this_folder_loads() {
    let mut loaded = 0;
    for entry in std::fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "toml")
            && path.file_name().is_some_and(|name| name != "Cargo.toml")
        {
            let pipeline = Pipeline::load(&path).unwrap_or_else(|error| panic!("{}", error.render(false)));
            assert_eq!(Some(pipeline.name.as_str()), path.file_stem().and_then(|stem| stem.to_str()));
            for stage in &pipeline.stages {
                options_read(stage);
            }
            loaded += 1;
        }
    }
    assert!(loaded > 0);
}

fn options_read(stage: &StageSpec) {
    let read = match stage.uses.as_str() {
        "capture" => stage.options::<CaptureOptions>().err(),
        "preprocess" => stage.options::<PreprocessOptions>().err(),
        "extract" => stage.options::<ExtractOptions>().err(),
        "classify" => stage.options::<ClassifyOptions>().err(),
        "cluster" => stage.options::<ClusterOptions>().err(),
        other => Some(format!("{other} has no options here")),
    };
    assert_eq!(read, None);
}

#[test]
fn what_is_written_is_what_is_meant() {
    let pipeline = good(GOOD, &[]);
    assert_eq!(pipeline.name, "faces");
    let sites: Vec<_> = pipeline.sites.iter().map(|site| (site.name.as_str(), site.is_hub)).collect();
    assert_eq!((sites, pipeline.here.as_str()), (vec![("edge", false), ("cloud", true)], "cloud"));
    assert_eq!(pipeline.keep_captured, Keep { age: Duration::from_hours(2), bytes: 8 << 20 });
    assert_eq!(pipeline.keep_outcomes, DEFAULT_KEEP_OUTCOMES);
    let preprocess = pipeline.stage("preprocess").unwrap();
    assert_eq!((preprocess.batch.max, preprocess.batch.wait), (4, Duration::from_millis(5)));
    assert_eq!((preprocess.takes, preprocess.gives, preprocess.link.as_str()), (Some("frame"), "crop", "crop"));
    let options: PreprocessOptions = preprocess.options().unwrap();
    assert_eq!((options.model.as_str(), options.input_size), ("yunet", 640));
    assert!((options.gate.min_score - 0.9).abs() < 1e-6 && (options.gate.min_size - 24.0).abs() < 1e-6);
    let extract = pipeline.stage("extract").unwrap();
    assert_eq!((extract.workers, extract.link_bytes, extract.max_process), (2, 1 << 30, Duration::from_secs(1)));
    let who = pipeline.stage("who").unwrap();
    assert_eq!(
        (who.uses.as_str(), &*who.sites, who.workers),
        ("classify", &["edge".to_owned()][..], defaults::WORKERS)
    );
    assert!(pipeline.stage("cluster").unwrap().folds);
    assert_eq!(pipeline.stage("capture").unwrap().options::<CaptureOptions>().unwrap().rate, Some(5.0));
}

#[test]
fn graph_order_is_the_order_of_the_file_where_it_can_be() {
    let (capture, rest) = GOOD.split_at(GOOD.find("[stage.preprocess]").unwrap());
    let (head, capture) = capture.split_at(capture.find("[stage.capture]").unwrap());
    let pipeline = good(&format!("{head}{rest}{capture}"), &[]);
    let names: Vec<&str> = pipeline.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(names, ["capture", "preprocess", "extract", "who", "cluster"]);
}

#[test]
fn overrides_take_the_place_of_the_file() {
    let sets =
        ["who.threshold=0.6", "preprocess.gate.min_size=40", "extract.batch.max=2", "capture.input=other photos"];
    let pipeline = good(GOOD, &sets);
    let who: ClassifyOptions = pipeline.stage("who").unwrap().options().unwrap();
    assert!((who.threshold - 0.6).abs() < 1e-6);
    let preprocess: PreprocessOptions = pipeline.stage("preprocess").unwrap().options().unwrap();
    assert!((preprocess.gate.min_size - 40.0).abs() < 1e-6 && (preprocess.gate.min_score - 0.9).abs() < 1e-6);
    assert_eq!(pipeline.stage("extract").unwrap().batch.max, 2);
    let capture: CaptureOptions = pipeline.stage("capture").unwrap().options().unwrap();
    assert_eq!(capture.input.as_deref(), Some(Path::new("other photos")));
}

#[test]
fn a_folder_may_be_called_like_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, GOOD).unwrap();
    let pipeline = Pipeline::load_with(&path, &[Override::text("capture", "input", "2024-01-01")]).unwrap();
    let capture: CaptureOptions = pipeline.stage("capture").unwrap().options().unwrap();
    assert_eq!(capture.input.as_deref(), Some(Path::new("2024-01-01")));
}

#[test]
fn a_wrong_override_is_shown_on_the_command_line() {
    let sets =
        ["who.threshold=7", "whom.threshold=0.5", "who.thresold=0.5", "extract.model.name=x", "extract.workers=[1]"];
    let found: Vec<_> = faults(GOOD, &sets)
        .into_iter()
        .map(|fault| {
            assert_eq!(fault.file, "--set", "{fault}");
            (fault.line, fault.column, fault.message, fault.help)
        })
        .collect();
    let help = |text: &str| Some(text.to_owned());
    assert_eq!(
        found,
        [
            (1, 15, "`threshold` is 7: it must be within -1..=1".into(), None),
            (2, 1, "there is no stage `whom`".into(), help("did you mean `who`?")),
            (3, 5, "unknown key `thresold`".into(), help("did you mean `threshold`?")),
            (4, 9, "`model` is no table: it has no key in it".into(), None),
            (5, 17, "`workers` must be a whole number, 0 or more, not an array".into(), None),
        ]
    );
}

#[test]
fn unknown_keys() {
    let mean = |name: &str| format!("did you mean `{name}`?");
    one_fault("pipeline =", "¦names = 1\npipeline =", None, Some("names"), "unknown key `names`", Some("known here"));
    one_fault("[keep]", "[¦kep]\n[keep]", None, Some("kep"), "unknown key `kep`", Some(&mean("keep")));
    one_fault("bytes =", "¦byte =", None, Some("keep.captured.byte"), "unknown key", Some(&mean("bytes")));
    one_fault("captured =", "¦capture =", None, Some("keep.capture"), "unknown key", Some(&mean("captured")));
    let (credential, key) = ("[site.cloud]\n¦credential = \"c.creds\"", "site.cloud.credential");
    one_fault("[site.cloud]", credential, None, Some(key), "unknown key", Some(&mean("credentials")));
    one_fault("threshold", "¦thresold", Some("who"), Some("thresold"), "unknown key", Some(&mean("threshold")));
    one_fault("workers", "¦worker", Some("extract"), Some("worker"), "unknown key", Some(&mean("workers")));
    one_fault("rate =", "¦model =", Some("capture"), Some("model"), "unknown key", Some("known here: input"));
    one_fault("max = 4", "¦maxi = 4", Some("preprocess"), Some("batch.maxi"), "unknown key", Some(&mean("max")));
    let gate = "gate.min_scor";
    one_fault("{ min_score", "{ ¦min_scor", Some("preprocess"), Some(gate), "unknown key", Some(&mean("min_score")));
}

#[test]
fn wrong_types() {
    one_fault("\"faces\"", "¦7", None, Some("pipeline"), "`pipeline` must be a text in quotes, not 7", None);
    one_fault(
        "[stage.cluster]",
        "[stage]\nx = ¦3\n[stage.cluster]",
        None,
        Some("stage.x"),
        "a table of keys, not 3",
        None,
    );
    one_fault("= 0.5", "= ¦\"high\"", Some("who"), Some("threshold"), "a number, not the text \"high\"", None);
    one_fault(
        "workers = 2",
        "workers = ¦2.5",
        Some("extract"),
        Some("workers"),
        "a whole number, 0 or more, not 2.5",
        None,
    );
    one_fault(
        "workers = 2",
        "workers = ¦-1",
        Some("extract"),
        Some("workers"),
        "a whole number, 0 or more, not -1",
        None,
    );
    one_fault(
        "[\"preprocess\"]",
        "[¦3]",
        Some("extract"),
        Some("from"),
        "`from` must be a text in quotes, not 3",
        None,
    );
    one_fault("[\"preprocess\"]", "¦true", Some("extract"), Some("from"), "an array of names, not true", None);
    one_fault("{ min_score = 0.9 }", "¦0.9", Some("preprocess"), Some("gate"), "a table of keys, not 0.9", None);
}

#[test]
fn durations_and_sizes() {
    one_fault("\"2h\"", "¦\"2 moons\"", None, Some("keep.captured.age"), "a duration such as \"7d\"", None);
    one_fault("\"2h\"", "¦7", None, Some("keep.captured.age"), "a duration such as", None);
    one_fault("\"2h\"", "¦\"0s\"", None, Some("keep.captured.age"), "more than 0", None);
    one_fault("\"2h\"", "¦\"9999y\"", None, Some("keep.captured.age"), "at most 100 years", None);
    one_fault("\"8MiB\"", "¦\"8 MoB\"", None, Some("keep.captured.bytes"), "a size such as \"256MiB\"", None);
    one_fault("\"8MiB\"", "¦\"1KiB\"", None, Some("keep.captured.bytes"), "within 1.0 MiB..=16.0 TiB", None);
    one_fault("\"1GiB\"", "¦-5", Some("extract"), Some("link_bytes"), "a size such as", None);
    one_fault("\"1GiB\"", "¦0", Some("extract"), Some("link_bytes"), "within 1.0 MiB", None);
}

#[test]
fn values_out_of_range() {
    let cases = [
        ("= 0.5", "= ¦1.01", "who", "threshold"),
        ("= 0.5", "= ¦-2", "who", "threshold"),
        ("= 0.5", "= ¦nan", "who", "threshold"),
        ("= 0.5", "= 0.5\nmargin = ¦-0.01", "who", "margin"),
        ("= 0.5", "= 0.5\nmargin = ¦inf", "who", "margin"),
        ("[stage.cluster]", "[stage.cluster]\nthreshold = ¦1e300", "cluster", "threshold"),
        ("rate = 5", "rate = ¦0", "capture", "rate"),
        ("rate = 5", "rate = ¦nan", "capture", "rate"),
        ("rate = 5", "max_pixels = ¦0", "capture", "max_pixels"),
        ("rate = 5", "max_bytes = ¦\"1GiB\"", "capture", "max_bytes"),
        ("model = \"yunet\"", "model = \"yunet\"\ninput_size = ¦330", "preprocess", "input_size"),
        ("model = \"yunet\"", "model = \"yunet\"\ninput_size = ¦32", "preprocess", "input_size"),
        ("model = \"yunet\"", "model = \"yunet\"\ninput_size = ¦1952", "preprocess", "input_size"),
        ("model = \"yunet\"", "model = \"yunet\"\nmin_score = ¦1.1", "preprocess", "min_score"),
        ("model = \"yunet\"", "model = ¦\"../yunet\"", "preprocess", "model"),
        ("min_score = 0.9", "min_score = ¦2", "preprocess", "gate.min_score"),
        ("min_score = 0.9", "min_size = ¦-1", "preprocess", "gate.min_size"),
        ("max = 4", "max = ¦0", "preprocess", "batch.max"),
        ("max = 4", "max = ¦1025", "preprocess", "batch.max"),
        ("wait_ms = 5", "wait_ms = ¦60001", "preprocess", "batch.wait_ms"),
        ("workers = 2", "workers = ¦0", "extract", "workers"),
        ("workers = 2", "workers = ¦65", "extract", "workers"),
        ("max_process_ms = 1000", "max_process_ms = ¦99", "extract", "max_process_ms"),
        ("[stage.cluster]", "[stage.cluster]\nworkers = ¦2", "cluster", "workers"),
        ("rate = 5", "workers = ¦2", "capture", "workers"),
    ];
    for (from, to, stage, key) in cases {
        one_fault(from, to, Some(stage), Some(key), key, None);
    }
}

#[test]
fn what_is_missing_is_told_at_the_stage() {
    one_fault(
        "[stage.extract]\nfrom = [\"preprocess\"]",
        "[stage.¦extract]",
        Some("extract"),
        Some("from"),
        "`from` is missing",
        Some("from = "),
    );
    one_fault(
        "[stage.extract]\nfrom = [\"preprocess\"]\nmodel = \"sface\"",
        "[stage.¦extract]\nfrom = \"preprocess\"",
        Some("extract"),
        Some("model"),
        "`model` is missing",
        None,
    );
    let (line, column, text) = unmark("¦[stage.capture]\n");
    let found = faults(&text, &[]);
    assert_eq!(
        (found[0].line, found[0].column, found[0].key.as_deref()),
        (line, column, Some("pipeline")),
        "{found:?}"
    );
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn stages_that_are_not_there() {
    let mean = Some("did you mean `extract`?");
    one_fault("from = \"extract\"\nt", "from = ¦\"extrakt\"\nt", Some("who"), Some("from"), "no stage `extrakt`", mean);
    one_fault(
        "[\"preprocess\"]",
        "[\"preprocess\", ¦\"nothing\"]",
        Some("extract"),
        Some("from"),
        "no stage `nothing`",
        None,
    );
    one_fault(
        "uses = \"classify\"",
        "uses = ¦\"classifyy\"",
        Some("who"),
        Some("uses"),
        "`classifyy`",
        Some("did you mean `classify`?"),
    );
    one_fault(
        "[stage.cluster]",
        "[stage.¦dream]",
        Some("dream"),
        Some("uses"),
        "`dream`",
        Some("known: capture, preprocess"),
    );
    let found = faults("pipeline = \"p\"\n", &[]);
    assert_eq!((found.len(), found[0].line, found[0].message.as_str()), (1, 1, "the pipeline has no stages"));
    let found = faults("pipeline = \"p\"\n[stage.extract]\nfrom = \"extract2\"\nmodel=\"m\"\n", &[]);
    assert!(found.iter().any(|fault| fault.message.contains("no source") && fault.line == 2), "{found:?}");
}

#[test]
fn links_that_do_not_fit() {
    let help = Some("`extract` gives a feature");
    one_fault(
        "from = \"extract\"\nt",
        "from = ¦\"preprocess\"\nt",
        Some("who"),
        Some("from"),
        "classify takes a feature, but `preprocess` gives a crop",
        help,
    );
    one_fault("rate = 5", "from = ¦\"who\"", Some("capture"), Some("from"), "is a source", None);
    one_fault("[\"preprocess\"]", "[\"preprocess\", ¦\"preprocess\"]", Some("extract"), Some("from"), "twice", None);
    one_fault(
        "[stage.cluster]",
        "[stage.¦again]\nuses = \"classify\"",
        Some("again"),
        Some("emits"),
        "`faces.decision.…`, as `who` does",
        Some("emits = \"again-decision\""),
    );
    let mended = GOOD.replace("[stage.cluster]", "[stage.again]\nuses = \"classify\"\nemits = \"again-decision\"");
    assert_eq!(good(&mended, &[]).stage("again").unwrap().link, "again-decision");
}

#[test]
fn a_cycle_is_named_once() {
    let text = "pipeline = \"p\"\n[stage.capture]\n[stage.a]\nuses = \"extract\"\nmodel = \"m\"\nfrom = \"c\"\n[stage.b]\nuses = \"extract\"\nmodel = \"m\"\nfrom = \"a\"\nemits = \"b\"\n[stage.c]\nuses = \"extract\"\nmodel = \"m\"\nfrom = \"b\"\nemits = \"c\"\n";
    let found = faults(text, &[]);
    let circles: Vec<_> = found.iter().filter(|fault| fault.message.contains("circle")).collect();
    let [circle] = circles[..] else { panic!("{found:?}") };
    assert_eq!((circle.line, circle.column, circle.stage.as_deref()), (6, 8, Some("a")));
    assert_eq!(circle.message, "the stages go in a circle: a → b → c → a");
    let text = GOOD.replace("from = [\"preprocess\"]", "from = \"extract\"");
    assert!(faults(&text, &[]).iter().any(|fault| fault.message.ends_with("extract → extract")));
}

#[test]
fn sites() {
    let mean = Some("did you mean `cloud`?");
    one_fault(
        "[stage.cluster]",
        "[stage.cluster]\nsite = ¦\"clud\"",
        Some("cluster"),
        Some("site"),
        "no site `clud`",
        mean,
    );
    one_fault("[site.cloud]", "[site.¦Cloud]", None, Some("site.Cloud"), "no name of a site", None);
    let only = good(&GOOD.replace("[site.edge]\n[site.cloud]\nhub = true\n", ""), &[]);
    assert_eq!((only.sites.len(), only.hub().name.as_str(), only.is_split()), (1, "edge", false));
}

#[test]
fn stages_at_several_sites() {
    let names = |sites: &[String]| sites.join(" ");
    let text =
        GOOD.replace("[site.edge]", "[site.edge-1]\n[site.edge-2]").replace("input = \"photos\"", "site = \"edge-*\"");
    let text = text.replace("model = \"yunet\"", "model = \"yunet\"\nsite = [\"edge-2\", \"edge-1\", \"edge-*\"]");
    let at_hub = "model = \"sface\"\nsite = \"cloud\"";
    let pipeline = good(&text.replace("model = \"sface\"", at_hub), &[]);
    let sites = |stage: &str| names(&pipeline.stage(stage).unwrap().sites);
    assert_eq!(
        [sites("capture"), sites("preprocess"), sites("extract"), sites("who")],
        ["edge-1 edge-2", "edge-2 edge-1", "cloud", "edge-1"]
    );

    let place = "[stage.cluster]";
    let fold = "[stage.cluster]\nsite = ¦[\"edge\", \"cloud\"]";
    one_fault(place, fold, Some("cluster"), Some("site"), "its state has one writer", None);
    let missing = "[stage.cluster]\nsite = [\"edge\", ¦\"lake-*\"]";
    one_fault(place, missing, Some("cluster"), Some("site"), "no site `lake-*`", Some("edge, cloud"));
    let text = GOOD
        .replace("[site.edge]", "[site.edge]\n[site.lake]")
        .replace("rate = 5", "rate = 5\nsite = [\"edge\", \"lake\"]");
    let text = text.replace("model = \"yunet\"", "model = \"yunet\"\nsite = [\"edge\", \"cloud\"]");
    let found = faults(&text, &[]);
    let [fault] = &found[..] else { panic!("{found:?}") };
    assert_eq!((fault.stage.as_deref(), fault.key.as_deref()), (Some("preprocess"), Some("site")));
    assert!(fault.message.starts_with("`capture` runs at lake, where this stage does not"), "{fault}");
    let idle = "model = \"sface\"\nsite = ¦[\"edge\", \"cloud\"]";
    one_fault(
        "model = \"sface\"",
        idle,
        Some("extract"),
        Some("site"),
        "nothing that it takes is made at cloud",
        Some("leave that"),
    );
    let among = GOOD.replace("rate = 5", "rate = 5\nsite = [\"edge\", \"cloud\"]");
    let found = faults(&among, &[]);
    let [fault] = &found[..] else { panic!("{found:?}") };
    assert!(fault.message.contains("would lie among what is captured here"), "{fault}");
}

#[test]
fn one_of_several_sites_is_the_hub() {
    let without = GOOD.replace("hub = true\n", "");
    let found = faults(&without, &[]);
    let [fault] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (fault.key.as_deref(), &*fault.message),
        (Some("site"), "none of the sites is the hub, which the others dial")
    );
    assert!(fault.help.as_ref().is_some_and(|help| help.contains("[site.cloud]")), "{fault}");

    let edge = |keys: &str| format!("[site.edge]\n{keys}");
    let key = |key: &str| format!("site.edge.{key}");
    let two = "[site.cloud]\nhub = true\n[site.second]\nhub = ¦true";
    one_fault("[site.cloud]\nhub = true", two, None, Some("site.second.hub"), "cloud is the hub already", None);
    let no = "hub = true\nfirst = ¦\"newest\"";
    one_fault("hub = true", no, None, Some("site.cloud.first"), "cloud is the hub", Some("a site that dials"));
    let slow = edge("bytes_per_s = ¦\"1B\"");
    one_fault("[site.edge]", &slow, None, Some(&key("bytes_per_s")), "must be within", None);
    let web = edge("address = ¦\"http://edge\"");
    one_fault(
        "[site.edge]",
        &web,
        None,
        Some(&key("address")),
        "no address of a NATS server",
        Some("nats://HOST:4222"),
    );
    let never = edge("first = ¦\"never\"");
    one_fault("[site.edge]", &never, None, Some(&key("first")), "never", None);

    let keys = "address = \"nats://a:4222, tls://b\"\ncredentials = \"keys/edge.creds\"\nbytes_per_s = \"1MiB\"\nfirst = \"newest\"";
    let pipeline = good(&GOOD.replace("[site.edge]", &edge(keys)), &[]);
    let edge = pipeline.site("edge").unwrap();
    assert_eq!((edge.bytes_per_s, edge.first), (Some(1 << 20), First::Newest));
    assert!(edge.address.is_some() && edge.credentials.is_some() && !edge.is_hub);
}

#[test]
fn names_are_one_token_of_a_subject() {
    one_fault("\"faces\"", "¦\"my_faces\"", None, Some("pipeline"), "has no `_`", Some("my-faces"));
    one_fault("\"faces\"", "¦\"my.faces\"", None, Some("pipeline"), "no name of a pipeline", None);
    one_fault("\"faces\"", "¦\"\"", None, Some("pipeline"), "no name of a pipeline", None);
    one_fault("[stage.who]", "[stage.¦\"w ho\"]", Some("w ho"), Some("stage"), "no name of a stage", None);
    one_fault("[stage.who]", "[stage.¦Who]", Some("Who"), Some("stage"), "no name of a stage", None);
    one_fault("[stage.who]", "[stage.¦dead]", Some("dead"), Some("stage"), "the runtime's own", None);
    one_fault(
        "[stage.who]",
        &format!("[stage.¦{}]", "w".repeat(49)),
        Some(&"w".repeat(49)),
        Some("stage"),
        "at most 48",
        None,
    );
    one_fault("= 0.5", "= 0.5\nemits = ¦\"a.b\"", Some("who"), Some("emits"), "no name of a link", None);
    one_fault("= 0.5", "= 0.5\nemits = ¦\"empty\"", Some("who"), Some("emits"), "the runtime's own", None);
}

#[test]
fn syntax() {
    one_fault("= 0.5", "= 0.5¦.5", None, None, "cannot read this as TOML", None);
    one_fault("threshold = 0.5", "threshold ¦=", None, None, "cannot read this as TOML", None);
    one_fault("\"photos\"", "\"photos\"\n¦input = \"more\"", None, None, "duplicate key", None);
    // What still can be read is checked too; what may only be unreadable is not called missing.
    let found = faults(&GOOD.replace("[stage.preprocess]", "[stage.preprocess").replace("= 0.5", "= 5"), &[]);
    let messages: Vec<&str> = found.iter().map(|fault| fault.message.as_str()).collect();
    assert_eq!(
        messages,
        ["cannot read this as TOML: unclosed table, expected `]`", "`threshold` is 5: it must be within -1..=1"]
    );
}

#[test]
fn files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let gone = Pipeline::load(dir.path().join("gone.toml")).unwrap_err();
    assert!(gone.to_string().starts_with("cannot read the pipeline file ") && gone.faults().is_empty(), "{gone}");
    assert!(matches!(Pipeline::load(dir.path()).unwrap_err(), PipelineError::Read { .. }));
    let long = dir.path().join("long.toml");
    std::fs::write(&long, "#".repeat(MAX_FILE_BYTES as usize + 1)).unwrap();
    assert!(matches!(Pipeline::load(&long).unwrap_err(), PipelineError::TooLong { .. }));
    let binary = dir.path().join("binary.toml");
    std::fs::write(&binary, b"pipeline = \"p\"\n# \xff\xfe\n").unwrap();
    let error = Pipeline::load(&binary).unwrap_err();
    let [fault] = error.faults() else { panic!("{error}") };
    assert_eq!((fault.line, fault.column, fault.message.as_str()), (2, 3, "this is not UTF-8 text"));
}

#[test]
fn a_file_with_everything_wrong_is_told_whole() {
    let error = Pipeline::load("tests/faulty/many.toml").unwrap_err();
    insta::assert_snapshot!(error.render(false));
    assert!(error.render(true).contains("\u{1b}["), "colour where it is wanted");
}

#[test]
fn a_hostile_file_is_told_in_bounds() {
    use std::fmt::Write as _;
    let mut keys = String::from("pipeline = \"p\"\n[stage.capture]\n");
    let mut stages = String::from("pipeline = \"p\"\n");
    for index in 0..20_000 {
        writeln!(keys, "k{index} = 1").unwrap();
        writeln!(stages, "[stage.s{index}]\nfrom = \"s{}\"", (index + 1) % 20_000).unwrap();
    }
    let from = format!("pipeline = \"p\"\n[stage.extract]\nmodel = \"m\"\nfrom = [{}]\n", "\"a\",".repeat(200_000));
    for text in [keys, stages, from, "[".repeat(500_000), "a = 1 2\n".repeat(50_000)] {
        let error = load(&text, &[]).unwrap_err();
        assert!((1..=100).contains(&error.faults().len()));
        assert!(error.render(false).len() < 4 << 20);
    }
}

#[test]
fn the_registry_holds_together() {
    for used in USES {
        assert_eq!(used.takes.is_none(), used.name == "capture");
        assert!(used.takes.is_none_or(|noun| USES.iter().any(|other| other.gives == noun)), "{used:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// However a file is damaged: an answer, with places within it, and no panic.
    #[test]
    fn damage_is_answered(at in 0..GOOD.len(), length in 0usize..40, put in "[\\PC\n\"=\\[\\]{}.]{0,12}", set in "[\\PC]{0,8}") {
        let mut text = GOOD.to_owned();
        text.replace_range(at..(at + length).min(GOOD.len()), &put);
        if let Err(error) = load(&text, &[&format!("who.threshold={set}")]) {
            prop_assert!(!error.faults().is_empty());
            for fault in error.faults() {
                let lines = if fault.file == "--set" { 1 } else { text.matches('\n').count() + 1 };
                prop_assert!((1..=lines).contains(&fault.line) && fault.column >= 1, "{}", fault);
            }
            prop_assert!(!error.render(false).is_empty());
        }
    }
}
