use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as std_mpsc;
use std::time::{Duration, Instant};

use causeway_bus::{
    Budget, Bus, Carried, Carrier, Credentials, DurableWish, Line, Outgoing, Retention, StreamWish, TakerSort, Way,
    names,
};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use crate::{End, Link, Quality, Running, Tools, causeway, eventually, faces};

/// Two sites with a link between them: a server at either end, with the streams of the face pipeline. Dropped, they are gone.
pub struct Across {
    /// Between them.
    pub link: Arc<Link>,
    /// Connections of the test, which are never cut: to the edge and to the cloud.
    pub buses: [Bus; 2],
    servers: [Option<Child>; 2],
    dir: TempDir,
    program: String,
}

/// The port of either server.
const PORT: u16 = 4222;
/// The port of a bare flow of bytes.
const FLOW_PORT: u16 = 5001;
/// The durable of the relay at the edge.
pub const RELAY: &str = "relay-cloud";

impl Across {
    /// Starts both; `None` where one may not make namespaces.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn start(tools: &Tools, quality: Quality) -> Option<Self> {
        let link = Arc::new(Link::new(quality)?);
        let dir = tempfile::tempdir().expect("a folder");
        let program = tools.nats_server();
        let file = dir.path().join("faces.toml");
        std::fs::write(&file, faces(Path::new("/nowhere"), |_| "")).expect("it is written");
        let file = file.to_str().expect("a path");
        let mut servers = [None, None];
        let mut buses = Vec::new();
        for (place, end) in [End::Edge, End::Cloud].into_iter().enumerate() {
            servers[place] = Some(server(&link, end, program, dir.path()));
            let address = address(&link, end);
            causeway(tools, &["apply", file, "--nats", &address, "--wait", "30"]).await.ok();
            buses.push(Bus::connect(&address, &Credentials::default(), "faces", "test").await.expect("a bus"));
        }
        let buses: [Bus; 2] = buses.try_into().ok().expect("two");
        relay_durable(&buses[0], "extract").await;
        Some(Self { link, buses, servers, dir, program: program.into() })
    }

    /// A connection of the test's to the server at an end, for another pipeline; it is never cut.
    ///
    /// # Panics
    /// When there is none.
    pub async fn bus(&self, end: End, pipeline: &str) -> Bus {
        let address = address(&self.link, end);
        Bus::connect(&address, &Credentials::default(), pipeline, "test").await.expect("a bus")
    }

    /// Starts `causeway ARGUMENTS… --home HOME` at an end, with its server; at the edge it knows where the cloud's is.
    pub fn causeway(&self, tools: &Tools, end: End, home: &Path, arguments: &[&str]) -> Running {
        let nats = format!("nats://127.0.0.1:{PORT}");
        let hub = format!("nats://{}:{PORT}", Link::address(End::Cloud));
        let program = tools.program("causeway");
        let mut command = self.link.command(end, program.to_str().expect("a path"));
        command.args(arguments).args(["--nats", &nats]).arg("--home").arg(home).env("CAUSEWAY_HUB", hub);
        Running::start_as(tools, command, home)
    }

    /// The process of the server at an end.
    ///
    /// # Panics
    /// When it does not run.
    pub fn server_pid(&self, end: End) -> u32 {
        self.servers[end as usize].as_ref().and_then(Child::id).expect("it runs")
    }

    /// Kills the server at an end and waits until it is gone.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn kill_server(&mut self, end: End) {
        self.servers[end as usize].take().expect("it runs").kill().await.expect("it can be killed");
    }

    /// Starts the server at an end again.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_server(&mut self, end: End) {
        self.servers[end as usize] = Some(server(&self.link, end, &self.program, self.dir.path()));
        let bus = &self.buses[end as usize];
        eventually("it answers", async || bus.stream_state("faces_extract").await.ok()).await;
    }

    /// Starts what carries `extract`'s link from the edge to the cloud, as a relay at the edge does.
    ///
    /// # Panics
    /// When it cannot connect.
    pub fn relay(&self, first: causeway_bus::First, bytes_per_s: Option<u64>) -> Relay {
        let link = Arc::clone(&self.link);
        let (stop, stopped) = oneshot::channel::<Stop>();
        let (told, tells) = std_mpsc::channel();
        let thread = std::thread::spawn(move || {
            link.enter(End::Edge);
            let task = nix::unistd::gettid();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let none = Credentials::default();
                let near = Bus::connect(&format!("nats://127.0.0.1:{PORT}"), &none, "faces", "relay").await;
                let far = format!("nats://{}:{PORT}", Link::address(End::Cloud));
                let far = Line::connect(&far, &none, "faces", "relay").await.expect("the cloud");
                let (near, far) = (causeway_bus::End::here(&near.expect("the edge")), causeway_bus::End::Across(far));
                let stream = names::stream("faces", "extract");
                let sites = ("edge".into(), "cloud".into());
                let way = Way { stream, durable: RELAY.into(), sites, captured: Vec::new(), first };
                let budget = Arc::new(Budget::new(bytes_per_s));
                let carrier = Carrier::new(&near, &far, &way, &budget);
                let _ = told.send((carrier.carried(), task.as_raw()));
                // Told to stop it comes to its end; killed it does not.
                let (ends, ended) = oneshot::channel::<()>();
                let run = carrier.run(async move { drop(ended.await) });
                let mut run = std::pin::pin!(run);
                tokio::select! {
                    () = &mut run => {}
                    how = stopped => if how == Ok(Stop::Drain) {
                        drop(ends);
                        run.await;
                    },
                }
            });
        });
        let (carried, task) = tells.recv().expect("it runs");
        Relay { carried, task, stop: Some(stop), thread: Some(thread) }
    }

    /// Publishes one message after the other at the edge, so often, until it is told to stop.
    pub fn publish(&self, every: Duration, message: fn(usize) -> Outgoing) -> Publishing {
        Publishing::start(&self.buses[0], every, message)
    }

    /// Round trips over the link by `ping`: their mean, and which share of `count` was lost; `None` where there is no such program.
    ///
    /// # Panics
    /// When it says something else.
    pub fn ping(&self, count: usize) -> Option<(Duration, f64)> {
        let mut command = self.link.command(End::Edge, "ping");
        command.args(["-q", "-i", "0.02", "-c", &count.to_string(), Link::address(End::Cloud)]);
        let said = String::from_utf8(command.output().ok()?.stdout).expect("text");
        let number = |text: &str| text.trim().parse::<f64>().expect("a number");
        let lost = said.split_once("% packet loss")?.0.rsplit([' ', ',']).next()?;
        let (_, times) = said.split_once("min/avg/max/mdev = ")?;
        let mean = times.split('/').nth(1)?;
        Some((Duration::from_secs_f64(number(mean) / 1e3), number(lost) / 100.0))
    }

    /// What one TCP connection carries from the edge to the cloud in `time`, bytes a second.
    ///
    /// # Panics
    /// When it breaks.
    pub fn bare_flow(&self, time: Duration) -> f64 {
        let (ready, is_ready) = std_mpsc::channel();
        let link = Arc::clone(&self.link);
        let reader = std::thread::spawn(move || {
            link.enter(End::Cloud);
            let listener = TcpListener::bind((Link::address(End::Cloud), FLOW_PORT)).expect("a port");
            ready.send(()).expect("the other lives");
            let (mut flow, _) = listener.accept().expect("a connection");
            let (mut buffer, mut came, began) = (vec![0; 64 << 10], 0_u64, Instant::now());
            loop {
                match flow.read(&mut buffer).expect("it is read") {
                    0 => return came as f64 / began.elapsed().as_secs_f64(),
                    read => came += read as u64,
                }
            }
        });
        is_ready.recv().expect("it listens");
        let link = Arc::clone(&self.link);
        let writer = std::thread::spawn(move || {
            link.enter(End::Edge);
            let mut flow = TcpStream::connect((Link::address(End::Cloud), FLOW_PORT)).expect("a connection");
            let (block, began) = (vec![7; 16 << 10], Instant::now());
            while began.elapsed() < time {
                flow.write_all(&block).expect("it is written");
            }
        });
        writer.join().expect("all is written");
        reader.join().expect("all is read")
    }
}

/// Messages that are published.
pub struct Publishing {
    ends: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Duration)>,
}

impl Publishing {
    /// Publishes one message after the other, so often, until it is told to stop.
    pub fn start(bus: &Bus, every: Duration, message: fn(usize) -> Outgoing) -> Self {
        let (edge, ends) = (bus.clone(), Arc::new(AtomicBool::new(false)));
        let told = Arc::clone(&ends);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(every);
            let (mut number, mut slowest) = (0, Duration::ZERO);
            while !told.load(Ordering::Relaxed) {
                ticks.tick().await;
                let began = Instant::now();
                edge.publish(&message(number)).await.expect("the edge stores it, whatever the link does");
                slowest = slowest.max(began.elapsed());
                number += 1;
            }
            (number, slowest)
        });
        Self { ends, task }
    }

    /// Ends it, and gives how many there are.
    ///
    /// # Panics
    /// When one was not stored.
    pub async fn stop(self) -> usize {
        self.stop_and_tell().await.0
    }

    /// The same, and how long the slowest took to be stored.
    ///
    /// # Panics
    /// When one was not stored.
    pub async fn stop_and_tell(self) -> (usize, Duration) {
        self.ends.store(true, Ordering::Relaxed);
        self.task.await.expect("all is published")
    }
}

/// What carries. Dropped, it ends.
pub struct Relay {
    /// What it has done.
    pub carried: Arc<Carried>,
    /// The thread that does it.
    pub task: i32,
    stop: Option<oneshot::Sender<Stop>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// How what carries ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Drain,
    Kill,
}

impl Relay {
    /// Ends it at once, whatever is on its way.
    pub fn kill(mut self) {
        let _ = self.stop.take().map(|stop| stop.send(Stop::Kill));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(Stop::Drain));
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Makes the durable of a relay on a link.
///
/// # Panics
/// When it cannot be made.
pub async fn relay_durable(bus: &Bus, stage: &str) {
    let bytes = 256 << 20;
    let (link, retention) = match stage {
        "extract" => ("feature", Retention::Link { bytes }),
        _ => ("assignment", Retention::Outcome { bytes, age: Duration::from_hours(720) }),
    };
    let wish = StreamWish {
        name: names::stream("faces", stage),
        subjects: vec![names::link("faces", link)],
        retention,
        durables: vec![DurableWish { name: RELAY.into(), taker: TakerSort::Relay, subjects: Vec::new(), ends: false }],
        copies: 1,
        ends: false,
    };
    bus.apply_stream(&wish).await.expect("the relay's durable");
}

fn address(link: &Link, end: End) -> String {
    format!("nats://{}:{PORT}", link.test_address(end))
}

fn server(link: &Link, end: End, program: &str, dir: &Path) -> Child {
    let dir = dir.join(format!("{end:?}"));
    std::fs::create_dir_all(&dir).expect("a folder");
    let config = dir.join("nats-server.conf");
    let text = format!(
        "listen: \"0.0.0.0:{PORT}\"\nmax_payload: 8388608\nlog_file: {:?}\njetstream {{ store_dir: {:?} }}\n",
        dir.join("nats-server.log").display().to_string(),
        dir.join("store").display().to_string(),
    );
    std::fs::write(&config, text).expect("it is written");
    let mut command = Command::from(link.command(end, program));
    command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().expect("a server")
}
