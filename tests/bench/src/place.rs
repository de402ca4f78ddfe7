//! Where things are: the programs beside this one, what `./dev` set up, and a folder for stores that lies on the disk.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use tempfile::TempDir;

/// Where things are.
pub(crate) struct Place {
    /// The folder of the programs.
    pub(crate) bin: PathBuf,
    /// This program.
    pub(crate) me: PathBuf,
    /// Models and manifests.
    pub(crate) models: PathBuf,
    /// The demo's photos.
    pub(crate) photos: PathBuf,
    /// The Python of the peers, where it is set up.
    pub(crate) python: Option<PathBuf>,
    /// The scripts of the peers.
    pub(crate) peers: PathBuf,
    /// For everything that a run writes: beside the build, since /tmp may be memory.
    pub(crate) scratch: TempDir,
}

impl Place {
    pub(crate) fn find() -> anyhow::Result<Self> {
        let me = std::env::current_exe()?;
        let bin = me.parent().context("cannot tell where this program is")?.to_owned();
        for program in ["causeway", "causeway-capture", "causeway-extract", "causeway-stand-in"] {
            if !bin.join(program).is_file() {
                bail!("cannot find {program} beside this program: run ./dev bench");
            }
        }
        let folder = |name: &str| -> anyhow::Result<PathBuf> {
            let path = std::env::var_os(name).with_context(|| format!("${name} is not set: run ./dev bench"))?;
            std::fs::canonicalize(&path).with_context(|| format!("cannot find {}", path.display()))
        };
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).context("no checkout")?;
        let python = checkout.join(".tools/bench/bin/python");
        let scratch = tempfile::Builder::new().prefix("bench-").tempdir_in(bin.parent().unwrap_or(&bin))?;
        Ok(Self {
            me,
            models: folder("CAUSEWAY_MODELS")?,
            photos: folder("CAUSEWAY_PHOTOS")?,
            python: python.is_file().then_some(python),
            peers: checkout.join("tests/bench/peers"),
            scratch,
            bin,
        })
    }

    /// An empty folder of its own, gone when it is dropped.
    pub(crate) fn fresh(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::tempdir_in(self.scratch.path())?)
    }
}
