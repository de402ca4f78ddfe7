use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};

use causeway_schemas::{Assignment, Crop, Decision, Feature, Frame, Message as _};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::check::Check;
use crate::fault::{Draft, did_you_mean};
use crate::registry::{USES, Use};
use crate::test_spec::{Expectation, Expected, TestInput, TestPerson, TestSpec};
use crate::tests_form::{Numbers, WrittenExpect, WrittenInput, WrittenPerson, WrittenTest};
use crate::written::{read, span_of};
use crate::{Pipeline, StageSpec};

/// Most tests of a file.
const MAX_TESTS: usize = 1000;

/// Longest file of a test's numbers or messages, bytes: a few frames.
pub(crate) const MAX_TEST_FILE_BYTES: u64 = 256 << 20;

/// What a stage of the file is, as far as it could be read: also in a file that is wrong elsewhere.
struct Stages<'a> {
    uses: HashMap<&'a str, Option<&'static Use>>,
    /// The checked stages; fewer where some are wrong.
    pipeline: &'a Pipeline,
}

/// The tests of one file. `root` is what the file says, `stages` what the pipeline's file says.
impl Check<'_, '_> {
    pub(crate) fn tests(
        &mut self,
        root: &DeTable<'_>,
        stages: &DeTable<'_>,
        pipeline: &Pipeline,
        file: &Path,
    ) -> Vec<TestSpec> {
        let stages = Stages::of(stages, pipeline);
        let list = match root.get("test").map(Spanned::get_ref) {
            None => return Vec::new(),
            Some(DeValue::Array(list)) => list,
            Some(_) => {
                let at = span_of(root, "test").unwrap_or_default();
                let help = Some("write [[test]], with two brackets".to_owned());
                self.findings.push(at, Draft::new("`test` must be a list of tables").key("test").help(help));
                return Vec::new();
            }
        };
        if let Some(beyond) = list.get(MAX_TESTS) {
            self.findings.push(beyond.span(), Draft::new(format!("a file has at most {MAX_TESTS} tests")).key("test"));
        }
        let mut names = HashSet::new();
        let mut tests = Vec::new();
        for item in list.iter().take(MAX_TESTS) {
            let DeValue::Table(table) = item.get_ref() else {
                self.findings.push(item.span(), Draft::new("a test must be a table").key("test"));
                continue;
            };
            let test = OneTest { at: item.span(), table, dir: file.parent().unwrap_or(Path::new("")), stages: &stages };
            if let Some(name) = table.get("name").and_then(|name| name.get_ref().as_str())
                && !names.insert(name.to_owned())
            {
                let draft = Draft::new(format!("another test is called `{name}` too")).key("test.name");
                self.findings.push(test.at("name"), draft);
            }
            tests.extend(self.test(&test, file));
        }
        tests
    }

    fn test(&mut self, test: &OneTest<'_>, file: &Path) -> Option<TestSpec> {
        let spanned = Spanned::new(test.at.clone(), test.table.clone());
        let written = read::<WrittenTest>(&spanned, None, &[], self.findings)?;
        let is_left_out = |key: &str| written.left_out.iter().any(|left| left == key);
        for key in WrittenTest::REQUIRED {
            if !test.table.contains_key(key) {
                let draft = Draft::new(format!("the test has no `{key}`")).key(format!("test.{key}")).of_absence();
                self.findings.push(test.at.clone(), draft);
            }
        }
        let written = written.value;
        let name = written.name.unwrap_or_default();
        if name.trim().is_empty() && test.table.contains_key("name") && !is_left_out("name") {
            self.findings.push(test.at("name"), Draft::new("a test needs a name").key("test.name"));
        }
        let way = written.stage.as_deref().and_then(|stage| self.way(test, stage, written.from.as_deref()));
        let first = way.as_ref().and_then(|way| test.stages.uses(way.first()?));
        let last = written.stage.as_deref().and_then(|stage| test.stages.uses(stage));
        let inputs = written.input.map_or(Vec::new(), |inputs| self.inputs(test, first, inputs.0));
        let people = self.people(test, way.as_deref(), written.people);
        let expect = self.expectation(test, last);
        Some(TestSpec {
            name,
            file: file.into(),
            line: self.findings.line_of(test.at.start),
            stages: way?,
            inputs,
            people,
            expect: expect?,
        })
    }

    /// The stages from `from` to `stage`, by the shortest way.
    fn way(&mut self, test: &OneTest<'_>, stage: &str, from: Option<&str>) -> Option<Vec<String>> {
        let stages = test.stages;
        let mut known = true;
        for (key, name) in [("stage", Some(stage)), ("from", from)] {
            let Some(name) = name else { continue };
            if !stages.uses.contains_key(name) {
                known = false;
                let help = did_you_mean(name, stages.uses.keys().copied());
                let draft = Draft::new(format!("there is no stage `{name}`")).key(format!("test.{key}")).help(help);
                self.findings.push(test.at(key), draft.of_absence());
            }
        }
        // A stage that is wrong itself was told.
        let whole = known && stages.uses.keys().all(|name| stages.pipeline.stage(name).is_some());
        let Some(from) = from.filter(|_| whole) else { return known.then(|| vec![stage.to_owned()]) };
        let way = way_between(stages.pipeline, from, stage);
        if way.is_none() {
            let message = format!("what `{from}` gives does not come to `{stage}`");
            self.findings.push(test.at("from"), Draft::new(message).key("test.from"));
        }
        way
    }

    fn inputs(&mut self, test: &OneTest<'_>, first: Option<&Use>, written: Vec<WrittenInput>) -> Vec<TestInput> {
        let takes = first.map(|uses| uses.takes);
        let is_picture = matches!(takes, Some(None)) || takes == Some(Some(Frame::NOUN));
        if written.is_empty() {
            self.findings.push(test.at("input"), Draft::new("`input` is empty").key("test.input"));
        }
        if matches!(takes, Some(None)) && written.len() > 1 {
            let draft = Draft::new("a source reads one input: a file, a folder or a glob").key("test.input");
            self.findings.push(test.at("input"), draft);
        }
        let mut inputs = Vec::new();
        for (place, input) in written.into_iter().enumerate() {
            let at = test.item("input", place);
            match input {
                WrittenInput::Message(_) if matches!(takes, Some(None)) => {
                    let draft = Draft::new("a source takes no message: its input is a path").key("test.input");
                    self.findings.push(at, draft);
                }
                WrittenInput::Message(message) => inputs.push(TestInput::Message(message)),
                WrittenInput::Path(path) => {
                    let is_json = Path::new(&path).extension().is_some_and(|end| end.eq_ignore_ascii_case("json"));
                    let whole = test.dir.join(&path);
                    let is_glob = matches!(takes, Some(None)) && path.contains(['*', '?', '[', '{']);
                    if !is_glob {
                        self.is_there(&at, "test.input", &whole);
                    }
                    inputs.push(match takes {
                        Some(Some(noun)) if is_json || !is_picture => {
                            if !is_json {
                                let why =
                                    format!("a stage that takes a {noun} is given a message: a .json file or a table");
                                self.findings.push(at, Draft::new(why).key("test.input"));
                            }
                            TestInput::File(whole)
                        }
                        _ => TestInput::Picture(whole),
                    });
                }
            }
        }
        inputs
    }

    fn is_there(&mut self, at: &Range<usize>, key: &str, path: &Path) {
        if !path.exists() {
            let help = Some("paths are relative to the file that the test stands in".to_owned());
            let draft = Draft::new(format!("there is no {}", path.display())).key(key).help(help);
            self.findings.push(at.clone(), draft);
        }
    }

    fn people(
        &mut self,
        test: &OneTest<'_>,
        way: Option<&[String]>,
        written: BTreeMap<String, WrittenPerson>,
    ) -> BTreeMap<String, TestPerson> {
        let uses = |name: &String| test.stages.uses(name).is_some_and(|uses| uses.name == "classify");
        if !written.is_empty() && way.is_some_and(|way| !way.iter().any(uses)) {
            let draft =
                Draft::new("nobody is looked up here: no stage of this test uses `classify`").key("test.people");
            self.findings.push(test.at("people"), draft);
        }
        written
            .into_iter()
            .map(|(name, person)| {
                let at = test.at(&format!("people.{name}"));
                let person = match person {
                    WrittenPerson::Photos(photos) => {
                        let photos: Vec<PathBuf> = photos.iter().map(|photo| test.dir.join(photo)).collect();
                        for photo in &photos {
                            self.is_there(&at, "test.people", photo);
                        }
                        TestPerson::Photos(photos)
                    }
                    WrittenPerson::Vectors { vectors, space } => {
                        if vectors.is_empty() || vectors.iter().any(Vec::is_empty) {
                            let draft = Draft::new(format!("`{name}` has no vector")).key("test.people");
                            self.findings.push(at, draft);
                        }
                        TestPerson::Vectors { vectors, space }
                    }
                };
                (name, person)
            })
            .collect()
    }

    fn expectation(&mut self, test: &OneTest<'_>, last: Option<&Use>) -> Option<Expectation> {
        let value = test.table.get("expect")?;
        match value.get_ref() {
            DeValue::Table(table) => {
                let (written, like) = self.expected(test, last, value.span(), table)?;
                let count = written.count.unwrap_or(1);
                if count == 0 {
                    let draft =
                        Draft::new("`count` is 0: every input has an answer; say which with `empty` or `reject`");
                    let at = span_of(table, "count").unwrap_or_else(|| value.span());
                    self.findings.push(at, draft.key("test.expect.count"));
                }
                Some(Expectation::Each { count, like: Box::new(like) })
            }
            DeValue::Array(list) if !list.is_empty() => {
                let mut answers = Vec::new();
                for item in list {
                    let DeValue::Table(table) = item.get_ref() else {
                        let draft = Draft::new("what an answer is like must be a table").key("test.expect");
                        self.findings.push(item.span(), draft);
                        continue;
                    };
                    let Some((written, like)) = self.expected(test, last, item.span(), table) else { continue };
                    if written.count.is_some() {
                        let draft = Draft::new("`count` is of a single table: a list says each answer by itself");
                        let at = span_of(table, "count").unwrap_or_else(|| item.span());
                        self.findings.push(at, draft.key("test.expect.count"));
                    }
                    answers.push(like);
                }
                Some(Expectation::InOrder(answers))
            }
            _ => {
                let help = Some("for example: expect = { count = 1 }".to_owned());
                let draft =
                    Draft::new("`expect` must be a table, or a list of one or more").key("test.expect").help(help);
                self.findings.push(value.span(), draft);
                None
            }
        }
    }

    fn expected(
        &mut self,
        test: &OneTest<'_>,
        last: Option<&Use>,
        at: Range<usize>,
        table: &DeTable<'_>,
    ) -> Option<(WrittenExpect, Expected)> {
        let written = read::<WrittenExpect>(&Spanned::new(at.clone(), table.clone()), None, &[], self.findings)?.value;
        let place = |key: &str| span_of(table, key).unwrap_or_else(|| at.clone());
        if table.is_empty() {
            let help = Some("for example: expect = { count = 1 }".to_owned());
            self.findings.push(at.clone(), Draft::new("it expects nothing").key("test.expect").help(help));
        }
        if let Some(last) = last {
            for key in table.keys().map(|key| key.get_ref().to_string()) {
                let Some(of) = kinds_with(&key).filter(|of| !of.contains(&last.gives)) else { continue };
                let draft = Draft::new(format!(
                    "`{key}` is of a {}, and {} gives a {}",
                    of.join(" or "),
                    last.name,
                    last.gives
                ));
                self.findings.push(place(&key), draft.key(format!("test.expect.{key}")));
            }
        }
        let fails = ["empty", "reject"].into_iter().find(|key| table.contains_key(*key));
        let beside = table.keys().map(Spanned::get_ref).find(|key| Some(&***key) != fails && &***key != "count");
        if let (Some(fails), Some(beside)) = (fails, beside) {
            let draft = Draft::new(format!("an answer with `{fails}` has nothing else: `{beside}` cannot be met"));
            self.findings.push(place(beside), draft.key(format!("test.expect.{beside}")));
        }
        let mut expected = Expected {
            empty: written.empty.clone(),
            reject: written.reject.clone(),
            label: written.label.clone().map(Some),
            nearest: written.nearest.clone(),
            score: written.score,
            margin: written.margin,
            region: written.region,
            vector: None,
            cluster: written.cluster.clone(),
        };
        match written.unknown {
            Some(true) if written.label.is_some() => {
                let draft = Draft::new("what is unknown has no label: say one of them").key("test.expect.unknown");
                self.findings.push(place("unknown"), draft);
            }
            Some(true) => expected.label = Some(None),
            Some(false) => {
                let help = Some("say who it is: label = \"…\"".to_owned());
                let draft = Draft::new("`unknown` can only be true").key("test.expect.unknown").help(help);
                self.findings.push(place("unknown"), draft);
            }
            None => {}
        }
        if let Some(vector) = &written.vector {
            let at = place("vector.like");
            let numbers = match &vector.like {
                Numbers::Here(numbers) => Ok(numbers.clone()),
                Numbers::File(path) => read_numbers(&test.dir.join(path)),
            };
            match numbers {
                Ok(numbers) if numbers.iter().any(|&number| number != 0.0) => {
                    expected.vector = Some((numbers, vector.cosine));
                }
                Ok(_) => self.findings.push(at, Draft::new("it has no direction").key("test.expect.vector.like")),
                Err(why) => self.findings.push(at, Draft::new(why).key("test.expect.vector.like")),
            }
        }
        Some((written, expected))
    }
}

/// One test as it is written.
struct OneTest<'a> {
    at: Range<usize>,
    table: &'a DeTable<'a>,
    /// What its paths are relative to.
    dir: &'a Path,
    stages: &'a Stages<'a>,
}

impl OneTest<'_> {
    fn at(&self, key: &str) -> Range<usize> {
        span_of(self.table, key).unwrap_or_else(|| self.at.clone())
    }

    /// Where item `place` of a list stands, or what is no list.
    fn item(&self, key: &str, place: usize) -> Range<usize> {
        match self.table.get(key).map(Spanned::get_ref) {
            Some(DeValue::Array(list)) => list.get(place).map_or_else(|| self.at(key), Spanned::span),
            _ => self.at(key),
        }
    }
}

impl<'a> Stages<'a> {
    fn of(root: &'a DeTable<'_>, pipeline: &'a Pipeline) -> Self {
        let table = match root.get("stage").map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => Some(table),
            _ => None,
        };
        let uses_of = |name: &str, value: &Spanned<DeValue<'_>>| {
            let written = value.get_ref().get("uses").and_then(|uses| uses.get_ref().as_str());
            USES.iter().find(|known| known.name == written.unwrap_or(name))
        };
        let entries = table.into_iter().flat_map(DeTable::iter);
        let uses = entries.map(|(name, value)| (&**name.get_ref(), uses_of(name.get_ref(), value))).collect();
        Self { uses, pipeline }
    }

    fn uses(&self, name: &str) -> Option<&'static Use> {
        self.uses.get(name).copied().flatten()
    }
}

/// The kinds whose messages have what a key of `expect` is about; `None` for a key of every answer.
fn kinds_with(key: &str) -> Option<&'static [&'static str]> {
    match key {
        "label" | "unknown" | "nearest" | "margin" => Some(&[Decision::NOUN]),
        "score" => Some(&[Crop::NOUN, Decision::NOUN, Assignment::NOUN]),
        "region" => Some(&[Crop::NOUN, Feature::NOUN, Decision::NOUN, Assignment::NOUN]),
        "vector" => Some(&[Feature::NOUN]),
        "cluster" => Some(&[Assignment::NOUN]),
        _ => None,
    }
}

/// The shortest way along the links, both ends included.
fn way_between(pipeline: &Pipeline, from: &str, to: &str) -> Option<Vec<String>> {
    let mut came_from: HashMap<&str, &str> = HashMap::new();
    let mut waiting = VecDeque::from([from]);
    while let Some(stage) = waiting.pop_front() {
        if stage == to {
            let mut way = vec![to.to_owned()];
            let mut at = to;
            while at != from {
                at = came_from[at];
                way.push(at.to_owned());
            }
            way.reverse();
            return Some(way);
        }
        for StageSpec { name, .. } in pipeline.takers(stage) {
            if name != from && !came_from.contains_key(name.as_str()) {
                came_from.insert(name, pipeline.stage(stage).map_or("", |stage| stage.name.as_str()));
                waiting.push_back(name);
            }
        }
    }
    None
}

fn read_numbers(path: &Path) -> Result<Vec<f64>, String> {
    let cannot = |why: String| format!("cannot read numbers from {}: {why}", path.display());
    let length = path.metadata().map_err(|error| cannot(error.to_string()))?.len();
    if length > MAX_TEST_FILE_BYTES {
        return Err(cannot(format!("it has more than {MAX_TEST_FILE_BYTES} bytes")));
    }
    let text = std::fs::read(path).map_err(|error| cannot(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| cannot(error.to_string()))
}
