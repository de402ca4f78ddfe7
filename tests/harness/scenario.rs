use std::path::Path;

use async_nats::jetstream;
use causeway_bus::names;
use tempfile::TempDir;

use crate::{
    HeldBack, Oracle, Sabotage, Saboteur, Site, StageProcess, Tools, copy_photos, drained, eventually, faces, signal,
    verdict,
};

/// Frames of a stage that go through before it is kept back.
const AFTER: u64 = 2;

/// A face pipeline that is run again and again over the same photos, each time with something that goes wrong.
pub struct Scenario {
    tools: Tools,
    input: TempDir,
    photos: usize,
    oracle: Oracle,
}

impl Scenario {
    /// Runs it without faults.
    ///
    /// # Panics
    /// When that goes wrong.
    pub async fn new() -> Self {
        let tools = Tools::find();
        let input = tempfile::tempdir().expect("a folder");
        let photos = copy_photos(&tools, input.path(), 1);
        let site = start(&tools, input.path()).await;
        let _stages = stages(&site, "");
        drained(&site.bus, &site.pipeline, photos).await;
        let oracle = Oracle::new(verdict(&site.bus, &site.pipeline).await);
        Self { tools, input, photos, oracle }
    }

    async fn site(&self) -> Site {
        start(&self.tools, self.input.path()).await
    }

    async fn drained(&self, site: &Site) {
        drained(&site.bus, &site.pipeline, self.photos).await;
    }

    /// What the oracle says at the end.
    async fn faults(&self, site: &Site) -> Vec<String> {
        self.drained(site).await;
        self.oracle.faults(&site.bus, &site.pipeline).await
    }

    /// `extract` is killed when something of it is kept back, and another one goes on.
    ///
    /// # Panics
    /// When it does not come to its end.
    pub async fn killed(&self, held_back: HeldBack, sabotage: Sabotage) -> Vec<String> {
        let site = self.site().await;
        let saboteur = Saboteur::before(&site.server.address(), sabotage, held_back, AFTER).await;
        let first = site.stage_at(&saboteur.address(), "extract", &[]);
        let _others = stages(&site, "extract");
        saboteur.kept(1).await;
        first.kill().await;
        drop(saboteur);
        let _second = site.stage("extract", &[]);
        self.faults(&site).await
    }

    /// The writer of `cluster` falls asleep with a change on its way, and wakes when another one has done everything.
    ///
    /// # Panics
    /// When it does not come to its end.
    pub async fn woken(&self, sabotage: Sabotage) -> Vec<String> {
        let site = self.site().await;
        let saboteur = Saboteur::before(&site.server.address(), sabotage, HeldBack::Changes, AFTER).await;
        let first = site.stage_at(&saboteur.address(), "cluster", &[]);
        let _others = stages(&site, "cluster");
        saboteur.kept(1).await;
        signal(first.pid(), "STOP");
        let _second = site.stage("cluster", &[]);
        self.drained(&site).await;
        let log = names::changelog("faces", "cluster");
        let appended = async || site.bus.stream_state(&log).await.expect("a state").expect("a changelog").messages;
        let before = appended().await;
        saboteur.release();
        if sabotage == Sabotage::NoFence {
            eventually("the change of the one that slept", async || (appended().await > before).then_some(())).await;
        }
        signal(first.pid(), "CONT");
        self.drained(&site).await;
        assert_eq!(first.stop().await, Some(0));
        self.faults(&site).await
    }

    /// Everything is captured once more, under a generation that no dedupe window knows.
    ///
    /// # Panics
    /// When it does not come to its end.
    pub async fn again(&self, sabotage: Sabotage) -> Vec<String> {
        let site = self.site().await;
        let saboteur = Saboteur::before(&site.server.address(), sabotage, HeldBack::Nothing, 0).await;
        let _classify = site.stage_at(&saboteur.address(), "classify", &[]);
        let _others = stages(&site, "classify");
        self.drained(&site).await;
        assert_eq!(site.stage("capture", &["--generation", "1"]).ended().await, Some(0));
        drained(&site.bus, &site.pipeline, 2 * self.photos).await;
        self.oracle.faults(&site.bus, &site.pipeline).await
    }

    /// `extract` comes when `preprocess` has done all; its link drops the oldest where it is full, if told so.
    ///
    /// # Panics
    /// When it does not come to its end.
    pub async fn late(&self, discard_old: bool) -> Vec<String> {
        let site = self.site().await;
        if discard_old {
            let client = async_nats::connect(site.server.address()).await.expect("a client");
            let js = jetstream::new(client);
            let stream = js.get_stream("faces_preprocess").await.expect("a stream");
            let mut config = stream.cached_info().config.clone();
            config.discard = jetstream::stream::DiscardPolicy::Old;
            config.max_messages = 2;
            js.update_stream(&config).await.expect("it is changed");
        }
        let _others = stages(&site, "extract");
        eventually("all is cropped", async || {
            let captured = site.bus.stream_state("faces_capture").await.ok()??.messages == self.photos as u64;
            let state = site.bus.durable_state("faces_capture", "preprocess").await.ok()??;
            (captured && state.pending + state.unacked == 0).then_some(())
        })
        .await;
        let _extract = site.stage("extract", &[]);
        self.faults(&site).await
    }
}

async fn start(tools: &Tools, input: &Path) -> Site {
    Site::start(tools, &faces(input, |_| "")).await
}

/// All stages but one.
fn stages(site: &Site, but: &str) -> Vec<StageProcess> {
    let names = ["preprocess", "extract", "classify", "cluster", "capture"];
    names.iter().filter(|&&name| name != but).map(|name| site.stage(name, &[])).collect()
}

/// It is found, and as what it is: `missing: `, `doubled: `.
pub fn is_found(faults: &[String], sort: &str) -> bool {
    faults.iter().any(|fault| fault.starts_with(sort))
}

/// How many of the five sabotages the oracle finds.
pub async fn mutations_caught() -> usize {
    let scenario = Scenario::new().await;
    let found = [
        is_found(&scenario.killed(HeldBack::Outputs, Sabotage::EarlyAck).await, "missing: "),
        is_found(&scenario.killed(HeldBack::Acks, Sabotage::DrawnIds).await, "doubled: "),
        is_found(&scenario.woken(Sabotage::NoFence).await, "doubled: "),
        is_found(&scenario.again(Sabotage::NotIfAbsent).await, "doubled: "),
        is_found(&scenario.late(true).await, "missing: "),
    ];
    found.iter().filter(|&&found| found).count()
}
