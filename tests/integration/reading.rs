//! Who reads what is stored reads each message once, in its order, whatever becomes of the broker.

use std::path::Path;

use futures::StreamExt as _;
use harness::{Site, Tools, eventually, faces};

use crate::relay::{feature, publish};

#[tokio::test]
#[ignore = "the client notices after half a minute that its consumer is gone"]
async fn a_broker_that_dies_before_the_first_message_comes() {
    let mut site = Site::start(&Tools::find(), &faces(Path::new("/nowhere"), |_| "")).await;
    publish(&site.bus, 1..6).await;
    let follows = site.bus.follow("faces_extract", 6, true).await.expect("it is followed");
    // A broker that is away is no message.
    let read = follows.filter_map(async |record| record.ok().map(|record| record.sequence)).take(2).collect::<Vec<_>>();
    let read = tokio::spawn(read);
    site.kill_server().await;
    site.start_server().await;
    let publishes = async |number| {
        eventually("it is stored", async || site.bus.publish(&feature(number)).await.ok()).await;
    };
    publishes(6).await;
    publishes(7).await;
    let read = tokio::time::timeout(std::time::Duration::from_mins(2), read).await.expect("they come");
    assert_eq!(read.expect("it ends"), [6, 7], "what came then, and not what was there before");
}
