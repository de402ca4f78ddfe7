//! Pipeline files and model manifests.

use causeway_pipelines::{LabelsSpec, Manifest, Override, Pipeline, PipelineError};

/// A pipeline file, then values of the command line, each behind a byte that is 0.
pub(crate) fn pipeline(bytes: &[u8]) {
    let mut parts = bytes.split(|&byte| byte == 0);
    let file = parts.next().unwrap_or_default();
    let overrides: Vec<Override> =
        parts.filter_map(|set| std::str::from_utf8(set).ok()?.parse().ok()).take(4).collect();
    match Pipeline::of_bytes(file, &overrides) {
        Ok(pipeline) => {
            for stage in &pipeline.stages {
                assert!(
                    stage.from.iter().all(|from| pipeline.stage(from).is_some()),
                    "{} takes from nobody",
                    stage.name
                );
            }
        }
        Err(error) => told(&error),
    }
    // A path of its own may be a device: what tests name is a file in the folder, which is not there.
    if !file.contains(&b'/')
        && let Err(errors) = Pipeline::of_bytes_with_tests(file)
    {
        errors.iter().for_each(told);
    }
}

fn told(error: &PipelineError) {
    let _ = error.to_string();
    assert!(!error.render(false).is_empty() && !error.render(true).is_empty());
    for fault in error.faults() {
        assert!(fault.line > 0 && fault.column > 0, "{fault} stands nowhere");
    }
}

/// A manifest, then a file of labels behind a byte that is 0.
pub(crate) fn manifest(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let file = parts.next().unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(file)
        && let Ok(manifest) = Manifest::of_text("model", text)
    {
        assert!(manifest.file.is_relative(), "{} may be anywhere", manifest.file.display());
        assert!(!manifest.space_of("x").is_empty());
    }
    if let Some(labels) = parts.next()
        && let Ok(labels) = LabelsSpec::of_bytes(labels.to_vec())
    {
        assert!(labels.iter().all(|label| !label.is_empty()));
    }
}
