use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{debian_program, eventually};

/// A file system at a folder of its own. Dropped, it is gone.
struct Mounted {
    at: PathBuf,
    program: &'static str,
    arguments: Vec<OsString>,
}

impl Mounted {
    /// Mounts one at a folder, which is made, by `program` with these arguments; `None`, where one may not.
    fn new(at: &Path, program: &'static str, arguments: Vec<OsString>) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let mounted = Self { at: at.to_owned(), program, arguments };
        mounted.mount().then_some(mounted)
    }

    fn mount(&self) -> bool {
        succeeds(Command::new(self.program).args(&self.arguments).arg(&self.at))
    }

    /// Mounts it anew, once nobody holds the old one.
    async fn again(&self) {
        eventually("nobody at it", async || succeeds(Command::new("umount").arg(&self.at)).then_some(())).await;
        assert!(self.mount(), "what is left can be mounted");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Also while somebody still looks at it.
        succeeds(Command::new("umount").arg("-l").arg(&self.at));
    }
}

pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// A file system of its own in memory, small enough to be filled. Dropped, it is gone.
pub struct Tmpfs(Mounted);

impl Tmpfs {
    /// Mounts one of so many MiB at a folder, which is made; `None`, where one may not mount.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        let options = format!("size={mib}m,mode=0700");
        Mounted::new(at, "mount", ["-t", "tmpfs", "-o", &options, "causeway-test"].map(Into::into).into()).map(Self)
    }

    /// Fills it to the last byte, until [`Tmpfs::empty`].
    pub fn fill(&self) {
        // As much as there is room for; what it cannot write it says, which is what is wanted.
        let _ =
            Command::new("dd").args(["if=/dev/zero", "bs=1M"]).arg(format!("of={}", self.filler().display())).output();
    }

    /// Takes away what filled it.
    ///
    /// # Panics
    /// When nothing does.
    pub fn empty(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }

    fn filler(&self) -> PathBuf {
        self.0.at.join("filler")
    }
}

/// A file system that writes slowly, over a folder that does not. Dropped, it is gone.
pub struct SlowDisk(#[expect(dead_code, reason = "it is held")] Mounted);

impl SlowDisk {
    /// Mounts one at a folder, which is made, that writes so many KB a second into the folder `over`; `None`, where one may not mount.
    ///
    /// # Panics
    /// When a folder cannot be made.
    pub fn mount(over: &Path, at: &Path, kb: u32) -> Option<Self> {
        debian_program("bindfs", "bindfs")?;
        std::fs::create_dir_all(over).expect("a folder");
        let arguments = vec![format!("--write-rate={kb}k").into(), over.into()];
        Mounted::new(at, "bindfs", arguments).map(Self)
    }
}

/// A file system on a disk of its own whose power can be cut. Dropped, it is gone.
pub struct Disk(Mounted);

mod ioctl {
    // EXT4_IOC_SHUTDOWN of the kernel's fs/ext4/ext4.h: the file system stops at once.
    nix::ioctl_read!(shutdown, b'X', 125, u32);
    /// What is not on disk does not get there: neither data nor journal (`EXT4_GOING_FLAGS_NOLOGFLUSH`).
    pub(super) const NO_LOG_FLUSH: u32 = 2;
}

impl Disk {
    /// Makes one of so many MiB in a file, mounted at a folder that is made; `None`, where one may not mount.
    ///
    /// # Panics
    /// When the file or the folder cannot be made.
    pub fn mount(image: &Path, at: &Path, mib: u64) -> Option<Self> {
        File::create(image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        let made = succeeds(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image));
        let arguments = vec!["-o".into(), "loop".into(), image.into()];
        made.then(|| Mounted::new(at, "mount", arguments)).flatten().map(Self)
    }

    /// Cuts the power: what the kernel has not written yet is gone, and whoever writes gets an error.
    ///
    /// # Panics
    /// When the kernel cannot.
    #[expect(unsafe_code, reason = "an ioctl that reads one number")]
    pub fn cut(&self) {
        let dir = File::open(&self.0.at).expect("it is mounted");
        let mut how = ioctl::NO_LOG_FLUSH;
        // SAFETY: the descriptor is open, and the number outlives the call.
        unsafe { ioctl::shutdown(dir.as_raw_fd(), &raw mut how) }.expect("the file system can be stopped");
    }

    /// The power is back: what is on disk is mounted, once nobody holds the old one.
    ///
    /// # Panics
    /// When it cannot be.
    pub async fn on(&self) {
        self.0.again().await;
    }
}
