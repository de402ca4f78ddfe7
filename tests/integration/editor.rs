//! The schema as the real linter of TOML reads it. (The language server that shares its reader is not in the pinned build;
//! `pipelines/tests/schema.rs` follows its way through the schema instead.)

use harness::workspace;
use tokio::process::Command;

/// A pipeline with a fault in each of four stages, one of them of a name of its own.
const FAULTY: &str = r#"pipeline = "door"
[stage.capture]
model = "yunet"
[stage.preprocess]
from = "capture"
model = "yunet"
gate = { min_score = 8 }
[stage.who]
uses = "classify"
from = "extract"
workers = 9000
[stage.extract]
from = "preprocess"
"#;

#[tokio::test]
async fn a_linter_judges_by_the_schema() {
    let file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    std::fs::write(file.path(), FAULTY).expect("it is written");
    let schema = format!("file://{}", workspace().join("schemas/pipeline.schema.json").display());
    let mut command = Command::new("taplo");
    command.args(["lint", "--no-auto-config", "--colors", "never", "--schema", &schema]).arg(file.path());
    let Ok(linted) = command.output().await else {
        assert!(std::env::var_os("CI").is_none(), "taplo is missing: ./dev brings it");
        eprintln!("skipped: there is no taplo here (./dev brings it where there is a build of it)");
        return;
    };
    let said = String::from_utf8_lossy(&linted.stderr);
    assert!(!linted.status.success(), "{said}");
    for word in
        ["'model' was unexpected", "8 is greater than the maximum of 1", "9000 is greater", "\"model\" is a required"]
    {
        assert!(said.contains(word), "`{word}` is not in {said}");
    }
}
