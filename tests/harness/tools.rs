use std::path::{Path, PathBuf};

/// The root of the checkout.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the checkout").to_owned()
}

/// Labelled faces for measuring, where they are: `CAUSEWAY_FACES`, else a folder beside the checkout. They are not part of the
/// project.
pub fn shared_faces() -> Option<PathBuf> {
    let beside = || workspace().parent().map(|parent| parent.join("shared/faces"));
    let faces = std::env::var_os("CAUSEWAY_FACES").map(PathBuf::from).or_else(beside)?;
    faces.join("lfw10x10").is_dir().then_some(faces)
}

/// The programs under test, and what `./dev` sets up for them.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder of the programs.
    pub bin: PathBuf,
    /// What `./dev` exports: `CAUSEWAY_MODELS` and its like.
    pub env: Vec<(String, String)>,
}

impl Tools {
    /// The program nats-server.
    pub fn nats_server(&self) -> &str {
        &self.env.iter().find(|(name, _)| name == "CAUSEWAY_NATS_SERVER").expect("set").1
    }

    /// Finds them.
    ///
    /// # Panics
    /// When they are not there: a test that cannot run is no test that passed.
    pub fn find() -> Self {
        let own = std::env::current_exe().expect("a test has a path");
        let beside = own.parent().expect("a program lies in a folder");
        // A test lies in target/PROFILE/deps.
        let bin = if beside.ends_with("deps") { beside.parent().expect("target/PROFILE") } else { beside }.to_owned();
        assert!(bin.join("causeway").is_file(), "{} is missing: run ./dev test", bin.join("causeway").display());
        let wanted = [
            "CAUSEWAY_ONNXRUNTIME",
            "CAUSEWAY_NATS_SERVER",
            "CAUSEWAY_FFMPEG",
            "CAUSEWAY_MODELS",
            "CAUSEWAY_PHOTOS",
            "CAUSEWAY_VIEWS",
        ];
        let env = wanted.map(|name| {
            let value = std::env::var(name).unwrap_or_else(|_| panic!("${name} is not set: run ./dev test"));
            (name.to_owned(), value)
        });
        Self { bin, env: env.to_vec() }
    }

    /// The path of a program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The demo's photos: `input/` and `enrol/`.
    pub fn photos(&self) -> PathBuf {
        self.folder("CAUSEWAY_PHOTOS")
    }

    /// The models that `./dev` brings.
    pub fn models(&self) -> PathBuf {
        self.folder("CAUSEWAY_MODELS")
    }

    /// The pictures that classifiers are checked on: views of photographs, as PNG.
    pub fn views(&self) -> PathBuf {
        self.folder("CAUSEWAY_VIEWS")
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.into()).expect("set above")
    }
}
