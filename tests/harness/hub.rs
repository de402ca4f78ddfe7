use std::time::{Duration, Instant};

use async_nats::jetstream;
use causeway_bus::{Bus, Credentials};
use causeway_pipelines::Pipeline;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};

use crate::{
    Cluster, Running, StandIns, Tools, Verdict, drained_within, eventually, stand_in_pipeline, stopped, verdict,
};

/// What became of a run on a hub of three servers of which one after the other was killed.
#[derive(Debug)]
pub struct Hub {
    /// Servers killed.
    pub kills: usize,
    /// Messages that were captured, of so many that there were.
    pub captured: (usize, usize),
    /// Captured without all their outcomes.
    pub missing: usize,
    /// Outcomes that are there twice.
    pub doubled: usize,
}

/// Messages a second.
const RATE: usize = 60;
/// After this long without an outcome none is waited for.
const QUIET: Duration = Duration::from_mins(1);
/// Longest that the rest may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// Runs stages of nothing on a hub of three servers with three copies of everything, and kills in each round every server and the
/// leader of the capture stream, each when the one before has caught up.
///
/// # Panics
/// When a server, or the run, does not come to its end.
pub async fn hub(tools: &Tools, rounds: usize) -> Hub {
    let stand_ins = StandIns::link(tools);
    let home = tempfile::tempdir().expect("a folder");
    let mut cluster = Cluster::start(tools, 3).await;
    let file = home.path().join("faces.toml");
    let more = |stage: &str| match stage {
        "pipeline" => "[keep]\ncopies = 3".into(),
        "capture" => format!("rate = {RATE}"),
        _ => String::new(),
    };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    // More than can be captured meanwhile: the source is told to stop at the end.
    let items = 100_000_000;
    let script = [(ITEMS, items.to_string()), (BYTES, "500".into()), (CAMERA, "1".into())];
    let arguments = ["up", file.to_str().expect("a path"), "--nats", &cluster.addresses()];
    let up = Running::start_in(stand_ins.tools(), home.path(), &arguments, &script);
    up.about().await;
    let bus = Bus::connect(&cluster.addresses(), &Credentials::default(), "faces", "test").await.expect("a bus");
    let mut kills = 0;
    for _ in 0..rounds {
        for number in 0..cluster.len() {
            more_captured(&bus).await;
            cluster.kill(number).await;
            kills += 1;
        }
        more_captured(&bus).await;
        let leader = leader(&cluster).await;
        cluster.kill(cluster.number(&leader)).await;
        kills += 1;
    }
    more_captured(&bus).await;
    // The source ends with its process; the rest goes on with what there is.
    let capture = up.stage_pid("capture", None).await;
    let state = stopped(PATIENCE, &bus, capture).await;
    drained_within(PATIENCE, &bus, &pipeline, state).await;
    let verdict = settled(&bus, &pipeline).await;
    up.stop().await.ok();
    Hub {
        kills,
        captured: (verdict.captured.len(), state),
        missing: verdict.open.len(),
        doubled: verdict.doubled.len(),
    }
}

/// What there is when nothing more comes: a durable whose leader has just been chosen may say that it has nothing to give while it
/// has.
async fn settled(bus: &Bus, pipeline: &Pipeline) -> Verdict {
    let mut last = verdict(bus, pipeline).await;
    let mut since = Instant::now();
    while !last.open.is_empty() && since.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = verdict(bus, pipeline).await;
        if now.open.len() < last.open.len() {
            since = Instant::now();
        }
        last = now;
    }
    last
}

/// Waits until as much again as a second gives has been captured and named.
async fn more_captured(bus: &Bus) {
    let named = async || Some(bus.stream_state("faces_classify").await.ok()??.messages);
    let before = eventually("an answer", named).await;
    eventually("more outcomes", async || named().await.filter(|&now| now >= before + RATE as u64)).await;
}

/// The server that leads the capture stream.
async fn leader(cluster: &Cluster) -> String {
    eventually("a leader", async || {
        let client = async_nats::connect(cluster.addresses().split(',').collect::<Vec<_>>()).await.ok()?;
        let stream = jetstream::new(client).get_stream("faces_capture").await.ok()?;
        stream.cached_info().cluster.as_ref()?.leader.clone()
    })
    .await
}
