//! The workload `faces`: the demo's photos through detection, alignment, embedding, naming and clustering.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use causeway_schemas::Person;
use tempfile::TempDir;

use crate::Args;
use crate::child::{self, Done, Model, Shape, Task, What};
use crate::figures::{Figures, Load};
use crate::in_process::{Answers, Prepared, files};
use crate::latency::{Tail, tail};
use crate::machine::{Usage, cores};
use crate::ours::{self, Run};
use crate::peers::{self, Peer, Spec};
use crate::place::Place;
use crate::rounds::{Round, Rounds};

/// The pipeline that is measured: the project's own.
const PIPELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines/faces.toml");
/// Photos of a round, and of a smoke test; each of the demo's comes as often as the others.
const PHOTOS: (usize, usize) = (240, 16);
/// How long each load is kept up, seconds.
const LOAD_S: (f64, f64) = (20.0, 2.0);
/// Shares of the measured capacity.
const LOADS: [f64; 3] = [0.5, 0.7, 0.9];
/// Publishes of the windowed peer that wait at once: a worker holds no more, or others would starve.
const WINDOW: usize = 16;
/// Least cosine of two contenders' vectors of one face, and most difference of their scores.
const SAME: (f32, f32) = (0.999, 0.01);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Bare,
    InProcess,
    Ours,
    OursOne,
    Redis,
    Nats,
    NatsWindowed,
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "L0",
            Self::InProcess => "L1",
            Self::Ours => "ours",
            Self::OursOne => "ours, max = 1",
            Self::Redis => "Redis lists",
            Self::Nats => "nats-py",
            Self::NatsWindowed => "nats-py, windowed",
        })
    }
}

/// What all contenders work on.
struct Work<'a> {
    place: &'a Place,
    /// Photos, gallery, shapes.
    dir: TempDir,
    photos: usize,
    people: Vec<Person>,
    shapes: BTreeMap<String, Shape>,
    /// The right answers.
    answers: Answers,
    /// The bare models' best layout: workers and threads each.
    layout: (usize, usize),
}

pub(crate) async fn measure(place: &Place, args: &Args, figures: &mut Figures) -> anyhow::Result<()> {
    let pick = |(full, quick): (usize, usize)| if args.quick { quick } else { full };
    let mut work = Work::prepare(place, pick(PHOTOS)).await?;
    let mut contenders = vec![Contender::Bare, Contender::InProcess, Contender::Ours, Contender::OursOne];
    match peers::missing(place) {
        None => contenders.extend([Contender::Redis, Contender::Nats, Contender::NatsWindowed]),
        Some(why) => figures.note(format!("peers skipped: {why}")),
    }
    let compared = contenders.iter().filter(|&&who| !args.quick || who != Contender::NatsWindowed);
    work.compare(&compared.copied().collect::<Vec<_>>()).await?;
    work.choose_layout(figures, args.quick).await?;
    let rounds = Rounds::run("faces", args.rounds(), &contenders, async |who| work.round(who).await).await?;
    for (stage, model) in [("preprocess", Model::Detector), ("extract", Model::Embedder)] {
        figures.bare_mb.insert(stage.into(), work.memory_of(stage, model).await?);
    }
    figures.photos = work.photos;
    figures.faces = work.shapes_of_all().iter().map(|shape| shape.faces).sum();
    let capacity = rounds.per_s("ours").context("ours did not run")?.median;
    let seconds = if args.quick { LOAD_S.1 } else { LOAD_S.0 };
    // A smoke test takes the one with an aim.
    for load in if args.quick { vec![LOADS[1]] } else { LOADS.to_vec() } {
        let loaded = work.load(load, capacity * load, seconds).await?;
        figures.loads.push(loaded);
    }
    figures.face_rounds = rounds;
    Ok(())
}

impl<'a> Work<'a> {
    /// Lays the photos out and answers each once.
    async fn prepare(place: &'a Place, photos: usize) -> anyhow::Result<Self> {
        eprintln!("bench: preparing the photos and the gallery");
        let mut work = Self {
            place,
            dir: place.fresh()?,
            photos,
            people: Vec::new(),
            shapes: BTreeMap::new(),
            answers: Answers::new(),
            layout: (1, 1),
        };
        let mut prepare = work.task(What::Prepare, "");
        prepare.photos = place.photos.join("input");
        let prepared: Prepared = child::answer(place, &prepare).await?;
        std::fs::write(work.dir.path().join("people.json"), serde_json::to_vec(&prepared.people)?)?;
        (work.people, work.shapes, work.answers) = (prepared.people, prepared.shapes, prepared.answers);
        work.lay_out(photos, "photos")?;
        Ok(work)
    }

    /// A folder with `count` photos, the demo's in turn.
    fn lay_out(&self, count: usize, folder: &str) -> anyhow::Result<PathBuf> {
        let to = self.dir.path().join(folder);
        std::fs::create_dir_all(&to)?;
        let from = files(&self.place.photos.join("input"))?;
        for (number, photo) in from.iter().cycle().take(count).enumerate() {
            let name = photo.file_name().unwrap_or_default().to_string_lossy();
            std::fs::copy(photo, to.join(format!("{number:05}-{name}")))?;
        }
        Ok(to)
    }

    fn task(&self, what: What, folder: &str) -> Task {
        Task {
            what,
            pipeline: PIPELINE.into(),
            models: self.place.models.clone(),
            photos: self.dir.path().join(folder),
            enrol: self.place.photos.join("enrol"),
            people: self.dir.path().join("people.json"),
            shapes: self.shapes_of(self.photos),
        }
    }

    fn shapes_of(&self, photos: usize) -> Vec<Shape> {
        self.shapes.values().cycle().take(if self.shapes.is_empty() { 0 } else { photos }).cloned().collect()
    }

    fn shapes_of_all(&self) -> Vec<Shape> {
        self.shapes_of(self.photos)
    }

    /// Decisions, assignments and empties of so many photos.
    fn outcomes(&self, photos: usize) -> u64 {
        self.shapes_of(photos).iter().map(|shape| if shape.faces == 0 { 1 } else { 2 * shape.faces as u64 }).sum()
    }

    fn run_of(&self, folder: &str, photos: usize, one: bool, rate: Option<f64>) -> anyhow::Result<Run<'_>> {
        let input = self.dir.path().join(folder);
        let mut set = vec![format!("capture.input={}", input.to_str().context("a path that is no UTF-8")?)];
        if one {
            set.extend(["preprocess", "extract", "classify", "cluster"].map(|stage| format!("{stage}.batch.max=1")));
        }
        Ok(Run {
            bin: &self.place.bin,
            pipeline: PIPELINE.as_ref(),
            set,
            env: Vec::new(),
            people: &self.people,
            items: photos,
            outcomes: self.outcomes(photos),
            rate,
        })
    }

    fn spec(&self, folder: &str, photos: usize) -> anyhow::Result<Spec> {
        Ok(Spec {
            workload: "faces",
            photos: self.dir.path().join(folder),
            models: self.place.models.clone(),
            people: self.dir.path().join("people.json"),
            items: photos,
            bytes: 0,
            outcomes: self.outcomes(photos),
            extracts: workers_of("extract")?,
        })
    }

    async fn round(&self, who: Contender) -> anyhow::Result<Round> {
        let peer =
            |peer| async move { anyhow::Ok(peers::run(self.place, peer, &self.spec("photos", self.photos)?).await?.0) };
        match who {
            Contender::Bare => {
                let (workers, threads) = self.layout;
                self.limit(What::L0 { workers, threads }).await
            }
            Contender::InProcess => self.limit(What::L1 { workers: cores(), rate: None }).await,
            Contender::Ours | Contender::OursOne => {
                let run = self.run_of("photos", self.photos, who == Contender::OursOne, None)?;
                Ok(ours::run(self.place, &run, false).await?.round)
            }
            Contender::Redis => peer(Peer::Redis).await,
            Contender::Nats => peer(Peer::Nats { window: 1 }).await,
            Contender::NatsWindowed => peer(Peer::Nats { window: WINDOW }).await,
        }
    }

    async fn limit(&self, what: What) -> anyhow::Result<Round> {
        let done: Done = child::answer(self.place, &self.task(what, "photos")).await?;
        let used = Usage { rss_mb: done.rss_mb, cpu_s: done.cpu_s };
        let usages = BTreeMap::from([("process".to_owned(), used)]);
        Ok(Round { per_s: done.photos as f64 / done.took_s, usages, items: done.photos })
    }

    /// Resident memory of a process that has nothing but the sessions of a stage, MB.
    async fn memory_of(&self, stage: &str, model: Model) -> anyhow::Result<f64> {
        let workers = workers_of(stage)?;
        let mut task = self.task(What::One { model, workers }, "photos");
        task.shapes.truncate(2 * self.shapes.len());
        let done: Done = child::answer(self.place, &task).await?;
        Ok(done.rss_mb)
    }

    /// Every contender answers the demo's photos as the stages' code does, before anything is timed.
    async fn compare(&self, contenders: &[Contender]) -> anyhow::Result<()> {
        let photos = self.shapes.len();
        self.lay_out(photos, "once")?;
        for &who in contenders {
            let answers = match who {
                Contender::Ours => {
                    ours::run(self.place, &self.run_of("once", photos, false, None)?, true).await?.answers
                }
                Contender::Redis => peers::run(self.place, Peer::Redis, &self.spec("once", photos)?).await?.1,
                Contender::NatsWindowed => {
                    let peer = Peer::Nats { window: WINDOW };
                    peers::run(self.place, peer, &self.spec("once", photos)?).await?.1
                }
                // The bare models answer nothing; the others run the code of one that is compared.
                _ => continue,
            };
            let least = same_answers(&self.answers, &answers).with_context(|| format!("{who} answers otherwise"))?;
            eprintln!("bench: {who} answers as the stages in process do; least cosine of a face {least:.5}");
        }
        Ok(())
    }

    /// One session or one a core, one thread or all: which is fastest, so that the limit is one.
    async fn choose_layout(&mut self, figures: &mut Figures, quick: bool) -> anyhow::Result<()> {
        let cores = cores();
        let mut best = 0.0;
        let mut said = Vec::new();
        let layouts = [(cores, 1), (1, cores), (1, 1)];
        for (workers, threads) in layouts.into_iter().take(if quick { 1 } else { layouts.len() }) {
            let mut task = self.task(What::L0 { workers, threads }, "photos");
            task.shapes.truncate(64);
            let done: Done = child::answer(self.place, &task).await?;
            let per_s = done.photos as f64 / done.took_s;
            said.push(format!("{workers} sessions × {threads} threads {per_s:.1}/s"));
            if per_s > best {
                best = per_s;
                self.layout = (workers, threads);
            }
        }
        figures.layout = format!("{} × {} won: {}", self.layout.0, self.layout.1, said.join(", "));
        Ok(())
    }

    /// Ours and the stages in process, both fed at `rate` photos a second.
    async fn load(&self, share: f64, rate: f64, seconds: f64) -> anyhow::Result<Load> {
        let photos = ((rate * seconds) as usize).max(8);
        let folder = format!("load-{:.0}", share * 100.0);
        self.lay_out(photos, &folder)?;
        let run = self.run_of(&folder, photos, false, Some(rate))?;
        let ran = ours::run(self.place, &run, false).await?;
        let what = What::L1 { workers: cores(), rate: Some(rate) };
        let done: Done = child::answer(self.place, &self.task(what, &folder)).await?;
        let (ours, in_process): (Tail, Tail) = (tail(&ran.latencies_ms)?, tail(&done.latencies_ms)?);
        eprintln!(
            "bench: faces at {:.0} % ({rate:.1}/s): ours p50 {:.0} ms, p99 {:.0} ms; in process p50 {:.0} ms, p99 {:.0} ms",
            share * 100.0,
            ours.p50,
            ours.p99,
            in_process.p50,
            in_process.p99
        );
        Ok(Load { share, rate, ours, in_process })
    }
}

/// Workers of a stage of the pipeline.
fn workers_of(stage: &str) -> anyhow::Result<usize> {
    let pipeline = causeway_pipelines::Pipeline::load(PIPELINE)?;
    Ok(pipeline.stage(stage).map_or(1, |stage| stage.workers))
}

/// The least cosine of two vectors of the same face; an error where photos, faces, labels or scores differ.
fn same_answers(right: &Answers, found: &Answers) -> anyhow::Result<f32> {
    let mut least = 1.0_f32;
    ensure!(found.len() == right.len(), "{} photos have answers, {} should", found.len(), right.len());
    for (item, faces) in found {
        let name = item.split_once('-').map_or(item.as_str(), |(_, name)| name);
        let wanted = right.get(name).with_context(|| format!("nobody asked for {item}"))?;
        ensure!(faces.len() == wanted.len(), "{item}: {} faces, {} are right", faces.len(), wanted.len());
        for (face, wanted) in faces.iter().zip(wanted) {
            ensure!(face.label == wanted.label, "{item}: {:?} is not {:?}", face.label, wanted.label);
            let apart = (face.score - wanted.score).abs();
            ensure!(apart <= SAME.1, "{item}: the score {} is not {}", face.score, wanted.score);
            let cosine: f32 = face.vector.iter().zip(&wanted.vector).map(|(a, b)| a * b).sum();
            ensure!(cosine >= SAME.0, "{item}: the cosine of the vectors is {cosine}");
            least = least.min(cosine);
        }
    }
    Ok(least)
}
