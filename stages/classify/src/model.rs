use anyhow::ensure;
use causeway_inference::{Cut, Port, RunError, Session};
use causeway_pipelines::{ClassifyOptions, Manifest, Task};
use causeway_schemas::{Decision, Feature, Ranked};
use causeway_stage::{Context, Failure, Stage as _};
use ndarray::ArrayD;

use crate::Classify;

/// Names what is in a picture by the rest of a model: from the tensor that comes in to a number for each label.
pub(crate) struct Model {
    manifest: Manifest,
    labels: Vec<String>,
    /// None where the tensor that comes in is the model's answer already.
    rest: Option<Session>,
    /// What the features have to be of.
    space: String,
    top_k: usize,
    threshold: f32,
    margin: f32,
}

impl Model {
    pub(crate) fn open(name: &str, options: &ClassifyOptions, ctx: &Context) -> anyhow::Result<Self> {
        let manifest = ctx.model(name)?;
        ensure!(
            manifest.task == Task::Classify,
            "cannot use the model `{name}` here: its manifest does not say `task = \"classify\"`"
        );
        ensure!(
            (0.0..=1.0).contains(&options.threshold),
            "cannot name from a probability of {} on: it is within 0..1",
            options.threshold
        );
        let answer = &manifest.output()?.name;
        let input = options.input.as_ref().unwrap_or(answer);
        let rest = if input == answer { None } else { Some(rest(&manifest, ctx.threads(), input)?) };
        let numbers = rest.as_ref().and_then(|session| session.output_shape(answer)?.last().copied().flatten());
        let labels = manifest.fit_labels(numbers)?;
        let &ClassifyOptions { top_k, threshold, margin, .. } = options;
        Ok(Self { space: manifest.space_of(input), labels, rest, top_k, threshold, margin, manifest })
    }

    pub(crate) fn decide(&mut self, feature: Feature) -> Result<Decision, Failure> {
        let numbers = self.numbers(&feature)?;
        let probabilities = if self.manifest.output.as_ref().is_some_and(|output| output.softmax) {
            softmax(&numbers)
        } else {
            numbers
        };
        if let Some(wrong) = probabilities.iter().find(|number| !(0.0..=1.0).contains(*number)) {
            let hint = "numbers that are no probabilities yet need `softmax = true` in the manifest's `[output]`";
            return Err(unfit(&format!("the model gave {wrong} for a label, which is no probability; {hint}")));
        }
        let top = self.top(&probabilities, self.top_k.max(2));
        let score = top.first().map_or(0.0, |best| best.score);
        let margin = score - top.get(1).map_or(0.0, |next| next.score);
        let nearest = top.first().map(|best| best.label.clone());
        let is_sure = score >= self.threshold && (top.len() < 2 || margin >= self.margin);
        Ok(Decision {
            label: nearest.clone().filter(|_| is_sure),
            score,
            margin,
            nearest,
            capture: feature.capture,
            region: feature.region,
            model: feature.model,
            gallery: 0,
            route: Classify::NAME.into(),
            top: top.into_iter().take(self.top_k).collect(),
        })
    }

    /// A number for each label.
    fn numbers(&mut self, feature: &Feature) -> Result<Vec<f32>, Failure> {
        let Manifest { name, version, sha256, .. } = &self.manifest;
        if feature.space != self.space {
            return Err(unfit(&format!("it is of the space `{}`, this stage takes `{}`", feature.space, self.space)));
        }
        if feature.model.sha256 != *sha256 {
            let theirs = &feature.model;
            return Err(unfit(&format!(
                "it was made by `{}` {} with the SHA-256 {}, the rest here is of `{name}` {version} with {sha256}",
                theirs.name, theirs.version, theirs.sha256
            )));
        }
        let Some(numbers) = feature.numbers() else {
            let (shape, bytes) = (&feature.shape, feature.data.len());
            return Err(unfit(&format!("shape {shape:?} with {bytes} bytes is no tensor of f32")));
        };
        let numbers = match &mut self.rest {
            None => numbers,
            Some(rest) => {
                let shape: Vec<usize> =
                    std::iter::once(1).chain(feature.shape.iter().map(|&size| size as usize)).collect();
                let tensor = ArrayD::from_shape_vec(shape, numbers).map_err(|error| unfit(&error.to_string()))?;
                let outputs = rest.run(&tensor).map_err(|error| failure(&error))?;
                let answer = self.manifest.output.as_ref().map_or("", |output| &output.name);
                outputs.view(answer).map_err(|error| failure(&error))?.iter().copied().collect()
            }
        };
        if numbers.len() != self.labels.len() {
            let (numbers, labels) = (numbers.len(), self.labels.len());
            return Err(unfit(&format!("the model gives {numbers} numbers, and there are {labels} labels")));
        }
        Ok(numbers)
    }

    /// The best `count` labels, the best first; of equal ones the first in the order of the labels.
    fn top(&self, probabilities: &[f32], count: usize) -> Vec<Ranked> {
        let mut order: Vec<usize> = (0..probabilities.len()).collect();
        let better = |&a: &usize, &b: &usize| probabilities[b].total_cmp(&probabilities[a]).then(a.cmp(&b));
        let count = count.min(order.len());
        if count < order.len() {
            order.select_nth_unstable_by(count, better);
            order.truncate(count);
        }
        order.sort_unstable_by(better);
        order.into_iter().map(|at| Ranked { label: self.labels[at].clone(), score: probabilities[at] }).collect()
    }
}

/// The model from the tensor `input` on.
fn rest(manifest: &Manifest, threads: usize, input: &str) -> anyhow::Result<Session> {
    let answer = &manifest.output()?.name;
    let cut = Cut { from: Some(input), to: Some(answer) };
    let session = Session::open_part(manifest, threads, cut)?;
    let shape = session.output_shape(answer);
    let sizes: Vec<Option<u32>> = vec![None; shape.as_ref().map_or(2, Vec::len)];
    let port = Port { name: answer, shape: &sizes };
    ensure!(
        shape.is_some(),
        "cannot use the model `{}` here: this stage needs the output {port}; the model has {}",
        manifest.name,
        session.outputs_shown()
    );
    Ok(session)
}

/// exp(x) over the sum of all, each less the greatest so that nothing overflows; summed in f64.
fn softmax(numbers: &[f32]) -> Vec<f32> {
    let greatest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = numbers.iter().map(|&number| f64::from(number - greatest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|power| (power / sum) as f32).collect()
}

fn unfit(why: &str) -> Failure {
    Failure::unfit(format!("cannot classify the feature: {why}"))
}

fn failure(error: &RunError) -> Failure {
    let detail = error.to_string();
    if error.is_passing() { Failure::Retry(detail) } else { Failure::Reject { reason: "model-failed", detail } }
}
