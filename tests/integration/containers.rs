//! The face pipeline as containers: images built from nothing, the compose file that `causeway deploy compose` writes, run by
//! a real engine; a container that is killed and started again by its policy costs nothing.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Instant;

use causeway_bus::{Bus, Credentials, names};
use causeway_pipelines::Pipeline;
use harness::{Tools, copy_photos, drained, eventually, kill, verdict, workspace};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

/// Images of the test are told from a user's by their tag.
const TAG: &str = "test";
/// Nobody: what the images run as.
const UID: &str = "65532";
/// The images, each with the most megabytes that it may have. Compiled with Cargo's `dev`, programs are some three times larger
/// than released ones.
const IMAGES: [(&str, u64); 7] = [
    ("capture", 260),
    ("preprocess", 160),
    ("extract", 200),
    ("classify", 160),
    ("cluster", 80),
    ("causeway", 210),
    ("nats-server", 30),
];

#[tokio::test]
#[ignore = "minutes: makes a Debian, compiles in it, runs containers"]
async fn a_killed_container_is_started_again_and_costs_nothing() {
    let Some(engine) = Engine::find().await else { return };
    let tools = Tools::find();
    let began = Instant::now();
    engine.build_images().await;
    eprintln!("images built in {:.0?}", began.elapsed());
    engine.assert_images_hold_only_what_runs().await;

    let input = tempfile::tempdir().expect("a folder");
    let photos = copy_photos(&tools, input.path(), 4);
    // Whoever the containers run as.
    open(input.path());
    let deployment = engine.deploy(&tools, input.path()).await;
    let pipeline = Pipeline::load(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let bus = deployment.bus(&pipeline).await;

    let link = names::stream(&pipeline.name, "preprocess");
    eventually("a face that is embedded", async || {
        bus.durable_state(&link, "extract").await.ok()?.filter(|state| state.ack_floor >= 3)
    })
    .await;
    let before = deployment.inspect("extract").await;
    // As the kernel would: what `podman kill` ends was stopped by its user, and stays so.
    kill(pid(&before).expect("it runs"));
    let after = eventually("another process of the container", async || {
        let now = deployment.inspect("extract").await;
        (pid(&now).is_some() && pid(&now) != pid(&before)).then_some(now)
    })
    .await;
    assert_eq!(after["Id"], before["Id"]);
    assert!(after["RestartCount"].as_u64() > before["RestartCount"].as_u64(), "its policy started it again: {after}");

    drained(&bus, &pipeline, photos).await;
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len(), photos);
    assert!(verdict.dead.is_empty(), "{:?}", verdict.dead);
    assert!(verdict.decisions.len() > photos, "the photos have faces: {}", verdict.decisions.len());

    for stage in pipeline.stages.iter().filter(|stage| !stage.is_source()) {
        deployment.assert_confined(&stage.name).await;
        deployment.assert_healthy(&stage.name).await;
    }
    deployment.assert_confined("nats").await;
    deployment.assert_confined("agent").await;
    let status = deployment.compose(&["run", "--rm", "--no-deps", "-T", "agent", "status"]).await;
    assert!(text(&status).contains("classify"), "the command finds the broker and the pipeline: {}", text(&status));

    let capture = deployment.inspect("capture").await;
    assert_eq!(capture["State"]["Status"], "exited", "a source that has read all there is is not started again");
    deployment.compose(&["stop"]).await;
    for service in ["capture", "preprocess", "extract", "classify", "cluster", "agent"] {
        let state = deployment.inspect(service).await["State"].clone();
        assert_eq!((&state["Status"], &state["ExitCode"]), (&"exited".into(), &0.into()), "{service} drains: {state}");
    }
}

/// An engine with a configuration of its own. Its storage, in target/, stays: the next run compiles only what has changed.
struct Engine {
    environment: Vec<(&'static str, String)>,
    _configuration: TempDir,
}

/// A deployment by a compose file. Dropped, its containers, networks and volumes are removed.
struct Deployment<'a> {
    engine: &'a Engine,
    dir: TempDir,
    project: String,
    port: u16,
}

impl Engine {
    /// Podman, where it can run as this test wants it. `None`: it cannot, and why was told.
    async fn find() -> Option<Self> {
        let missing: Vec<&str> = ["podman", "debootstrap", "podman-compose", "cargo", "python3"]
            .into_iter()
            .filter(|program| !is_in_path(program))
            .collect();
        let why = if !is_root() {
            "it needs root, for debootstrap".to_owned()
        } else if !missing.is_empty() {
            format!("{} is missing (deploy/setup/system.txt)", missing.join(", "))
        } else {
            let engine = Self::new();
            let info = engine.command("podman").arg("info").output().await.expect("podman can be run");
            if info.status.success() {
                return Some(engine);
            }
            format!("podman does not work here: {}", text(&info))
        };
        assert!(std::env::var_os("CI").is_none(), "cannot test containers: {why}");
        eprintln!("SKIPPED: no container was built or run: {why}");
        None
    }

    fn new() -> Self {
        let configuration = tempfile::tempdir().expect("a folder");
        let storage = workspace().join("target/containers");
        std::fs::create_dir_all(&storage).expect("a folder");
        let write = |name: &str, text: String| {
            let path = configuration.path().join(name);
            std::fs::write(&path, text).expect("it is written");
            path.display().to_string()
        };
        // No systemd, no cgroups v2, no high limits: what every machine has.
        let containers = write(
            "containers.conf",
            "[containers]\ndefault_ulimits = [\"nofile=4096:4096\", \"nproc=4096:4096\"]\n\
             [engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\n"
                .into(),
        );
        let storage = write(
            "storage.conf",
            format!(
                "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n",
                storage.join("storage").display(),
                storage.join("run").display()
            ),
        );
        // Health checks by timers of systemd are asked for by hand instead.
        let no_timers = ("DISABLE_HC_SYSTEMD", "true".into());
        let environment = vec![("CONTAINERS_CONF", containers), ("CONTAINERS_STORAGE_CONF", storage), no_timers];
        Self { environment, _configuration: configuration }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().cloned()).current_dir(workspace()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn podman(&self, arguments: &[&str]) -> String {
        let output = self.command("podman").args(arguments).output().await.expect("podman can be run");
        assert!(output.status.success(), "podman {arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    async fn inspect_image(&self, name: &str) -> Value {
        let inspected = self.podman(&["image", "inspect", &image(name)]).await;
        serde_json::from_str::<Value>(&inspected).expect("JSON")[0].take()
    }

    /// Builds the image to compile in, and with it all others. It reaches no registry: crates are those that this test was
    /// compiled of.
    async fn build_images(&self) {
        let rust = Command::new("rustc").arg("--version").output().await.expect("rustc can be run");
        let rust = text(&rust).split(' ').nth(1).expect("a version").to_owned();
        let builder = format!("localhost/causeway-builder:{rust}");
        let exists =
            self.command("podman").args(["image", "exists", &builder]).status().await.expect("podman can be run");
        if !exists.success() {
            self.run(self.command("deploy/containers/builder.sh").arg(&builder)).await;
        }
        let crates = cargo_home().join("registry");
        let crates = format!("{}:/var/cache/cargo/registry:O", crates.display());
        let mut build = self.command("python3");
        build.args(["-B", "deploy/containers/images.py", "--engine", "podman", "--profile", "dev", "--tag", TAG]);
        build.args(["--rust-image", &builder, "--", "--network", "none", "--volume", &crates]);
        self.run(&mut build).await;
    }

    /// Runs what says itself how it goes.
    async fn run(&self, command: &mut Command) {
        let status = command.status().await.expect("it can be run");
        assert!(status.success(), "{:?}: {status}", command.as_std());
    }

    async fn assert_images_hold_only_what_runs(&self) {
        for (name, most_mb) in IMAGES {
            let about = self.inspect_image(name).await;
            assert_eq!(about["Config"]["User"], format!("{UID}:{UID}"), "{name}");
            let labels = &about["Config"]["Labels"];
            assert_eq!(labels["org.opencontainers.image.title"], format!("causeway/{name}"));
            assert_eq!(labels["org.opencontainers.image.version"], env!("CARGO_PKG_VERSION"));
            for label in ["description", "revision", "licenses"] {
                let value = labels[format!("org.opencontainers.image.{label}")].as_str().unwrap_or_default();
                assert!(!value.is_empty() && value != "unknown", "{name} has no label {label}: {labels}");
            }
            let size_mb = about["Size"].as_u64().expect("a size") / 1_000_000;
            let files = self.files(name).await;
            eprintln!("{name}: {size_mb} MB, {} files", files.len());
            assert!(size_mb <= most_mb, "{name} has {size_mb} MB: {files:#?}");
            assert_holds_only_what_runs(name, &files);
            let is_stage = !matches!(name, "causeway" | "nats-server");
            assert_eq!(!about["HealthCheck"].is_null() || !about["Healthcheck"].is_null(), is_stage, "{name}: {about}");
        }
    }

    /// Every file of an image, by its path from the root.
    async fn files(&self, name: &str) -> Vec<String> {
        let root = self.podman(&["image", "mount", &image(name)]).await;
        let mut files = Vec::new();
        walk(Path::new(root.trim()), Path::new("/"), &mut files);
        self.podman(&["image", "unmount", &image(name)]).await;
        files.sort();
        files
    }

    async fn deploy(&self, tools: &Tools, input: &Path) -> Deployment<'_> {
        let dir = tempfile::tempdir().expect("a folder");
        open(dir.path());
        let port = free_port();
        let mut command = self.command(tools.program("causeway").to_str().expect("a path"));
        command.args(["deploy", "compose", "pipelines/faces.toml", "--tag", TAG, "--set", "capture.rate=10"]);
        command.args(["--publish", &port.to_string(), "--input"]).arg(input).arg("--out").arg(dir.path());
        self.run(&mut command).await;
        let project = format!("causeway-test-{}", std::process::id());
        let deployment = Deployment { engine: self, dir, project, port };
        deployment.compose(&["up", "-d"]).await;
        deployment
    }
}

impl Deployment<'_> {
    fn compose_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.engine.command("podman-compose");
        command.arg("-f").arg(self.dir.path().join("compose.yaml")).args(["-p", &self.project]).args(arguments);
        command
    }

    async fn compose(&self, arguments: &[&str]) -> Output {
        let output = self.compose_command(arguments).output().await.expect("podman-compose can be run");
        assert!(output.status.success(), "podman-compose {arguments:?}: {}", text(&output));
        output
    }

    /// A connection to its broker, from outside.
    async fn bus(&self, pipeline: &Pipeline) -> Bus {
        let address = format!("nats://127.0.0.1:{}", self.port);
        eventually("its broker", async || {
            Bus::connect(&address, &Credentials::default(), &pipeline.name, "test").await.ok()
        })
        .await
    }

    async fn container(&self, service: &str) -> String {
        let project = format!("label=io.podman.compose.project={}", self.project);
        let service_is = format!("label=com.docker.compose.service={service}");
        let id = self.engine.podman(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &service_is]).await;
        let id = id.trim().to_owned();
        assert_eq!(id.lines().count(), 1, "containers of {service}: {id}");
        id
    }

    async fn inspect(&self, service: &str) -> Value {
        let id = self.container(service).await;
        let inspected = self.engine.podman(&["container", "inspect", &id]).await;
        serde_json::from_str::<Value>(&inspected).expect("JSON")[0].take()
    }

    /// What the kernel says of its process: nobody, without a capability, and none to be gained; and nothing to write on.
    async fn assert_confined(&self, service: &str) {
        let about = self.inspect(service).await;
        assert_eq!(about["HostConfig"]["ReadonlyRootfs"], true, "{service}");
        let pid = pid(&about).expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let is = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t")).unwrap_or_default();
            line.split('\t').next().unwrap_or_default().to_owned()
        };
        assert_eq!((is("Uid").as_str(), is("Gid").as_str()), (UID, UID), "{service}");
        assert_eq!(
            (is("CapEff"), is("CapBnd"), is("NoNewPrivs")),
            ("0".repeat(16), "0".repeat(16), "1".into()),
            "{service}"
        );
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).expect("it runs");
        let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).expect("a root");
        assert!(
            root.split(' ').nth(3).is_some_and(|options| options.split(',').any(|option| option == "ro")),
            "{root}"
        );
    }

    /// Asked as the engine asks it, by the program in the image.
    async fn assert_healthy(&self, service: &str) {
        let id = self.container(service).await;
        self.engine.podman(&["healthcheck", "run", &id]).await;
    }
}

impl Drop for Deployment<'_> {
    fn drop(&mut self) {
        let mut down = self.compose_command(&["down", "--volumes", "--timeout", "5"]).into_std();
        match down.output() {
            Ok(output) if output.status.success() => {}
            other => eprintln!("left behind, project {}: {other:?}", self.project),
        }
    }
}

/// A program, what it loads, whom it trusts, and licences.
fn assert_holds_only_what_runs(name: &str, files: &[String]) {
    let program = match name {
        "causeway" | "nats-server" => name.to_owned(),
        stage => format!("causeway-{stage}"),
    };
    let programs: Vec<_> = files.iter().filter(|path| path.starts_with("/usr/bin/")).collect();
    let expected = [format!("/usr/bin/{program}"), "/usr/bin/ffmpeg".into(), "/usr/bin/stage".into()];
    assert_eq!(
        programs,
        expected.iter().filter(|path| name == "capture" || !path.ends_with("ffmpeg")).collect::<Vec<_>>()
    );
    let is_known = |path: &str| {
        let is_library = path.contains(".so") && (path.starts_with("/lib") || path.starts_with("/usr/lib/"));
        let is_model = path.starts_with("/models/")
            && (path.contains(".toml") || path.contains(".onnx") || path.contains(".labels"));
        let is_text = path.starts_with("/usr/share/doc/");
        let is_system = ["/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/ssl/certs/ca-certificates.crt"];
        is_library || is_model || is_text || is_system.contains(&path) || path.starts_with("/usr/bin/")
    };
    let strange: Vec<_> = files.iter().filter(|path| !is_known(path)).collect();
    assert!(strange.is_empty(), "{name} holds {strange:?}");
    let has = |part: &str| files.iter().any(|path| path.contains(part));
    let engine = matches!(name, "preprocess" | "extract" | "classify" | "causeway");
    assert_eq!(has("libonnxruntime"), engine, "{name}: {files:#?}");
    assert_eq!(has("yunet.onnx"), matches!(name, "preprocess" | "causeway"), "{name}: {files:#?}");
    assert_eq!(has("sface.onnx"), matches!(name, "extract" | "causeway"), "{name}: {files:#?}");
    assert_eq!(has("mobilenet_v2.onnx"), engine, "{name}: {files:#?}");
}

fn walk(root: &Path, within: &Path, files: &mut Vec<String>) {
    let dir = root.join(within.strip_prefix("/").expect("absolute"));
    for entry in std::fs::read_dir(dir).expect("a folder") {
        let entry = entry.expect("an entry");
        let path = within.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            walk(root, &path, files);
        } else {
            files.push(path.display().to_string());
        }
    }
}

fn image(name: &str) -> String {
    format!("localhost/causeway/{name}:{TAG}")
}

/// The main process of a container, as the machine numbers it; `None` while it does not run.
fn pid(container: &Value) -> Option<u32> {
    let pid = container["State"]["Pid"].as_u64().filter(|&pid| pid > 0)?;
    u32::try_from(pid).ok()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A process belongs to whom it runs as.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn cargo_home() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").expect("a home")).join(".cargo");
    std::env::var_os("CARGO_HOME").map_or_else(home, PathBuf::from)
}

/// Lets everybody read a folder that was made for its owner alone.
fn open(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("they are set");
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}
