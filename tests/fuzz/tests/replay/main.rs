//! Every input of the corpus, and some made out of them, through its target: none panics, takes too long or too much memory.

mod mutant;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use causeway_fuzz::{Counting, MAX_TIME, TARGETS, Target};

#[global_allocator]
static MEMORY: Counting = Counting;

/// The mutants are the same in every run, unless the variable `CAUSEWAY_SEED` says another seed, or `CAUSEWAY_MUTANTS` how many
/// times as many.
const SEED: u64 = 7;

/// The largest file that is committed, bytes, and how many of a target.
const MAX_FILE: usize = 16 << 10;
const MAX_FILES: usize = 60;

/// What has not come back by then never will.
const PATIENCE: Duration = Duration::from_mins(1);

macro_rules! replay {
    ($($target:ident),+) => {
        $(
            #[test]
            fn $target() {
                replay(stringify!($target));
            }
        )+

        #[test]
        fn each_target_has_a_test_and_a_corpus_and_the_other_way_round() {
            let targets: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
            assert_eq!(targets, [$(stringify!($target)),+]);
            let mut folders: Vec<String> =
                fs::read_dir(corpus()).unwrap().map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
            folders.sort();
            assert_eq!(folders, targets);
        }
    };
}

replay!(
    bodies, changes, faces, gallery, headers, inputs, manifest, model, packets, picture, pipeline, quarantine, records,
    resample, status
);

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

fn replay(name: &str) {
    let target = Target::named(name).unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(corpus().join(name)).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert!((1..=MAX_FILES).contains(&files.len()), "{name} has {} inputs", files.len());
    let inputs: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    let trial = Trial { target, now: Mutex::default() };
    std::thread::scope(|scope| {
        let (living, alive) = mpsc::channel();
        let trial = &trial;
        scope.spawn(move || trial.watch(&alive));
        for (file, input) in files.iter().zip(&inputs) {
            assert!(input.len() <= MAX_FILE, "{} has {} bytes", file.display(), input.len());
            let _ = living.send(());
            trial.of(input, &file.display().to_string());
        }
        let number = |name| std::env::var(name).ok().and_then(|text: String| text.parse::<u64>().ok());
        let mut random = fastrand::Rng::with_seed(number("CAUSEWAY_SEED").unwrap_or(SEED));
        for number in 0..target.mutants as u64 * number("CAUSEWAY_MUTANTS").unwrap_or(1) {
            let input = mutant::of(&inputs, &mut random);
            let _ = living.send(());
            trial.of(&input, &format!("mutant {number}"));
        }
    });
}

/// What is tried now, and whether it comes back.
struct Trial {
    target: Target,
    /// What it is called, and its bytes.
    now: Mutex<(String, Vec<u8>)>,
}

impl Trial {
    fn of(&self, input: &[u8], what: &str) {
        *self.now.lock().unwrap() = (what.into(), input.into());
        let ran = std::panic::catch_unwind(|| {
            let spent = self.target.run(input);
            spent.check_memory();
            assert!(spent.time <= MAX_TIME, "{:?} are more than {MAX_TIME:?}", spent.time);
        });
        assert!(ran.is_ok(), "{}", self.kept());
    }

    /// Keeps the input, and tells which it is.
    fn kept(&self) -> String {
        let (what, input) = &*self.now.lock().unwrap();
        let kept = std::env::temp_dir().join(format!("causeway-fuzz-{}", self.target.name));
        fs::write(&kept, input).unwrap();
        format!("{}: {what} (kept as {})", self.target.name, kept.display())
    }

    /// Ends the process where no sign of life came for too long.
    fn watch(&self, alive: &mpsc::Receiver<()>) {
        loop {
            match alive.recv_timeout(PATIENCE) {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    eprintln!("{} does not come back", self.kept());
                    std::process::abort();
                }
            }
        }
    }
}
