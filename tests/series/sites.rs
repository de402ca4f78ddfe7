//! The table of edge and cloud, `./dev sites`: cuts of a link, a relay beside what NATS has itself, many edges, moves, keys, and what
//! crosses of a photo.

use std::path::Path;
use std::time::Duration;

use harness::{Matrix, Running, Tools, workspace};
use serde_json::{Value, json};

use crate::cycle::{Cycles, Hurried};
use crate::edges::Edges;
use crate::link::{Flaps, Lossy, Outage, print_head};
use crate::moves::Moves;
use crate::native::Way;

/// Longest that the demo may take.
const PATIENCE: Duration = Duration::from_mins(5);

/// What crosses of a photo.
#[derive(Debug, Default)]
pub(crate) struct Bytes {
    photos: u64,
    faces: u64,
    /// Of all photos: what was captured, what went to the cloud, what came back.
    jpeg: u64,
    up: u64,
    down: u64,
}

/// Runs the demo's photos through the pipeline of two sites.
pub(crate) async fn bytes(tools: &Tools) -> Bytes {
    let home = tempfile::tempdir().expect("a folder");
    let file = workspace().join("pipelines/faces-edge-cloud.toml");
    let arguments = ["demo", file.to_str().expect("a path"), "--json"];
    let told = Running::start(tools, home.path(), &arguments).finish_within(PATIENCE).await.ok().json();
    let crossed = told["crossed"].as_array().expect("what crossed");
    let to = |site: &str| {
        let there = crossed.iter().filter(|one| one["to"] == site);
        there.filter_map(|one| one["bytes"].as_u64()).sum()
    };
    Bytes {
        photos: told["photos"].as_u64().expect("a number"),
        faces: told["faces"].as_u64().expect("a number"),
        jpeg: sizes(&tools.photos().join("input")),
        up: to("cloud"),
        down: to("edge"),
    }
}

fn sizes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").metadata().expect("its size").len()).sum()
}

/// All of the table.
pub(crate) struct Sites<'a> {
    pub(crate) outages: &'a [Outage],
    pub(crate) flaps: Option<&'a Flaps>,
    pub(crate) cycles: Option<&'a Cycles>,
    pub(crate) hurried: Option<&'a Hurried>,
    pub(crate) lossy: Option<&'a Lossy>,
    /// How long the cut was, and the ways across.
    pub(crate) native: Option<&'a (Duration, [Way; 2])>,
    pub(crate) edges: &'a [Edges],
    pub(crate) moves: &'a [Moves],
    pub(crate) matrix: Option<&'a Matrix>,
    pub(crate) bytes: Option<&'a Bytes>,
}

impl Sites<'_> {
    pub(crate) fn is_well(&self) -> bool {
        self.matrix.is_none_or(|matrix| matrix.allows.is_empty() && matrix.denials.is_empty())
            && self.outages.iter().all(Outage::is_well)
            && self.flaps.is_none_or(Flaps::is_well)
            && self.cycles.is_none_or(Cycles::is_well)
            && self.hurried.is_none_or(Hurried::is_well)
            && self.native.is_none_or(|(_, [ours, _])| ours.is_well())
            && self.edges.iter().all(Edges::is_well)
            && self.moves.iter().all(Moves::is_well)
    }

    pub(crate) fn to_json(&self) -> Value {
        let outages: Vec<Value> = self.outages.iter().map(Outage::to_json).collect();
        let cuts =
            outages.iter().cloned().chain(self.flaps.map(Flaps::to_json)).chain(self.cycles.map(Cycles::to_json));
        let cuts: Vec<Value> = cuts.collect();
        let sum = |key: &str| cuts.iter().filter_map(|one| one[key].as_u64()).sum::<u64>();
        let numbers = |key: &str| outages.iter().filter_map(|one| one[key].as_f64()).collect::<Vec<_>>();
        let ratios = outages
            .iter()
            .filter_map(|one| Some(one["catch_up_bytes_per_s"].as_f64()? / one["tcp_bytes_per_s"].as_f64()?));
        let each = |of: fn(&Bytes) -> u64| self.bytes.map(|bytes| of(bytes) / bytes.photos.max(1));
        json!({
            "cut_lost": sum("missing"),
            "cut_doubled": sum("doubled"),
            "resume_s": numbers("resumed_s").into_iter().max_by(f64::total_cmp),
            "catch_up_ratio": ratios.min_by(f64::total_cmp),
            "move_lost": self.moves.iter().map(Moves::lost).sum::<u64>(),
            "move_doubled": self.moves.iter().map(Moves::doubled).sum::<u64>(),
            "move_worst_gap_ms": self.moves.iter().filter_map(Moves::worst_gap_ms).max(),
            "unexpected_allows": self.matrix.map(|matrix| matrix.allows.len()),
            "unexpected_denials": self.matrix.map(|matrix| matrix.denials.len()),
            "bytes_feature": each(|bytes| bytes.up),
            "bytes_jpeg": each(|bytes| bytes.jpeg),
            "cuts": cuts,
            "moves_after_cuts": self.hurried.map(Hurried::to_json),
            "lossy_link": self.lossy.map(Lossy::to_json),
            "native": self.native.map(|(_, ways)| ways.each_ref().map(Way::to_json)),
            "edges": self.edges.iter().map(Edges::to_json).collect::<Vec<_>>(),
        })
    }

    pub(crate) fn print(&self) {
        if !self.outages.is_empty() {
            print_head();
            self.outages.iter().for_each(Outage::print);
        }
        self.flaps.into_iter().for_each(Flaps::print);
        self.cycles.into_iter().for_each(Cycles::print);
        self.hurried.into_iter().for_each(Hurried::print);
        self.lossy.into_iter().for_each(Lossy::print);
        if let Some((lasted, ways)) = self.native {
            Way::print_head(*lasted);
            ways.iter().for_each(Way::print);
        }
        if !self.edges.is_empty() {
            Edges::print_head();
            self.edges.iter().for_each(Edges::print);
            Edges::draw(self.edges);
        }
        self.moves.iter().for_each(Moves::print);
        if let Some(Matrix { identities, tried, allows, denials }) = self.matrix {
            println!("\n| keys | tried | may and should not | may not and should |");
            println!("| ---: | ---: | ---: | ---: |");
            println!("| {identities} | {tried} | {} | {} |", allows.len(), denials.len());
            for wrong in allows.iter().chain(denials) {
                println!("{wrong}");
            }
        }
        if let Some(Bytes { photos, faces, jpeg, up, down }) = self.bytes {
            let each = |bytes: &u64| *bytes as f64 / (*photos).max(1) as f64 / 1e3;
            println!("\n| {photos} photos, {faces} faces | kB a photo |");
            println!("| --- | ---: |");
            println!("| the photos themselves | {:.1} |", each(jpeg));
            println!("| features and what else goes to the cloud | {:.1} |", each(up));
            println!("| names and clusters back to the edge | {:.1} |", each(down));
        }
    }
}
