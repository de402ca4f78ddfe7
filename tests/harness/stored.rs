use std::path::{Path, PathBuf};

use causeway_bus::server::{Server, Start};
use causeway_bus::{Bus, Credentials, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, DeadLetter, Meta, decode_body};
use futures::StreamExt as _;

/// What an `up` that has ended left in its home, under a server of the test's own.
pub struct Stored {
    server: Server,
    /// A connection to it.
    pub bus: Bus,
}

impl Stored {
    /// Opens the store of `home`.
    ///
    /// # Panics
    /// When there is none.
    pub async fn open(home: &Path, pipeline: &Pipeline) -> Self {
        let server = Server::start("edge", &home.join("edge"), Start::default()).await.expect("a server");
        let bus = Bus::connect(&server.address(), &Credentials::default(), &pipeline.name, "test").await;
        Self { server, bus: bus.expect("a bus") }
    }

    /// Lets go of the store, so that another server can open it.
    pub async fn close(self) {
        self.server.stop().await;
    }
}

/// Every dead letter of a pipeline with what its headers say, the oldest first.
///
/// # Panics
/// When one does not read.
pub async fn dead_letters(bus: &Bus, pipeline: &Pipeline) -> Vec<(Meta, DeadLetter)> {
    let mut letters = Vec::new();
    let mut records = bus.scan(&names::stream(&pipeline.name, names::DEAD), 1, false).await.expect("a stream");
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let body = bus.body(&record.headers, record.body).await.expect("a body");
        let letter = decode_body(&body, Codec::Json).expect("a dead letter");
        letters.push((record.headers.meta().expect("a dead letter has our headers"), letter));
    }
    letters
}

/// The processes that were started for `home`, by a [`crate::Running`] or by what that started, and still run.
pub fn left_running(home: &Path) -> Vec<PathBuf> {
    let mark = format!("{}={}", crate::running::HOME_MARK, home.display());
    let marked = |process: &PathBuf| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").expect("a /proc").filter_map(|entry| Some(entry.ok()?.path()));
    processes.filter(marked).collect()
}
