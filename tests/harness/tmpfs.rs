use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system of its own in memory, small enough to be filled. Dropped, it is gone.
pub struct Tmpfs {
    at: PathBuf,
}

impl Tmpfs {
    /// Mounts one of so many MiB at a folder, which is made; `None`, where one may not mount.
    ///
    /// # Panics
    /// When the folder cannot be made.
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        std::fs::create_dir_all(at).expect("a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=0700"), "causeway-test"]).arg(at);
        mount.output().is_ok_and(|output| output.status.success()).then(|| Self { at: at.to_owned() })
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
        self.at.join("filler")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Also while somebody still looks at it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}
