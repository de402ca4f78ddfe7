use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use crate::bus::Dial;
use crate::{Bus, BusError, Credentials};

/// Pause between attempts to connect anew.
const PAUSE: Duration = Duration::from_millis(250);
/// How often it is asked whether it is there, while nobody misses it.
const WATCH_EVERY: Duration = Duration::from_secs(5);
/// How long the other broker may take to answer a question.
const ANSWER: Duration = Duration::from_secs(2);
/// How long it may take to connect and to have a first answer.
const CONNECT: Duration = Duration::from_secs(4);

/// The connection of a relay to another site, which all that it carries there share. Given up, it is made anew: what a connection had
/// under way when the link was cut TCP repeats ever more seldom.
pub struct Line {
    dial: Dial,
    now: Mutex<Bus>,
    /// How often it was made anew.
    renewed: watch::Sender<u64>,
    renewing: tokio::sync::Mutex<()>,
}

/// What comes of a question to the other broker.
enum Heard {
    /// Its answer. (A broker that answers that it cannot is there.)
    Answer,
    /// Not yet, but something else came: the question, or its answer, waits behind what is on the way.
    Something,
    /// Nothing at all.
    Nothing,
}

async fn hear(bus: &Bus) -> Heard {
    let before = bus.received();
    if tokio::time::timeout(ANSWER, bus.is_asked()).await.is_ok() {
        Heard::Answer
    } else if bus.received() > before {
        Heard::Something
    } else {
        Heard::Nothing
    }
}

impl Line {
    /// Connects to the broker of another site, for one pipeline, as `name`.
    pub async fn connect(
        address: &str,
        credentials: &Credentials,
        pipeline: &str,
        name: &str,
    ) -> Result<Arc<Self>, BusError> {
        let dial = Dial::across(address, credentials, pipeline, name);
        let now = Mutex::new(dial.connect().await?);
        Ok(Arc::new(Self { dial, now, renewed: watch::Sender::new(0), renewing: tokio::sync::Mutex::default() }))
    }

    /// Sets a key of a table at the other end.
    pub async fn table_put(&self, table: &str, key: &str, value: bytes::Bytes) -> Result<u64, BusError> {
        self.bus().table_put(table, key, value).await
    }

    /// The connection that there is now.
    pub(crate) fn bus(&self) -> Bus {
        self.now.lock().expect("nobody panics with it").clone()
    }

    /// Told when it was made anew.
    pub(crate) fn renewals(&self) -> watch::Receiver<u64> {
        self.renewed.subscribe()
    }

    /// Asks again and again whether the other broker is there, so that a link that is cut while nothing crosses is made anew too; says
    /// whenever that changes. Ends never.
    pub async fn watch(&self, mut told: impl FnMut(bool)) {
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            if !matches!(hear(&self.bus()).await, Heard::Nothing) {
                continue;
            }
            told(false);
            self.until_it_answers().await;
            told(true);
        }
    }

    /// Comes back when the other broker has answered a question, on this connection or on a new one.
    pub(super) async fn until_it_answers(&self) {
        loop {
            let seen = *self.renewed.borrow();
            match hear(&self.bus()).await {
                Heard::Answer => return,
                // It is slow, and what others have under way there would be lost with the connection.
                Heard::Something => {}
                Heard::Nothing => self.renew(seen).await,
            }
        }
    }

    /// Gives the connection up and makes another, unless somebody did since it was the one number `seen`.
    async fn renew(&self, seen: u64) {
        let _one_at_a_time = self.renewing.lock().await;
        while *self.renewed.borrow() == seen {
            match tokio::time::timeout(CONNECT, self.dial.connect()).await {
                Ok(Ok(bus)) => {
                    *self.now.lock().expect("nobody panics with it") = bus;
                    self.renewed.send_modify(|times| *times += 1);
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the other site is not reached; tried again");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => tracing::debug!("the other site does not answer; tried again"),
            }
        }
    }
}
