use std::fs;
use std::time::Instant;

use causeway_pipelines::Manifest;
use causeway_schemas::ModelRef;
use ndarray::{ArrayRef, ArrayViewD, Dimension};
use ort::ep;
use ort::session::SessionOutputs;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::{Outlet, TensorRef};
use sha2::{Digest, Sha256};

use crate::port::{float_shape, shown};
use crate::{Cut, OpenError, Port, RunError, engine};

/// One model, ready to run on the thread that holds it.
pub struct Session {
    session: ort::session::Session,
    model: ModelRef,
}

impl Session {
    /// Reads the model's file, compares its SHA-256 with the manifest, and only then lets the engine parse those same bytes.
    /// `threads` work within one operation; they sleep between runs.
    pub fn open(manifest: &Manifest, threads: usize) -> Result<Self, OpenError> {
        Self::open_part(manifest, threads, Cut::default())
    }

    /// The same for a part of the model: the whole file is compared, the part cut out in memory. Both parts of a cut give
    /// together what the whole gives.
    pub fn open_part(manifest: &Manifest, threads: usize, cut: Cut<'_>) -> Result<Self, OpenError> {
        let bytes = part_of(read_trusted(manifest)?, manifest, cut)?;
        let environment = engine::environment()?;
        let session = configured(&environment, threads).and_then(|mut builder| builder.commit_from_memory(&bytes));
        let session = session.map_err(|source| OpenError::Refused {
            name: manifest.name.clone(),
            path: manifest.file.clone(),
            source,
        })?;
        let model = ModelRef {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            sha256: manifest.sha256.clone(),
        };
        Ok(Self { session, model })
    }

    /// Makes sure that the model has this one input and at least these outputs.
    pub fn expecting(self, input: Port<'_>, outputs: &[Port<'_>]) -> Result<Self, OpenError> {
        let inputs_fit = matches!(self.session.inputs(), [only] if input.fits(only, true));
        let has = |output: &Port<'_>| self.session.outputs().iter().any(|outlet| output.fits(outlet, false));
        if inputs_fit && outputs.iter().all(has) {
            return Ok(self);
        }
        let wanted: Vec<String> = outputs.iter().map(ToString::to_string).collect();
        let found = |outlets: &[Outlet]| outlets.iter().map(shown).collect::<Vec<_>>().join(", ");
        Err(OpenError::OtherPorts {
            name: self.model.name,
            wanted: format!("the input {input} and the outputs {}", wanted.join(", ")),
            found: format!("{} and {}", found(self.session.inputs()), found(self.session.outputs())),
        })
    }

    /// The shape of an output of 32-bit floats, as far as the model fixes it; `None` where there is no such output.
    pub fn output_shape(&self, name: &str) -> Option<Vec<Option<u32>>> {
        let outlet = self.session.outputs().iter().find(|outlet| outlet.name() == name)?;
        float_shape(outlet)
    }

    /// The names of its outputs, each with its type and shape, for a person.
    pub fn outputs_shown(&self) -> String {
        self.session.outputs().iter().map(shown).collect::<Vec<_>>().join(", ")
    }

    /// Which model it is; messages carry it.
    pub fn model(&self) -> &ModelRef {
        &self.model
    }

    /// Runs the model on its one input, which is not copied: an array in standard layout.
    pub fn run<D: Dimension>(&mut self, input: &ArrayRef<f32, D>) -> Result<Outputs<'_>, RunError> {
        let model = &self.model.name;
        let of = |error: ort::Error| RunError::of(model, &error);
        let shape: Vec<usize> = input.shape().to_vec();
        let data = input.as_slice().ok_or_else(|| RunError::Never {
            model: model.clone(),
            why: "the array is not in standard layout".into(),
        })?;
        let tensor = TensorRef::from_array_view((shape, data)).map_err(of)?;
        let began = Instant::now();
        let outputs = self.session.run(ort::inputs![tensor]).map_err(of)?;
        let took_ns = began.elapsed().as_nanos() as u64;
        // Whoever measures listens here; see `causeway-stage`.
        tracing::debug!(target: "causeway_inference::run", model = self.model.name, version = self.model.version, took_ns, "model run");
        Ok(Outputs { outputs, model })
    }
}

fn part_of(bytes: Vec<u8>, manifest: &Manifest, cut: Cut<'_>) -> Result<Vec<u8>, OpenError> {
    if cut.is_whole() {
        return Ok(bytes);
    }
    let (name, path) = (manifest.name.clone(), manifest.file.clone());
    cut.of(bytes.into()).map_err(|source| OpenError::Cut { name, path, source })
}

/// The bytes of the model's file, which are those that the manifest means.
fn read_trusted(manifest: &Manifest) -> Result<Vec<u8>, OpenError> {
    let bytes = fs::read(&manifest.file).map_err(|source| OpenError::Read {
        name: manifest.name.clone(),
        path: manifest.file.clone(),
        source,
    })?;
    let found = hex(&Sha256::digest(&bytes));
    if found != manifest.sha256 {
        return Err(OpenError::OtherHash {
            name: manifest.name.clone(),
            path: manifest.file.clone(),
            wanted: manifest.sha256.clone(),
            found,
        });
    }
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A session for a machine that others share: no thread spins while it waits, memory that a run took is given back instead of
/// being kept for the next one (the arena only grows), and weights are not kept a second time in the kernels' own order (with
/// `SFace` that saved 10 MB and 40 ms of loading, and a run took the same 25 ms).
fn configured(environment: &ort::environment::Environment, threads: usize) -> ort::Result<SessionBuilder> {
    let cpu = ep::CPU::default().with_arena_allocator(false).build();
    Ok(ort::session::Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(threads.max(1))?
        .with_inter_threads(1)?
        .with_intra_op_spinning(false)?
        .with_inter_op_spinning(false)?
        .with_prepacking(false)?
        .with_memory_pattern(false)?
        .with_execution_providers([cpu])?)
}

/// What a run gave: tensors by name, in the engine's memory until this is dropped.
pub struct Outputs<'s> {
    outputs: SessionOutputs<'s>,
    model: &'s str,
}

impl Outputs<'_> {
    /// An output as it lies, row-major; not copied.
    pub fn view(&self, name: &str) -> Result<ArrayViewD<'_, f32>, RunError> {
        let missing = || RunError::Never { model: self.model.into(), why: format!("it has no output `{name}`") };
        let output = self.outputs.get(name).ok_or_else(missing)?;
        output.try_extract_array().map_err(|error| RunError::of(self.model, &error))
    }

    /// They are not what the model said they would be.
    pub fn unfit(&self, why: String) -> RunError {
        RunError::Never { model: self.model.into(), why }
    }
}
