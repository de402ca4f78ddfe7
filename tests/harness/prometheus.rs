use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::{eventually, workspace};

/// A Prometheus that scrapes what one `up` runs, every second, with the project's rules at a second's pace. Dropped, it is killed.
pub struct Prometheus {
    _child: Child,
    address: String,
    _dir: TempDir,
}

/// Says that a test is passed over, and why.
///
/// # Panics
/// Under CI, where everything is there.
pub fn may_skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    eprintln!("skipped: {why}");
}

/// A port that nobody listens on now.
///
/// # Panics
/// When there is none.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A program of a Debian package, by its name; `None`, said plainly, where it is not installed (never under CI).
pub fn debian_program(name: &str, package: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|path| path.is_file());
    if found.is_none() {
        may_skip(&format!("{name} is not installed (on Debian: apt install {package})"));
    }
    found
}

/// The body of what `http://ADDRESS/PATH` answers; `None` when it does not with 200.
pub async fn http_get(address: &str, path: &str) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
    // 1.0: the answer comes in one piece.
    let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

/// The project's rules with windows of 10 s instead of minutes and no patience.
fn hasty_rules() -> String {
    let rules = std::fs::read_to_string(workspace().join("deploy/prometheus/rules.yml")).expect("the rules");
    let line = |line: &str| {
        if line.trim_start().starts_with("for: ") {
            return line.split("for: ").next().unwrap_or_default().to_owned() + "for: 1s";
        }
        ["[5m]", "[10m]", "[1h]"].iter().fold(line.to_owned(), |line, window| line.replace(window, "[10s]"))
    };
    rules.lines().map(line).collect::<Vec<_>>().join("\n")
}

impl Prometheus {
    /// Starts one on the targets of `home`; `None`, said plainly, where there is none (never under CI).
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(home: &Path) -> Option<Self> {
        let program = debian_program("prometheus", "prometheus")?;
        let dir = tempfile::tempdir().expect("a folder");
        let config = dir.path().join("prometheus.yml");
        std::fs::write(dir.path().join("rules.yml"), hasty_rules()).expect("it is written");
        let text = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [rules.yml]\n\
             scrape_configs:\n  - job_name: causeway\n    file_sd_configs:\n      - files: ['{}']\n        \
             refresh_interval: 1s\n",
            home.join("prometheus-targets.json").display()
        );
        std::fs::write(&config, text).expect("it is written");
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(program);
        command.arg("--config.file").arg(&config).arg("--storage.tsdb.path").arg(dir.path().join("data"));
        command.args([
            "--enable-feature",
            "exemplar-storage",
            "--log.level",
            "error",
            "--web.listen-address",
            &address,
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let child = command.spawn().expect("prometheus can be run");
        eventually("Prometheus", async || http_get(&address, "/-/ready").await).await;
        Some(Self { _child: child, address, _dir: dir })
    }

    /// What its API answers.
    pub async fn api(&self, path: &str) -> Option<Value> {
        let answer = http_get(&self.address, &format!("/api/v1/{path}")).await?;
        let answer: Value = serde_json::from_str(&answer).ok()?;
        Some(answer["data"].clone())
    }

    /// The first value of a query, if it has one.
    pub async fn value(&self, query: &str) -> Option<f64> {
        let data = self.api(&format!("query?query={}", encoded(query))).await?;
        data["result"][0]["value"][1].as_str()?.parse().ok()
    }

    /// The names of the targets that were scraped, in order.
    pub async fn up(&self) -> Vec<String> {
        let data = self.api("targets?state=active").await.unwrap_or_default();
        let targets = data["activeTargets"].as_array().cloned().unwrap_or_default();
        let up = targets.iter().filter(|target| target["health"] == "up");
        let mut names: Vec<_> =
            up.filter_map(|target| Some(target["labels"]["process"].as_str()?.to_owned())).collect();
        names.sort();
        names
    }

    /// Waits until an alert fires for this stage.
    ///
    /// # Panics
    /// When it does not.
    pub async fn fires(&self, alert: &str, label: &str, value: &str) -> Value {
        eventually(&format!("{alert} for {value}"), async || {
            let alerts = self.api("alerts").await?["alerts"].as_array()?.clone();
            alerts.into_iter().find(|found| {
                found["state"] == "firing" && found["labels"]["alertname"] == alert && found["labels"][label] == value
            })
        })
        .await
    }
}

fn encoded(query: &str) -> String {
    use std::fmt::Write as _;
    query.bytes().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "%{byte:02X}");
        text
    })
}
