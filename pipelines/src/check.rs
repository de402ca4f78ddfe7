use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::fault::{Draft, Findings, MAX_FILE_BYTES, PipelineError, SEPARATOR, did_you_mean};
use crate::form::{WrittenKeep, WrittenKeeps, WrittenPipeline, WrittenSite, WrittenStage};
use crate::pipeline::{
    DEFAULT_COPIES, DEFAULT_KEEP_CAPTURED, DEFAULT_KEEP_CHANGES, DEFAULT_KEEP_OUTCOMES, DEFAULT_SITE, Written, defaults,
};
use crate::registry::{STAGE_KEYS, USES, Use};
use crate::test_spec::TestSpec;
use crate::tests_form::WrittenTests;
use crate::topology::in_graph_order;
use crate::written::{self, Override, in_file_order, merge, read, span_of};
use crate::{Batch, Keep, Pipeline, Placement, SiteSpec, StageSpec};

/// Most stages of one pipeline: some tens of times what people write.
const MAX_STAGES: usize = 256;

/// Longest name of a pipeline, stage or site: a subject stays short, a stream's name fits the file system.
pub(crate) const MAX_NAME_LEN: usize = 48;

/// What the runtime publishes and stores beside the stages' links: neither a stage nor a link may be called so.
pub(crate) const RESERVED: [&str; 7] = ["dead", "empty", "receipt", "log", "outcomes", "advisories", "relay"];

/// The durables of relays are called so, with the site behind it.
pub(crate) const RELAY_PREFIX: &str = "relay-";

/// Most sites of one pipeline: a hundred is what a hub was measured with.
const MAX_SITES: usize = 1024;

/// The streams of a fold's changes and of its snapshots are called like its stage with these behind it.
pub(crate) const FOLD_SUFFIXES: [&str; 2] = ["_log", "_state"];

/// Instances of a stage in one process: each has a thread and a model session of its own.
pub(crate) const WORKERS: RangeInclusive<usize> = 1..=64;

/// Messages that `process` is given at once.
pub(crate) const BATCH_MAX: RangeInclusive<usize> = 1..=1024;

/// How long a batch may wait to be filled, ms; longer is a delay that looks like a stall.
pub(crate) const BATCH_WAIT_MS: RangeInclusive<u64> = 0..=60_000;

/// How often a server may sync: more often costs as much as always, more seldom loses more than anybody reckons with.
pub(crate) const SYNC: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// Bytes of a link: room for one message of the longest kind, and a disk.
pub(crate) const LINK_BYTES: RangeInclusive<ByteSize> = ByteSize::mib(1)..=ByteSize::tib(16);

/// Memory that one message may take in the quarantine.
pub(crate) const QUARANTINE_BYTES: RangeInclusive<ByteSize> = ByteSize::mib(64)..=ByteSize::gib(64);

/// How long one message may take, ms.
pub(crate) const MAX_PROCESS_MS: RangeInclusive<u64> = 100..=3_600_000;

/// Bytes a second that a site may send: below this not even a heartbeat would come through in time.
pub(crate) const BYTES_PER_S: RangeInclusive<ByteSize> = ByteSize::kib(1)..=ByteSize::tib(1);

/// How an address begins that a NATS client knows.
const SCHEMES: [&str; 4] = ["nats://", "tls://", "ws://", "wss://"];

/// Bytes that `keep` may hold.
pub(crate) const KEEP_BYTES: RangeInclusive<ByteSize> = ByteSize::mib(1)..=ByteSize::tib(16);

/// Bytes of changes: enough for some snapshots of a small state, as tests have it.
pub(crate) const CHANGES_BYTES: RangeInclusive<ByteSize> = ByteSize::kib(64)..=ByteSize::tib(16);

/// Copies of what is stored: of an even number no more may be lost than of one less, since most of them have to agree.
pub(crate) const COPIES: [u64; 3] = [1, 3, 5];

/// Longest time that `keep` may hold: 100 years, which fits the broker's nanoseconds.
const KEEP_AGE_MAX: Duration = Duration::from_hours(100 * 365 * 24);

/// Reads, merges, checks. Tests are passed over: nothing that runs a pipeline minds them.
pub(crate) fn load(path: &Path, overrides: &[Override]) -> Result<Pipeline, PipelineError> {
    Text::read(path, overrides)?.pipeline(overrides)
}

/// The same of a file's bytes.
pub(crate) fn of_bytes(path: &Path, bytes: &[u8], overrides: &[Override]) -> Result<Pipeline, PipelineError> {
    Text::of(path, bytes, overrides)?.pipeline(overrides)
}

/// The same with the tests of the file and of `tests/NAME` beside it. One error a file that is wrong.
pub(crate) fn load_with_tests(
    path: &Path,
    overrides: &[Override],
) -> Result<(Pipeline, Vec<TestSpec>), Vec<PipelineError>> {
    Text::read(path, overrides).map_err(|error| vec![error])?.with_tests(overrides, tests_beside(path))
}

/// The same of a file's bytes; `path` is no file, and has no tests beside it.
pub(crate) fn of_bytes_with_tests(path: &Path, bytes: &[u8]) -> Result<(Pipeline, Vec<TestSpec>), Vec<PipelineError>> {
    Text::of(path, bytes, &[]).map_err(|error| vec![error])?.with_tests(&[], None)
}

/// Where more tests of a pipeline stand, if there are any.
fn tests_beside(path: &Path) -> Option<PathBuf> {
    let beside = path.parent()?.join("tests").join(path.file_name()?);
    beside.is_file().then_some(beside)
}

fn load_tests(path: &Path, stages: &DeTable<'_>, pipeline: &Pipeline) -> Result<Vec<TestSpec>, PipelineError> {
    let text = Text::read(path, &[])?;
    let mut findings = text.findings();
    let Some(root) = text.parse(&mut findings) else { return Err(findings.into_error()) };
    read::<WrittenTests>(&root, None, &[], &mut findings);
    let tests = Check { findings: &mut findings }.tests(root.get_ref(), stages, pipeline, path);
    if findings.is_empty() { Ok(tests) } else { Err(findings.into_error()) }
}

/// A file with the overrides of the command line behind it.
struct Text {
    path: PathBuf,
    written: Arc<Written>,
    whole: String,
    /// Where the file ends and is no UTF-8 any more.
    broken: Option<usize>,
    file_len: usize,
}

impl Text {
    fn read(path: &Path, overrides: &[Override]) -> Result<Self, PipelineError> {
        Self::of(path, &read_file(path)?, overrides)
    }

    fn of(path: &Path, bytes: &[u8], overrides: &[Override]) -> Result<Self, PipelineError> {
        if bytes.len() as u64 > MAX_FILE_BYTES {
            return Err(PipelineError::TooLong { path: path.into() });
        }
        let broken = std::str::from_utf8(bytes).err().map(|error| error.valid_up_to());
        let file = String::from_utf8_lossy(bytes);
        let whole = format!("{file}{SEPARATOR}{}", written::overrides_text(overrides));
        let written = Arc::new(Written { bytes: bytes.into(), overrides: overrides.into() });
        Ok(Self { path: path.into(), written, broken, file_len: file.len(), whole })
    }

    fn pipeline(&self, overrides: &[Override]) -> Result<Pipeline, PipelineError> {
        let mut findings = self.findings();
        let root = self.parse(&mut findings);
        let root = root.map(|root| self.merged(root, overrides, &mut findings));
        let pipeline = root.map(|root| Check { findings: &mut findings }.pipeline(self, &root));
        pipeline.filter(|_| findings.is_empty()).ok_or_else(|| findings.into_error())
    }

    fn with_tests(
        &self,
        overrides: &[Override],
        beside: Option<PathBuf>,
    ) -> Result<(Pipeline, Vec<TestSpec>), Vec<PipelineError>> {
        let mut findings = self.findings();
        let Some(root) = self.parse(&mut findings) else { return Err(vec![findings.into_error()]) };
        let root = self.merged(root, overrides, &mut findings);
        let pipeline = Check { findings: &mut findings }.pipeline(self, &root);
        let mut tests = Check { findings: &mut findings }.tests(root.get_ref(), root.get_ref(), &pipeline, &self.path);
        let mut errors = Vec::new();
        if !findings.is_empty() {
            errors.push(findings.into_error());
        }
        match beside.map(|beside| load_tests(&beside, root.get_ref(), &pipeline)) {
            Some(Ok(more)) => tests.extend(more),
            Some(Err(error)) => errors.push(error),
            None => {}
        }
        if errors.is_empty() { Ok((pipeline, tests)) } else { Err(errors) }
    }

    fn overrides_at(&self) -> usize {
        self.file_len + SEPARATOR.len()
    }

    fn findings(&self) -> Findings<'_> {
        Findings::new(&self.path, &self.whole, self.overrides_at())
    }

    /// What the file says, as far as it can be read; nothing where it is no text.
    fn parse<'t>(&'t self, findings: &mut Findings<'_>) -> Option<Spanned<DeTable<'t>>> {
        if let Some(at) = self.broken {
            findings.push(at..at + char::REPLACEMENT_CHARACTER.len_utf8(), Draft::new("this is not UTF-8 text"));
            return None;
        }
        let (root, errors) = DeTable::parse_recoverable(&self.whole[..self.file_len]);
        for error in errors {
            let why = error.message().trim_end_matches(", expected nothing");
            findings.unreadable(error.span().unwrap_or(0..0), format!("cannot read this as TOML: {why}"));
        }
        Some(root)
    }

    fn merged<'t>(
        &self,
        mut root: Spanned<DeTable<'t>>,
        overrides: &'t [Override],
        findings: &mut Findings<'_>,
    ) -> Spanned<DeTable<'t>> {
        merge(root.get_mut(), overrides, self.overrides_at(), findings);
        root
    }
}

/// One byte more than a file may have, at most.
fn read_file(path: &Path) -> Result<Vec<u8>, PipelineError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|source| PipelineError::Read { path: path.into(), source })?;
    Ok(bytes)
}

/// One stage as far as it could be read, with the places of what it says.
pub(crate) struct Draught<'a> {
    pub(crate) name: String,
    /// Its name in the header.
    pub(crate) name_at: Range<usize>,
    pub(crate) table: &'a DeTable<'a>,
    /// `None` where `uses` names nothing.
    pub(crate) uses: Option<&'static Use>,
    /// Not told again where it could not be read.
    pub(crate) from_unreadable: bool,
    pub(crate) sites: Vec<String>,
    pub(crate) from: Vec<(String, Range<usize>)>,
    pub(crate) link: Option<String>,
    pub(crate) spec: Option<StageSpec>,
}

impl Draught<'_> {
    pub(crate) fn runs_at(&self, site: &str) -> bool {
        self.sites.iter().any(|known| known == site)
    }

    pub(crate) fn at(&self, key: &str) -> Range<usize> {
        span_of(self.table, key).unwrap_or_else(|| self.name_at.clone())
    }
}

/// Turns what is written into what is meant, and tells what cannot be.
pub(crate) struct Check<'f, 'i> {
    pub(crate) findings: &'f mut Findings<'i>,
}

impl Check<'_, '_> {
    fn pipeline(&mut self, text: &Text, root: &Spanned<DeTable<'_>>) -> Pipeline {
        let written = read::<WrittenPipeline>(root, None, &[], self.findings);
        let mut are_sites_read = false;
        let (name, keep, sites) = match written {
            Some(written) => {
                are_sites_read = !written.left_out.iter().any(|key| key == "site" || key.starts_with("site."));
                if !written.left_out.iter().any(|key| key == "pipeline") {
                    self.pipeline_name(root.get_ref(), written.value.pipeline.as_deref());
                }
                (written.value.pipeline.unwrap_or_default(), written.value.keep, written.value.site)
            }
            None => (String::new(), WrittenKeeps::default(), BTreeMap::new()),
        };
        let sites = self.sites(root.get_ref(), sites);
        // A key that could not be read was told, and may be the one that is missing.
        if are_sites_read {
            self.hub(root.get_ref(), &sites);
        }
        let mut stages = self.stages(root.get_ref(), &sites);
        self.graph(&stages);
        self.places(&stages);
        self.links(&stages, &name);
        self.parts(&mut stages);
        let hub = sites.iter().find(|site| site.is_hub).unwrap_or(&sites[0]);
        Pipeline {
            name,
            file: text.path.clone(),
            here: hub.name.clone(),
            sites,
            stages: in_graph_order(&mut stages),
            keep_captured: self.keep(root.get_ref(), "captured", keep.captured.as_ref(), DEFAULT_KEEP_CAPTURED),
            keep_outcomes: self.keep(root.get_ref(), "outcomes", keep.outcomes.as_ref(), DEFAULT_KEEP_OUTCOMES),
            keep_changes: self.changes(root.get_ref(), keep.changes),
            copies: self.copies(root.get_ref(), keep.copies),
            sync: keep.sync.unwrap_or_default(),
            placement: Placement::default(),
            written: Arc::clone(&text.written),
        }
    }

    fn changes(&mut self, root: &DeTable<'_>, written: Option<ByteSize>) -> u64 {
        if let Some(bytes) = written.filter(|bytes| !CHANGES_BYTES.contains(bytes)) {
            let why = out_of_range("keep.changes", bytes, &CHANGES_BYTES);
            self.findings.push(span_of(root, "keep.changes").unwrap_or_default(), Draft::new(why).key("keep.changes"));
        }
        written.map_or(DEFAULT_KEEP_CHANGES, |bytes| bytes.0)
    }

    fn copies(&mut self, root: &DeTable<'_>, written: Option<u64>) -> usize {
        let copies = written.unwrap_or(DEFAULT_COPIES);
        if !COPIES.contains(&copies) {
            let why = format!("`keep.copies` is {copies}: it must be 1, 3 or 5, as most of them have to agree");
            self.findings.push(span_of(root, "keep.copies").unwrap_or_default(), Draft::new(why).key("keep.copies"));
        }
        copies as usize
    }

    fn pipeline_name(&mut self, root: &DeTable<'_>, name: Option<&str>) {
        let Some(name) = name else {
            let help = Some("begin the file with: pipeline = \"NAME\"".to_owned());
            self.findings.push(0..0, Draft::new("the pipeline has no name").key("pipeline").help(help).of_absence());
            return;
        };
        let at = span_of(root, "pipeline").unwrap_or_default();
        self.token(&at, "pipeline", name, None, "pipeline");
        if name.contains('_') {
            let help = Some(format!("write `{}`", name.replace('_', "-")));
            let why = "a pipeline's name has no `_`: streams are called PIPELINE_STAGE, and two could have one name";
            self.findings.push(at, Draft::new(why).key("pipeline").help(help));
        }
    }

    fn sites(&mut self, root: &DeTable<'_>, mut written: BTreeMap<String, WrittenSite>) -> Vec<SiteSpec> {
        let entries = match root.get("site").map(Spanned::get_ref) {
            Some(DeValue::Table(sites)) => in_file_order(sites),
            _ => Vec::new(),
        };
        if let Some((key, _)) = entries.get(MAX_SITES) {
            self.findings.push(key.span(), Draft::new(format!("a pipeline has at most {MAX_SITES} sites")).key("site"));
        }
        let mut sites = Vec::new();
        for (key, _) in entries.iter().take(MAX_SITES) {
            let name = key.get_ref().to_string();
            self.token(&key.span(), "site", &name, None, &format!("site.{name}"));
            let written = written.remove(&name).unwrap_or_default();
            sites.push(self.site(root, name, written, entries.len() == 1));
        }
        if sites.is_empty() {
            sites.push(self.site(root, DEFAULT_SITE.into(), WrittenSite::default(), true));
        }
        sites
    }

    fn site(&mut self, root: &DeTable<'_>, name: String, written: WrittenSite, is_only: bool) -> SiteSpec {
        let WrittenSite { hub, address, credentials, bytes_per_s, first } = written;
        let mut refuse = |key: &str, message: String, help: Option<String>| {
            let key = format!("site.{name}.{key}");
            self.findings.push(span_of(root, &key).unwrap_or_default(), Draft::new(message).key(&key).help(help));
        };
        if let Some(bytes) = bytes_per_s.filter(|bytes| !BYTES_PER_S.contains(bytes)) {
            refuse("bytes_per_s", out_of_range("bytes_per_s", bytes, &BYTES_PER_S), None);
        }
        let is_good =
            |one: &str| SCHEMES.iter().any(|scheme| one.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
        if address.as_ref().is_some_and(|address| !address.split(',').all(|one| is_good(one.trim()))) {
            let help =
                Some("write address = \"nats://HOST:4222\"; several servers of a cluster with commas".to_owned());
            refuse("address", "`address` is no address of a NATS server".into(), help);
        }
        let is_hub = is_only || hub == Some(true);
        for (key, is_said) in [("bytes_per_s", bytes_per_s.is_some()), ("first", first.is_some())] {
            if is_hub && is_said {
                let help = Some("say it at a site that dials the hub".to_owned());
                refuse(key, format!("`{key}` is about what goes to the hub, and {name} is the hub"), help);
            }
        }
        SiteSpec {
            name,
            is_hub,
            address,
            credentials,
            bytes_per_s: bytes_per_s.map(|bytes| bytes.0),
            first: first.unwrap_or_default(),
        }
    }

    /// One of several is the hub.
    fn hub(&mut self, root: &DeTable<'_>, sites: &[SiteSpec]) {
        let mut hubs = sites.iter().filter(|site| site.is_hub);
        let Some(first) = hubs.next() else {
            let help = Some(format!("write hub = true under [site.{}], or another", sites[sites.len() - 1].name));
            let draft = Draft::new("none of the sites is the hub, which the others dial").key("site").help(help);
            self.findings.push(span_of(root, "site").unwrap_or_default(), draft.of_absence());
            return;
        };
        for second in hubs {
            let key = format!("site.{}.hub", second.name);
            let draft = Draft::new(format!("{} is the hub already: there is one", first.name)).key(&key);
            self.findings.push(span_of(root, &key).unwrap_or_default(), draft);
        }
    }

    fn keep(&mut self, root: &DeTable<'_>, which: &str, written: Option<&WrittenKeep>, default: Keep) -> Keep {
        let Some(&WrittenKeep { age, bytes }) = written else { return default };
        let key = |name: &str| format!("keep.{which}.{name}");
        let mut refuse = |key: &str, message: String| {
            self.findings.push(span_of(root, key).unwrap_or_default(), Draft::new(message).key(key));
        };
        if let Some(age) = age.filter(|&age| age.is_zero() || age > KEEP_AGE_MAX) {
            let age = humantime::format_duration(age);
            refuse(&key("age"), format!("`{}` is {age}: it must be more than 0 and at most 100 years", key("age")));
        }
        if let Some(bytes) = bytes.filter(|bytes| !KEEP_BYTES.contains(bytes)) {
            refuse(&key("bytes"), out_of_range(&key("bytes"), bytes, &KEEP_BYTES));
        }
        Keep { age: age.unwrap_or(default.age), bytes: bytes.map_or(default.bytes, |bytes| bytes.0) }
    }

    fn stages<'a>(&mut self, root: &'a DeTable<'a>, sites: &[SiteSpec]) -> Vec<Draught<'a>> {
        let entries = match root.get("stage").map(Spanned::get_ref) {
            Some(DeValue::Table(stages)) => in_file_order(stages),
            None => Vec::new(),
            // No table: told when the whole was read.
            Some(_) => return Vec::new(),
        };
        if entries.is_empty() {
            let help = Some("begin with [stage.capture]".to_owned());
            self.findings.push(0..0, Draft::new("the pipeline has no stages").key("stage").help(help).of_absence());
        }
        if let Some((key, _)) = entries.get(MAX_STAGES) {
            self.findings
                .push(key.span(), Draft::new(format!("a pipeline has at most {MAX_STAGES} stages")).key("stage"));
        }
        let mut found = Vec::new();
        for (key, value) in entries.into_iter().take(MAX_STAGES) {
            // What is no table was told when the whole was read.
            if let DeValue::Table(table) = value.get_ref() {
                found.push(self.stage(key, value.span(), table, sites));
            }
        }
        found
    }

    fn stage<'a>(
        &mut self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        table_at: Range<usize>,
        table: &'a DeTable<'a>,
        sites: &[SiteSpec],
    ) -> Draught<'a> {
        let (name, name_at) = (key.get_ref().to_string(), key.span());
        self.token(&name_at, "stage", &name, Some(&name), "stage");
        let is_taken = |suffix: &&str| name.ends_with(suffix);
        if RESERVED.contains(&name.as_str()) || name.starts_with(RELAY_PREFIX) || FOLD_SUFFIXES.iter().any(is_taken) {
            let draft = Draft::new(format!("`{name}` is the runtime's own: no stage is called so"));
            self.findings.push(name_at.clone(), draft.stage(Some(&name)).key("stage"));
        }
        let (general, own): (Vec<_>, Vec<_>) = table
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .partition(|(key, _)| STAGE_KEYS.contains(&&**key.get_ref()));
        let general = Spanned::new(table_at, general.into_iter().collect::<DeTable<'_>>());
        // The place of what is missing in a stage is its name.
        let own = Spanned::new(name_at.clone(), own.into_iter().collect::<DeTable<'_>>());
        let written = read::<WrittenStage>(&general, Some(&name), &[], self.findings);
        let mut draught = Draught {
            from_unreadable: written.as_ref().is_none_or(|written| written.left_out.iter().any(|key| key == "from")),
            name,
            name_at,
            table,
            uses: None,
            sites: vec![sites[0].name.clone()],
            from: Vec::new(),
            link: None,
            spec: None,
        };
        let Some(written) = written else { return draught };
        if !written.left_out.iter().any(|key| key == "uses") {
            draught.uses = self.uses(&draught, written.value.uses.as_deref());
        }
        if let Some(uses) = draught.uses {
            (uses.check)(&own, &draught.name, self.findings);
        }
        self.general(&mut draught, written.value, sites);
        match (&mut draught.spec, options_table(&own)) {
            (Some(spec), Ok(options)) => spec.options = options,
            // A number beyond 64 bits, for one, which its check has most likely told.
            (_, Err(error)) if self.findings.is_empty() => {
                let at = error.span().unwrap_or_else(|| own.span());
                self.findings.push(at, Draft::new(error.message()).stage(Some(&draught.name)));
            }
            _ => {}
        }
        draught
    }

    fn uses(&mut self, stage: &Draught<'_>, uses: Option<&str>) -> Option<&'static Use> {
        let wanted = uses.unwrap_or(&stage.name);
        let found = USES.iter().find(|known| known.name == wanted);
        if found.is_none() {
            let known = || format!("known: {}", USES.map(|known| known.name).join(", "));
            let help = did_you_mean(wanted, USES.map(|known| known.name)).unwrap_or_else(known);
            let message = match uses {
                Some(_) => format!("no stage is called `{wanted}`: it cannot be used"),
                None => format!("`{wanted}` is not a stage that there is: say what it uses"),
            };
            self.findings
                .push(stage.at("uses"), Draft::new(message).stage(Some(&stage.name)).key("uses").help(Some(help)));
        }
        found
    }

    /// The keys of every stage.
    fn general(&mut self, stage: &mut Draught<'_>, written: WrittenStage, sites: &[SiteSpec]) {
        let name = stage.name.clone();
        self.bounded(stage, "workers", written.workers, &WORKERS);
        self.bounded(stage, "batch.max", written.batch.max, &BATCH_MAX);
        self.bounded(stage, "batch.wait_ms", written.batch.wait_ms, &BATCH_WAIT_MS);
        self.bounded(stage, "link_bytes", written.link_bytes, &LINK_BYTES);
        self.bounded(stage, "max_process_ms", written.max_process_ms, &MAX_PROCESS_MS);
        self.bounded(stage, "quarantine_bytes", written.quarantine_bytes, &QUARANTINE_BYTES);
        if let Some(emits) = &written.emits {
            self.token(&stage.at("emits"), "link", emits, Some(&name), "emits");
            if RESERVED.contains(&emits.as_str()) {
                let draft = Draft::new(format!("`{emits}` is the runtime's own: no link is called so"));
                self.findings.push(stage.at("emits"), draft.stage(Some(&name)).key("emits"));
            }
        }
        if let Some(written) = written.site {
            stage.sites = self.sites_of(stage, "site", &written, sites);
        }
        let may_move_to = written.may_move_to.map(|written| self.sites_of(stage, "may_move_to", &written, sites));
        if let (Some(_), true) = (&may_move_to, stage.uses.is_some_and(|uses| uses.takes.is_none())) {
            let draft = Draft::new("a source does not move: it stays where its camera is".to_owned());
            self.findings.push(stage.at("may_move_to"), draft.stage(Some(&name)).key("may_move_to"));
        }
        // More than there can be stages has one of them twice, which is told.
        let from = written.from.unwrap_or_default().into_iter().take(MAX_STAGES + 1);
        stage.from = from.enumerate().map(|(place, from)| (from, stage.place_in("from", place))).collect();
        let Some(uses) = stage.uses else { return };
        self.one_worker(stage, written.workers, uses);
        let link = written.emits.unwrap_or_else(|| uses.gives.into());
        stage.link = Some(link.clone());
        stage.spec = Some(StageSpec {
            name,
            uses: uses.name.into(),
            from: stage.from.iter().map(|(from, _)| from.clone()).collect(),
            sites: stage.sites.clone(),
            may_move_to: may_move_to.unwrap_or_default(),
            workers: written.workers.unwrap_or(defaults::WORKERS),
            batch: Batch {
                max: written.batch.max.unwrap_or(defaults::BATCH_MAX),
                wait: written.batch.wait_ms.map_or(defaults::BATCH_WAIT, Duration::from_millis),
            },
            takes: uses.takes,
            gives: uses.gives,
            link,
            link_bytes: written.link_bytes.map_or(defaults::LINK_BYTES, |bytes| bytes.0),
            max_process: written.max_process_ms.map_or(defaults::MAX_PROCESS, Duration::from_millis),
            quarantine_bytes: written.quarantine_bytes.map_or(defaults::QUARANTINE_BYTES, |bytes| bytes.0),
            folds: uses.folds,
            moves_to: Vec::new(),
            options: toml::Table::new(),
        });
    }

    /// The sites that a key of a stage names; by default the first.
    fn sites_of(&mut self, stage: &Draught<'_>, key: &str, written: &[String], sites: &[SiteSpec]) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let names = || sites.iter().map(|site| site.name.as_str());
        let draft = |message: String| Draft::new(message).stage(Some(&stage.name)).key(key);
        if written.is_empty() {
            let help = Some(format!("sites here: {}", names().collect::<Vec<_>>().join(", ")));
            self.findings.push(stage.at(key), draft(format!("`{key}` names no site")).help(help));
        }
        // More than there can be sites has one of them twice.
        for (place, name) in written.iter().take(MAX_SITES + 1).enumerate() {
            let is_meant = |site: &&str| match name.strip_suffix('*') {
                Some(begin) => site.starts_with(begin),
                None => *site == name,
            };
            let mut meant = names().filter(is_meant).peekable();
            if meant.peek().is_none() {
                let known = || Some(format!("sites here: {}", names().collect::<Vec<_>>().join(", ")));
                let help = did_you_mean(name, names()).or_else(known);
                let draft = draft(format!("there is no site `{name}`")).help(help).of_absence();
                self.findings.push(stage.place_in(key, place), draft);
            }
            if written[..place].contains(name) {
                self.findings.push(stage.place_in(key, place), draft(format!("`{name}` stands here twice")));
            }
            for site in meant {
                if !found.iter().any(|known| known == site) {
                    found.push(site.into());
                }
            }
        }
        if found.is_empty() { vec![sites[0].name.clone()] } else { found }
    }

    fn one_worker(&mut self, stage: &Draught<'_>, workers: Option<usize>, uses: &Use) {
        let why = match uses {
            Use { folds: true, .. } => "it folds, and its state has one writer",
            Use { takes: None, .. } => "it is a source, and is read once",
            Use { .. } => return,
        };
        if workers.is_some_and(|workers| workers > 1) {
            let draft = Draft::new(format!("`workers` must be 1: {why}")).stage(Some(&stage.name)).key("workers");
            self.findings.push(stage.at("workers"), draft);
        }
    }

    fn bounded<T: PartialOrd + std::fmt::Display>(
        &mut self,
        stage: &Draught<'_>,
        key: &str,
        value: Option<T>,
        range: &RangeInclusive<T>,
    ) {
        if let Some(value) = value.filter(|value| !range.contains(value)) {
            let draft = Draft::new(out_of_range(key, value, range)).stage(Some(&stage.name)).key(key);
            self.findings.push(stage.at(key), draft);
        }
    }

    /// Names become tokens of subjects, and parts of the names of streams, files and containers.
    fn token(&mut self, at: &Range<usize>, what: &str, name: &str, stage: Option<&str>, key: &str) {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        let message = if name.len() > MAX_NAME_LEN {
            format!("the name of a {what} has at most {MAX_NAME_LEN} characters, this one {}", name.len())
        } else if !starts_well || !name.chars().all(good) {
            format!(
                "`{name}` is no name of a {what}: it has a-z, 0-9, `-` and `_`, and begins with a letter or a digit"
            )
        } else {
            return;
        };
        self.findings.push(at.clone(), Draft::new(message).stage(stage).key(key));
    }
}

impl Draught<'_> {
    /// Where a name in a list stands.
    fn place_in(&self, key: &str, place: usize) -> Range<usize> {
        match self.table.get(key).map(Spanned::get_ref) {
            Some(DeValue::Array(names)) => names.get(place).map_or_else(|| self.at(key), Spanned::span),
            _ => self.at(key),
        }
    }
}

fn out_of_range<T: std::fmt::Display>(key: &str, value: T, range: &RangeInclusive<T>) -> String {
    format!("`{key}` is {value}: it must be within {}..={}", range.start(), range.end())
}

fn options_table(own: &Spanned<DeTable<'_>>) -> Result<toml::Table, toml::de::Error> {
    toml::Table::deserialize(toml::de::Deserializer::from(own.clone()))
}
