use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use causeway_bus::{Bus, CHANGE, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Assignment, Id, Person};
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS, POISON, SLOW};
use fastrand::Rng;
use futures::StreamExt as _;
use serde_json::Value;
use tempfile::TempDir;

use crate::running::Finished;
use crate::{Running, StandIns, Stored, Tools, Verdict, eventually, signal, stand_in_pipeline, verdict};

/// Messages that are captured before the damage.
const MESSAGES: u64 = 60;
/// Messages that a camera gives at the first start after it.
const NEW: usize = 3;
/// Two that are set aside.
const LETTERS: &str = "preprocess/17=panic,extract/23=panic";
/// People that are enrolled.
const PEOPLE: usize = 5;
/// Longest that a command may take on a damaged store: it needs two seconds on a good one.
const PATIENCE: Duration = Duration::from_mins(1);
/// How often `reconcile` is followed, at most.
const TURNS: usize = 3;

/// How far a run was when its store was damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// A camera whose messages have all their outcomes; stopped.
    Drained,
    /// A camera, stopped while its messages were on their way.
    Stopped,
    /// The same, killed with its server.
    Killed,
    /// A folder, stopped before all of it was captured.
    Folder,
}

/// What a file of the store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sort {
    /// Messages: `*.blk`.
    Block,
    /// Where they lie: `index.db`.
    Index,
    /// A stream's settings, and their checksum: `meta.inf`, `meta.sum`.
    Settings,
    /// A durable's, likewise.
    DurableSettings,
    /// How far a durable is: `o.dat`.
    DurableState,
}

/// What happened to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harm {
    /// One bit is another.
    Bit,
    /// Up to 64 bytes are others.
    Bytes,
    /// Its end is gone.
    Cut,
    /// Nothing is in it.
    Emptied,
    /// It is not there.
    Removed,
}

/// What became of a damaged store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Became {
    /// The results are those without damage, and nothing was noticed or needed.
    NoEffect,
    /// The broker or the agent put it right.
    Healed,
    /// `reconcile` found it and put it right.
    Repaired,
    /// Something is lost for good, and it was said what.
    Told,
    /// Something is lost, and nobody said so.
    Silent,
    /// A command did not come to its end, or ended without saying what is wrong.
    Stuck,
}

/// One file of a store, and what is done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Case {
    /// What repeats it.
    pub seed: u64,
    /// How far the run was.
    pub stage: Stage,
    /// The stream.
    pub stream: String,
    /// What the file holds.
    pub sort: Sort,
    /// What is done to it.
    pub harm: Harm,
    file: PathBuf,
}

/// A case, and what became of it.
#[derive(Debug)]
pub struct Judged {
    /// The case.
    pub case: Case,
    /// What became of it.
    pub became: Became,
    /// What is otherwise than without damage.
    pub wrong: Vec<String>,
    /// What the commands said of it.
    pub said: Vec<String>,
    /// What nats-server wrote in its log of it.
    pub broker: Vec<String>,
}

/// A store that a real run made, with what it gives in the end without damage.
struct Made {
    stage: Stage,
    home: TempDir,
    golden: Verdict,
    people: BTreeMap<String, Vec<u8>>,
    /// What nats-server warns of without damage.
    broker: BTreeSet<String>,
}

/// Stores to be damaged, again and again.
pub struct Corruption {
    stand_ins: StandIns,
    _dir: TempDir,
    file: PathBuf,
    pipeline: Pipeline,
    made: Vec<Made>,
}

impl Corruption {
    /// Makes the stores.
    ///
    /// # Panics
    /// When a run without damage goes wrong.
    pub async fn new(tools: &Tools, stages: &[Stage]) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("faces.toml");
        std::fs::write(&file, stand_in_pipeline(with_snapshots)).expect("it is written");
        let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
        let mut all = Self { stand_ins: StandIns::link(tools), _dir: dir, file, pipeline, made: Vec::new() };
        for &stage in stages {
            let made = all.make(stage).await;
            all.made.push(made);
        }
        all
    }

    async fn make(&self, stage: Stage) -> Made {
        let home = tempfile::tempdir().expect("a folder");
        let mut script = Self::script(stage, MESSAGES);
        if stage != Stage::Drained {
            script.push((SLOW, "extract=20,classify=20,cluster=40".into()));
        }
        if stage == Stage::Folder {
            script.push((SLOW, "preprocess=40,extract=20".into()));
        }
        let up = Running::start_in(self.stand_ins.tools(), home.path(), &self.up(&[]), &script);
        let bus = up.bus("faces").await;
        enrol(&bus).await;
        eventually("some outcomes", async || {
            let enough = if stage == Stage::Drained { MESSAGES - 2 } else { MESSAGES / 3 };
            let outcomes = bus.stream_state("faces_cluster").await.ok()??.messages;
            let letters = bus.stream_state("faces_dead").await.ok()??.messages;
            (outcomes >= enough && letters >= 1).then_some(())
        })
        .await;
        if stage == Stage::Drained {
            crate::drained(&bus, &self.pipeline, MESSAGES as usize).await;
        }
        if stage == Stage::Killed {
            eventually("it is written down who is enrolled", async || {
                let kept = bus.table_get(names::CONTROL, "kept").await.ok()??;
                let kept: serde_json::Value = serde_json::from_slice(&kept.value).ok()?;
                kept["KV_faces_people"]["entries"].as_u64().filter(|&people| people >= PEOPLE as u64)
            })
            .await;
            let pid = up.pid();
            signal(pid, "KILL");
            drop(up);
            eventually("the end of all", async || crate::left_running(home.path()).is_empty().then_some(())).await;
        } else {
            up.stop().await.ok();
        }
        let without = Self::copy(home.path());
        let before = log_length(without.path());
        self.run(stage, without.path(), &["--until-drained"], 0).await.ok();
        let broker = warnings(without.path(), before).into_iter().map(|line| sort_of(&line)).collect();
        let (golden, _, people) = self.read(without.path()).await.expect("a store without damage is read");
        assert_eq!(golden.captured.len(), MESSAGES as usize);
        golden.assert_exactly_once();
        Made { stage, home, golden, people, broker }
    }

    fn script(stage: Stage, items: u64) -> Vec<(&'static str, String)> {
        let camera = if stage == Stage::Folder { "0" } else { "1" };
        vec![(ITEMS, items.to_string()), (BYTES, "300".into()), (CAMERA, camera.into()), (POISON, LETTERS.into())]
    }

    fn up<'a>(&'a self, more: &[&'a str]) -> Vec<&'a str> {
        [&["up", self.file.to_str().expect("a path")], more].concat()
    }

    fn copy(home: &Path) -> TempDir {
        let copy = tempfile::tempdir().expect("a folder");
        copy_dir(home, copy.path());
        copy
    }

    /// Runs until it ends; else it is stopped when the time is over, and has no code.
    async fn run(&self, stage: Stage, home: &Path, more: &[&str], new: usize) -> Finished {
        let items = if stage == Stage::Folder { MESSAGES } else { new as u64 };
        let up = Running::start_in(self.stand_ins.tools(), home, &self.up(more), &Self::script(stage, items));
        let pid = up.pid();
        let mut finished = std::pin::pin!(up.finish_within(2 * PATIENCE));
        if let Ok(finished) = tokio::time::timeout(PATIENCE, &mut finished).await {
            return finished;
        }
        signal(pid, "TERM");
        Finished { code: None, ..finished.await }
    }

    async fn command(&self, home: &Path, arguments: &[&str]) -> Option<Finished> {
        let all = [arguments, &["--pipeline", self.file.to_str().expect("a path")]].concat();
        let running = Running::start(self.stand_ins.tools(), home, &all);
        tokio::time::timeout(PATIENCE, running.finish_within(2 * PATIENCE)).await.ok()
    }

    /// What any reader finds: the outcomes, the number of changes in the changelog, the gallery. An error where something does not
    /// read.
    async fn read(&self, home: &Path) -> Result<(Verdict, usize, BTreeMap<String, Vec<u8>>), String> {
        let (home, pipeline) = (home.to_owned(), self.pipeline.clone());
        let reading = tokio::spawn(async move {
            let stored = Stored::open(&home, &pipeline).await;
            let verdict = verdict(&stored.bus, &pipeline).await;
            let mut changes = 0;
            let mut log =
                stored.bus.scan(&names::changelog(&pipeline.name, "cluster"), 1, true).await.expect("a stream");
            while let Some(record) = log.next().await {
                changes += usize::from(record.expect("a record").headers.kind() == Some(CHANGE));
            }
            let entries = stored.bus.table_entries(names::PEOPLE).await.expect("a table");
            let people = entries.into_iter().map(|entry| (entry.key, entry.value.to_vec())).collect();
            stored.close().await;
            (verdict, changes, people)
        });
        match tokio::time::timeout(PATIENCE, reading).await {
            Ok(Ok(read)) => Ok(read),
            Ok(Err(error)) => Err(format!("the results do not read: {error}")),
            Err(_) => Err("the results cannot be read: no answer".into()),
        }
    }

    /// So many cases, spread over the stores, streams, sorts of files and harms; the same for the same seed.
    pub fn cases(&self, count: usize, seed: u64) -> Vec<Case> {
        let mut rng = Rng::with_seed(seed);
        let harms = [Harm::Bit, Harm::Bytes, Harm::Cut, Harm::Emptied, Harm::Removed];
        // By sort, stream and store: each sort in turn, each of its files in turn.
        let mut files: BTreeMap<Sort, Vec<(String, Stage, PathBuf)>> = BTreeMap::new();
        for made in &self.made {
            for (sort, stream, file) in files_of(made.home.path()) {
                files.entry(sort).or_default().push((stream, made.stage, file));
            }
        }
        for list in files.values_mut() {
            list.sort();
            rng.shuffle(list);
        }
        // What holds messages is most of a store.
        let sorts = [
            Sort::Block,
            Sort::Index,
            Sort::Block,
            Sort::DurableState,
            Sort::Block,
            Sort::Settings,
            Sort::Block,
            Sort::DurableSettings,
        ];
        let mut taken: BTreeMap<Sort, usize> = BTreeMap::new();
        let case = |at: usize| {
            let sort = sorts[at % sorts.len()];
            let list = &files[&sort];
            let turn = taken.entry(sort).or_default();
            let (stream, stage, file) = list[*turn % list.len()].clone();
            // Of a file of messages most harms leave something.
            let harm = harms[*turn % harms.len()];
            *turn += 1;
            Case { seed: rng.u64(..), stage, stream, sort, harm, file }
        };
        (0..count).map(case).collect()
    }

    /// One case of these kinds on a store, whichever file of theirs it is.
    ///
    /// # Panics
    /// When the store has no such file.
    pub fn case(&self, stage: Stage, stream: &str, sort: Sort, harm: Harm, seed: u64) -> Case {
        let made = self.made_at(stage);
        let file = files_of(made.home.path()).into_iter().find(|(of, name, _)| *of == sort && name == stream);
        let (_, _, file) = file.unwrap_or_else(|| panic!("{stream} has no {sort:?}"));
        Case { seed, stage, stream: stream.into(), sort, harm, file }
    }

    fn made_at(&self, stage: Stage) -> &Made {
        self.made.iter().find(|made| made.stage == stage).expect("it was made")
    }

    /// Damages a copy of the store, does what a user would do, and judges.
    ///
    /// # Panics
    /// When the file cannot be damaged.
    pub async fn judge(&self, case: Case) -> Judged {
        let made = self.made_at(case.stage);
        let home = Self::copy(made.home.path());
        let before = log_length(home.path());
        case.harm(home.path());
        let (said, stuck) = self.do_as_told(&case, home.path()).await;
        let broker = warnings(home.path(), before);
        let broker: Vec<String> = broker.into_iter().filter(|line| !made.broker.contains(&sort_of(line))).collect();
        let wrong = match self.read(home.path()).await {
            Ok((seen, changes, people)) => made.differences(&seen, changes, &people),
            Err(error) => vec![error],
        };
        let subject = case.stream.replace('_', ".");
        let said_of = said.lines.iter().any(|line| line.contains(&case.stream) || line.contains(&subject));
        let lost: BTreeSet<&String> = said.lost.iter().collect();
        let lost_are_named = !lost.is_empty() && wrong.iter().all(|wrong| lost.iter().any(|id| wrong.contains(*id)));
        let became = match () {
            () if stuck => Became::Stuck,
            () if !wrong.is_empty() && (said_of || lost_are_named || said.open) => Became::Told,
            () if !wrong.is_empty() => Became::Silent,
            () if said.repaired => Became::Repaired,
            // Copies that are only kept for repair, say: results are the same, but somebody was told.
            () if said.failed && said_of => Became::Told,
            () if said.failed => Became::Stuck,
            () if !said.lines.is_empty() || !broker.is_empty() => Became::Healed,
            () => Became::NoEffect,
        };
        Judged { case, became, wrong, said: said.lines, broker }
    }

    /// `up`, `status`, `reconcile`, and again while that sends something.
    async fn do_as_told(&self, case: &Case, home: &Path) -> (SaidAll, bool) {
        let mut said = SaidAll::default();
        let new = if case.stage == Stage::Folder { 0 } else { NEW };
        for turn in 0..TURNS {
            let up = self.run(case.stage, home, &["--until-drained"], if turn == 0 { new } else { 0 }).await;
            said.add("up", &up.stderr);
            if up.code.is_none() {
                said.failed = true;
                said.lines.push("up does not come to its end".into());
                // It waits for what cannot be stored: its user has to be told where.
                let subject = case.stream.replace('_', ".");
                return (said, ![case.stream.as_str(), &subject].iter().any(|name| up.stderr.contains(name)));
            }
            if up.code != Some(0) {
                said.failed = true;
                // Nothing else would be known but what it says.
                return (said, !up.stderr.lines().any(|line| line.starts_with("causeway: cannot")));
            }
            let Some(status) = self.command(home, &["status", "--json"]).await else {
                said.lines.push("status does not come to its end".into());
                return (said, true);
            };
            for drift in status.json()["drift"].as_array().into_iter().flatten() {
                said.lines.push(format!("status: {} {}: {}", drift["stream"], drift["sort"], drift["detail"]));
            }
            let Some(reconcile) = self.command(home, &["reconcile", "--json"]).await else {
                said.lines.push("reconcile does not come to its end".into());
                return (said, true);
            };
            said.add("reconcile", &reconcile.stderr);
            if reconcile.stdout.is_empty() {
                said.failed = true;
                return (said, !reconcile.stderr.contains("cannot"));
            }
            let found = reconcile.json();
            said.failed |= reconcile.code != Some(0);
            let list = |key: &str| found[key].as_array().cloned().unwrap_or_default();
            said.lost.extend(list("lost").iter().filter_map(|one| one["id"].as_str().map(Into::into)));
            for gone in list("gone") {
                said.lines.push(format!("reconcile: {gone}"));
            }
            let again = list("again").len() + list("removed").len();
            if again == 0 {
                return (said, false);
            }
            said.repaired = true;
            said.lines.push(format!("reconcile: {again} again"));
        }
        said.open = true;
        (said, false)
    }
}

/// What the commands said.
#[derive(Default)]
struct SaidAll {
    lines: Vec<String>,
    /// Ids that are named as lost.
    lost: Vec<String>,
    /// Whether something was sent again.
    repaired: bool,
    /// Whether `reconcile` finds items open however often it sends them again: it names them each time.
    open: bool,
    /// Whether a command ended with another code than 0.
    failed: bool,
}

impl SaidAll {
    /// Lines that a command says of a store that is not in order.
    fn add(&mut self, command: &str, stderr: &str) {
        let is_told = |line: &&str| {
            ["WARN", "ERROR", "cannot", "starting it again", "missing", "gone"].iter().any(|word| line.contains(word))
        };
        self.lines.extend(stderr.lines().filter(is_told).map(|line| format!("{command}: {}", line.trim())));
    }
}

impl Made {
    /// What is otherwise than without damage.
    fn differences(&self, seen: &Verdict, changes: usize, people: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
        let golden = &self.golden;
        let mut wrong: Vec<String> = seen.doubled.iter().map(|what| format!("doubled: {what}")).collect();
        let id = |item: &str| Id::captured("capture", item);
        for (face, (label, score)) in &golden.decisions {
            match seen.decisions.get(face) {
                Some((as_label, as_score)) if as_label == label && as_score.to_bits() == score.to_bits() => {}
                other => wrong.push(format!("decision of {} {face:?}: {other:?}", id(&face.0))),
            }
        }
        for (face, assignment) in &golden.assigned {
            let same = |other: &&Assignment| {
                let Assignment { region, cluster, score, merged, .. } = assignment;
                (&other.region, &other.cluster, &other.score, &other.merged) == (region, cluster, score, merged)
            };
            if seen.assigned.get(face).is_none_or(|other| !same(&other)) {
                wrong.push(format!("assignment of {} {face:?}: {:?}", id(&face.0), seen.assigned.get(face)));
            }
        }
        for (of, letter) in &golden.dead {
            if seen.dead.get(of) != Some(letter) {
                wrong.push(format!("dead letter {of}: {:?}", seen.dead.get(of)));
            }
        }
        let new = if self.stage == Stage::Folder { 0 } else { NEW };
        let (decided, assigned) = (golden.decisions.len() + new, golden.assigned.len() + new);
        if (seen.decisions.len(), seen.assigned.len()) != (decided, assigned) {
            wrong.push(format!(
                "{} decisions and {} assignments of {decided} and {assigned}",
                seen.decisions.len(),
                seen.assigned.len()
            ));
        }
        if changes != seen.assigned.len() {
            wrong.push(format!("{changes} changes of {} assignments", seen.assigned.len()));
        }
        if seen.dead.len() != golden.dead.len() {
            wrong.push(format!("{} dead letters of {}", seen.dead.len(), golden.dead.len()));
        }
        if *people != self.people {
            wrong.push(format!("{} people of {}", people.len(), self.people.len()));
        }
        wrong
    }
}

/// The state is stored every few messages.
fn with_snapshots(stage: &str) -> String {
    if stage == "pipeline" { "[keep]\nchanges = \"64KiB\"".into() } else { String::new() }
}

impl Sort {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Block => "messages",
            Self::Index => "index",
            Self::Settings => "settings",
            Self::DurableSettings => "a durable's settings",
            Self::DurableState => "a durable's state",
        }
    }
}

impl Case {
    /// What the stream is there for.
    pub fn role(&self) -> &'static str {
        match self.stream.as_str() {
            "faces_capture" => "capture",
            "faces_preprocess" | "faces_extract" => "links",
            "faces_cluster_log" => "the changelog",
            "faces_cluster_state" => "snapshots",
            "faces_advisories" => "advisories",
            "faces_dead" => "dead letters",
            stream if stream.starts_with("KV_") || stream.starts_with("OBJ_") => "tables",
            _ => "outcomes",
        }
    }

    fn harm(&self, home: &Path) {
        let file = home.join(&self.file);
        let mut rng = Rng::with_seed(self.seed);
        let mut bytes = std::fs::read(&file).expect("it is there");
        let length = bytes.len().max(1);
        bytes.resize(length, 0);
        match self.harm {
            Harm::Bit => bytes[rng.usize(..length)] ^= 1 << rng.u8(..8),
            Harm::Bytes => {
                let from = rng.usize(..length);
                let to = length.min(from + rng.usize(1..=64));
                bytes[from..to].iter_mut().for_each(|byte| *byte ^= rng.u8(1..));
            }
            Harm::Cut => bytes.truncate(rng.usize(..length)),
            Harm::Emptied => bytes.clear(),
            Harm::Removed => return std::fs::remove_file(&file).expect("it is removed"),
        }
        std::fs::write(&file, bytes).expect("it is written");
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, stage, sort, harm, file, .. } = self;
        write!(to, "{stage:?}, {}: {sort:?} {harm:?} (seed {seed})", file.display())
    }
}

/// The files of a store that hold something, by what they hold and the stream.
fn files_of(home: &Path) -> Vec<(Sort, String, PathBuf)> {
    let streams = home.join("edge/store/jetstream/$G/streams");
    let mut files = Vec::new();
    for stream in std::fs::read_dir(&streams).expect("streams") {
        let stream = stream.expect("a stream").path();
        let name = stream.file_name().expect("a name").to_string_lossy().into_owned();
        let mut under = Vec::new();
        walk(&stream, &mut under);
        for file in under {
            let name_of = file.file_name().expect("a name").to_string_lossy().into_owned();
            let of_durable = file.strip_prefix(&stream).is_ok_and(|path| path.starts_with("obs"));
            let sort = match name_of.as_str() {
                "index.db" => Sort::Index,
                "o.dat" => Sort::DurableState,
                "meta.inf" | "meta.sum" if of_durable => Sort::DurableSettings,
                "meta.inf" | "meta.sum" => Sort::Settings,
                name if Path::new(name).extension().is_some_and(|extension| extension == "blk") => Sort::Block,
                _ => continue,
            };
            if std::fs::metadata(&file).is_ok_and(|file| file.len() > 0) {
                files.push((sort, name.clone(), file.strip_prefix(home).expect("it is under it").to_owned()));
            }
        }
    }
    files.sort();
    files
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(&path, to).expect("it is copied");
        }
    }
}

fn log(home: &Path) -> String {
    std::fs::read_to_string(home.join("edge/nats-server.log")).unwrap_or_default()
}

fn log_length(home: &Path) -> usize {
    log(home).len()
}

/// What nats-server warned of since its log was that long.
fn warnings(home: &Path, before: usize) -> Vec<String> {
    let log = log(home);
    let new = log.get(before..).unwrap_or_default().lines();
    new.filter_map(|line| Some(line.split_once("] ")?.1))
        .filter_map(|line| line.split_once(' ').map(|(_, rest)| rest))
        .filter_map(|line| line.find("[WRN]").or_else(|| line.find("[ERR]")).map(|at| line[at..].to_owned()))
        .collect()
}

/// The line without what is another each time.
fn sort_of(line: &str) -> String {
    line.chars().filter(|char| !char.is_ascii_digit()).collect()
}

async fn enrol(bus: &Bus) {
    for number in 0..PEOPLE {
        let name = format!("person-{number}");
        let person = Person {
            name: name.clone(),
            space: "none".into(),
            vectors: vec![vec![0.5; 32]],
            photos: vec!["photo.jpg".into()],
            enrolled_at: 1,
        };
        bus.table_put(names::PEOPLE, &name, serde_json::to_vec(&person).expect("it is written").into())
            .await
            .expect("it is stored");
    }
}

impl Judged {
    /// Neither silent nor stuck.
    pub fn is_well(&self) -> bool {
        !matches!(self.became, Became::Silent | Became::Stuck)
    }

    /// In one JSON object.
    pub fn to_json(&self) -> Value {
        let Self { case, became, wrong, said, broker } = self;
        serde_json::json!({
            "case": case.to_string(),
            "stream": case.stream,
            "sort": format!("{:?}", case.sort),
            "harm": format!("{:?}", case.harm),
            "stage": format!("{:?}", case.stage),
            "became": format!("{became:?}"),
            "wrong": wrong,
            "said": said,
            "broker": broker,
        })
    }
}
