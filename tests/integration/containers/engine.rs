//! An engine of containers, and what is deployed with it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use harness::{Tools, workspace};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::{TAG, UID};

/// An engine with a configuration of its own. Its storage, in target/, stays: the next run compiles only what has changed.
pub(super) struct Engine {
    environment: Vec<(&'static str, String)>,
    _configuration: TempDir,
}

/// A deployment by a compose file. Dropped, its containers, networks and volumes are removed.
pub(super) struct Deployment<'a> {
    engine: &'a Engine,
    dir: TempDir,
    project: String,
}

impl Engine {
    /// Podman, where it can run as this test wants it. `None`: it cannot, and why was told.
    pub(super) async fn find() -> Option<Self> {
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

    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment.iter().cloned()).current_dir(workspace()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    pub(super) async fn podman(&self, arguments: &[&str]) -> String {
        let output = self.command("podman").args(arguments).output().await.expect("podman can be run");
        assert!(output.status.success(), "podman {arguments:?}: {}", text(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    pub(super) async fn inspect_image(&self, name: &str) -> Value {
        let inspected = self.podman(&["image", "inspect", &image(name)]).await;
        serde_json::from_str::<Value>(&inspected).expect("JSON")[0].take()
    }

    /// Builds the image to compile in, and with it all others. It reaches no registry: crates are those that this test was
    /// compiled of.
    pub(super) async fn build_images(&self) {
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
    pub(super) async fn run(&self, command: &mut Command) {
        let status = command.status().await.expect("it can be run");
        assert!(status.success(), "{:?}: {status}", command.as_std());
    }

    /// Every file of an image, by its path from the root.
    pub(super) async fn files(&self, name: &str) -> Vec<String> {
        let root = self.podman(&["image", "mount", &image(name)]).await;
        let mut files = Vec::new();
        walk(Path::new(root.trim()), Path::new("/"), &mut files);
        self.podman(&["image", "unmount", &image(name)]).await;
        files.sort();
        files
    }

    /// Writes a deployment by `causeway deploy compose` with these arguments, and starts it. `different`: what it has of its own, as
    /// `compose.override.yaml`.
    pub(super) async fn deploy(
        &self,
        tools: &Tools,
        name: &str,
        arguments: &[&str],
        different: &str,
    ) -> Deployment<'_> {
        let dir = tempfile::tempdir().expect("a folder");
        open(dir.path());
        let mut command = self.command(tools.program("causeway").to_str().expect("a path"));
        command.args(["deploy", "compose"]).args(arguments).args(["--tag", TAG, "--out"]).arg(dir.path());
        self.run(&mut command).await;
        std::fs::write(dir.path().join("compose.override.yaml"), different).expect("it is written");
        let project = format!("causeway-test-{name}-{}", std::process::id());
        let deployment = Deployment { engine: self, dir, project };
        deployment.compose(&["up", "-d"]).await;
        deployment
    }
}

impl Deployment<'_> {
    fn compose_command(&self, arguments: &[&str]) -> Command {
        let mut command = self.engine.command("podman-compose");
        for file in ["compose.yaml", "compose.override.yaml"] {
            command.arg("-f").arg(self.dir.path().join(file));
        }
        command.args(["-p", &self.project]).args(arguments);
        command
    }

    pub(super) async fn compose(&self, arguments: &[&str]) -> Output {
        let output = self.compose_command(arguments).output().await.expect("podman-compose can be run");
        assert!(output.status.success(), "podman-compose {arguments:?}: {}", text(&output));
        output
    }

    async fn container(&self, service: &str) -> String {
        let project = format!("label=io.podman.compose.project={}", self.project);
        let service_is = format!("label=com.docker.compose.service={service}");
        let id = self.engine.podman(&["ps", "--all", "--quiet", "--filter", &project, "--filter", &service_is]).await;
        let id = id.trim().to_owned();
        assert_eq!(id.lines().count(), 1, "containers of {service}: {id}");
        id
    }

    pub(super) async fn inspect(&self, service: &str) -> Value {
        let id = self.container(service).await;
        let inspected = self.engine.podman(&["container", "inspect", &id]).await;
        serde_json::from_str::<Value>(&inspected).expect("JSON")[0].take()
    }

    /// What the kernel says of its process: nobody, without a capability, and none to be gained; and nothing to write on.
    pub(super) async fn assert_confined(&self, service: &str) {
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
    pub(super) async fn assert_healthy(&self, service: &str) {
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
pub(super) fn pid(container: &Value) -> Option<u32> {
    let pid = container["State"]["Pid"].as_u64().filter(|&pid| pid > 0)?;
    u32::try_from(pid).ok()
}

pub(super) fn text(output: &Output) -> String {
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
pub(super) fn open(folder: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("they are set");
}
