//! Many edges at one hub: each with a relay of its own, some of which come and go.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_bus::server::{Server, Start};
use causeway_bus::{
    Budget, Bus, Carried, Carrier, Credentials, DurableWish, End, First, Line, Outgoing, Retention, StreamWish,
    TakerSort, Way, names,
};
use causeway_schemas::{Codec, Feature, Id, Message as _, Meta, header};
use causeway_stage::give_back_memory;
use futures::StreamExt as _;
use harness::within;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::link::PATIENCE;
use crate::usage::usage;

/// Bytes of a message.
const BYTES: usize = 4000;
/// What a message takes beside it, bytes.
const BESIDE: usize = 1000;
/// Messages of all edges together.
const ALL: usize = 60_000;
/// How long one that comes and goes is there, and away.
const FLAPS: Duration = Duration::from_millis(700);
/// How often it is looked how far they are.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Longest bar of a drawing, characters.
const BAR: usize = 48;

/// So many edges at a hub.
pub(crate) struct Edges {
    count: usize,
    flapping: usize,
    captured: usize,
    missing: usize,
    doubled: usize,
    /// Messages a second that the hub stored until the edges that stayed were done.
    rate: f64,
    /// When half of all was across: what the slowest and the fastest edge that stayed had carried, shares of what each had.
    half: (f64, f64),
    /// Memory of the hub's server: before, with a durable for each edge, and at the end; MB.
    hub_mb: [f64; 3],
    /// Memory of a relay, beside what a process takes anyway, MB.
    relay_mb: f64,
}

/// What one edge has.
struct Edge {
    carried: Arc<Carried>,
    task: JoinHandle<()>,
}

fn name(edge: usize) -> String {
    format!("e{edge:03}")
}

fn stream(edge: usize) -> String {
    format!("faces_extract_{}", name(edge))
}

fn message(edge: usize, number: usize) -> Outgoing {
    let meta = Meta::captured(Id::captured(&name(edge), &number.to_string()), "extract", Feature::kind(), 0);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    let subject = names::subject("faces", "feature", &name(edge), "capture");
    Outgoing { subject, headers, body: vec![7; BYTES].into(), if_absent: false }
}

fn wish(name: String, subject: String, messages: usize, durables: Vec<DurableWish>) -> StreamWish {
    // The server sets that much of the disk aside.
    let retention = Retention::Capture { bytes: 2 * (messages * (BYTES + BESIDE)) as u64 };
    StreamWish { name, subjects: vec![subject], retention, durables, copies: 1, ends: false }
}

fn durable(name: String, subjects: Vec<String>) -> DurableWish {
    DurableWish { name, taker: TakerSort::Relay, subjects, ends: false }
}

async fn bus(server: &Server) -> Bus {
    Bus::connect(&server.address(), &Credentials::default(), "faces", "relay").await.expect("a bus")
}

fn memory(pid: u32) -> f64 {
    usage(pid).expect("it runs").0
}

/// So many edges, a tenth of which come and go, each with its share of the messages waiting when its relay starts. Their streams lie on one
/// server, the relays are in this process, each with connections of its own.
pub(crate) async fn edges(count: usize) -> Edges {
    let dir = tempfile::tempdir().expect("a folder");
    let [near, hub] = ["edges", "hub"].map(|of| dir.path().join(of));
    let near = Server::start("edges", &near, Start::default()).await.expect("a server");
    let hub = Server::start("hub", &hub, Start::default()).await.expect("a server");
    let (at_edges, at_hub) = (bus(&near).await, bus(&hub).await);
    let each = ALL / count;
    for edge in 0..count {
        let subject = names::link_of_site("faces", "feature", &name(edge));
        let durables = vec![durable("relay-hub".into(), Vec::new())];
        at_edges.apply_stream(&wish(stream(edge), subject, each, durables)).await.expect("a stream");
    }
    let all = (0..count).flat_map(|edge| (0..each).map(move |number| message(edge, number)));
    let stores = futures::stream::iter(all).map(|message| {
        let bus = at_edges.clone();
        async move { bus.publish(&message).await.expect("it is stored") }
    });
    stores.buffer_unordered(64).for_each(|_| std::future::ready(())).await;
    let features = wish("faces_extract".into(), names::link("faces", "feature"), ALL, Vec::new());
    let decisions = |durables| wish("faces_classify".into(), names::link("faces", "decision"), ALL, durables);
    for stream in [features, decisions(Vec::new())] {
        at_hub.apply_stream(&stream).await.expect("a stream");
    }
    let before = memory(hub.pid().expect("it runs"));
    // What goes back to each.
    let back = (0..count)
        .map(|edge| durable(names::relay(&name(edge)), vec![names::link_of_site("faces", "decision", &name(edge))]));
    at_hub.apply_stream(&decisions(back.collect())).await.expect("a stream");
    let with_durables = memory(hub.pid().expect("it runs"));

    give_back_memory();
    let own = memory(std::process::id());
    let mut ready = Vec::new();
    for edge in 0..count {
        ready.push((edge, connected(edge, &near, &hub).await));
    }
    let began = Instant::now();
    let mut relays: HashMap<usize, Edge> = ready.into_iter().map(|(edge, carrier)| (edge, Edge::of(carrier))).collect();
    let flapping: Vec<usize> = (0..count).step_by(10).skip(usize::from(count < 10)).collect();
    let (mut half, mut flapped, mut relay_mb, mut rate) = (None, Instant::now(), 0.0_f64, 0.0);
    let whole = count * each;
    let stored = async || at_hub.stream_state("faces_extract").await.ok()?.map(|state| state.messages as usize);
    within(PATIENCE, "all is across", async || {
        let across = stored().await?;
        relay_mb = relay_mb.max((memory(std::process::id()) - own) / count as f64);
        let staid = relays.iter().filter(|(edge, _)| !flapping.contains(edge));
        let shares: Vec<f64> = staid.map(|(_, relay)| relay.carried.messages() as f64 / each as f64).collect();
        // Those that come and go wait for what they had under way to be delivered again.
        if rate == 0.0 && shares.iter().all(|&share| share >= 1.0) {
            rate = across as f64 / began.elapsed().as_secs_f64();
        }
        if half.is_none() && across * 2 >= whole {
            let extreme = |of: fn(f64, f64) -> f64| shares.iter().copied().reduce(of).unwrap_or(f64::NAN);
            half = Some((extreme(f64::min), extreme(f64::max)));
        }
        if flapped.elapsed() > FLAPS && across < whole {
            for edge in &flapping {
                // As dead as with its process: what it had under way is delivered again.
                match relays.remove(edge) {
                    Some(relay) => relay.task.abort(),
                    None => drop(relays.insert(*edge, Edge::of(connected(*edge, &near, &hub).await))),
                }
            }
            flapped = Instant::now();
        }
        tokio::time::sleep(LOOK_EVERY).await;
        (across >= whole).then_some(())
    })
    .await;
    let at_end = memory(hub.pid().expect("it runs"));
    let (came, doubled) = crate::link::times(&at_hub).await;
    for relay in relays.values() {
        relay.task.abort();
    }
    drop((at_edges, at_hub));
    near.stop().await;
    hub.stop().await;
    Edges {
        count,
        flapping: flapping.len(),
        captured: whole,
        missing: whole - came.len(),
        doubled,
        rate,
        half: half.unwrap_or((f64::NAN, f64::NAN)),
        hub_mb: [before, with_durables, at_end],
        relay_mb,
    }
}

async fn connected(edge: usize, near: &Server, hub: &Server) -> Carrier {
    let near = End::here(&bus(near).await);
    let line = Line::connect(&hub.address(), &Credentials::default(), "faces", "relay").await.expect("the hub");
    let (stream, sites) = (stream(edge), (name(edge), "hub".into()));
    let way = Way { stream, durable: "relay-hub".into(), sites, captured: Vec::new(), first: First::Oldest };
    Carrier::new(&near, &End::Across(line), &way, &Arc::new(Budget::new(None)))
}

impl Edge {
    fn of(carrier: Carrier) -> Self {
        Self { carried: carrier.carried(), task: tokio::spawn(carrier.run(std::future::pending())) }
    }
}

impl Edges {
    pub(crate) fn is_well(&self) -> bool {
        (self.missing, self.doubled) == (0, 0)
    }

    fn durable_kb(&self) -> f64 {
        (self.hub_mb[1] - self.hub_mb[0]) * 1e3 / self.count as f64
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "edges": self.count,
            "flapping": self.flapping,
            "captured": self.captured,
            "missing": self.missing,
            "doubled": self.doubled,
            "per_s": self.rate,
            "slowest_at_half": self.half.0,
            "fastest_at_half": self.half.1,
            "hub_mb": self.hub_mb,
            "relay_mb": self.relay_mb,
            "durable_kb": self.durable_kb(),
        })
    }

    pub(crate) fn print_head() {
        println!(
            "\n| edges | come and go | missing, doubled | messages/s at the hub | at half: slowest, fastest | hub | a durable there | a relay |"
        );
        println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    }

    pub(crate) fn print(&self) {
        let Self { count, flapping, missing, doubled, rate, half, hub_mb, relay_mb, .. } = self;
        println!(
            "| {count} | {flapping} | {missing}, {doubled} | {rate:.0} | {:.2}, {:.2} | {:.0} MB | {:.0} kB | {relay_mb:.2} MB |",
            half.0,
            half.1,
            hub_mb[2],
            self.durable_kb()
        );
    }

    /// How it grows, a bar for each number of edges.
    pub(crate) fn draw(all: &[Self]) {
        Self::draw_one(all, "messages a second at the hub", |edges| edges.rate);
        Self::draw_one(all, "memory of the hub's server, MB", |edges| edges.hub_mb[2]);
        Self::draw_one(all, "memory of all relays, MB", |edges| edges.relay_mb * edges.count as f64);
    }

    fn draw_one(all: &[Self], of: &str, value: fn(&Self) -> f64) {
        println!("\n{of}, by edges");
        let most = all.iter().map(value).reduce(f64::max).unwrap_or_default();
        for edges in all {
            let bar = "▇".repeat((value(edges) / most * BAR as f64).round() as usize);
            println!("{:>4} {bar} {:.0}", edges.count, value(edges));
        }
    }
}
