//! A model in two parts: `extract` and `classify` have to be of the same model, at the same tensor.

use causeway_pipelines::{ClassifyOptions, Pipeline, PipelineError};

fn load(extract: &str, classify: &str) -> Result<Pipeline, PipelineError> {
    let text = format!(
        "pipeline = \"p\"\n[stage.capture]\n[stage.preprocess]\nfrom = \"capture\"\nmodel = \"m\"\n[stage.extract]\nfrom = \
         \"preprocess\"\n{extract}\n[stage.classify]\nfrom = \"extract\"\n{classify}\n"
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    Pipeline::load(path)
}

fn input(extract: &str, classify: &str) -> Option<String> {
    let pipeline = load(extract, classify).unwrap_or_else(|error| panic!("{error}"));
    pipeline.stage("classify").unwrap().options::<ClassifyOptions>().unwrap().input
}

/// The one fault, with its key.
fn fault(extract: &str, classify: &str) -> (String, String) {
    let error = load(extract, classify).unwrap_err();
    let [fault] = error.faults() else { panic!("{error}") };
    assert_eq!(fault.stage.as_deref(), Some("classify"), "{error}");
    (fault.key.clone().unwrap(), fault.to_string())
}

#[test]
fn the_rest_begins_where_the_first_part_ends() {
    assert_eq!(input("model = \"m\"\noutput = \"t\"", "model = \"m\"").as_deref(), Some("t"));
    assert_eq!(input("model = \"m\"\noutput = \"t\"", "model = \"m\"\ninput = \"t\"").as_deref(), Some("t"));
    assert_eq!(input("model = \"m\"", "model = \"m\""), None);
    // A gallery takes whatever vector comes.
    assert_eq!(input("model = \"m\"\noutput = \"t\"", ""), None);
}

#[test]
fn parts_that_do_not_fit_are_told() {
    let (key, told) = fault("model = \"m\"", "model = \"n\"");
    assert!(key == "model" && told.contains("`extract` gives tensors of the model `m`"), "{told}");
    let (key, told) = fault("model = \"m\"\noutput = \"t\"", "model = \"m\"\ninput = \"u\"");
    assert!(key == "input" && told.contains("`input` is `u`, and `extract` gives `t`"), "{told}");
    let (key, told) = fault("model = \"m\"", "model = \"m\"\ninput = \"u\"");
    assert!(key == "input" && told.contains("write in [stage.extract]: output = \"u\""), "{told}");
    for (wrong, wanted) in [("input = \"u\"", "input"), ("top_k = 3", "top_k")] {
        let (key, told) = fault("model = \"m\"\noutput = \"u\"", wrong);
        assert!(key == wanted && told.contains("this stage names none"), "{told}");
    }
    let (key, told) = fault("model = \"m\"", "model = \"m\"\ntop_k = 0");
    assert!(key == "top_k" && told.contains("within 1..=100"), "{told}");
}
