//! Finds and loads ONNX Runtime, once for a process.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

/// Names the library: a whole path, as `./dev` sets it.
const VARIABLE: &str = "CAUSEWAY_ONNXRUNTIME";

/// Where a system keeps its libraries.
const SYSTEM_FOLDERS: [&str; 6] = [
    "/usr/local/lib",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
];

/// Where ONNX Runtime's wheel keeps its library, below a virtual environment's `lib/pythonX.Y/`.
const IN_WHEEL: &str = "site-packages/onnxruntime/capi";

/// Why ONNX Runtime is not there.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The variable names no file.
    #[error(
        "cannot find ONNX Runtime: {VARIABLE} names {0}, which is no file; set it to the library of ONNX Runtime 1.24 or newer"
    )]
    Named(PathBuf),
    /// Nowhere.
    #[error(
        "cannot find ONNX Runtime: there is no {} beside the program nor in the system's folders; run ./dev, or set {VARIABLE} \
         to the library of ONNX Runtime 1.24 or newer (the PyPI package onnxruntime holds one)",
        LIBRARY
    )]
    Nowhere,
    /// A file that cannot be loaded, or too old a version; `why` names both versions.
    #[error("cannot use {path} as ONNX Runtime: {why}; set {VARIABLE} to the library of ONNX Runtime 1.24 or newer")]
    Unusable {
        /// The library.
        path: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// The library was loaded but does not start.
    #[error("cannot start ONNX Runtime")]
    Start(#[source] ort::Error),
}

/// What the library's file is called, up to its version.
const LIBRARY: &str = if cfg!(target_os = "windows") {
    "onnxruntime.dll"
} else if cfg!(target_os = "macos") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// The loaded library. It is kept until the process ends: sessions hold no claim on it.
static LOADED: Mutex<Option<Environment>> = Mutex::new(None);

/// ONNX Runtime, loaded by the first who asks.
pub(crate) fn environment() -> Result<Environment, EngineError> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let path = find(env::var_os(VARIABLE).map(PathBuf::from), env::current_exe().ok().as_deref())?;
    let environment = load(&path)?;
    tracing::debug!(path = %path.display(), "ONNX Runtime loaded");
    *loaded = Some(environment.clone());
    Ok(environment)
}

fn load(path: &Path) -> Result<Environment, EngineError> {
    let builder =
        ort::init_from(path).map_err(|error| EngineError::Unusable { path: path.into(), why: error.to_string() })?;
    // Nothing about anybody's models leaves the machine.
    builder.with_name("causeway").with_telemetry(false).build().map_err(EngineError::Start)
}

/// The library: where the variable says; else beside the program, in the checkout that the program was built in, or where the
/// system keeps it.
fn find(named: Option<PathBuf>, program: Option<&Path>) -> Result<PathBuf, EngineError> {
    if let Some(path) = named.filter(|path| !path.as_os_str().is_empty()) {
        return if path.is_file() { Ok(path) } else { Err(EngineError::Named(path)) };
    }
    let folder = program.and_then(Path::parent);
    let beside = folder.into_iter().flat_map(|folder| [folder.to_owned(), folder.join("../lib")]);
    let checkout = folder.into_iter().flat_map(Path::ancestors).flat_map(|folder| in_venv(&folder.join(".tools/venv")));
    let system = SYSTEM_FOLDERS.iter().map(PathBuf::from);
    beside.chain(checkout).chain(system).find_map(|folder| library_in(&folder)).ok_or(EngineError::Nowhere)
}

fn in_venv(venv: &Path) -> Vec<PathBuf> {
    entries(&venv.join("lib")).into_iter().map(|python| python.join(IN_WHEEL)).collect()
}

/// The library in a folder; the one with the longest name, which is the whole version.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let is_library = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let stem = LIBRARY.trim_end_matches(".dylib");
        name.starts_with(stem) && !name.contains("providers") && path.is_file()
    };
    entries(folder).into_iter().filter(is_library).max_by_key(|path| (path.as_os_str().len(), path.clone()))
}

/// What is in a folder, sorted; nothing when it is not there.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        folder.read_dir().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_no_file_is_told() {
        let error = find(Some("/no/such/library.so".into()), None).unwrap_err();
        assert!(matches!(error, EngineError::Named(_)));
        assert!(error.to_string().contains("CAUSEWAY_ONNXRUNTIME names /no/such/library.so"), "{error}");
    }

    #[test]
    fn the_checkout_of_the_program_is_searched() {
        let root = env::temp_dir().join(format!("causeway-engine-{}", std::process::id()));
        let capi = root.join(".tools/venv/lib/python3.11").join(IN_WHEEL);
        std::fs::create_dir_all(&capi).unwrap();
        let library = capi.join(format!("{LIBRARY}.1.32.0"));
        std::fs::write(&library, "").unwrap();
        let found = find(None, Some(&root.join("target/debug/causeway")));
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found.unwrap(), library);
    }

    #[test]
    fn a_file_that_is_no_library_is_told() {
        let path = env::current_exe().unwrap().with_extension("d");
        let error = load(&path).map(|_| ()).unwrap_err();
        assert!(error.to_string().starts_with(&format!("cannot use {}", path.display())), "{error}");
    }
}
