//! Decoders that meet bytes from outside, each as a function of bytes: what the fuzzer and the replay of its corpus run.

mod bodies;
mod changes;
mod faces;
mod gallery;
mod headers;
mod inputs;
mod model;
mod packets;
mod pictures;
mod quarantine;
mod records;
mod spent;
mod status;
mod taken;
mod text;

pub use spent::{Counting, MAX_BYTES, MAX_TIME, Spent};

/// A decoder that meets foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `corpus/`.
    pub name: &'static str,
    /// Whatever the bytes are, it comes back; it panics where the decoder breaks a promise.
    decode: fn(&[u8]),
    /// Inputs made out of those of the corpus that the replay tries beside them: as many as take about half a second.
    pub mutants: usize,
}

/// All of them. What stands before the bytes of an input (which kind, which codec) is said where the target is.
pub const TARGETS: [Target; 15] = [
    Target { name: "bodies", decode: bodies::run, mutants: 2000 },
    Target { name: "changes", decode: changes::run, mutants: 2000 },
    Target { name: "faces", decode: faces::run, mutants: 2000 },
    Target { name: "gallery", decode: gallery::run, mutants: 2000 },
    Target { name: "headers", decode: headers::run, mutants: 2000 },
    Target { name: "inputs", decode: inputs::run, mutants: 2000 },
    Target { name: "manifest", decode: text::manifest, mutants: 2000 },
    Target { name: "model", decode: model::run, mutants: 2000 },
    Target { name: "packets", decode: packets::run, mutants: 2000 },
    Target { name: "picture", decode: pictures::decoded, mutants: 1000 },
    Target { name: "pipeline", decode: text::pipeline, mutants: 1000 },
    Target { name: "quarantine", decode: quarantine::run, mutants: 2000 },
    Target { name: "records", decode: records::run, mutants: 2000 },
    Target { name: "resample", decode: pictures::resampled, mutants: 1000 },
    Target { name: "status", decode: status::run, mutants: 2000 },
];

impl Target {
    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }

    /// Decodes, and tells what it took.
    pub fn run(&self, bytes: &[u8]) -> Spent {
        Spent::of(|| (self.decode)(bytes))
    }
}
