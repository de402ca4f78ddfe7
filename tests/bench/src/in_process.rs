//! The limits: the bare models, and the stages' own code without any bus, in the threads of one process.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use causeway_classify::{Classify, Gallery};
use causeway_cluster::Cluster;
use causeway_extract::Extract;
use causeway_imaging::decode;
use causeway_inference::Session;
use causeway_pipelines::{Manifest, Pipeline, PreprocessOptions};
use causeway_preprocess::{Preprocess, largest_centred};
use causeway_schemas::{Capture, Codec, Decision, Feature, Frame, Id, Person, encode};
use causeway_stage::{Answer, Context, Fold as _, Live, Stage, Table as _, now_ns};
use ndarray::Array4;
use serde::{Deserialize, Serialize};

use crate::child::{Done, Model, Shape, Task};
use crate::machine::usage;

/// What a contender answered about a face.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Face {
    pub(crate) label: Option<String>,
    pub(crate) score: f32,
    pub(crate) vector: Vec<f32>,
}

/// The faces of each photo, largest first; a photo without any has an empty list.
pub(crate) type Answers = BTreeMap<String, Vec<Face>>;

/// What the preparation gives.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Prepared {
    pub(crate) people: Vec<Person>,
    pub(crate) answers: Answers,
    pub(crate) shapes: BTreeMap<String, Shape>,
}

/// All stages behind each other, for one thread.
struct Line {
    preprocess: Preprocess,
    extract: Extract,
    classify: Classify,
    cluster: Arc<Mutex<Cluster>>,
}

impl Line {
    fn new(task: &Task, gallery: &Live<Gallery>, cluster: &Arc<Mutex<Cluster>>) -> anyhow::Result<Self> {
        let pipeline = Pipeline::load(&task.pipeline)?;
        let classify = options(&pipeline, "classify")?;
        Ok(Self {
            preprocess: stage(&pipeline, task, "preprocess")?,
            extract: stage(&pipeline, task, "extract")?,
            classify: Classify::with_gallery(&classify, gallery.clone())?,
            cluster: Arc::clone(cluster),
        })
    }

    fn features(&mut self, path: &Path) -> anyhow::Result<Vec<Feature>> {
        let image = std::fs::read(path)?;
        let item = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let capture = Capture { source: "capture".into(), item, epoch: 0, sequence: 0, captured_at: now_ns() };
        let crops = messages(self.preprocess.process(vec![Frame { capture, image }]))?;
        messages(self.extract.process(crops))
    }

    /// Everything that the pipeline does with a photo.
    fn answer(&mut self, path: &Path) -> anyhow::Result<Vec<(Feature, Decision)>> {
        let features = self.features(path)?;
        let decisions = messages(self.classify.process(features.clone()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        for (part, feature) in features.iter().enumerate() {
            let id = Id::captured("capture", &name).derived("extract", part);
            let mut cluster = self.cluster.lock().expect("no holder of the clusters panics");
            let change = cluster.decide(id, feature)?;
            cluster.apply(&change);
        }
        Ok(features.into_iter().zip(decisions).collect())
    }
}

fn options<O: serde::de::DeserializeOwned>(pipeline: &Pipeline, name: &str) -> anyhow::Result<O> {
    let spec = pipeline.stage(name).with_context(|| format!("no stage {name}"))?;
    spec.options().map_err(|why| anyhow::anyhow!(why))
}

fn stage<S: Stage>(pipeline: &Pipeline, task: &Task, name: &str) -> anyhow::Result<S> {
    let spec = pipeline.stage(name).with_context(|| format!("no stage {name}"))?;
    S::new(options(pipeline, name)?, &Context::new(spec, Path::new("."), &task.models, 1))
}

fn messages<T>(answers: Vec<Result<Answer<T>, causeway_stage::Failure>>) -> anyhow::Result<Vec<T>> {
    let mut all = Vec::new();
    for answer in answers {
        if let Answer::Messages(messages) = answer? {
            all.extend(messages);
        }
    }
    Ok(all)
}

/// The files of a folder, by name.
pub(crate) fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = folder.read_dir().with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|path| !path.file_name().unwrap_or_default().to_string_lossy().starts_with('.'));
    files.sort();
    Ok(files)
}

fn gallery(people: &[Person]) -> anyhow::Result<Live<Gallery>> {
    let mut gallery = Gallery::default();
    for (at, person) in people.iter().enumerate() {
        gallery.put(&person.name, &encode(person, Codec::Json), at as u64 + 1)?;
    }
    Ok(Live::fixed(gallery))
}

/// Enrols the people and answers every photo once.
pub(crate) fn prepare(task: &Task) -> anyhow::Result<Prepared> {
    let cluster = Arc::new(Mutex::new(Cluster::with_threshold(0.4)));
    let mut line = Line::new(task, &gallery(&[])?, &cluster)?;
    let mut people = Vec::new();
    for folder in files(&task.enrol)? {
        let (mut vectors, mut space) = (Vec::new(), String::new());
        for photo in files(&folder)? {
            let features = line.features(&photo)?;
            let regions: Vec<_> = features.iter().map(|feature| feature.region.clone()).collect();
            let Some(at) = largest_centred(&regions) else { continue };
            space.clone_from(&features[at].space);
            vectors.push(features[at].unit_vector().map_err(|why| anyhow::anyhow!(why))?);
        }
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        people.push(Person { name, space, vectors, photos: Vec::new(), enrolled_at: 1 });
    }
    let size: PreprocessOptions = options(&Pipeline::load(&task.pipeline)?, "preprocess")?;
    let mut line = Line::new(task, &gallery(&people)?, &cluster)?;
    let (mut answers, mut shapes) = (Answers::new(), BTreeMap::new());
    for photo in files(&task.photos)? {
        let answered = line.answer(&photo)?;
        let name = photo.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let picture = decode(&std::fs::read(&photo)?, u64::MAX)?;
        let looks = [size.input_size, (size.input_size / 2).next_multiple_of(32)];
        let looks = looks.map(|size| input_shape(picture.width(), picture.height(), size)).to_vec();
        shapes.insert(name.clone(), Shape { looks, faces: answered.len() });
        let face = |(feature, decision): (Feature, Decision)| {
            Some(Face { label: decision.label, score: decision.score, vector: feature.vector()? })
        };
        answers.insert(name, answered.into_iter().filter_map(face).collect());
    }
    Ok(Prepared { people, answers, shapes })
}

/// Height and width of the detector's input for a picture whose longer side is scaled to `size`.
fn input_shape(width: u32, height: u32, size: u32) -> [usize; 2] {
    let scale = f64::from(size) / f64::from(width.max(height));
    [height, width].map(|len| ((f64::from(len) * scale).round() as u32).max(1).next_multiple_of(32) as usize)
}

/// The models, or `only` one of them, on ready-made tensors of the photos' shapes; nothing else.
pub(crate) fn bare(task: &Task, workers: usize, threads: usize, only: Option<Model>) -> anyhow::Result<Done> {
    let open = |model: Model, name: &str| -> anyhow::Result<Option<Session>> {
        if only.is_some_and(|only| only != model) {
            return Ok(None);
        }
        Ok(Some(Session::open(&Manifest::load(&task.models, name)?, threads)?))
    };
    let tensor = |[height, width]: [usize; 2]| {
        Array4::from_shape_fn([1, 3, height, width], |(_, channel, y, x)| {
            ((channel * 7 + y * 31 + x * 13) % 256) as f32
        })
    };
    let mut tensors: BTreeMap<[usize; 2], Array4<f32>> = BTreeMap::new();
    for &look in task.shapes.iter().flat_map(|shape| &shape.looks) {
        tensors.entry(look).or_insert_with(|| tensor(look));
    }
    let face = tensor([112, 112]);
    let sessions = || anyhow::Ok((open(Model::Detector, "yunet")?, open(Model::Embedder, "sface")?));
    let photos = task.shapes.len();
    drive(photos, workers, None, sessions, |(detector, embedder), photo| {
        let shape = &task.shapes[photo];
        for look in &shape.looks {
            detector.as_mut().map(|detector| detector.run(&tensors[look]).map(drop)).transpose()?;
        }
        for _ in 0..shape.faces {
            embedder.as_mut().map(|embedder| embedder.run(&face).map(drop)).transpose()?;
        }
        Ok(())
    })
}

/// The stages' code on the photos: read, decode, detect, align, embed, name, cluster.
pub(crate) fn whole(task: &Task, workers: usize, rate: Option<f64>) -> anyhow::Result<Done> {
    let people: Vec<Person> = serde_json::from_slice(&std::fs::read(&task.people)?)?;
    let (gallery, photos) = (gallery(&people)?, files(&task.photos)?);
    let cluster = Arc::new(Mutex::new(Cluster::with_threshold(0.4)));
    drive(
        photos.len(),
        workers,
        rate,
        || Line::new(task, &gallery, &cluster),
        |line, photo| line.answer(&photos[photo]).map(drop),
    )
}

/// Photos that each worker does before the clock starts: the first run of a session takes longer.
const WARM_UP: usize = 2;

/// Lets `workers` threads handle `count` photos, each taking the next; with `rate`, not before it is due.
fn drive<S>(
    count: usize,
    workers: usize,
    rate: Option<f64>,
    build: impl Fn() -> anyhow::Result<S> + Sync,
    work: impl Fn(&mut S, usize) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<Done> {
    let next = AtomicUsize::new(0);
    let ready = std::sync::Barrier::new(workers + 1);
    let latencies = Mutex::new(vec![0.0; count]);
    let began = Mutex::new(Instant::now());
    let one = || -> anyhow::Result<()> {
        let built = build().and_then(|mut state| {
            // As the stages do.
            causeway_stage::give_back_memory();
            (0..WARM_UP.min(count)).try_for_each(|photo| work(&mut state, photo))?;
            Ok(state)
        });
        // Every worker meets the barriers, also one that could not be built.
        ready.wait();
        ready.wait();
        let mut state = built?;
        let began = *began.lock().expect("nobody panics with it");
        loop {
            let photo = next.fetch_add(1, Ordering::Relaxed);
            if photo >= count {
                return Ok(());
            }
            let due = rate.map(|rate| began + Duration::from_secs_f64(photo as f64 / rate));
            if let Some(due) = due {
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let start = due.unwrap_or_else(Instant::now);
            work(&mut state, photo)?;
            latencies.lock().expect("nobody panics with it")[photo] = 1e3 * start.elapsed().as_secs_f64();
        }
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..workers).map(|_| scope.spawn(one)).collect();
        ready.wait();
        let before = usage(std::process::id());
        *began.lock().expect("nobody panics with it") = Instant::now();
        ready.wait();
        for handle in handles {
            match handle.join() {
                Ok(done) => done?,
                Err(_) => bail!("a worker panicked"),
            }
        }
        let took_s = began.lock().expect("nobody panics with it").elapsed().as_secs_f64();
        let after = usage(std::process::id());
        let latencies_ms = std::mem::take(&mut *latencies.lock().expect("nobody panics with it"));
        Ok(Done { photos: count, took_s, rss_mb: after.rss_mb, cpu_s: after.cpu_s - before.cpu_s, latencies_ms })
    })
}
