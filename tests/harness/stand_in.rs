use causeway_stand_in::link;
use tempfile::TempDir;

use crate::Tools;

/// `causeway` with stages that do nothing, or what they are told, in the real runtime.
pub struct StandIns {
    tools: Tools,
    _dir: TempDir,
}

impl StandIns {
    /// Links them.
    ///
    /// # Panics
    /// When the programs are not there.
    pub fn link(tools: &Tools) -> Self {
        // Beside the programs: /tmp may be another file system, and they are large.
        let dir = tempfile::Builder::new().prefix("stand-ins-").tempdir_in(&tools.bin).expect("a folder");
        link(&tools.bin, dir.path()).expect("they are linked");
        let tools = Tools { bin: dir.path().into(), env: tools.env.clone() };
        Self { tools, _dir: dir }
    }

    /// The programs.
    pub fn tools(&self) -> &Tools {
        &self.tools
    }
}

/// The text of a pipeline for them; `more` gives further keys of a stage, or tables at the top for `pipeline`.
pub fn stand_in_pipeline(more: impl Fn(&str) -> String) -> String {
    let stage = |name: &str, from: &str| format!("[stage.{name}]\n{from}\n{}\n", more(name));
    [
        "pipeline = \"faces\"\n".into(),
        more("pipeline"),
        stage("capture", ""),
        stage("preprocess", "from = \"capture\"\nmodel = \"yunet\""),
        stage("extract", "from = \"preprocess\"\nmodel = \"sface\""),
        stage("classify", "from = \"extract\""),
        stage("cluster", "from = \"extract\""),
    ]
    .join("\n")
}

/// The same at two sites: `capture`, sixty a second, `preprocess` and `extract` at `edge`, the others at the hub, `cloud`.
pub fn stand_in_sites(pipeline: &str) -> String {
    let at_sites = |stage: &str| match stage {
        "pipeline" => "[site.edge]\n[site.cloud]\nhub = true".to_owned(),
        "capture" => "site = \"edge\"\nrate = 60".to_owned(),
        "preprocess" | "extract" => "site = \"edge\"".to_owned(),
        _ => "site = \"cloud\"".to_owned(),
    };
    stand_in_pipeline(at_sites).replacen("faces", pipeline, 1)
}
