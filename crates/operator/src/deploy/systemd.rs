//! systemd units: every stage of a site a service of its machine.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use causeway_bus::server::{MEMORY, MEMORY_LIMIT};
use causeway_pipelines::{CaptureOptions, Input, RELAY, StageSpec};
use causeway_stage::{EXIT_PIPELINE, EXIT_UNFIT};

use super::nats::Config;
use super::site::{APPLY, Broker, Deployed, KEYS, NATS_CONF, STOP_S, SiteArgs, WAIT_S, key_file};
use super::text_of;
use crate::input::has_password;
use crate::keys::{CA, IN_CONTAINERS, SERVER};
use crate::rights::AGENT;

/// How each file begins that this command wrote and may write over.
const MARK: &str = "# Written by `causeway deploy systemd`";

/// The broker.
const NATS: &str = IN_CONTAINERS;

const EXAMPLES: &str = "\
Examples:
  causeway keys faces.toml --out keys
  causeway deploy systemd faces.toml --site edge --out edge --input /srv/photos
  scp -r edge box:                                   the folder belongs to that machine
  sudo mkdir -p /etc/causeway/faces                  there: where the units look for it
  sudo cp -r edge/. /etc/causeway/faces/
  sudo cp edge/*.service edge/*.target /etc/systemd/system/
  sudo systemctl daemon-reload && sudo systemctl enable causeway-faces.target
  sudo systemctl restart causeway-faces.target       the same again after another `deploy`

Writes units, nats-server.conf, a copy of the pipeline file and the keys of who runs there into DIR, and over them when it
is run again; a file there that it did not write, it leaves alone and says so. Each service runs as a user of its own that systemd makes
for it, reads its own key alone (LoadCredential=), and writes nowhere but in its own folder of /var/lib. What is different with
you belongs into drop-ins: systemctl edit causeway-faces-extract.";

/// The arguments of `deploy systemd`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct SystemdArgs {
    #[command(flatten)]
    site: SiteArgs,
    /// The folder to write into; made if it is not there
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What its capture stage reads on that machine: a folder, glob or file; a camera's URL or device
    #[arg(long, value_name = "INPUT")]
    input: Option<String>,
    /// Where the folder is put on the machine [default: /etc/causeway/PIPELINE]
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// Where the programs are on the machine
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    bin: PathBuf,
    /// Where the models and their manifests are on the machine
    #[arg(long, value_name = "DIR", default_value = "/usr/local/share/causeway/models")]
    models: PathBuf,
}

pub(super) fn run(args: &SystemdArgs) -> anyhow::Result<ExitCode> {
    let mut deployed = args.site.deployed()?;
    let text = text_of(&deployed)?;
    deployed.pipeline.file = deployed.pipeline.file.file_name().map(PathBuf::from).unwrap_or_default();
    let name = deployed.pipeline.name.clone();
    let at = args.at.clone().unwrap_or_else(|| Path::new("/etc/causeway").join(&name));
    for (what, path) in [("--at", &at), ("--bin", &args.bin), ("--models", &args.models)] {
        check_plain(what, path)?;
    }
    let inputs = inputs(&deployed, args.input.as_deref(), &at)?;
    let units =
        Units { site: &deployed, set: &args.site.pipeline.set, inputs, at: &at, bin: &args.bin, models: &args.models };
    let target = units.target();
    let is_ours = args.out.join(&target).exists();
    let copies = deployed.copies(&args.out.join(KEYS), is_ours)?;
    super::write(&args.out, MARK, &units.files(&text)?)?;
    copies.write(None)?;
    let out = args.out.display();
    eprintln!("written to {out}; next{}, where the programs are in {}:", super::of_site(&deployed), args.bin.display());
    eprintln!("  sudo mkdir -p {0} && sudo cp -r {out}/. {0}/", at.display());
    eprintln!("  sudo cp {out}/*.service {out}/*.target /etc/systemd/system/");
    if let Some(file) = units.inputs.iter().find_map(|source| source.password_file.as_ref()) {
        eprintln!("  put the camera's password into {}", file.display());
    }
    if units.inputs.iter().any(|source| source.has_variables) {
        eprintln!("  put the variables of the input's address into {}", at.join("env").display());
    }
    eprintln!("  sudo systemctl daemon-reload && sudo systemctl enable {target} && sudo systemctl restart {target}");
    Ok(ExitCode::SUCCESS)
}

/// Whether a path can stand in a unit as it is.
fn check_plain(what: &str, path: &Path) -> anyhow::Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@".contains(c);
    let is_straight = path.components().all(|part| !matches!(part, Component::ParentDir));
    ensure!(
        path.is_absolute() && is_straight && path.to_str().is_some_and(|text| text.chars().all(is_plain)),
        "cannot write {} into units ({what}): name an absolute path without spaces, signs and `..`",
        path.display()
    );
    Ok(())
}

/// What a source reads on its machine.
struct Source {
    stage: String,
    /// What `input` is set to.
    input: String,
    device: Option<String>,
    /// Whether its address names variables.
    has_variables: bool,
    password_file: Option<PathBuf>,
}

/// What each source reads that runs at the site.
fn inputs(deployed: &Deployed, given: Option<&str>, at: &Path) -> anyhow::Result<Vec<Source>> {
    let sources: Vec<&StageSpec> = deployed.stages().filter(|stage| stage.uses == "capture").collect();
    ensure!(
        given.is_none() || sources.len() == 1,
        "cannot tell which source --input is for: there are {} of them at {}; use --set STAGE.input=DIR",
        sources.len(),
        deployed.pipeline.here
    );
    let of = |stage: &StageSpec| -> anyhow::Result<Source> {
        let options = stage.options::<CaptureOptions>().map_err(anyhow::Error::msg)?;
        let Some(input) = given.map(PathBuf::from).or(options.input) else {
            bail!("set `input` in its table or pass --input");
        };
        let (mut device, mut has_variables) = (None, false);
        match Input::of(&input)? {
            Input::Stdin => bail!("a service has no standard input: name a folder, a file, a camera or a URL"),
            Input::Device(path) => device = path.to_str().map(ToOwned::to_owned),
            Input::Url(url) => {
                ensure!(
                    !has_password(url),
                    "its address has a password: write ${{CAMERA_PASSWORD}} in its place, and set that variable in the file `env`"
                );
                has_variables = url.contains("${");
            }
            Input::Path(path) => ensure!(
                path.is_absolute(),
                "{} is relative: name where it is on that machine, from the root on",
                path.display()
            ),
        }
        // Relative to the pipeline file, whose copy is there.
        let password_file = options.password_file.as_deref().map(|file| at.join(file));
        if let Some(file) = &password_file {
            check_plain("its password_file", file)?;
        }
        let input = input.to_str().context("the path of its input is not UTF-8")?.to_owned();
        Ok(Source { stage: stage.name.clone(), input, device, has_variables, password_file })
    };
    let of = |stage: &StageSpec| of(stage).with_context(|| format!("cannot deploy [stage.{}]", stage.name));
    sources.into_iter().map(of).collect()
}

/// The units of a site.
struct Units<'a> {
    site: &'a Deployed,
    set: &'a [String],
    inputs: Vec<Source>,
    at: &'a Path,
    bin: &'a Path,
    models: &'a Path,
}

/// What one of them runs.
#[derive(Default)]
struct Service {
    name: String,
    about: String,
    program: String,
    arguments: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// Whose key it has.
    key: Option<String>,
    /// Lines of its own.
    more: Vec<String>,
}

impl Units<'_> {
    fn unit(&self, name: &str) -> String {
        format!("causeway-{}-{name}.service", self.site.pipeline.name)
    }

    fn target(&self) -> String {
        format!("causeway-{}.target", self.site.pipeline.name)
    }

    /// Each file's name and text; the same for the same pipeline and arguments.
    fn files(&self, text: &str) -> anyhow::Result<Vec<(String, String)>> {
        self.site.check_names()?;
        let mut services = Vec::new();
        services.extend(self.site.has_broker().then(|| self.broker()));
        services.extend([self.operator(APPLY), self.operator(AGENT)]);
        services.extend(self.site.has_relay().then(|| self.relay()));
        services.extend(self.site.stages().map(|stage| self.stage(stage)));
        let mut files: Vec<(String, String)> =
            services.iter().map(|service| (self.unit(&service.name), self.service(service))).collect();
        let units: Vec<String> = services.iter().map(|service| self.unit(&service.name)).collect();
        files.push((self.target(), self.all(&units)));
        if self.site.has_broker() {
            files.push((NATS_CONF.into(), self.configuration()?));
        }
        files.push(self.site.file_copy(MARK, text));
        Ok(files)
    }

    fn configuration(&self) -> anyhow::Result<String> {
        let pipeline = &self.site.pipeline;
        let listen = match self.site.broker {
            Broker::Beside { port, is_dialled: true } => ([0, 0, 0, 0], port).into(),
            Broker::Beside { port, .. } => ([127, 0, 0, 1], port).into(),
            Broker::Elsewhere(_) => bail!("its server is elsewhere"),
        };
        let config = Config {
            mark: MARK,
            name: &pipeline.here,
            listen,
            store: &Path::new("/var/lib").join(format!("causeway-{}-{NATS}", pipeline.name)),
            // What systemd loads for a service lies there (systemd.exec, LoadCredential=).
            certificates: &Path::new("/run/credentials").join(self.unit(NATS)),
            keys: self.site.keys.as_deref(),
            cluster: &[],
        };
        config.text(pipeline)
    }

    /// Where who runs here finds the broker.
    fn address(&self) -> String {
        match &self.site.broker {
            Broker::Elsewhere(address) => address.clone(),
            // Off loopback there is TLS, for everybody.
            Broker::Beside { port, is_dialled: true } => format!("tls://127.0.0.1:{port}"),
            Broker::Beside { port, .. } => format!("nats://127.0.0.1:{port}"),
        }
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let pipeline = &self.site.pipeline;
        let file = self.at.join(self.site.file_name()).display().to_string();
        let mut environment = vec![
            ("CAUSEWAY_PIPELINE", file),
            ("CAUSEWAY_NATS", self.address()),
            ("CAUSEWAY_MODELS", self.models.display().to_string()),
        ];
        if self.site.is_keyed() {
            environment.push(("CAUSEWAY_CREDENTIALS", LOADED.into()));
        }
        if pipeline.is_split() {
            environment.push(("CAUSEWAY_SITE", pipeline.here.clone()));
        }
        environment
    }

    fn broker(&self) -> Service {
        let state = format!("causeway-{}-{NATS}", self.site.pipeline.name);
        let mut more = vec![
            format!("StateDirectory={state}"),
            "StateDirectoryMode=0700".into(),
            // Other keys of others; another certificate is read at a start.
            "ExecReload=/bin/kill -HUP $MAINPID".into(),
            "Restart=always".into(),
            "LimitNOFILE=65536".into(),
        ];
        if self.site.is_keyed() {
            more.extend(SERVER.iter().map(|name| self.credential(name)));
        }
        Service {
            name: NATS.into(),
            about: format!("the broker of the site {}", self.site.pipeline.here),
            program: "nats-server".into(),
            arguments: vec!["--config".into(), self.at.join(NATS_CONF).display().to_string()],
            environment: vec![(MEMORY_LIMIT, MEMORY.into())],
            key: None,
            more,
        }
    }

    /// `apply`, which ends, and the agent, which does not.
    fn operator(&self, name: &str) -> Service {
        let mut arguments = vec![name.to_owned()];
        let (about, more) = if name == APPLY {
            arguments.extend(["--wait".into(), WAIT_S.to_string()]);
            let mut more = vec!["Type=oneshot".into(), "RemainAfterExit=yes".into()];
            more.extend(Self::lasting("on-failure"));
            ("makes the streams, durables and tables, then ends", more)
        } else {
            ("keeps the site: purges what has all its outcomes, sees to moves", Self::lasting("always"))
        };
        arguments.extend(self.sets());
        Service {
            name: name.into(),
            about: about.into(),
            program: "causeway".into(),
            arguments,
            environment: self.environment(),
            key: Some(AGENT.into()),
            more,
        }
    }

    fn relay(&self) -> Service {
        Service {
            name: RELAY.into(),
            about: format!("carries to {} and back", self.site.pipeline.hub().name),
            program: format!("causeway-{RELAY}"),
            arguments: self.sets(),
            environment: self.environment(),
            key: Some(RELAY.into()),
            more: Self::lasting("always"),
        }
    }

    fn stage(&self, stage: &StageSpec) -> Service {
        let source = self.inputs.iter().find(|source| source.stage == stage.name);
        // One that has read all there is ends well, and is not to read it again; one that was moved away ends well too, and waits here.
        let mut more = Self::lasting(if stage.is_source() { "on-failure" } else { "always" });
        let mut arguments = self.sets();
        if let Some(source) = source {
            arguments.extend(["--set".into(), format!("{}.input={}", source.stage, source.input)]);
            if let Some(file) = &source.password_file {
                more.push(format!("LoadCredential=password:{}", file.display()));
                arguments.extend(["--set".into(), format!("{}.password_file=%d/password", source.stage)]);
            }
            if let Some(device) = &source.device {
                more.extend(
                    ["PrivateDevices=no", "DevicePolicy=closed", "SupplementaryGroups=video"].map(ToOwned::to_owned),
                );
                more.push(format!("DeviceAllow={device} rw"));
            }
            if source.has_variables {
                more.push(format!("EnvironmentFile={}", self.at.join("env").display()));
            }
            more.push("ProtectHome=read-only".into());
        }
        let mut environment = self.environment();
        environment.push(("CAUSEWAY_STAGE", stage.name.clone()));
        let parked = if stage.runs_at(&self.site.pipeline.here) {
            ""
        } else {
            "; it may be moved here, and is parked until then"
        };
        Service {
            name: stage.name.clone(),
            about: format!("{}{parked}", stage.uses),
            program: format!("causeway-{}", stage.uses),
            arguments,
            environment,
            key: Some(stage.name.clone()),
            more,
        }
    }

    fn sets(&self) -> Vec<String> {
        self.set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]).collect()
    }

    /// Of those that stay: `restart` when. What no restart mends is not tried again and again.
    fn lasting(restart: &str) -> Vec<String> {
        vec![format!("Restart={restart}"), format!("RestartPreventExitStatus={EXIT_PIPELINE} {EXIT_UNFIT}")]
    }

    fn credential(&self, file: &str) -> String {
        format!("LoadCredential={file}:{}", self.at.join(KEYS).join(file).display())
    }

    fn service(&self, service: &Service) -> String {
        let pipeline = &self.site.pipeline.name;
        let mut text = format!("{MARK}; the next one writes it anew.\n[Unit]\n");
        let line = |text: &mut String, line: &str| {
            let _ = writeln!(text, "{line}");
        };
        line(&mut text, &format!("Description=Causeway {pipeline}: {}", service.about));
        line(&mut text, &format!("PartOf={}", self.target()));
        if service.name == NATS {
            line(&mut text, "After=network-online.target\nWants=network-online.target");
        } else if self.site.has_broker() {
            // Wanted, not needed: while it is away they wait for it.
            line(&mut text, &format!("After={0}\nWants={0}", self.unit(NATS)));
        }
        line(&mut text, "StartLimitIntervalSec=0\n\n[Service]");
        let program = self.bin.join(&service.program);
        let words: Vec<String> = service.arguments.iter().map(|word| quote(word)).collect();
        let command = [program.display().to_string()].into_iter().chain(words).collect::<Vec<_>>().join(" ");
        line(&mut text, &format!("ExecStart={command}"));
        for (name, value) in &service.environment {
            line(&mut text, &format!("Environment={}", assigned(name, value)));
        }
        if let Some(key) = service.key.as_ref().filter(|_| self.site.is_keyed()) {
            line(&mut text, &self.credential(&key_file(key)));
            line(&mut text, &self.credential(CA));
        }
        let is_said = |key: &str| service.more.iter().any(|line| line.starts_with(key));
        for one in HARDENED.iter().filter(|one| !is_said(&one[..=one.find('=').unwrap_or_default()])) {
            line(&mut text, one);
        }
        line(&mut text, &format!("RestartSec=1\nTimeoutStopSec={STOP_S}"));
        for one in &service.more {
            line(&mut text, one);
        }
        let _ = write!(text, "\n[Install]\nWantedBy={}\n", self.target());
        text
    }

    fn all(&self, units: &[String]) -> String {
        let pipeline = &self.site.pipeline;
        format!(
            "{MARK}; the next one writes it anew.\n\
             #   systemctl status 'causeway-{name}-*'             what runs\n\
             #   journalctl -f -u 'causeway-{name}-*'             what they say\n\
             #   systemctl edit causeway-{name}-STAGE             what is different with you\n\
             [Unit]\nDescription=Causeway {name}: the site {here}\nWants={units}\n\n[Install]\nWantedBy=multi-user.target\n",
            name = pipeline.name,
            here = pipeline.here,
            units = units.join(" ")
        )
    }
}

/// A user of its own, nothing to write on but its own folder, no right held or gained.
const HARDENED: [&str; 17] = [
    "DynamicUser=yes",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
];

/// A variable of `Environment=`: specifiers are put in place of `%`, but for ours, where what is loaded for a service lies.
fn assigned(name: &str, value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
    let escaped = if value == LOADED { escaped } else { escaped.replace('%', "%%") };
    format!("\"{name}={escaped}\"")
}

/// Where what is loaded for a service lies.
const LOADED: &str = "%d";

/// A word of `ExecStart`: systemd would put variables in place of `$`, and specifiers in place of `%`.
fn quote(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('$', "$$");
    // Of ours, where what is loaded for it lies.
    let escaped = escaped.replace('%', "%%").replace("=%%d/", "=%d/");
    if word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@=:%".contains(c)) {
        escaped
    } else {
        format!("\"{escaped}\"")
    }
}

#[cfg(test)]
mod tests;
