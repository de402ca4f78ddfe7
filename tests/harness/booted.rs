use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use tokio::process::{Child, Command};

use crate::{End, Link, Tools, within, workspace};

/// Where programs, models and pictures are on a machine that was booted.
pub const BIN: &str = "/opt/causeway/bin";
/// The models.
pub const MODELS: &str = "/opt/causeway/models";
/// The pictures.
pub const PHOTOS: &str = "/srv/photos";

/// How long systemd may take until it answers.
const BOOT: std::time::Duration = std::time::Duration::from_secs(30);

/// Boots this machine's own systemd: in namespaces of its own, over a copy of the root that is forgotten afterwards, with the units of a folder.
const SCRIPT: &str = r#"
set -e
mount -t tmpfs tmpfs "$ROOT"
mkdir "$ROOT/up" "$ROOT/work" "$ROOT/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$ROOT/up,workdir=$ROOT/work" "$ROOT/root"
cd "$ROOT/root"
mount -t proc proc proc
# The kernel is that of the machine around: its settings are not for this one to change.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs tmpfs run
mount --rbind /dev dev
mount -t sysfs -o ro sysfs sys
if [ "$CGROUPS" = v2 ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mount -t tmpfs tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi
mkdir -p opt/causeway/bin opt/causeway/build opt/causeway/models srv/photos "etc/causeway/$NAME"
mount --bind "$BUILD" opt/causeway/build
for program in opt/causeway/build/causeway opt/causeway/build/causeway-*; do
  ln -s "/$program" "opt/causeway/bin/$(basename "$program")"
done
cp "$NATS" opt/causeway/bin/nats-server
mount --bind "$MODELS_AT" opt/causeway/models
mount --bind "$PHOTOS_AT" srv/photos
cp -L "$ENGINE" usr/local/lib/libonnxruntime.so
chroot . /sbin/ldconfig
cp -r "$UNITS/." "etc/causeway/$NAME/"
cp "$UNITS"/*.service "$UNITS"/*.target etc/systemd/system/
# What systemd mounts for one service (its credentials) shows up in the others' way only so.
mount --make-rshared "$ROOT/root"
exec env -i container=test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  chroot . /lib/systemd/systemd --system "--unit=causeway-$NAME.target" --show-status=0
"#;

/// A machine of its own as far as systemd can tell, at an end of a link. Dropped, it is off, and what was written there is gone.
pub struct Booted {
    child: Child,
    /// systemd, as this machine numbers it.
    pid: u32,
    name: String,
    _cgroup: Cgroup,
    _root: tempfile::TempDir,
}

/// Removed when it is dropped, once its processes are gone.
struct Cgroup(PathBuf);

impl Booted {
    /// Boots the units of the folder `units`, of the pipeline `name`, with these pictures.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn boot(tools: &Tools, link: &Link, end: End, name: &str, units: &Path, photos: &Path) -> Self {
        let root = tempfile::tempdir().expect("a folder");
        let is_v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let hierarchy = Path::new("/sys/fs/cgroup").join(if is_v2 { "" } else { "systemd" });
        let cgroup = hierarchy.join(format!("causeway-test-{}-{end:?}", std::process::id()));
        std::fs::create_dir_all(&cgroup).expect("a cgroup can be made");
        let cgroup = Cgroup(cgroup);
        let variable = |wanted: &str| {
            tools.env.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone()).expect("it is brought")
        };
        // In its own cgroup before it takes that for the root of all.
        let joins = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", cgroup.0.display());
        let at_end = link.command(end, "unshare");
        let mut command = Command::new("sh");
        command.args(["-c", &joins, "sh"]).arg(at_end.get_program()).args(at_end.get_args());
        command.args(["--fork", "--kill-child", "--pid", "--mount", "--uts", "--ipc"]);
        command.args(["--cgroup", "sh", "-c", SCRIPT]);
        command.env("ROOT", root.path()).env("NAME", name).env("UNITS", units).env("PHOTOS_AT", photos);
        command.env("BUILD", tools.program("causeway").parent().expect("a folder")).env("NATS", tools.nats_server());
        command.env("MODELS_AT", variable("CAUSEWAY_MODELS")).env("ENGINE", variable("CAUSEWAY_ONNXRUNTIME"));
        command.env("CGROUPS", if is_v2 { "v2" } else { "v1" }).current_dir(workspace());
        command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("it can be run");
        let unshare = child.id().expect("it runs");
        let pid = within(BOOT, "systemd", async || {
            if let Ok(Some(ended)) = child.try_wait() {
                panic!("cannot boot: {ended}");
            }
            let children = std::fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children")).ok()?;
            let pid: u32 = children.split_whitespace().next()?.parse().ok()?;
            let program = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (program.trim() == "systemd").then_some(pid)
        })
        .await;
        let booted = Self { child, pid, name: name.into(), _cgroup: cgroup, _root: root };
        let target = booted.target();
        let is_up =
            async || booted.run(&["systemctl", "is-active", "--quiet", &target]).await.status.success().then_some(());
        within(BOOT, "the target", is_up).await;
        booted
    }

    fn target(&self) -> String {
        format!("causeway-{}.target", self.name)
    }

    /// The unit of a service.
    pub fn unit(&self, service: &str) -> String {
        format!("causeway-{}-{service}.service", self.name)
    }

    /// Runs a program there, as root.
    ///
    /// # Panics
    /// When it cannot be run.
    pub async fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        // From outside nobody stops what hangs in there.
        command.args([
            "-t",
            &self.pid.to_string(),
            "-m",
            "-n",
            "-p",
            "-u",
            "-i",
            "-C",
            "-r",
            "-w",
            "timeout",
            "-s",
            "KILL",
            "90",
        ]);
        command.args(words).stdin(Stdio::null()).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").kill_on_drop(true);
        command.output().await.expect("nsenter can be run")
    }

    /// A property of a service, as systemd shows it.
    ///
    /// # Panics
    /// When systemd does not answer.
    pub async fn show(&self, service: &str, property: &str) -> String {
        let shown = self.run(&["systemctl", "show", "--value", "-p", property, &self.unit(service)]).await;
        assert!(shown.status.success(), "{shown:?}");
        String::from_utf8_lossy(&shown.stdout).trim().to_owned()
    }

    /// What the services said last.
    pub async fn said(&self) -> String {
        let all = format!("causeway-{}-*", self.name);
        let said = self.run(&["journalctl", "--no-pager", "-n", "80", "-u", &all]).await;
        String::from_utf8_lossy(&said.stdout).into_owned()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Its process 1 takes all others with it.
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(i32::try_from(self.pid).expect("a pid")),
            nix::sys::signal::Signal::SIGKILL,
        );
        let _ = self.child.start_kill();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..100 {
            if remove(&self.0) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("left behind: {}", self.0.display());
    }
}

/// Removes a cgroup with those in it; `false` while processes are there.
fn remove(cgroup: &Path) -> bool {
    let inner = std::fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in inner.filter(|entry| entry.file_type().is_ok_and(|sort| sort.is_dir())) {
        remove(&entry.path());
    }
    std::fs::remove_dir(cgroup).is_ok() || !cgroup.exists()
}
