//! All that was measured, and the object that machines read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::latency::Tail;
use crate::plumbing::HOPS;
use crate::rounds::{Rounds, Spread};

/// Latencies at one load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Share of the measured capacity.
    pub(crate) share: f64,
    /// Photos a second.
    pub(crate) rate: f64,
    pub(crate) ours: Tail,
    pub(crate) in_process: Tail,
}

/// All that was measured.
#[derive(Debug)]
pub(crate) struct Figures {
    /// How much of the machine others used before, 0..1.
    pub(crate) others: f64,
    /// Whether it was a smoke test.
    pub(crate) quick: bool,
    /// What a reader has to know beside the figures.
    pub(crate) notes: Vec<String>,
    /// Photos and faces of a round.
    pub(crate) photos: usize,
    pub(crate) faces: usize,
    /// How the bare models ran fastest.
    pub(crate) layout: String,
    pub(crate) face_rounds: Rounds,
    /// Resident memory of a process with nothing but a stage's sessions, by stage, MB.
    pub(crate) bare_mb: BTreeMap<String, f64>,
    pub(crate) loads: Vec<Load>,
    pub(crate) plumbing_rounds: Rounds,
    /// Latency of a message through an idle pipeline without models.
    pub(crate) idle: Option<Tail>,
}

/// The load whose latencies have an aim.
const AIMED_LOAD: f64 = 0.7;

impl Figures {
    pub(crate) fn new(others: f64, quick: bool) -> Self {
        Self {
            others,
            quick,
            notes: Vec::new(),
            photos: 0,
            faces: 0,
            layout: String::new(),
            face_rounds: Rounds::default(),
            bare_mb: BTreeMap::new(),
            loads: Vec::new(),
            plumbing_rounds: Rounds::default(),
            idle: None,
        }
    }

    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The load whose latencies have an aim.
    pub(crate) fn aimed(&self) -> Option<&Load> {
        self.loads.iter().find(|load| (load.share - AIMED_LOAD).abs() < 1e-9)
    }

    /// How the whole pipeline's deliveries a second stand to the server's own, of bodies of so many KB.
    pub(crate) fn over_server(&self, kb: usize) -> Option<Spread> {
        let ratio = self.plumbing_rounds.ratio(&format!("ours {kb} KB"), &format!("server {kb} KB"))?;
        Some(Spread { median: HOPS * ratio.median, least: HOPS * ratio.least, most: HOPS * ratio.most })
    }

    /// Resident memory by process, MB: the face pipeline's, or that of the stand-ins where only those ran.
    pub(crate) fn rss_mb(&self) -> BTreeMap<String, f64> {
        let faces = self.face_rounds.usages("ours");
        let usages = if faces.is_empty() { self.plumbing_rounds.usages("ours 2 KB") } else { faces };
        let bare = self.bare_mb.iter().map(|(stage, mb)| (format!("L0 with the sessions of {stage}"), rounded(*mb)));
        usages.into_iter().map(|(name, rss, _)| (name, rounded(rss))).chain(bare).collect()
    }

    /// One object; what was not measured is null.
    pub(crate) fn json(&self) -> Value {
        let median = |spread: Option<Spread>| spread.map(|spread| rounded(spread.median));
        let faces = |who: &str| median(self.face_rounds.per_s(who));
        let over = |one: &str, other: &str| median(self.face_rounds.ratio(one, other));
        let plumbing = |one: &str, other: &str| median(self.plumbing_rounds.ratio(one, other));
        let aimed = |tail: &dyn Fn(&Load) -> f64| self.aimed().map(|load| rounded(tail(load)));
        json!({
            "l0_per_s": faces("L0"),
            "l1_per_s": faces("L1"),
            "ours_per_s": faces("ours"),
            "ours_over_l1": over("ours", "L1"),
            "ours_one_over_l1": over("ours, max = 1", "L1"),
            "redis_python_per_s": faces("Redis lists"),
            "ours_over_redis_python": over("ours", "Redis lists"),
            "nats_python_per_s": faces("nats-py"),
            "ours_over_nats_python": over("ours", "nats-py"),
            "plumbing_2k_over_redis_python": plumbing("ours 2 KB", "Redis lists 2 KB"),
            "plumbing_2k_over_nats_python": plumbing("ours 2 KB", "nats-py 2 KB"),
            "plumbing_40k_over_server": median(self.over_server(40)),
            "p50_ms": aimed(&|load| load.ours.p50),
            "p99_ms": aimed(&|load| load.ours.p99),
            "in_process_p99_ms": aimed(&|load| load.in_process.p99),
            "rss_mb": self.rss_mb(),
        })
    }
}

fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
