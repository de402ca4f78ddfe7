use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use globset::{GlobBuilder, GlobMatcher};
use sha2::{Digest, Sha256};

/// What is taken for a picture, by the file's extension; the bytes are judged when they are read.
const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Where pictures are looked for.
pub(crate) enum Pictures {
    /// In a folder and those below it; where there is a pattern, those whose path within the folder matches it.
    Below { folder: PathBuf, pattern: Option<GlobMatcher> },
    /// One file.
    One { folder: PathBuf, file: PathBuf },
}

/// A file that is taken for a picture.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Picture {
    /// What it is called: its path within the folder, with `/`.
    pub(crate) item: String,
    pub(crate) path: PathBuf,
}

impl Pictures {
    /// Of a folder, a file or a glob. What exists is taken by its name, even if a wildcard is in it.
    pub(crate) fn of(input: &Path) -> anyhow::Result<Self> {
        let shown = input.display();
        if input.is_dir() {
            return Ok(Self::Below { folder: input.into(), pattern: None });
        }
        if input.is_file() {
            let folder = input.parent().unwrap_or(Path::new("")).into();
            return Ok(Self::One { folder, file: input.into() });
        }
        let Some((folder, pattern)) = split_glob(input) else {
            bail!("cannot capture from {shown}: there is no such folder; set `input` or pass `--input DIR`");
        };
        if !folder.is_dir() {
            bail!("cannot capture from {shown}: there is no folder {}", folder.display());
        }
        let pattern =
            pattern.to_str().with_context(|| format!("cannot capture from {shown}: the pattern is no UTF-8"))?;
        let glob = GlobBuilder::new(pattern)
            .literal_separator(true)
            .build()
            .with_context(|| format!("cannot capture from {shown}: the pattern is no glob"))?;
        Ok(Self::Below { folder, pattern: Some(glob.compile_matcher()) })
    }

    /// The pictures as they are now, in the order of their items, and how many other files were passed over.
    pub(crate) fn list(&self) -> anyhow::Result<(Vec<Picture>, usize)> {
        match self {
            Self::One { folder, file } => {
                let within = file.strip_prefix(folder).unwrap_or(file);
                Ok((vec![Picture { item: item_of(within), path: file.clone() }], 0))
            }
            Self::Below { folder, pattern } => {
                let mut walk = Walk { root: folder, pattern: pattern.as_ref(), found: Vec::new(), passed_over: 0 };
                walk.folder(folder, &mut Vec::new()).with_context(|| format!("cannot read {}", folder.display()))?;
                walk.found.sort_unstable();
                Ok((walk.found, walk.passed_over))
            }
        }
    }
}

/// The folder before the first wildcard, and the pattern from there on; `None` where there is no wildcard.
fn split_glob(input: &Path) -> Option<(PathBuf, PathBuf)> {
    let is_wild = |part: &Component<'_>| part.as_os_str().as_bytes().iter().any(|byte| b"*?[{".contains(byte));
    let parts: Vec<_> = input.components().collect();
    let first = parts.iter().position(is_wild)?;
    let folder: PathBuf = parts[..first].iter().collect();
    let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
    Some((folder, parts[first..].iter().collect()))
}

struct Walk<'a> {
    root: &'a Path,
    pattern: Option<&'a GlobMatcher>,
    found: Vec<Picture>,
    passed_over: usize,
}

impl Walk<'_> {
    /// Goes through `folder`; `above` are the real paths of the folders it is in. A link back to one of them is passed over.
    fn folder(&mut self, folder: &Path, above: &mut Vec<PathBuf>) -> std::io::Result<()> {
        let real = folder.canonicalize()?;
        if above.contains(&real) {
            return Ok(());
        }
        above.push(real);
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if is_hidden(&path) {
                continue;
            }
            if !path.is_dir() {
                self.file(path);
            } else if let Err(error) = self.folder(&path, above) {
                tracing::warn!(folder = %path.display(), %error, "folder passed over");
            }
        }
        above.pop();
        Ok(())
    }

    fn file(&mut self, path: PathBuf) {
        let within = path.strip_prefix(self.root).unwrap_or(&path);
        if self.pattern.is_some_and(|pattern| !pattern.is_match(within)) {
            return;
        }
        // What is there but no file, a pipe or a socket, could be waited on for ever. What is not there, a dangling link,
        // is taken: reading it says so.
        let is_other = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        if is_other || !is_picture(&path) {
            self.passed_over += 1;
            return;
        }
        self.found.push(Picture { item: item_of(within), path });
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."))
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    extension.is_some_and(|extension| EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

/// A path as text. Where it is no UTF-8 a hash of its bytes is added, which keeps apart what looks the same.
fn item_of(within: &Path) -> String {
    match within.to_string_lossy() {
        Cow::Borrowed(text) => text.into(),
        Cow::Owned(lossy) => {
            let hash = Sha256::digest(within.as_os_str().as_bytes());
            format!("{lossy}~{}", crate::hex(&hash[..8]))
        }
    }
}
