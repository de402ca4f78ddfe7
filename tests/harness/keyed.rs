use std::path::{Path, PathBuf};
use std::process::Stdio;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{Tools, causeway, eventually, free_port, signal, workspace};

/// A pipeline whose sites have keys, and their servers as `causeway deploy nats` configures them. No stage runs.
pub struct Keyed {
    tools: Tools,
    /// With the pipeline file, its keys and the servers.
    pub dir: TempDir,
    servers: Vec<(String, u16, Child)>,
}

impl Keyed {
    /// Makes keys for the sites of the pipeline `text`, which says `credentials = "keys/SITE"` of each.
    ///
    /// # Panics
    /// When any of it fails.
    pub async fn new(tools: &Tools, text: &str) -> Self {
        let keyed = Self { tools: tools.clone(), dir: tempfile::tempdir().expect("a folder"), servers: Vec::new() };
        std::fs::write(keyed.dir.path().join("faces.toml"), text).expect("it is written");
        keyed.keys(&[]).await;
        keyed
    }

    /// The pipeline file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join("faces.toml")
    }

    /// A site's folder of keys.
    pub fn folder(&self, site: &str) -> PathBuf {
        self.dir.path().join("keys").join(site)
    }

    /// Runs `causeway keys`.
    ///
    /// # Panics
    /// When it fails.
    pub async fn keys(&self, more: &[&str]) {
        let out = self.dir.path().join("keys");
        self.run(&["keys"], &out, more).await;
    }

    async fn run(&self, command: &[&str], out: &Path, more: &[&str]) {
        let (file, out) = (self.file(), out.display().to_string());
        let arguments = [command, &[file.to_str().expect("a path"), "--out", &out], more].concat();
        causeway(&self.tools, &arguments).await.ok();
    }

    /// Starts the server of a site and makes what of the pipeline lies there. Gives its port.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn serve(&mut self, site: &str, listen: &str) -> u16 {
        let port = free_port();
        let out = self.dir.path().join(format!("{site}-nats"));
        let (listen, site_is) = (format!("--listen={listen}:{port}"), format!("--site={site}"));
        self.run(&["deploy", "nats"], &out, &[&site_is, &listen]).await;
        let mut command = Command::new(self.tools.nats_server());
        command.args(["-c", "nats-server.conf", "-l", "log"]).current_dir(&out);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.servers.push((site.into(), port, command.spawn().expect("a server can be run")));
        eventually("the server", async || {
            std::fs::read_to_string(out.join("log")).ok()?.contains("Server is ready").then_some(())
        })
        .await;
        port
    }

    /// Writes the configuration of a site's server anew, and has it read it.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn reload(&self, site: &str) {
        let (_, port, server) = self.servers.iter().find(|(name, ..)| name == site).expect("it was started");
        let out = self.dir.path().join(format!("{site}-nats"));
        let (listen, site_is) = (format!("--listen=127.0.0.1:{port}"), format!("--site={site}"));
        self.run(&["deploy", "nats"], &out, &[&site_is, &listen]).await;
        signal(server.id().expect("it runs"), "HUP");
        eventually("it to be read", async || {
            std::fs::read_to_string(out.join("log")).ok()?.contains("Reloaded server configuration").then_some(())
        })
        .await;
    }

    /// Kills the server of a site and waits until it is gone.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn stop(&mut self, site: &str) {
        let place = self.servers.iter().position(|(name, ..)| name == site).expect("it was started");
        self.servers.remove(place).2.kill().await.expect("it can be killed");
    }

    /// Makes what of the pipeline lies at a site.
    ///
    /// # Panics
    /// When that fails.
    pub async fn apply(&self, site: &str) {
        let (file, site_is, nats) = (self.file(), format!("--site={site}"), format!("--nats={}", self.address(site)));
        causeway(&self.tools, &["apply", file.to_str().expect("a path"), &site_is, &nats]).await.ok();
    }

    /// Where the server of a site is met in plain text, on this machine.
    ///
    /// # Panics
    /// When none was started.
    pub fn address(&self, site: &str) -> String {
        let (_, port, _) = self.servers.iter().find(|(name, ..)| name == site).expect("it was started");
        format!("nats://127.0.0.1:{port}")
    }

    /// A connection with a key of a site's folder to the server of another, or the same.
    ///
    /// # Panics
    /// When the server does not let it in.
    pub async fn client(&self, key: &str, at: &str) -> async_nats::Client {
        let seed = std::fs::read_to_string(self.dir.path().join("keys").join(format!("{key}.nk"))).expect("a key");
        let options = async_nats::ConnectOptions::with_nkey(seed.trim().into());
        options.connect(self.address(at)).await.expect("it is let in")
    }
}

/// The pipeline of edge and cloud as a file in `dir`, with a hub that is dialled there, folders of keys for both beside it, and `extract`, which
/// may be moved to the cloud.
///
/// # Panics
/// When it cannot be written.
pub fn edge_cloud_file(dir: &Path, hub: &str) -> PathBuf {
    let text = std::fs::read_to_string(workspace().join("pipelines/faces-edge-cloud.toml")).expect("the pipeline");
    let text = text
        .replace("[site.edge]", "[site.edge]\ncredentials = \"keys/edge\"")
        .replace("hub = true", &format!("hub = true\ncredentials = \"keys/cloud\"\naddress = \"{hub}\""))
        .replace("[stage.extract]", "[stage.extract]\nmay_move_to = [\"cloud\"]");
    let file = dir.join("pipeline.toml");
    std::fs::write(&file, text).expect("it is written");
    file
}
