//! The text of a compose file and of what lies beside it.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use causeway_bus::is_local;
use causeway_bus::server::{MEMORY, MEMORY_LIMIT};
use causeway_pipelines::{Input as Named, Pipeline, RELAY, StageSpec};

use super::nats::Config;
use super::site::{APPLY, Broker, Deployed, KEYS, NATS_CONF, PORT, STOP_S, WAIT_S, key_file};
use crate::input::has_password;
use crate::keys::{CA, IN_CONTAINERS, SERVER};
use crate::rights::AGENT;
use crate::session::absolute;

/// How each file begins that this command wrote and may write over.
pub(super) const MARK: &str = "# Written by `causeway deploy compose`";

/// Whom the programs run as: the user of the images. It needs no entry anywhere.
pub(super) const USER: (u32, u32) = (65532, 65532);
/// Where probes and metrics answer within a stage's container.
const HEALTH_PORT: u16 = 9464;
/// Where the pipeline file is in the containers, and the key of whoever runs there.
const PIPELINE_DIR: &str = "/etc/causeway";
const KEYS_DIR: &str = "/etc/causeway/keys";
/// Where the broker's configuration is in its container, and what certifies it.
const BROKER_DIR: &str = "/etc/nats";

/// How a pipeline is deployed.
pub(super) struct Compose<'a> {
    pub(super) site: &'a Deployed,
    /// `--set`s, for everyone who reads the pipeline file.
    pub(super) set: &'a [String],
    /// What each source reads.
    pub(super) inputs: &'a [(String, Input)],
    /// What names of images begin with.
    pub(super) images: &'a str,
    pub(super) tag: &'a str,
    pub(super) nats_image: Option<&'a str>,
    /// A folder on the machine, in place of the images' models.
    pub(super) models: Option<PathBuf>,
    /// Stages of which more than one container runs.
    pub(super) replicas: Vec<(String, u16)>,
    /// The broker's port on the machine's loopback.
    pub(super) publish: Option<u16>,
}

/// What a source reads, as its container sees it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Input {
    /// What is mounted for it: each path on the machine, and what that is called in the container.
    mounts: Vec<(String, String)>,
    /// A camera of the machine.
    device: Option<String>,
    /// Variables that its address names; whoever starts the container has them.
    variables: Vec<String>,
    /// Keys of the stage's table that are others in the container, `input` among them.
    keys: Vec<(&'static str, String)>,
}

/// The group that may read cameras: of that number on Debian and what is made of it.
const VIDEO_GROUP: u32 = 44;

impl Input {
    /// What a source is given: `written` as in a pipeline file, a relative path within `base`.
    pub(super) fn of(written: &Path, base: &Path, password_file: Option<&Path>) -> anyhow::Result<Self> {
        let mut input = match Named::of(written)? {
            Named::Stdin => {
                bail!("cannot read standard input in a container: name a folder, a file, a camera or a URL")
            }
            Named::Device(device) => {
                let device = utf8(device)?;
                Self { keys: vec![("input", device.clone())], device: Some(device), ..Self::default() }
            }
            Named::Url(url) => Self::of_url(url)?,
            Named::Path(path) => Self::of_path(&absolute(&base.join(path))?)?,
        };
        if let Some(file) = password_file {
            let within = format!("{PIPELINE_DIR}/{}", file.file_name().unwrap_or_default().to_string_lossy());
            input.mounts.push((utf8(&absolute(&base.join(file))?)?, within.clone()));
            input.keys.push(("password_file", within));
        }
        Ok(input)
    }

    fn of_url(url: &str) -> anyhow::Result<Self> {
        if has_password(url) {
            bail!(
                "cannot write the password of the input into compose.yaml: write ${{CAMERA_PASSWORD}} in its place, and set \
                 that variable where compose is started, or in the file .env beside compose.yaml"
            );
        }
        let variables = url.split("${").skip(1).filter_map(|rest| Some(rest.split_once('}')?.0.to_owned())).collect();
        Ok(Self { keys: vec![("input", url.into())], variables, ..Self::default() })
    }

    /// A folder, a file or a glob, by its absolute path. A glob's folder is mounted as far as no wildcard is in it.
    fn of_path(path: &Path) -> anyhow::Result<Self> {
        let shown = utf8(path)?;
        let mounted = |from: String, to: String, within: String| Self {
            mounts: vec![(from, to)],
            keys: vec![("input", within)],
            ..Self::default()
        };
        if path.is_file() {
            let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
            let to = format!("/input/{name}");
            return Ok(mounted(shown, to.clone(), to));
        }
        let is_wild = |part: &OsStr| !path.is_dir() && part.to_string_lossy().contains(['*', '?', '[', '{']);
        let parts: Vec<&OsStr> = path.iter().collect();
        let fixed = parts.iter().position(|part| is_wild(part)).unwrap_or(parts.len());
        let from: PathBuf = parts[..fixed].iter().collect();
        let within: PathBuf = Path::new("/input").join(parts[fixed..].iter().collect::<PathBuf>());
        let text = |path: PathBuf| path.to_str().unwrap_or_default().trim_end_matches('/').to_owned();
        Ok(mounted(text(from), "/input".into(), text(within)))
    }
}

fn utf8(path: &Path) -> anyhow::Result<String> {
    Ok(path.to_str().with_context(|| format!("cannot use {}: its path is not UTF-8", path.display()))?.to_owned())
}

impl Compose<'_> {
    /// Each file's name and text; the same for the same pipeline and arguments.
    pub(super) fn files(&self, text: &str) -> anyhow::Result<Vec<(String, String)>> {
        let pipeline = &self.site.pipeline;
        self.site.check_names()?;
        if let Broker::Elsewhere(address) = &self.site.broker
            && address.split(',').any(is_local)
        {
            bail!("cannot deploy {}: its containers do not reach {address}, which is of the machine", pipeline.here);
        }
        let mut files = vec![("compose.yaml".into(), self.compose(pipeline, &self.site.file_name()))];
        if self.site.has_broker() {
            let config = Config {
                mark: MARK,
                name: &pipeline.here,
                // Every address of its container.
                listen: ([0, 0, 0, 0], PORT).into(),
                store: Path::new("/data"),
                certificates: Path::new(BROKER_DIR),
                keys: self.site.keys.as_deref(),
                cluster: &[],
            };
            files.push((NATS_CONF.into(), config.text(pipeline)?));
        }
        files.push(self.site.file_copy(MARK, text));
        Ok(files)
    }

    fn compose(&self, pipeline: &Pipeline, file: &str) -> String {
        let project = if pipeline.is_split() {
            format!("{}-{}", pipeline.name, pipeline.here).to_lowercase()
        } else {
            pipeline.name.to_lowercase()
        };
        let mut text = header(&project, &pipeline.file);
        let yaml = &mut text;
        line(yaml, 0, format_args!("name: {}", quote(&project)));
        yaml.push_str(&self.alike(file));
        line(yaml, 0, "services:");
        if self.site.has_broker() {
            self.broker(yaml, &pipeline.here);
        }
        self.apply(yaml, file);
        self.agent(yaml, file);
        if self.site.has_relay() {
            self.relay(yaml, file);
        }
        for stage in self.site.stages() {
            self.stage(yaml, stage, file);
        }
        if self.site.has_broker() {
            yaml.push_str(
                "\nvolumes:\n  # What the broker stores: messages on their way, results, who is enrolled.\n  store:\n",
            );
        }
        text
    }

    fn broker(&self, yaml: &mut String, site: &str) {
        comment(yaml, &format!("The broker of the site {site}."));
        line(yaml, 1, format_args!("{IN_CONTAINERS}:"));
        line(yaml, 2, "<<: *hardened");
        Self::image(yaml, self.nats_image.unwrap_or(&self.ours("nats-server")));
        if self.nats_image.is_some() {
            line(yaml, 2, "# Whom that image runs as: its store belongs to it.");
            line(yaml, 2, "user: \"\"");
            if self.site.is_keyed() {
                line(yaml, 2, format_args!("group_add: [\"{}\"]", USER.1));
            }
        }
        line(yaml, 2, format_args!("command: [\"--config\", {}]", quote(&format!("{BROKER_DIR}/{NATS_CONF}"))));
        line(yaml, 2, "restart: unless-stopped");
        line(yaml, 2, format_args!("environment: {{ {MEMORY_LIMIT}: {MEMORY} }}"));
        line(yaml, 2, "volumes:");
        mount(yaml, &format!("./{NATS_CONF}"), &format!("{BROKER_DIR}/{NATS_CONF}"));
        if self.site.is_keyed() {
            for name in SERVER {
                mount(yaml, &format!("./{KEYS}/{name}"), &format!("{BROKER_DIR}/{name}"));
            }
        }
        line(yaml, 3, "- \"store:/data\"");
        let mut ports = Vec::new();
        let open = match self.site.broker {
            Broker::Beside { port, is_dialled: true } => Some(port),
            _ => None,
        };
        ports.extend(open.map(|port| format!("{port}:{PORT}")));
        // Where it is open at that port, it is so on this machine too.
        let publish = self.publish.filter(|port| Some(*port) != open);
        ports.extend(publish.map(|port| format!("127.0.0.1:{port}:{PORT}")));
        if !ports.is_empty() {
            let ports: Vec<String> = ports.iter().map(|port| quote(port)).collect();
            line(yaml, 2, format_args!("ports: [{}]", ports.join(", ")));
        }
    }

    /// Carries to the hub, and from there.
    fn relay(&self, yaml: &mut String, file: &str) {
        comment(
            yaml,
            &format!("Carries to {} what is for there, and back. It alone reaches out.", self.site.pipeline.hub().name),
        );
        line(yaml, 1, format_args!("{RELAY}:"));
        line(yaml, 2, "<<: [*hardened, *lasting, *stage]");
        Self::image(yaml, &self.ours(RELAY));
        line(yaml, 2, format_args!("environment: {{ <<: *environment, CAUSEWAY_STAGE: {} }}", quote(RELAY)));
        if !self.set.is_empty() {
            line(yaml, 2, format_args!("command: [{}]", arguments(self.set)));
        }
        line(yaml, 2, "volumes:");
        mount_pipeline(yaml, file);
        self.mount_key(yaml, RELAY);
    }

    /// The key of one, and of nobody else.
    fn mount_key(&self, yaml: &mut String, name: &str) {
        if self.site.is_keyed() {
            for file in [key_file(name).as_str(), CA] {
                mount(yaml, &format!("./{KEYS}/{file}"), &format!("{KEYS_DIR}/{file}"));
            }
        }
    }

    fn apply(&self, yaml: &mut String, file: &str) {
        comment(yaml, "Makes the streams, durables and tables of the pipeline, then ends.");
        line(yaml, 1, "apply:");
        line(yaml, 2, "<<: *hardened");
        Self::image(yaml, &self.ours("causeway"));
        self.operator(yaml, APPLY, &["--wait", &WAIT_S.to_string()], file);
        line(yaml, 2, "volumes:");
        mount_pipeline(yaml, file);
        self.mount_key(yaml, AGENT);
    }

    fn agent(&self, yaml: &mut String, file: &str) {
        comment(
            yaml,
            "Keeps the site: purges what has all its outcomes. Other commands of `causeway` are run in its place.",
        );
        line(yaml, 1, "agent:");
        line(yaml, 2, "<<: [*hardened, *lasting]");
        Self::image(yaml, &self.ours("causeway"));
        self.operator(yaml, "agent", &[], file);
        line(yaml, 2, "volumes:");
        mount_pipeline(yaml, file);
        self.mount_key(yaml, AGENT);
        self.mount_models(yaml);
    }

    fn stage(&self, yaml: &mut String, stage: &StageSpec, file: &str) {
        let input = self.inputs.iter().find(|(name, _)| *name == stage.name).map(|(_, input)| input);
        let replicas = self.replicas.iter().rev().find(|(name, _)| *name == stage.name).map(|(_, count)| *count);
        yaml.push('\n');
        if !stage.runs_at(&self.site.pipeline.here) {
            line(yaml, 1, "# It may be moved here; until then it is parked, with nothing loaded.");
        }
        line(yaml, 1, format_args!("{}:", stage.name));
        line(yaml, 2, "<<: [*hardened, *lasting, *stage]");
        Self::image(yaml, &self.ours(&stage.uses));
        let variables = input.map(|input| &input.variables[..]).unwrap_or_default();
        let variables: String = variables.iter().map(|name| variable(name)).collect();
        let own = format_args!("CAUSEWAY_STAGE: {}{variables}", quote(&stage.name));
        line(yaml, 2, format_args!("environment: {{ <<: *environment, {own} }}"));
        let mut set = self.set.to_vec();
        let keys = input.map(|input| &input.keys[..]).unwrap_or_default();
        set.extend(keys.iter().map(|(key, value)| format!("{}.{key}={value}", stage.name)));
        if !set.is_empty() {
            line(yaml, 2, format_args!("command: [{}]", arguments(&set)));
        }
        if input.is_some_and(|input| !input.mounts.is_empty()) {
            // Pictures may be readable by their owner alone.
            line(yaml, 2, format_args!("user: \"${{CAUSEWAY_USER:-{}:{}}}\"", USER.0, USER.1));
        }
        let mut groups = Vec::new();
        if self.site.is_keyed() && input.is_some_and(|input| !input.mounts.is_empty()) {
            // Whose key it is, whoever it is.
            groups.push(format!("\"{}\"", USER.1));
        }
        if let Some(device) = input.and_then(|input| input.device.as_ref()) {
            line(yaml, 2, format_args!("devices: [{}]", quote(&format!("{device}:{device}"))));
            groups.push(format!("\"${{CAUSEWAY_VIDEO_GROUP:-{VIDEO_GROUP}}}\""));
        }
        if !groups.is_empty() {
            line(yaml, 2, format_args!("group_add: [{}]", groups.join(", ")));
        }
        if stage.is_source() {
            // One that has read all there is ends well, and is not to read it again.
            line(yaml, 2, "restart: on-failure");
        }
        if let Some(replicas) = replicas {
            line(yaml, 2, format_args!("deploy: {{ replicas: {replicas} }}"));
        }
        line(yaml, 2, "volumes:");
        mount_pipeline(yaml, file);
        self.mount_key(yaml, &stage.name);
        for (from, to) in input.iter().flat_map(|input| &input.mounts) {
            mount(yaml, from, to);
        }
        if stage.model().is_some() {
            self.mount_models(yaml);
        }
    }

    /// What services have alike.
    fn alike(&self, file: &str) -> String {
        let file = quote(&format!("{PIPELINE_DIR}/{file}"));
        let address = match &self.site.broker {
            Broker::Elsewhere(address) => address.as_str(),
            Broker::Beside { .. } => {
                let scheme = if self.site.is_keyed() { "tls" } else { "nats" };
                &format!("{scheme}://{IN_CONTAINERS}:{PORT}")
            }
        };
        let mut environment = vec![("CAUSEWAY_PIPELINE", file), ("CAUSEWAY_NATS", quote(address))];
        if self.site.is_keyed() {
            environment.push(("CAUSEWAY_CREDENTIALS", quote(KEYS_DIR)));
        }
        if self.site.pipeline.is_split() {
            environment.push(("CAUSEWAY_SITE", quote(&self.site.pipeline.here)));
        }
        environment.push(("CAUSEWAY_HEALTH", quote(&format!("0.0.0.0:{HEALTH_PORT}"))));
        let environment: Vec<String> = environment.iter().map(|(name, value)| format!("  {name}: {value}")).collect();
        let environment = environment.join("\n");
        format!(
            "
# Every container: nothing can be written but /tmp, and no right is held or gained.
x-hardened: &hardened
  user: {user}
  read_only: true
  tmpfs: [/tmp]
  cap_drop: [ALL]
  security_opt: [\"no-new-privileges:true\"]
  stop_grace_period: {STOP_S}s

# Those that stay. They depend on none: until the broker answers and has the streams they end, and are started again. (Podman
# starts nothing again that depends on a container that has ended, as apply does.)
x-lasting: &lasting
  restart: unless-stopped

# Stages: each is asked by its own program whether it is ready. Its metrics are on port {HEALTH_PORT}, within this network.
x-stage: &stage
  healthcheck: {{ test: [CMD, /usr/bin/stage, health], interval: 10s, timeout: 3s, start_period: 60s, retries: 3 }}

x-environment: &environment
{environment}

",
            user = quote(&format!("{}:{}", USER.0, USER.1)),
        )
    }

    fn ours(&self, name: &str) -> String {
        format!("{}/{name}:{}", self.images, self.tag)
    }

    fn image(yaml: &mut String, image: &str) {
        line(yaml, 2, format_args!("image: {}", quote(image)));
        // No registry has it: a missing one is to be told, not looked for.
        if image.starts_with("localhost/") {
            line(yaml, 2, "pull_policy: never");
        }
    }

    fn operator(&self, yaml: &mut String, command: &str, more: &[&str], file: &str) {
        let file = quote(&format!("{PIPELINE_DIR}/{file}"));
        let mut words = vec![quote(command), file];
        words.extend(more.iter().map(|word| quote(word)));
        if !self.set.is_empty() {
            words.push(arguments(self.set));
        }
        line(yaml, 2, format_args!("command: [{}]", words.join(", ")));
        line(yaml, 2, "environment: *environment");
    }

    fn mount_models(&self, yaml: &mut String) {
        if let Some(models) = &self.models {
            mount(yaml, &models.to_string_lossy(), "/models");
        }
    }
}

fn header(project: &str, file: &Path) -> String {
    format!(
        "{MARK} from {file}; the next one writes it anew. What is
# different with you (limits, networks, more mounts) belongs into compose.override.yaml beside it, which compose adds to this.
#
#   docker compose up -d                              start it; podman-compose does the same
#   docker compose logs -f classify                   what a stage says
#   docker compose run --rm agent status              what runs, what waits, what is stored
#   docker compose run --rm agent tap classify        what is decided, as it is decided
#   docker compose run --rm -v \"$PWD/people:/people:ro\" agent enrol 'Ada Lovelace=/people/ada'
#   docker compose down                               stop it; the volume {project}_store keeps what is stored
#
# Pictures that only you can read: CAUSEWAY_USER=$(id -u):$(id -g) docker compose up -d
# Each container restarts when it dies, and is given {STOP_S} s to drain when it is stopped.

",
        file = file.display(),
    )
}

fn comment(yaml: &mut String, text: &str) {
    let _ = writeln!(yaml, "\n  # {text}");
}

fn line(yaml: &mut String, depth: usize, text: impl std::fmt::Display) {
    let _ = writeln!(yaml, "{:1$}{text}", "", depth * 2);
}

fn mount_pipeline(yaml: &mut String, file: &str) {
    mount(yaml, &format!("./{file}"), &format!("{PIPELINE_DIR}/{file}"));
}

/// Read-only; what is not there is an error, not an empty folder.
fn mount(yaml: &mut String, from: &str, to: &str) {
    let (from, to) = (quote(from), quote(to));
    line(
        yaml,
        3,
        format_args!(
            "- {{ type: bind, source: {from}, target: {to}, read_only: true, bind: {{ create_host_path: false }} }}"
        ),
    );
}

/// A variable that whoever starts the container must have; compose puts its value in place.
fn variable(name: &str) -> String {
    format!(", {name}: \"${{{name}:?set it where compose is started, or in .env beside this file}}\"")
}

fn arguments(set: &[String]) -> String {
    let words = set.iter().flat_map(|set| [quote("--set"), quote(set)]);
    words.collect::<Vec<_>>().join(", ")
}

/// A text of YAML in double quotes, which are JSON's; compose would put a variable in place of `$`.
fn quote(text: &str) -> String {
    serde_json::Value::from(text.replace('$', "$$")).to_string()
}

#[cfg(test)]
mod tests;
