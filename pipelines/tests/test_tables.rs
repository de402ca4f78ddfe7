//! `[[test]]` tables as people write them, right and wrong.

use std::path::Path;

use causeway_pipelines::{Expectation, Pipeline, PipelineError, TestInput, TestPerson, TestSpec};

const GOOD: &str = r#"
pipeline = "p"
[stage.capture]
[stage.preprocess]
from = "capture"
model = "yunet"
[stage.extract]
from = "preprocess"
model = "sface"
[stage.who]
uses = "classify"
from = "extract"
[stage.cluster]
from = "extract"

[[test]]
name = "one"
from = "capture"
stage = "who"
input = "a.jpg"
people = { Ada = "a.jpg", Alan = [[1.0, 0.0]] }
expect = { label = "Ada", score = 0.7 }

[[test]]
name = "two"
stage = "cluster"
input = [{ vector = [1.0] }, "b.json"]
expect = [{ cluster = "a" }, { cluster = "b", score = { min = 0.5 }, region = { x = 1, within = 2 } }]
"#;

/// Loads the text as `p.toml`, with `beside` as `tests/p.toml`.
fn load(text: &str, beside: Option<&str>) -> Result<(Pipeline, Vec<TestSpec>), Vec<PipelineError>> {
    let dir = tempfile::tempdir().unwrap();
    for file in ["a.jpg", "b.json"] {
        std::fs::write(dir.path().join(file), "[1.0]").unwrap();
    }
    if let Some(beside) = beside {
        std::fs::create_dir(dir.path().join("tests")).unwrap();
        std::fs::write(dir.path().join("tests/p.toml"), beside).unwrap();
    }
    let path = dir.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    // Nothing that runs a pipeline minds its tests.
    assert!(Pipeline::load(&path).is_ok());
    Pipeline::load_with_tests(&path, &[])
}

#[test]
fn what_is_written_is_what_is_meant() {
    let (_, tests) = load(GOOD, None).unwrap();
    let [one, two] = &tests[..] else { panic!("{tests:?}") };
    assert_eq!((one.name.as_str(), one.line), ("one", 16));
    assert_eq!(one.stages, ["capture", "preprocess", "extract", "who"]);
    assert!(matches!(&one.inputs[..], [TestInput::Picture(path)] if path.is_absolute() && path.ends_with("a.jpg")));
    assert!(matches!(&one.people["Ada"], TestPerson::Photos(photos) if photos.len() == 1));
    assert!(matches!(&one.people["Alan"], TestPerson::Vectors { space: None, .. }));
    let Expectation::Each { count: 1, like } = &one.expect else { panic!("{one:?}") };
    assert_eq!(like.label, Some(Some("Ada".into())));
    assert_eq!(like.score.unwrap().to_string(), "0.7 ± 0.01");
    assert_eq!(two.stages, ["cluster"]);
    assert!(matches!(&two.inputs[..], [TestInput::Message(_), TestInput::File(_)]));
    let Expectation::InOrder(answers) = &two.expect else { panic!("{two:?}") };
    assert_eq!(answers[1].score.unwrap().to_string(), "0.5 or more");
}

#[test]
fn tests_may_stand_in_a_file_beside() {
    let beside =
        "[[test]]\nname = \"three\"\nstage = \"preprocess\"\ninput = \"../a.jpg\"\nexpect = { empty = \"no-face\" }\n";
    let (_, tests) = load(GOOD, Some(beside)).unwrap();
    assert_eq!(tests.iter().map(|test| &*test.name).collect::<Vec<_>>(), ["one", "two", "three"]);
    assert!(tests[2].file.ends_with("tests/p.toml"));
    // What is wrong in both is told of both.
    let errors =
        load(&GOOD.replace("\"one\"", "\"\""), Some(&beside.replace("[[test]]", "stage = 1\n[[test]]"))).unwrap_err();
    let messages: Vec<&str> = errors.iter().flat_map(PipelineError::faults).map(|fault| &*fault.message).collect();
    assert_eq!(messages, ["a test needs a name", "unknown key `stage`"]);
}

/// `GOOD` with `from` replaced by `to` has this one fault, at the mark `¦` in `to`.
#[track_caller]
fn one_fault(from: &str, to: &str, key: &str, message: &str) {
    assert!(GOOD.contains(from), "{from}");
    let text = GOOD.replacen(from, to, 1);
    let before = &text[..text.find('¦').expect("a mark says where the fault is")];
    let place = (before.matches('\n').count() + 1, before.rsplit('\n').next().unwrap_or_default().chars().count() + 1);
    let errors = load(&text.replace('¦', ""), None).unwrap_err();
    let faults: Vec<_> = errors.iter().flat_map(PipelineError::faults).collect();
    let [fault] = &faults[..] else { panic!("one fault of {to:?}, not {faults:#?}") };
    assert_eq!((fault.line, fault.column), place, "{fault}");
    assert_eq!(fault.key.as_deref(), Some(key), "{fault}");
    assert!(fault.message.contains(message), "{fault}");
    assert!(Path::new(&fault.file).ends_with("p.toml"));
}

#[test]
fn faults_have_their_place() {
    one_fault("name = \"one\"", "¦named = \"one\"\nname = \"one\"", "named", "unknown key `named`");
    one_fault("name = \"two\"", "name = ¦\"one\"", "test.name", "another test is called `one` too");
    one_fault("stage = \"who\"", "stage = ¦\"whom\"", "test.stage", "there is no stage `whom`");
    one_fault("from = \"capture\"\nstage", "from = ¦\"captur\"\nstage", "test.from", "there is no stage `captur`");
    one_fault("stage = \"cluster\"", "stage = \"cluster\"\nfrom = ¦\"who\"", "test.from", "does not come to `cluster`");
    one_fault("input = \"a.jpg\"", "input = ¦\"c.jpg\"", "test.input", "there is no ");
    one_fault("input = \"a.jpg\"", "input = ¦7", "input", "a path, a table of a message's fields");
    one_fault("\"b.json\"]", "¦\"a.jpg\"]", "test.input", "a stage that takes a feature is given a message");
    one_fault("Ada = \"a.jpg\"", "Ada = ¦\"nobody\"", "test.people", "there is no ");
    one_fault("{ label", "{ ¦labels = \"x\", label", "labels", "unknown key `labels`");
    one_fault("score = 0.7", "score = ¦\"high\"", "score", "a number, or a table");
    one_fault("score = 0.7", "vector = ¦{ like = [1.0] }", "test.expect.vector", "`vector` is of a feature");
    one_fault(
        "{ cluster = \"a\" }",
        "{ label = ¦\"a\" }",
        "test.expect.label",
        "`label` is of a decision, and cluster gives",
    );
    one_fault("{ cluster = \"a\" }", "{ cluster = \"a\", count = ¦1 }", "test.expect.count", "a list says each answer");
    one_fault("label = \"Ada\", score", "count = ¦0, score", "test.expect.count", "every input has an answer");
    one_fault("label = \"Ada\", score", "unknown = ¦true, label = \"Ada\", score", "test.expect.unknown", "no label");
    one_fault(
        "label = \"Ada\", score = 0.7",
        "empty = \"no-face\", score = ¦0.7",
        "test.expect.score",
        "has nothing else",
    );
}
