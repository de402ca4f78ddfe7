use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use causeway_bus::{Bus, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Capture, Frame, Id, decode, header};
use causeway_stage::now_ns;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS, SLOW};
use futures::StreamExt as _;

use crate::hub::stopped;
use crate::{
    Running, StandIns, Tools, drained_within, eventually, left_running, signal, stand_in_pipeline, verdict, within,
};

/// A file system on a disk of its own whose power can be cut. Dropped, it is gone.
pub struct Disk {
    image: PathBuf,
    at: PathBuf,
}

mod ioctl {
    // EXT4_IOC_SHUTDOWN of the kernel's fs/ext4/ext4.h: the file system stops at once.
    nix::ioctl_read!(shutdown, b'X', 125, u32);
    /// What is not on disk does not get there: neither data nor journal (`EXT4_GOING_FLAGS_NOLOGFLUSH`).
    pub(super) const NO_LOG_FLUSH: u32 = 2;
}

impl Disk {
    /// Makes one of so many MiB in a file, mounted at a folder that is made; `None`, where one may not mount.
    ///
    /// # Panics
    /// When the file or the folder cannot be made.
    pub fn mount(image: &Path, at: &Path, mib: u64) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        File::create(image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        let made =
            Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image).status().is_ok_and(|status| status.success());
        let disk = Self { image: image.to_owned(), at: at.to_owned() };
        (made && disk.try_on()).then_some(disk)
    }

    /// Cuts the power: what the kernel has not written yet is gone, and whoever writes gets an error.
    ///
    /// # Panics
    /// When the kernel cannot.
    #[expect(unsafe_code, reason = "an ioctl that reads one number")]
    pub fn cut(&self) {
        use std::os::fd::AsRawFd as _;
        let dir = File::open(&self.at).expect("it is mounted");
        let mut how = ioctl::NO_LOG_FLUSH;
        // SAFETY: the descriptor is open, and the number outlives the call.
        unsafe { ioctl::shutdown(dir.as_raw_fd(), &raw mut how) }.expect("the file system can be stopped");
    }

    /// The power is back: what is on disk is mounted, once nobody holds the old one.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn on(&self) {
        eventually("nobody at the disk", async || {
            Command::new("umount").arg(&self.at).output().is_ok_and(|output| output.status.success()).then_some(())
        })
        .await;
        assert!(self.try_on(), "what is left can be mounted");
    }

    fn try_on(&self) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop"]).arg(&self.image).arg(&self.at);
        mount.output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also while somebody still looks at it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// What became of a run whose machine lost power again and again.
#[derive(Debug, Default)]
pub struct Power {
    /// How often.
    pub cuts: usize,
    /// Said to be stored before any cut.
    pub captured: usize,
    /// Of these, no more there after it.
    pub lost: usize,
    /// The oldest of what one cut took had been stored so long before it, seconds.
    pub oldest_s: f64,
    /// Of those lost, the ones that are not simply after the last of their start that is there.
    pub unnamed: usize,
    /// Starts that did not get to work, with what they said.
    pub stopped: Vec<String>,
    /// Sent again by `causeway reconcile`.
    pub again: usize,
    /// At the end: captured without all outcomes.
    pub missing: usize,
    /// Outcomes that are there twice.
    pub doubled: usize,
    /// Of those lost, by start and number, each judged once.
    counted: BTreeSet<(u64, u64)>,
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct PowerRun {
    /// How often the power is cut.
    pub cuts: usize,
    /// `keep.sync`.
    pub sync: &'static str,
    /// Whether the source is a camera; else it can be read again.
    pub is_camera: bool,
    /// When each cut comes.
    pub seed: u64,
}

/// Messages a second of a camera, and how many a folder has.
const RATE: u64 = 100;
const FOLDER: u64 = 3000;
/// How long a start works before it is cut off, seconds: from and to.
const WORKS: (f64, f64) = (0.1, 3.0);
/// Longest that anything takes after a cut.
const PATIENCE: Duration = Duration::from_mins(2);

/// Runs stages of nothing whose store is on a disk of its own, and cuts its power again and again, each time with every process
/// killed; after each start it is reconciled as its user would. `None`, where one may not mount.
///
/// # Panics
/// When something does not come to its end.
pub async fn power(tools: &Tools, run: PowerRun) -> Option<Power> {
    let stand_ins = StandIns::link(tools);
    let home = tempfile::tempdir().expect("a folder");
    let disk = Disk::mount(&home.path().join("disk"), &home.path().join("edge"), 4096)?;
    let file = home.path().join("faces.toml");
    let more = |stage: &str| match (stage, run) {
        ("pipeline", PowerRun { sync, .. }) => {
            format!("[keep]\ncaptured = {{ bytes = \"512MiB\" }}\noutcomes = {{ bytes = \"128MiB\" }}\nsync = {sync:?}")
        }
        ("capture", PowerRun { is_camera: true, .. }) => format!("rate = {RATE}"),
        ("capture" | "preprocess" | "extract", _) => "link_bytes = \"64MiB\"".into(),
        _ => String::new(),
    };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let (items, camera) = if run.is_camera { (100_000_000, "1") } else { (FOLDER, "0") };
    let script = [(ITEMS, items.to_string()), (BYTES, "500".into()), (CAMERA, camera.into())];
    let script = [&script[..], &[(SLOW, "extract=1".into())]].concat();
    let file = file.to_str().expect("a path");
    let mut power = Power::default();
    let mut random = fastrand::Rng::with_seed(run.seed);
    let mut known = BTreeMap::new();
    let mut cut_at = 0;
    loop {
        let mut up = Running::start_in(stand_ins.tools(), home.path(), &["up", file], &script);
        let Some((bus, there)) = at_work(&mut up).await else {
            power.stopped.push(up.finish().await.stderr);
            (power.captured, power.lost) = (known.len(), power.counted.len());
            return Some(power);
        };
        if run.is_camera {
            power.judge(&known, &there, cut_at);
        }
        let reconcile = async |more: &[&str]| {
            let arguments = [&["reconcile", file, "--json"], more].concat();
            let told = Running::start(stand_ins.tools(), home.path(), &arguments).finish().await.json();
            told["again"].as_array().map_or(0, Vec::len)
        };
        power.again += reconcile(&[]).await;
        if power.cuts == run.cuts {
            let capture = async || up.stage_pid("capture", None).await;
            let state = if run.is_camera { stopped(&bus, capture().await).await } else { FOLDER as usize };
            drained_within(PATIENCE, &bus, &pipeline, state).await;
            power.again += reconcile(&["--wait=60"]).await;
            let verdict = verdict(&bus, &pipeline).await;
            power.captured = known.len();
            power.lost = known.keys().filter(|&id| !verdict.captured.contains(id)).count();
            (power.missing, power.doubled) = (verdict.open.len(), verdict.doubled.len());
            up.stop().await.ok();
            return Some(power);
        }
        tokio::time::sleep(Duration::from_secs_f64(WORKS.0 + random.f64() * (WORKS.1 - WORKS.0))).await;
        known.extend(captured(&bus).await);
        disk.cut();
        cut_at = now_ns();
        power.cuts += 1;
        signal(up.pid(), "KILL");
        drop(up);
        eventually("the end of all that ran", async || left_running(home.path()).is_empty().then_some(())).await;
        disk.on().await;
    }
}

impl Power {
    /// What the last cut took of what was known before it, as soon as something is there again.
    fn judge(&mut self, known: &Captures, there: &Captures, cut_at: u64) {
        let mut last: BTreeMap<u64, u64> = BTreeMap::new();
        for capture in there.values() {
            let last = last.entry(capture.epoch).or_default();
            *last = capture.sequence.max(*last);
        }
        for (_, capture) in known.iter().filter(|&(id, _)| !there.contains_key(id)) {
            self.unnamed += usize::from(last.get(&capture.epoch).is_some_and(|&last| capture.sequence < last));
            if !self.counted.insert((capture.epoch, capture.sequence)) {
                continue;
            }
            self.oldest_s = self.oldest_s.max(cut_at.saturating_sub(capture.captured_at) as f64 / 1e9);
        }
    }
}

/// Captured ids, with where and when each was.
type Captures = BTreeMap<Id, Capture>;

/// What the capture stream holds.
async fn captured(bus: &Bus) -> Captures {
    let mut captures = BTreeMap::new();
    let mut records = bus.scan(&names::stream("faces", "capture"), 1, false).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let frame: Frame = decode(record.headers.kind(), record.headers.codec(), &record.body).expect("a frame");
        captures.insert(record.headers.id(header::ID).expect("an id"), frame.capture);
    }
    captures
}

/// Waits until something new has its outcomes; gives what was captured at first. `None`: it ended instead.
async fn at_work(up: &mut Running) -> Option<(Bus, Captures)> {
    let file = up.home().join("up.json");
    // It may be that of a run before.
    let mut pid = 0;
    eventually("a server", async || {
        let about: Option<serde_json::Value> =
            std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        pid = about.and_then(|about| about["pid"].as_u64()).unwrap_or(0);
        (!up.is_running() || pid == u64::from(up.pid())).then_some(())
    })
    .await;
    if !up.is_running() {
        return None;
    }
    let bus = up.bus("faces").await;
    let before = captured(&bus).await;
    let outcomes = async || {
        let count = async |stream| Some(bus.stream_state(stream).await.ok()??.messages);
        Some((count("faces_classify").await?, count("faces_cluster").await?))
    };
    let first = eventually("the outcomes' streams", outcomes).await;
    within(PATIENCE, "new outcomes", async || {
        if !up.is_running() {
            return Some(false);
        }
        outcomes().await.filter(|now| now.0 > first.0 && now.1 > first.1).map(|_| true)
    })
    .await
    .then_some((bus, before))
}
