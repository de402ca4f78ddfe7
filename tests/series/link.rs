//! A relay over a link that is slow, loses packets and is cut: how much comes through, and how soon it goes on.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway_bus::{Bus, First, Outgoing, names};
use causeway_schemas::{Codec, Feature, Id, Message as _, Meta, header};
use causeway_stage::now_ns;
use futures::StreamExt as _;
use harness::{Across, Cut, Quality, RELAY, Tools, within};
use serde_json::{Value, json};

/// A link of a town: a round trip takes 20 ms.
pub(crate) const TOWN: Quality = Quality { delay: Duration::from_millis(10), loss: 0.0, rate: Some(20_000_000) };
/// Bytes of a message.
const BYTES: usize = 4000;
/// Messages a second that are captured meanwhile: 0.9 Mbit/s with their headers.
const LIVE: u32 = 25;
/// How long a flow is measured.
const FLOW: Duration = Duration::from_secs(20);
/// How long a short cut lasts, and the time to the next: twenty a minute.
const FLAP: Duration = Duration::from_millis(1500);
/// How long it is looked what is normal.
const NORMAL: Duration = Duration::from_secs(20);
/// Longest that it may take to catch up.
pub(crate) const PATIENCE: Duration = Duration::from_mins(30);

/// What a lossy link carries, beside one TCP connection.
pub(crate) struct Lossy {
    rtt: Duration,
    lost: f64,
    /// Bytes a second, each twice.
    flows: [f64; 2],
    relays: [f64; 2],
}

/// What became of many short cuts.
pub(crate) struct Flaps {
    cuts: u32,
    captured: usize,
    missing: usize,
    doubled: usize,
    /// Messages that were sent once more.
    again: u64,
    /// Longest time that one waited to come across, and longest that the edge took to store one, ms.
    waited: f64,
    stored: f64,
}

/// What became of a cut.
pub(crate) struct Outage {
    how: &'static str,
    first: &'static str,
    lasted: Duration,
    /// What waited when it ended, messages.
    waited: u64,
    /// What of it lay at the edge, and the most that may; bytes.
    spool: (u64, u64),
    /// From its end until the first message came across.
    resumed: Duration,
    /// Bytes a second while it caught up, and what a TCP connection does.
    rate: (f64, f64),
    /// p99 of what was stored before the cut and while it caught up, ms.
    p99: (f64, f64),
    /// Messages that did not come, and that are there twice: stored before a cut that took the ack and was longer than the dedupe window. Who
    /// takes them there answers once.
    missing: usize,
    doubled: usize,
}

pub(crate) fn message(number: usize) -> Outgoing {
    let meta = Meta::captured(Id::captured("link", &number.to_string()), "extract", Feature::kind(), 0);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    let subject = names::subject("faces", "feature", "edge", "capture");
    // Nothing that could be made smaller on the way.
    let mut chance = fastrand::Rng::with_seed(number as u64);
    let body: Vec<u8> = std::iter::repeat_with(|| chance.u8(..)).take(BYTES).collect();
    Outgoing { subject, headers, body: body.into(), if_absent: false }
}

/// What a message has on the wire: subject, headers, body; bytes.
fn wire_bytes() -> f64 {
    let Outgoing { subject, headers, body, .. } = message(0);
    // `: ` and the end of the line of each.
    let headers: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    (subject.len() + headers + body.len()) as f64
}

/// The time of each message at a site, Unix ns, and how many are there twice.
pub(crate) async fn times(bus: &Bus) -> (HashMap<Id, u64>, usize) {
    let mut records = bus.scan("faces_extract", 1, true).await.expect("the link");
    let (mut times, mut doubled) = (HashMap::new(), 0);
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let id = record.headers.meta().expect("headers").id;
        doubled += usize::from(times.insert(id, record.stored_at).is_some());
    }
    (times, doubled)
}

async fn caught_up(edge: &Bus) {
    within(PATIENCE, "all is across", async || {
        let durable = edge.durable_state("faces_extract", RELAY).await.ok()??;
        (durable.pending == 0 && durable.unacked == 0).then_some(())
    })
    .await;
}

/// One TCP connection, the relay, the relay, one TCP connection.
pub(crate) async fn lossy(tools: &Tools, share: f64) -> Option<Lossy> {
    let across = Across::start(tools, Quality { loss: 0.01, ..TOWN }).await?;
    let (rtt, lost) = across.ping(500)?;
    let flow = FLOW.mul_f64(share.max(0.1));
    let flows = || across.bare_flow(flow);
    let before = flows();
    let mut next = 0;
    let relays = [carried(&across, flow, before, &mut next).await, carried(&across, flow, before, &mut next).await];
    Some(Lossy { rtt, lost, flows: [before, flows()], relays })
}

/// Bytes a second of the relay, of as many as take about so long.
async fn carried(across: &Across, time: Duration, rate: f64, next: &mut usize) -> f64 {
    let edge = &across.buses[0];
    let count = (time.as_secs_f64() * rate / BYTES as f64) as usize;
    for number in *next..*next + count {
        edge.publish(&message(number)).await.expect("it is stored");
    }
    *next += count;
    let began = Instant::now();
    let relay = across.relay(First::Oldest, None);
    caught_up(edge).await;
    // What was sent twice counts once.
    relay.carried.messages() as f64 * wire_bytes() / began.elapsed().as_secs_f64()
}

/// The link is cut twenty times a minute, by dropped packets and by resets, and whole for as long as it is cut.
pub(crate) async fn flaps(tools: &Tools, cuts: u32) -> Option<Flaps> {
    let across = Across::start(tools, TOWN).await?;
    let [edge, cloud] = across.buses.clone();
    let relay = across.relay(First::Oldest, None);
    let publishing = across.publish(Duration::from_secs(1) / LIVE, message);
    for cut in 0..cuts {
        tokio::time::sleep(FLAP).await;
        // Not in the way of who publishes.
        let link = Arc::clone(&across.link);
        let how = if cut % 2 == 0 { Cut::Drop } else { Cut::Reset };
        tokio::task::spawn_blocking(move || link.cut(how)).await.expect("it is cut");
        tokio::time::sleep(FLAP).await;
        let link = Arc::clone(&across.link);
        tokio::task::spawn_blocking(move || link.heal()).await.expect("it is whole");
    }
    let (captured, slowest) = publishing.stop_and_tell().await;
    caught_up(&edge).await;
    let ((stored, _), (came, doubled)) = (times(&edge).await, times(&cloud).await);
    let waited = stored.iter().filter_map(|(id, at)| Some(came.get(id)?.saturating_sub(*at))).max();
    Some(Flaps {
        cuts,
        captured,
        missing: captured - came.len(),
        doubled,
        again: relay.carried.again(),
        waited: waited.unwrap_or_default() as f64 / 1e6,
        stored: slowest.as_secs_f64() * 1e3,
    })
}

/// The link is cut for so long while messages come.
pub(crate) async fn outage(tools: &Tools, how: Cut, first: First, lasted: Duration) -> Option<Outage> {
    let across = Across::start(tools, TOWN).await?;
    let flow = across.bare_flow(Duration::from_secs(5));
    let [edge, cloud] = across.buses.clone();
    let relay = across.relay(first, None);
    let publishing = across.publish(Duration::from_secs(1) / LIVE, message);
    tokio::time::sleep(NORMAL).await;
    let held = async || edge.stream_state("faces_extract").await.expect("the edge").expect("its link");
    let before_cut = held().await.bytes;
    let cut_at = now_ns();
    across.link.cut(how);
    tokio::time::sleep(lasted).await;
    let before = cloud.stream_state("faces_extract").await.expect("the cloud").expect("its link").last_sequence;
    let sent = relay.carried.messages();
    let spool = held().await;
    let healed = (Instant::now(), now_ns());
    across.link.heal();
    let durable = edge.durable_state("faces_extract", RELAY).await.expect("the edge").expect("the durable");
    let resumed = within(PATIENCE, "the first", async || {
        let record = cloud.message_at("faces_extract", before + 1).await.ok()??;
        Some(Duration::from_nanos(record.stored_at.saturating_sub(healed.1)))
    })
    .await;
    within(PATIENCE, "what waited is across", async || {
        let durable = edge.durable_state("faces_extract", RELAY).await.ok()??;
        (durable.pending < 5 && durable.unacked < 20).then_some(())
    })
    .await;
    let (caught_up_at, took) = (now_ns(), healed.0.elapsed());
    let rate = (relay.carried.messages() - sent) as f64 * wire_bytes() / took.as_secs_f64();
    let all = publishing.stop().await;
    caught_up(&edge).await;
    let ((stored, _), (came, doubled)) = (times(&edge).await, times(&cloud).await);
    let p99 = |from: u64, to: u64| {
        let of_them = stored.iter().filter(|(_, at)| (from..to).contains(*at));
        let mut late: Vec<u64> = of_them.filter_map(|(id, at)| Some(came.get(id)?.saturating_sub(*at))).collect();
        late.sort_unstable();
        late.get(late.len().saturating_sub(1) * 99 / 100).map_or(f64::NAN, |ns| *ns as f64 / 1e6)
    };
    let normal = p99(cut_at.saturating_sub(NORMAL.as_nanos() as u64 / 2), cut_at - 500_000_000);
    Some(Outage {
        how: if how == Cut::Drop { "packets dropped" } else { "connections reset" },
        first: if first == First::Oldest { "oldest" } else { "newest" },
        lasted,
        waited: durable.pending + durable.unacked,
        spool: (spool.bytes - before_cut, spool.max_bytes.unwrap_or(u64::MAX)),
        resumed,
        rate: (rate, flow),
        p99: (normal, p99(healed.1 + resumed.as_nanos() as u64, caught_up_at)),
        missing: all - came.len(),
        doubled,
    })
}

impl Lossy {
    fn ratio(&self) -> f64 {
        self.relays.iter().sum::<f64>() / self.flows.iter().sum::<f64>()
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "rtt_ms": self.rtt.as_secs_f64() * 1e3,
            "lost": self.lost,
            "tcp_bytes_per_s": self.flows,
            "relay_bytes_per_s": self.relays,
            "relay_over_tcp": self.ratio(),
        })
    }

    pub(crate) fn print(&self) {
        let megabytes = |rates: &[f64; 2]| format!("{:.2} and {:.2} MB/s", rates[0] / 1e6, rates[1] / 1e6);
        println!(
            "\na link of 20 Mbit/s, round trip {:.1} ms, {:.1} % of pings lost: one TCP connection {}, the relay {}: {:.2} of it",
            self.rtt.as_secs_f64() * 1e3,
            self.lost * 100.0,
            megabytes(&self.flows),
            megabytes(&self.relays),
            self.ratio()
        );
    }
}

impl Flaps {
    pub(crate) fn is_well(&self) -> bool {
        (self.missing, self.doubled) == (0, 0)
    }

    pub(crate) fn to_json(&self) -> Value {
        let Self { cuts, captured, missing, doubled, again, waited, stored } = self;
        json!({
            "cuts": cuts, "captured": captured, "missing": missing, "doubled": doubled, "again": again,
            "longest_ms": waited, "longest_at_edge_ms": stored,
        })
    }

    pub(crate) fn print(&self) {
        let Self { cuts, captured, missing, doubled, again, waited, stored } = self;
        println!(
            "\n{cuts} cuts of {FLAP:?}, twenty a minute: {captured} captured, {missing} missing, {doubled} there twice; sent again {again}, the \
             longest wait {waited:.0} ms, the longest at the edge {stored:.0} ms"
        );
    }
}

impl Outage {
    pub(crate) fn is_well(&self) -> bool {
        self.missing == 0 && self.resumed <= Duration::from_secs(2)
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "how": self.how,
            "first": self.first,
            "lasted_s": self.lasted.as_secs_f64(),
            "waited": self.waited,
            "spool_bytes": self.spool.0,
            "spool_bound": self.spool.1,
            "resumed_s": self.resumed.as_secs_f64(),
            "catch_up_bytes_per_s": self.rate.0,
            "tcp_bytes_per_s": self.rate.1,
            "p99_ms": self.p99.0,
            "p99_catching_up_ms": self.p99.1,
            "missing": self.missing,
            "crossed_twice": self.doubled,
        })
    }

    pub(crate) fn print(&self) {
        let Self { how, first, lasted, waited, spool, resumed, rate: (rate, flow), p99, missing, doubled } = self;
        println!(
            "| {how}, {first} first | {:.0} s | {waited} | {:.1} of {:.0} MB | {:.2} s | {:.2} of {:.2} MB/s | {:.0} ms | {:.0} ms | {missing} | {doubled} |",
            lasted.as_secs_f64(),
            spool.0 as f64 / 1e6,
            spool.1 as f64 / 1e6,
            resumed.as_secs_f64(),
            rate / 1e6,
            flow / 1e6,
            p99.0,
            p99.1
        );
    }
}

/// The head of the table of outages.
pub(crate) fn print_head() {
    println!(
        "\n| cut | for | waited | on the edge's disk | first after it | catch-up, of a TCP connection | p99 before | p99 meanwhile | missing | crossed twice |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
}
