use causeway_pipelines::{ClassifyOptions, ExtractOptions, PreprocessOptions};
use causeway_schemas::{Crop, Decision, Dtype, Feature, Frame, Message, ModelRef, Region};
use causeway_stage::{Answer, Context, Failure, Stage};

use crate::script::Manners;

type Answers<T> = Vec<Result<Answer<T>, Failure>>;

/// Gives the whole frame as one crop.
pub(crate) struct Preprocess(Manners);

impl Stage for Preprocess {
    const NAME: &'static str = "preprocess";
    type Options = PreprocessOptions;
    type Input = Frame;
    type Output = Crop;

    fn new(_: PreprocessOptions, _: &Context) -> anyhow::Result<Self> {
        Ok(Self(Manners::read(Self::NAME)?))
    }

    fn process(&mut self, batch: Vec<Frame>) -> Answers<Crop> {
        let crop = |frame: Frame| {
            let pixels = frame.image;
            Crop { capture: frame.capture, region: whole(), width: pixels.len() as u32 / 3, height: 1, pixels }
        };
        each(&self.0, batch, crop)
    }
}

/// Gives the crop's bytes as the feature.
pub(crate) struct Extract(Manners);

impl Stage for Extract {
    const NAME: &'static str = "extract";
    type Options = ExtractOptions;
    type Input = Crop;
    type Output = Feature;

    fn new(_: ExtractOptions, _: &Context) -> anyhow::Result<Self> {
        Ok(Self(Manners::read(Self::NAME)?))
    }

    fn process(&mut self, batch: Vec<Crop>) -> Answers<Feature> {
        let feature = |crop: Crop| Feature {
            capture: crop.capture,
            region: crop.region,
            dtype: Dtype::F32,
            shape: vec![crop.pixels.len() as u32 / 4],
            data: crop.pixels,
            space: "none".into(),
            model: no_model(),
        };
        each(&self.0, batch, feature)
    }
}

/// Knows nobody.
pub(crate) struct Classify(Manners);

impl Stage for Classify {
    const NAME: &'static str = "classify";
    type Options = ClassifyOptions;
    type Input = Feature;
    type Output = Decision;

    fn new(_: ClassifyOptions, _: &Context) -> anyhow::Result<Self> {
        Ok(Self(Manners::read(Self::NAME)?))
    }

    fn process(&mut self, batch: Vec<Feature>) -> Answers<Decision> {
        let decision = |feature: Feature| Decision {
            capture: feature.capture,
            region: feature.region,
            label: None,
            score: 0.0,
            margin: 0.0,
            nearest: None,
            model: feature.model,
            gallery: 0,
            route: Self::NAME.into(),
            top: Vec::new(),
        };
        each(&self.0, batch, decision)
    }
}

/// As many of an input's answer as its manners say.
fn each<I: Message, O: Clone>(manners: &Manners, batch: Vec<I>, answer: impl Fn(I) -> O) -> Answers<O> {
    let answers = batch.into_iter().map(|input| {
        let count = manners.at(input.capture());
        Ok(Answer::Messages(vec![answer(input); count]))
    });
    answers.collect()
}

fn whole() -> Region {
    Region { x: 0.0, y: 0.0, w: 1.0, h: 1.0, score: 1.0, sharpness: 0.0, landmarks: Vec::new(), frame: [1, 1] }
}

fn no_model() -> ModelRef {
    ModelRef { name: "none".into(), version: "0".into(), sha256: "0".repeat(64) }
}
