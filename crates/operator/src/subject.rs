use causeway_pipelines::Pipeline;

/// What a pipeline tells of: the words of its summary and its report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Who is in the pictures: names by a gallery, clusters.
    Faces,
    /// What is in the pictures: the labels of a model.
    Objects,
}

impl Subject {
    /// Labels, where every stage that decides does so by a model and none clusters.
    pub(crate) fn of(pipeline: &Pipeline) -> Self {
        let mut decides = pipeline.stages.iter().filter(|stage| stage.uses == "classify").peekable();
        let by_models = decides.peek().is_some() && decides.all(|stage| stage.model().is_some());
        let clusters = pipeline.stages.iter().any(|stage| stage.folds);
        if by_models && !clusters { Self::Objects } else { Self::Faces }
    }

    /// What one decision is about.
    pub(crate) fn region(self) -> &'static str {
        match self {
            Self::Faces => "face",
            Self::Objects => "picture",
        }
    }
}
