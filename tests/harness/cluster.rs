use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{Tools, eventually, free_port};

/// Servers of one cluster, each with a store of its own, on loopback.
pub struct Cluster {
    program: PathBuf,
    dir: TempDir,
    /// By number: its port for clients, for the others, for questions.
    ports: Vec<[u16; 3]>,
    servers: Vec<Option<Child>>,
}

impl Cluster {
    /// Starts so many, and waits until they have agreed on a leader.
    ///
    /// # Panics
    /// When that goes wrong.
    pub async fn start(tools: &Tools, servers: usize) -> Self {
        let program = tools.nats_server().into();
        let dir = tempfile::tempdir().expect("a folder");
        let ports = (0..servers).map(|_| [(); 3].map(|()| free_port())).collect();
        let mut cluster = Self { program, dir, ports, servers: Vec::new() };
        for number in 0..servers {
            cluster.servers.push(None);
            cluster.up(number);
        }
        for number in 0..servers {
            cluster.healthy(number).await;
        }
        cluster
    }

    /// Where clients connect to: all of them.
    pub fn addresses(&self) -> String {
        let addresses = self.ports.iter().map(|[port, ..]| format!("nats://127.0.0.1:{port}"));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// There is always one.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Kills one, and starts it again on what it had stored; returns when it has caught up.
    ///
    /// # Panics
    /// When it does not come back.
    pub async fn kill(&mut self, number: usize) {
        let mut server = self.servers[number].take().expect("it runs");
        server.kill().await.expect("it can be killed");
        self.up(number);
        self.healthy(number).await;
    }

    /// The number of the server by its name.
    ///
    /// # Panics
    /// When it is none of these.
    pub fn number(&self, name: &str) -> usize {
        let number = name.strip_prefix("hub-").and_then(|number| number.parse().ok());
        number.filter(|&number| number < self.len()).unwrap_or_else(|| panic!("{name} is none of ours"))
    }

    fn up(&mut self, number: usize) {
        let [clients, others, questions] = self.ports[number];
        let routes = self.ports.iter().map(|[_, port, _]| format!("nats-route://127.0.0.1:{port}"));
        let routes = routes.collect::<Vec<_>>().join(", ");
        let dir = self.dir.path().join(number.to_string());
        std::fs::create_dir_all(&dir).expect("a folder");
        let config = format!(
            "listen: \"127.0.0.1:{clients}\"\nhttp: \"127.0.0.1:{questions}\"\nserver_name: \"hub-{number}\"\n\
             max_payload: {}\njetstream {{ store_dir: {:?} }}\n\
             cluster {{ name: hub, listen: \"127.0.0.1:{others}\", routes: [{routes}] }}\nlog_file: {:?}\n",
            causeway_bus::server::MAX_PAYLOAD,
            dir.join("store").display().to_string(),
            dir.join("log").display().to_string(),
        );
        let file = dir.join("nats-server.conf");
        std::fs::write(&file, config).expect("it is written");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.servers[number] = Some(command.kill_on_drop(true).spawn().expect("a server can be run"));
    }

    /// It knows the cluster's leader and has caught up with it.
    async fn healthy(&self, number: usize) {
        let address = format!("127.0.0.1:{}", self.ports[number][2]);
        eventually("a server that has caught up", async || {
            let answer = crate::http_get(&address, "/healthz").await?;
            answer.contains("\"status\":\"ok\"").then_some(())
        })
        .await;
    }
}
