//! The net: what the broker gives up on, and what no client can read, shows as a dead letter.

use std::time::Duration;

use async_nats::jetstream::{self, AckKind};
use causeway_bus::{Outgoing, names};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Capture, Codec, Frame, Id, Message as _, Meta, encode, header};
use causeway_stage::read_ledger;
use futures::StreamExt as _;
use harness::{Running, Site, Tools, copy_photos, dead_letters, drained, eventually, faces, workspace};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::command;

async fn site(tools: &Tools) -> (Site, tempfile::TempDir) {
    let input = tempfile::tempdir().expect("a folder");
    (Site::start(tools, &faces(input.path(), |_| "")).await, input)
}

fn agent(tools: &Tools, site: &Site, home: &tempfile::TempDir) -> Running {
    let (file, nats) = (site.pipeline.file.display().to_string(), site.server.address());
    Running::start(tools, home.path(), &["agent", &file, "--nats", &nats])
}

/// A frame that was captured, and cannot be decoded.
fn frame(item: &str) -> (Meta, Outgoing) {
    let capture = Capture { source: "capture".into(), item: item.into(), epoch: 0, sequence: 0, captured_at: 1 };
    let meta = Meta::captured(Id::captured("capture", item), "capture", Frame::kind(), 0);
    let body = encode(&Frame { capture, image: b"no picture".to_vec() }, Codec::Bincode);
    let mut headers = meta.to_headers();
    headers.push((header::CONTENT_TYPE, Codec::Bincode.content_type().into()));
    let subject = "faces.frame.edge.capture".into();
    (meta, Outgoing { subject, headers, body: body.into(), if_absent: false })
}

async fn pull(site: &Site, stream: &str, durable: &str) -> jetstream::consumer::PullConsumer {
    let client = async_nats::connect(site.server.address()).await.expect("a client");
    let stream = jetstream::new(client).get_stream(stream).await.expect("a stream");
    stream.get_consumer(durable).await.expect("a durable")
}

#[tokio::test]
async fn a_message_that_somebody_terminated_is_a_dead_letter() {
    let tools = Tools::find();
    let (site, home) = site(&tools).await;
    let (meta, message) = frame("a.jpg");
    site.bus.publish(&message).await.expect("it is stored");
    let consumer = pull(&site, &names::stream("faces", "capture"), "preprocess").await;
    let mut messages = consumer.fetch().max_messages(1).messages().await.expect("a pull");
    let taken = messages.next().await.expect("a message").expect("a message");
    taken.ack_with(AckKind::Term).await.expect("it is told");

    let _agent = agent(&tools, &site, &home);
    let (found, letter) = eventually("a letter", async || dead_letters(&site.bus, &site.pipeline).await.pop()).await;
    assert_eq!((letter.stage.as_str(), letter.reason.as_str()), ("preprocess", "terminated"));
    assert_eq!((found.id, &letter.body), (meta.id, &message.body.to_vec()));
    // It can be sent again, to the stage that never had it.
    let _preprocess = site.stage("preprocess", &[]);
    let retried = command(&tools, &site, &["dlq", "retry", "--all", "--wait", "60", "--json"]).await.json();
    assert_eq!(retried["again"][0]["id"], meta.id.to_string(), "{retried}");
    let (_, letter) = dead_letters(&site.bus, &site.pipeline).await.pop().expect("a letter");
    assert_eq!(letter.reason, "not-an-image", "preprocess has looked at it");
}

#[tokio::test]
async fn a_message_that_the_broker_gave_up_on_is_a_dead_letter() {
    let tools = Tools::find();
    let (site, home) = site(&tools).await;
    let link = names::stream("faces", "preprocess");
    let (_, message) = frame("a.jpg");
    let message = Outgoing { subject: "faces.crop.edge.capture".into(), ..message };
    site.bus.publish(&message).await.expect("it is stored");
    // One delivery is all it gets, and nobody answers.
    let mut consumer = pull(&site, &link, "extract").await;
    let mut config = consumer.info().await.expect("its settings").config.clone();
    config.max_deliver = 1;
    let client = async_nats::connect(site.server.address()).await.expect("a client");
    let stream = jetstream::new(client).get_stream(&link).await.expect("a stream");
    let config = jetstream::consumer::pull::Config {
        durable_name: Some("extract".into()),
        ack_policy: config.ack_policy,
        ack_wait: Duration::from_millis(100),
        max_deliver: 1,
        max_ack_pending: config.max_ack_pending,
        ..Default::default()
    };
    stream.update_consumer(config).await.expect("it is set");
    let advisories = names::advisories("faces");
    eventually("an advisory", async || {
        let fetch = consumer.fetch().max_messages(1).expires(Duration::from_millis(200));
        let _ = fetch.messages().await.ok()?.next().await;
        site.bus.stream_state(&advisories).await.ok()?.filter(|state| state.messages > 0)
    })
    .await;

    let _agent = agent(&tools, &site, &home);
    let (_, letter) = eventually("a letter", async || dead_letters(&site.bus, &site.pipeline).await.pop()).await;
    assert_eq!((letter.stage.as_str(), letter.reason.as_str()), ("extract", "max-deliveries"));
    assert!(letter.body == message.body);
    eventually("an empty link", async || {
        let state = site.bus.stream_state(&link).await.ok()??;
        let left = site.bus.stream_state(&advisories).await.ok()??;
        (state.messages + left.messages == 0).then_some(())
    })
    .await;
}

/// Stores a message whose headers are no UTF-8: a client library refuses to send it, and to take it.
async fn publish_raw(address: &str, subject: &str, headers: &[u8], body: &[u8]) {
    let mut stream = tokio::net::TcpStream::connect(address.trim_start_matches("nats://")).await.expect("a server");
    let (head, all) = (headers.len(), headers.len() + body.len());
    let hello = format!("CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {subject} {head} {all}\r\n");
    let all = [hello.as_bytes(), headers, body, b"\r\nPING\r\n"].concat();
    stream.write_all(&all).await.expect("it is sent");
    let mut answer = String::new();
    while !answer.contains("PONG") {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.expect("an answer");
        assert!(read > 0, "the server closed: {answer}");
        answer += &String::from_utf8_lossy(&bytes[..read]);
    }
}

#[tokio::test]
async fn a_message_that_no_client_can_read_is_set_aside_and_the_rest_goes_on() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let photos = copy_photos(&tools, input.path(), 1);
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let up = ["up", "pipelines/faces.toml", "--input", input.path().to_str().expect("a path"), "--json"];
    let running = Running::start(&tools, home.path(), &up);
    let bus = running.bus("faces").await;
    let address = running.about().await["nats"].as_str().expect("an address").to_owned();
    // One renews its taker's connection for ever, the other ends its taker.
    let id = Id::captured("stranger", "x");
    let headers = [b"NATS/1.0\r\nCauseway-Id: ".as_slice(), id.to_string().as_bytes(), b"\r\nA: \xff\r\n\r\n"].concat();
    publish_raw(&address, "faces.frame.edge.stranger", &headers, b"raw").await;
    publish_raw(&address, "faces.crop.edge.stranger", b"NATS/1.0\r\nA: b\rc\r\n\r\n", b"lone").await;

    let letters = eventually("two letters", async || {
        let letters = dead_letters(&bus, &pipeline).await;
        (letters.len() == 2).then_some(letters)
    })
    .await;
    for (meta, letter) in &letters {
        assert_eq!(letter.reason, "unreadable-headers");
        let raw = letter.headers.iter().find(|(name, _)| name == "Causeway-Raw-Headers");
        assert!(raw.is_some(), "{:?}", letter.headers);
        let expected = if letter.stage == "preprocess" { &b"raw"[..] } else { b"lone" };
        assert_eq!((letter.stage == "preprocess", &letter.body[..]), (meta.id == id, expected));
    }
    eventually("every photo complete", async || {
        let ledger = read_ledger(&bus, &pipeline).await.ok()?;
        (ledger.complete().count() >= photos).then_some(())
    })
    .await;
    drained(&bus, &pipeline, photos).await;
    let finished = running.stop().await.ok();
    assert_eq!(finished.json()["dead_letters"], 2, "{finished:?}");
}
