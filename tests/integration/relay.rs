//! What is stored at one site comes to another, whatever dies on the way.

mod link;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use causeway_bus::{Budget, Bus, Carried, Carrier, Credentials, End, First, Line, Outgoing, Pull, Way, names};
use causeway_schemas::{Codec, Feature, Id, Message as _, Meta, decode_body, encode, header};
use futures::StreamExt as _;
use harness::{RELAY, Site, Tools, eventually, face, faces, relay_durable};
use tokio::sync::oneshot;

/// Two sites with the same pipeline; of the first a link's messages wait for a relay.
async fn sites(tools: &Tools, link_bytes: &'static str) -> [Site; 2] {
    let text = faces(Path::new("/nowhere"), |_| "");
    let small = faces(Path::new("/nowhere"), |stage| if stage == "extract" { link_bytes } else { "" });
    let [edge, cloud] = [Site::start(tools, &text).await, Site::start(tools, &small).await];
    for stage in ["extract", "cluster"] {
        relay_durable(&edge.bus, stage).await;
    }
    [edge, cloud]
}

/// A carrier at work. Dropped, it is as dead as with its process.
struct AtWork {
    carried: Arc<Carried>,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl AtWork {
    async fn start(edge: &Bus, cloud: &Site, stage: &str) -> Self {
        let (stream, sites) = (names::stream("faces", stage), ("edge".into(), "cloud".into()));
        let way = Way { stream, durable: RELAY.into(), sites, captured: Vec::new(), first: First::Oldest };
        let line = Line::connect(&cloud.server.address(), &Credentials::default(), "faces", "relay").await;
        let (near, far) = (End::here(edge), End::Across(line.expect("the cloud is there")));
        let carrier = Carrier::new(&near, &far, &way, &Arc::new(Budget::new(None)));
        let (stop, stopped) = oneshot::channel::<()>();
        let carried = carrier.carried();
        let task = tokio::spawn(carrier.run(async move { drop(stopped.await) }));
        Self { carried, stop: Some(stop), task }
    }

    /// Lets it end by itself.
    async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.task).await.expect("it ends");
    }
}

fn id(number: usize) -> Id {
    Id::captured("capture", &number.to_string())
}

/// A feature that `extract` gave at the edge.
pub(crate) fn feature(number: usize) -> Outgoing {
    let vector: Vec<f32> = (0..128).map(|place| (number * 128 + place) as f32).collect();
    let meta = Meta::captured(id(number), "extract", Feature::kind(), 0);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    Outgoing {
        subject: names::subject("faces", "feature", "edge", "capture"),
        headers,
        body: encode(&face("capture", &number.to_string(), &vector), Codec::Bincode).into(),
        if_absent: false,
    }
}

/// Stores features at a site.
pub(crate) async fn publish(bus: &Bus, numbers: std::ops::Range<usize>) {
    for number in numbers {
        bus.publish(&feature(number)).await.expect("it is stored");
    }
}

/// Waits until so many are stored at a site.
async fn comes(bus: &Bus, least: usize) {
    eventually("so many", async || (stored(bus).await.len() >= least).then_some(())).await;
}

/// How often each message is stored, by id.
async fn stored(bus: &Bus) -> BTreeMap<Id, usize> {
    let mut records = bus.scan("faces_extract", 1, false).await.expect("the link");
    let mut stored = BTreeMap::new();
    while let Some(record) = records.next().await {
        let record = record.expect("a record");
        let meta = record.headers.meta().expect("headers");
        *stored.entry(meta.id).or_default() += 1;
    }
    stored
}

/// The numbers of the features at a site, in the order in which they were stored.
async fn order(bus: &Bus) -> Vec<usize> {
    let mut records = bus.scan("faces_extract", 1, false).await.expect("the link");
    let mut order = Vec::new();
    while let Some(record) = records.next().await {
        let feature: Feature = decode_body(&record.expect("a record").body, Codec::Bincode).expect("a feature");
        order.push(feature.capture.item.parse().expect("a number"));
    }
    order
}

/// An operator sets the length of the messages that a site's link takes.
async fn bound_messages(site: &Site, bytes: i32) {
    let client = async_nats::connect(site.server.address()).await.expect("a connection");
    let js = async_nats::jetstream::new(client);
    let mut config = js.get_stream("faces_extract").await.expect("the link").cached_info().config.clone();
    config.max_message_size = bytes;
    js.update_stream(config).await.expect("it is set");
}

/// Everything is at the cloud, nothing is left at the edge for the relay.
async fn all_across(edge: &Bus, cloud: &Bus, count: usize) -> BTreeMap<Id, usize> {
    eventually("all is across", async || {
        let durable = edge.durable_state("faces_extract", RELAY).await.ok()??;
        (durable.pending == 0 && durable.unacked == 0 && durable.ack_floor >= count as u64).then_some(())
    })
    .await;
    let stored = stored(cloud).await;
    let missing: Vec<usize> = (0..count).filter(|&number| !stored.contains_key(&id(number))).collect();
    assert!(missing.is_empty(), "not there: {missing:?}");
    assert_eq!(stored.len(), count);
    stored
}

#[tokio::test]
async fn a_message_arrives_as_it_was_stored() {
    let tools = Tools::find();
    let [edge, cloud] = sites(&tools, "").await;
    let relay = AtWork::start(&edge.bus, &cloud, "extract").await;
    let outgoing = feature(1);
    edge.bus.publish(&outgoing).await.expect("it is stored");
    let mut records = cloud.bus.follow("faces_extract", 1, false).await.expect("the link");
    let record = records.next().await.expect("it comes").expect("a record");
    let mut headers: Vec<_> =
        outgoing.headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    headers.push((header::VIA.into(), "edge".into()));
    headers.sort();
    assert_eq!((&record.subject, &record.body), (&outgoing.subject, &outgoing.body));
    assert_eq!(record.headers.to_pairs(), headers);
    // Too long for a message: it goes by reference, and so does what it refers to.
    let long = Outgoing { body: vec![7; 9 << 20].into(), ..feature(2) };
    edge.bus.publish(&long).await.expect("it is stored");
    let record = records.next().await.expect("it comes").expect("a record");
    let body = cloud.bus.body(&record.headers, record.body).await.expect("its body is at the cloud too");
    assert_eq!(body, long.body);
    relay.stop().await;
    let durable = edge.bus.durable_state("faces_extract", RELAY).await.expect("the durable").expect("the durable");
    assert_eq!((durable.ack_floor, durable.unacked), (2, 0), "acked before it ended");
}

#[tokio::test]
async fn nothing_is_lost_when_either_server_or_the_relay_is_killed() {
    const ALL: usize = 3000;
    let tools = Tools::find();
    let [mut edge, mut cloud] = sites(&tools, "").await;
    let mut relay = AtWork::start(&edge.bus, &cloud, "extract").await;
    let publisher = edge.bus.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..ALL {
            // The server may be away.
            while publisher.publish(&feature(number)).await.is_err() {}
        }
    });
    comes(&cloud.bus, 300).await;
    cloud.kill_server().await;
    eventually("trouble is told", async || relay.carried.trouble()).await;
    cloud.start_server().await;
    comes(&cloud.bus, 900).await;
    eventually("all is well", async || relay.carried.trouble().is_none().then_some(())).await;
    edge.kill_server().await;
    edge.start_server().await;
    comes(&cloud.bus, 1500).await;
    for least in [1800, 2100, 2400] {
        drop(relay);
        relay = AtWork::start(&edge.bus, &cloud, "extract").await;
        comes(&cloud.bus, least).await;
    }
    publishing.await.expect("all is published");
    let stored = all_across(&edge.bus, &cloud.bus, ALL).await;
    // All kills were within the window of dedupe.
    let twice: Vec<_> = stored.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    relay.stop().await;
}

#[tokio::test]
async fn a_full_link_over_there_stops_the_relay_and_shows() {
    const ALL: usize = 2000;
    let tools = Tools::find();
    // Room for a third of them.
    let [edge, cloud] = sites(&tools, "link_bytes = \"1MiB\"").await;
    publish(&edge.bus, 0..ALL).await;
    let relay = AtWork::start(&edge.bus, &cloud, "extract").await;
    let trouble = eventually("it is told", async || relay.carried.trouble()).await;
    assert!(trouble.contains("full"), "{trouble}");
    let held = stored(&cloud.bus).await.len();
    assert!(held < ALL / 2, "{held} fit");
    // Takers come.
    let takers = ["classify", "cluster"].map(|taker| {
        let bus = cloud.bus.clone();
        tokio::spawn(async move {
            let of_taker = if taker == "cluster" { Pull::pinned } else { Pull::shared };
            let mut pull = of_taker(&bus, "faces_extract", taker, 64);
            let mut seen = BTreeSet::new();
            while seen.len() < ALL {
                let delivery = pull.next().await;
                seen.insert(delivery.id());
                delivery.ack().await;
            }
        })
    });
    for taker in takers {
        taker.await.expect("every message comes to every taker");
    }
    eventually("all is well", async || relay.carried.trouble().is_none().then_some(())).await;
    relay.stop().await;
}

#[tokio::test]
async fn nothing_is_lost_where_the_other_site_is_made_only_then() {
    const ALL: usize = 600;
    let tools = Tools::find();
    let [edge, cloud] = sites(&tools, "").await;
    // As if it was never applied: a stream that takes a message before its durables are there keeps it for nobody.
    cloud.bus.delete_stream("faces_extract").await.expect("it was there");
    publish(&edge.bus, 0..ALL).await;
    let relay = AtWork::start(&edge.bus, &cloud, "extract").await;
    let trouble = eventually("it is told", async || relay.carried.trouble()).await;
    assert!(trouble.contains("causeway apply"), "{trouble}");
    cloud.apply().await;
    all_across(&edge.bus, &cloud.bus, ALL).await;
    relay.stop().await;
}

#[tokio::test]
async fn a_link_that_was_set_back_is_carried_as_it_is_now() {
    const ALL: usize = 300;
    let tools = Tools::find();
    let [edge, cloud] = sites(&tools, "").await;
    let relay = AtWork::start(&edge.bus, &cloud, "extract").await;
    publish(&edge.bus, 0..ALL).await;
    all_across(&edge.bus, &cloud.bus, ALL).await;
    // Its numbers begin anew, while the relay lives.
    edge.bus.delete_stream("faces_extract").await.expect("it was there");
    edge.apply().await;
    relay_durable(&edge.bus, "extract").await;
    publish(&edge.bus, ALL..2 * ALL).await;
    eventually("all of both is there", async || (stored(&cloud.bus).await.len() == 2 * ALL).then_some(())).await;
    relay.stop().await;
}

#[tokio::test]
async fn what_the_other_broker_refuses_holds_up_nobody_else() {
    let tools = Tools::find();
    let [edge, cloud] = sites(&tools, "").await;
    // The cloud takes this one no more: an operator has set a bound there.
    bound_messages(&cloud, 4096).await;
    let long = Outgoing { body: vec![7; 8000].into(), ..feature(0) };
    edge.bus.publish(&long).await.expect("it is stored");
    publish(&edge.bus, 1..100).await;
    let relay = AtWork::start(&edge.bus, &cloud, "extract").await;
    eventually("the others are there", async || (stored(&cloud.bus).await.len() == 99).then_some(())).await;
    let trouble = eventually("it is told", async || relay.carried.trouble()).await;
    assert!(trouble.contains("refuses"), "{trouble}");
    bound_messages(&cloud, -1).await;
    all_across(&edge.bus, &cloud.bus, 100).await;
    relay.stop().await;
}

#[tokio::test]
async fn an_outcome_is_put_if_absent_over_there() {
    let tools = Tools::find();
    let [edge, cloud] = sites(&tools, "").await;
    let outcome = |number: usize, body: &'static [u8]| Outgoing {
        subject: names::outcome("faces", "assignment", "edge", "capture", id(number)),
        body: body.into(),
        if_absent: true,
        ..feature(number)
    };
    // A stage that was moved has given it over there already.
    let there = Outgoing { headers: Vec::new(), ..outcome(1, b"first") };
    cloud.bus.publish(&there).await.expect("it is stored");
    for number in [1, 2] {
        edge.bus.publish(&outcome(number, b"second")).await.expect("it is stored");
    }
    let relay = AtWork::start(&edge.bus, &cloud, "cluster").await;
    eventually("both are done", async || {
        let durable = edge.bus.durable_state("faces_cluster", RELAY).await.ok()??;
        (durable.ack_floor == 2).then_some(())
    })
    .await;
    let mut records = cloud.bus.scan("faces_cluster", 1, false).await.expect("outcomes");
    let mut bodies = Vec::new();
    while let Some(record) = records.next().await {
        bodies.push(record.expect("a record").body);
    }
    assert_eq!(bodies, ["first", "second"]);
    relay.stop().await;
}
