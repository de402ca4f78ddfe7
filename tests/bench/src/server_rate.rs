//! What the server itself does: one stream of one replica on disk, windowed publishes, a pull, and acks, by the plain client.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use causeway_bus::server::{Server, Start};
use futures::StreamExt as _;

use crate::machine::usages;
use crate::place::Place;
use crate::rounds::Round;

/// Publishes that wait for their ack at once.
const WINDOW: usize = 512;
/// Messages that a pull asks for.
const PULL: usize = 512;
/// How long the whole may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// Publishes `items` bodies and takes them again, both at once; an item is one publish, one delivery and one ack.
pub(crate) async fn run(place: &Place, items: usize, bytes: usize) -> anyhow::Result<Round> {
    let dir = place.fresh()?;
    let server = Server::start("limit", dir.path(), Start::default()).await?;
    let address = server.address();
    // On threads of their own, as two processes would be.
    let took_s = tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime.block_on(async { tokio::time::timeout(PATIENCE, publish_and_pull(&address, items, bytes)).await? })
    });
    let took_s = took_s.await??;
    let usages = usages(&[("broker".to_owned(), server.pid().unwrap_or_default())]);
    server.stop().await;
    Ok(Round { per_s: items as f64 / took_s, usages, items })
}

async fn publish_and_pull(address: &str, items: usize, bytes: usize) -> anyhow::Result<f64> {
    let streams = jetstream::new(async_nats::connect(address).await?);
    let config = Config {
        name: "limit".into(),
        subjects: vec!["limit".into()],
        retention: RetentionPolicy::Interest,
        storage: StorageType::File,
        ..Config::default()
    };
    let stream = streams.create_stream(config).await?;
    let config = pull::Config { durable_name: Some("taker".into()), max_ack_pending: 4096, ..pull::Config::default() };
    let consumer = stream.create_consumer(config).await?;
    let began = Instant::now();
    // Over a connection of its own, as another process would.
    let publishing = tokio::spawn(publish(jetstream::new(async_nats::connect(address).await?), items, bytes));
    let mut messages = consumer.stream().max_messages_per_batch(PULL).messages().await?;
    for _ in 0..items {
        let message = messages.next().await.context("the pull ended")??;
        message.ack().await.map_err(|error| anyhow::anyhow!(error))?;
    }
    publishing.await??;
    Ok(began.elapsed().as_secs_f64())
}

async fn publish(streams: jetstream::Context, items: usize, bytes: usize) -> anyhow::Result<()> {
    let body = bytes::Bytes::from(vec![0_u8; bytes]);
    let mut waiting = VecDeque::with_capacity(WINDOW);
    for _ in 0..items {
        if waiting.len() == WINDOW
            && let Some(ack) = waiting.pop_front()
        {
            let ack: jetstream::context::PublishAckFuture = ack;
            ack.await?;
        }
        waiting.push_back(streams.publish("limit", body.clone()).await?);
    }
    for ack in waiting {
        ack.await?;
    }
    Ok(())
}
