//! A relay beside what NATS has itself: a stream at the hub whose source is one at the edge, across a leaf node. The same link, the same
//! messages, the same cut.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::{Config, External, Source};
use causeway_bus::{Bus, Credentials, First, Retention, StreamWish, names};
use causeway_stage::now_ns;
use harness::{Across, Cut, End, Link, Publishing, Tools, eventually, within};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::link::{PATIENCE, TOWN, message, times};
use crate::usage::cpu;

/// Ports of either server, and of the leaf node.
const PORT: u16 = 4222;
const LEAF_PORT: u16 = 7422;
/// How long it is looked what is normal.
const NORMAL: Duration = Duration::from_secs(10);
/// How often it is looked how far it is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const STREAM: &str = "faces_extract";
/// Messages a second: a third of what the link has room for, so that they cost more than standing still does.
const RATE: u32 = 150;

/// What a way across is like.
pub(crate) struct Way {
    name: &'static str,
    captured: usize,
    missing: usize,
    doubled: usize,
    resumed: Duration,
    /// Messages that waited, and how long it took until none did.
    waited: u64,
    caught_up: Duration,
    /// Bytes on the wire for each message, all that the link saw.
    bytes: f64,
    /// Computed for each message: both servers, and whoever carries; µs.
    cpu: (f64, f64),
}

/// Where it is measured.
struct Measured<'a> {
    name: &'static str,
    link: &'a Link,
    edge: Bus,
    cloud: Bus,
    servers: [PathBuf; 2],
    carrier: Option<PathBuf>,
}

/// The relay, and NATS by itself.
pub(crate) async fn beside_native(tools: &Tools, lasted: Duration) -> Option<[Way; 2]> {
    let across = Across::start(tools, TOWN).await?;
    let relay = across.relay(First::Oldest, None);
    let [edge, cloud] = across.buses.clone();
    let servers = [End::Edge, End::Cloud].map(|end| process(across.server_pid(end)));
    let carrier = Some(Path::new("/proc/self/task").join(relay.task.to_string()));
    let ours = Measured { name: "relay", link: &across.link, edge, cloud, servers, carrier }.run(lasted).await;
    drop(relay);
    drop(across);
    let native = Native::start(tools).await?;
    let servers = native.servers.each_ref().map(|server| process(server.id().expect("it runs")));
    let (edge, cloud) = (native.edge.clone(), native.cloud.clone());
    let theirs = Measured { name: "source over a leaf node", link: &native.link, edge, cloud, servers, carrier: None };
    Some([ours, theirs.run(lasted).await])
}

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

async fn last(bus: &Bus) -> Option<u64> {
    Some(bus.stream_state(STREAM).await.ok()??.last_sequence)
}

impl Measured<'_> {
    async fn run(self, lasted: Duration) -> Way {
        let (edge, cloud) = (&self.edge, &self.cloud);
        let computed = || self.servers.iter().map(|server| cpu(server)).sum::<f64>();
        let carried = || self.carrier.as_deref().map_or(0.0, cpu);
        let (bytes, servers, carrier) = (self.link.bytes(), computed(), carried());
        let publishing = Publishing::start(edge, Duration::from_secs(1) / RATE, message);
        within(PATIENCE, "the first across", async || last(cloud).await.filter(|&last| last > 0)).await;
        tokio::time::sleep(NORMAL).await;
        self.link.cut(Cut::Drop);
        tokio::time::sleep(lasted).await;
        let before = last(cloud).await.expect("the cloud");
        let waited = last(edge).await.expect("the edge") - before;
        let (healed, healed_at) = (Instant::now(), now_ns());
        self.link.heal();
        let resumed = within(PATIENCE, "the first across", async || {
            let record = cloud.message_at(STREAM, before + 1).await.ok()??;
            Some(Duration::from_nanos(record.stored_at.saturating_sub(healed_at)))
        })
        .await;
        within(PATIENCE, "what waited is across", async || {
            // Who asks is not to cost more than who carries.
            tokio::time::sleep(LOOK_EVERY).await;
            (last(cloud).await? + 5 > last(edge).await?).then_some(())
        })
        .await;
        let caught_up = healed.elapsed();
        let captured = publishing.stop().await;
        within(PATIENCE, "all is across", async || {
            tokio::time::sleep(LOOK_EVERY).await;
            (last(cloud).await? >= captured as u64).then_some(())
        })
        .await;
        let (came, doubled) = times(cloud).await;
        let each = |all: f64| all / captured as f64;
        Way {
            name: self.name,
            captured,
            missing: captured - came.len(),
            doubled,
            resumed,
            waited,
            caught_up,
            bytes: each((self.link.bytes() - bytes) as f64),
            cpu: (each((computed() - servers) * 1e6), each((carried() - carrier) * 1e6)),
        }
    }
}

/// Two servers, the one at the edge a leaf node of the other; a stream at each. Dropped, they are gone.
struct Native {
    link: Link,
    edge: Bus,
    cloud: Bus,
    servers: [Child; 2],
    _dir: tempfile::TempDir,
}

impl Native {
    async fn start(tools: &Tools) -> Option<Self> {
        let link = Link::new(TOWN)?;
        let dir = tempfile::tempdir().expect("a folder");
        let hub = Link::address(End::Cloud);
        // As quick as its settings allow: it asks often whether the other lives, and dials again at once.
        let leaf = [
            format!("leafnodes {{ reconnect: 1, remotes: [{{ url: \"nats-leaf://{hub}:{LEAF_PORT}\" }}] }}"),
            format!("leafnodes {{ listen: \"{hub}:{LEAF_PORT}\" }}"),
        ];
        let servers = [End::Edge, End::Cloud].map(|end| {
            let (name, file) = (domain(end), dir.path().join(format!("{end:?}.conf")));
            let text = format!(
                "server_name: {name}\nlisten: \"0.0.0.0:{PORT}\"\nmax_payload: 8388608\nping_interval: \"1s\"\nping_max: 2\n\
                 jetstream {{ domain: {name}, store_dir: {:?} }}\n{}\n",
                dir.path().join(name).display().to_string(),
                leaf[end as usize]
            );
            std::fs::write(&file, text).expect("it is written");
            let mut command = Command::from(link.command(end, tools.nats_server()));
            command.arg("-c").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.kill_on_drop(true).spawn().expect("a server")
        });
        let connect = async |end| {
            let address = format!("nats://{}:{PORT}", link.test_address(end));
            let bus = eventually("a server", async || {
                Bus::connect(&address, &Credentials::default(), "faces", "test").await.ok()
            });
            bus.await
        };
        let (edge, cloud) = (connect(End::Edge).await, connect(End::Cloud).await);
        let wish = StreamWish {
            name: STREAM.into(),
            subjects: vec![names::link("faces", "feature")],
            retention: Retention::Capture { bytes: 1 << 30 },
            durables: Vec::new(),
            copies: 1,
            ends: false,
        };
        edge.apply_stream(&wish).await.expect("a stream");
        let client = async_nats::connect(format!("{}:{PORT}", link.test_address(End::Cloud))).await.expect("the cloud");
        let external = External { api_prefix: format!("$JS.{}.API", domain(End::Edge)), delivery_prefix: None };
        let source = Source { name: STREAM.into(), external: Some(external), ..Default::default() };
        let config = Config { name: STREAM.into(), sources: Some(vec![source]), ..Default::default() };
        async_nats::jetstream::new(client).create_stream(config).await.expect("a stream with a source");
        Some(Self { link, edge, cloud, servers, _dir: dir })
    }
}

fn domain(end: End) -> &'static str {
    if end == End::Edge { "edge" } else { "hub" }
}

impl Way {
    pub(crate) fn is_well(&self) -> bool {
        (self.missing, self.doubled) == (0, 0)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "captured": self.captured,
            "missing": self.missing,
            "doubled": self.doubled,
            "resumed_s": self.resumed.as_secs_f64(),
            "waited": self.waited,
            "caught_up_s": self.caught_up.as_secs_f64(),
            "bytes_a_message": self.bytes,
            "servers_us_a_message": self.cpu.0,
            "carrier_us_a_message": self.cpu.1,
        })
    }

    pub(crate) fn print_head(lasted: Duration) {
        println!(
            "\n| cut for {:.0} s | missing, doubled | first after it | caught up, of waiting | bytes a message | CPU a message: servers, carrier |",
            lasted.as_secs_f64()
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    }

    pub(crate) fn print(&self) {
        let Self { name, missing, doubled, resumed, waited, caught_up, bytes, cpu, .. } = self;
        println!(
            "| {name} | {missing}, {doubled} | {:.2} s | {:.2} s, {waited} | {bytes:.0} | {:.0}, {:.0} µs |",
            resumed.as_secs_f64(),
            caught_up.as_secs_f64(),
            cpu.0,
            cpu.1
        );
    }
}
