//! What cannot be done is refused with one clear message and the right exit code, and nothing is left running.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use harness::{Finished, Running, Site, Tools, causeway, left_running, workspace};
use tempfile::TempDir;

/// A home of its own and the programs.
struct Try {
    tools: Tools,
    home: TempDir,
}

impl Try {
    fn new() -> Self {
        Self { tools: Tools::find(), home: tempfile::tempdir().expect("a folder") }
    }

    fn start(&self, arguments: &[&str]) -> Running {
        Running::start(&self.tools, self.home.path(), arguments)
    }

    async fn run(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).finish().await
    }

    /// Runs it: it must end with `code`, say each of `words`, the first of them once, and leave nothing behind.
    async fn refused(&self, arguments: &[&str], code: i32, words: &[&str]) -> Finished {
        let finished = self.run(arguments).await;
        assert_refused(&finished, code, words);
        self.assert_nothing_left();
        finished
    }

    fn assert_nothing_left(&self) {
        assert_eq!(left_running(self.home.path()), Vec::<PathBuf>::new());
        assert!(!self.home.path().join("up.json").exists());
    }

    /// A file of the test's own.
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.home.path().join(name);
        std::fs::write(&path, bytes).expect("it is written");
        text(&path)
    }
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path").to_owned()
}

fn assert_refused(finished: &Finished, code: i32, words: &[&str]) {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    assert_eq!(finished.stdout, "", "talk belongs on stderr");
    for word in words {
        assert!(finished.stderr.contains(word), "`{word}` is not in {}", finished.stderr);
    }
    assert_eq!(finished.stderr.matches(words[0]).count(), 1, "said once: {}", finished.stderr);
    assert!(!finished.stderr.contains('\x1b'), "no escape codes: {}", finished.stderr);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}

/// It is all that was said.
fn assert_one_line(finished: &Finished) {
    assert_eq!(finished.stderr.trim_end().lines().count(), 1, "{}", finished.stderr);
}

fn faces_with(from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    assert!(text.contains(from));
    text.replacen(from, to, 1)
}

/// An address where nobody listens.
fn closed_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    format!("nats://{}", listener.local_addr().expect("an address"))
}

#[tokio::test]
async fn a_wrong_key_is_named_with_file_line_column_and_stage() {
    let test = Try::new();
    let file = test.write("wrong.toml", faces_with("threshold = 0.40", "thresholds = 0.40").as_bytes());
    let line = std::fs::read_to_string(&file).expect("it was written");
    let line = line.lines().position(|line| line.starts_with("thresholds")).expect("it was replaced") + 1;
    let place = format!("{file}:{line}:1");
    let words = ["unknown key `thresholds`", &place, "[stage.classify]", "did you mean `threshold`?"];
    test.refused(&["up", &file], 64, &words).await;
    assert!(!test.home.path().join("edge").exists(), "refused before anything starts");

    let validated = causeway(&test.tools, &["validate", &file]).await;
    assert_refused(&validated, 64, &words);
    let validated = causeway(&test.tools, &["validate", "--json", &file, "pipelines/faces.toml"]).await;
    assert_eq!(validated.code, Some(64), "{validated:?}");
    let object = validated.json();
    let fault = &object[&file]["faults"][0];
    assert_eq!((&fault["line"], &fault["column"], &fault["stage"]), (&line.into(), &1.into(), &"classify".into()));
    assert_eq!(object["pipelines/faces.toml"]["ok"], true);
}

#[tokio::test]
async fn a_malformed_set_is_shown_the_form() {
    let test = Try::new();
    let refused = test.refused(&["up", "--set", "nonsense"], 1, &["`nonsense`", "STAGE.KEY=VALUE"]).await;
    assert_one_line(&refused);
    test.refused(&["up", "--set", "classifi.threshold=1"], 64, &["[stage.classifi] there is no stage", "--set:1:1"])
        .await;
    let text = ["up", "--set", "classify.threshold=high"];
    test.refused(&text, 64, &["[stage.classify] `threshold` must be a number", "\"high\""]).await;
    let missing = ["up", "/nowhere/faces.toml"];
    assert_one_line(&test.refused(&missing, 64, &["cannot read the pipeline file /nowhere/faces.toml"]).await);
}

#[tokio::test]
async fn a_missing_model_is_named_with_its_place() {
    let test = Try::new();
    let models = test.home.path().join("models");
    let up = ["up", "--models", &text(&models), "--input", &text(&test.tools.photos())];
    let manifest = models.join("yunet.toml");
    let words = ["cannot find the model `yunet`", &text(&manifest), "[stage.preprocess]"];
    assert_one_line(&test.refused(&up, 1, &words).await);

    copy_models(&test.tools, &models);
    std::fs::remove_file(models.join("sface.onnx")).expect("it is there");
    let words = ["cannot read the model `sface`", &text(&models.join("sface.onnx")), "[stage.extract]"];
    test.refused(&up, 1, &words).await;
}

#[tokio::test]
async fn a_changed_model_is_refused_before_it_is_parsed() {
    let test = Try::new();
    let models = test.home.path().join("models");
    copy_models(&test.tools, &models);
    let model = models.join("sface.onnx");
    // No model at all: had it been parsed, the engine would have said so.
    std::fs::write(&model, b"not the model that the manifest names").expect("it is written");
    let input = text(&test.tools.photos().join("input"));
    let up = ["up", "--models", &text(&models), "--input", &input];
    let words = [&format!("cannot trust {}", model.display()), "[stage.extract]", "SHA-256", "`sface`"];
    let refused = test.refused(&up, 1, &words).await;
    assert!(!refused.stderr.contains("starting it again"), "no restart mends it: {}", refused.stderr);
}

fn copy_models(tools: &Tools, to: &Path) {
    std::fs::create_dir(to).expect("a folder");
    let (_, from) = tools.env.iter().find(|(name, _)| name == "CAUSEWAY_MODELS").expect("the models");
    for file in std::fs::read_dir(from).expect("the models") {
        let file = file.expect("a file");
        std::fs::copy(file.path(), to.join(file.file_name())).expect("it is copied");
    }
}

#[tokio::test]
async fn an_unreachable_server_is_named() {
    let test = Try::new();
    let address = closed_address();
    for command in ["up", "status", "people", "apply"] {
        let words = [&format!("cannot reach the NATS server at {address}"), "refused"];
        assert_one_line(&test.refused(&[command, "--nats", &address], 1, &words).await);
    }
    let password = address.replace("nats://", "nats://ada:secret@");
    let refused = test.refused(&["status", "--nats", &password], 1, &["cannot reach the NATS server"]).await;
    assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let tools = Tools::find();
    let text = std::fs::read_to_string(workspace().join("pipelines/faces.toml")).expect("the pipeline");
    let site = Site::start(&tools, &text).await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let stage = site.finish_stage("classify", &["--health", &address]).await;
    assert_refused(&stage, 1, &[&format!("cannot listen on {address}"), "--health", "in use"]);
    assert_one_line(&stage);
}

#[tokio::test]
async fn a_second_up_on_the_same_home_is_refused_and_the_first_goes_on() {
    let test = Try::new();
    let empty = tempfile::tempdir().expect("a folder");
    let up = ["up", "--input", &text(empty.path())];
    let first = test.start(&up);
    let about = first.about().await;
    let pid = format!("pid {}", first.pid());
    let words = ["cannot use", &text(test.home.path()), "another `causeway`", &pid, "--home"];
    let second = test.run(&up).await;
    assert_refused(&second, 1, &words);
    assert_one_line(&second);
    assert_eq!(first.about().await["nats"], about["nats"], "the first is as it was");
    for stage in ["preprocess", "extract", "classify", "cluster"] {
        first.stage_pid(stage, None).await;
    }
    assert!(left_running(test.home.path()).len() >= 6, "up, its server and its stages are found by their mark");
    first.stop().await.ok();
    test.assert_nothing_left();
}

#[tokio::test]
async fn an_input_that_is_not_there_is_named() {
    let test = Try::new();
    let nowhere = test.home.path().join("nowhere");
    let up = ["up", "--until-drained", "--input", &text(&nowhere)];
    let words = [&format!("cannot capture from {}", nowhere.display()), "no such folder", "--input", "[stage.capture]"];
    let refused = test.refused(&up, 1, &words).await;
    assert!(!refused.stderr.contains("starting it again"), "no restart mends it: {}", refused.stderr);
    test.refused(&["up", "--until-drained"], 1, &["cannot capture without an input", "--input"]).await;
}

#[tokio::test]
async fn an_empty_input_ends_at_once_and_says_so() {
    let test = Try::new();
    let empty = tempfile::tempdir().expect("a folder");
    let input = text(empty.path());
    let finished = test.run(&["up", "--until-drained", "--json", "--input", &input]).await.ok();
    assert_eq!(finished.json()["photos"], 0);
    assert!(finished.stderr.contains("no picture found") && finished.stderr.contains(&input), "{}", finished.stderr);
    test.assert_nothing_left();
}

#[tokio::test]
async fn what_is_not_known_is_answered_with_what_is() {
    let test = Try::new();
    let tap = test.refused(&["tap", "classifi"], 1, &["cannot tap `classifi`", "did you mean `classify`?"]).await;
    assert_one_line(&tap);
    for command in [&["status"][..], &["people"], &["dlq", "ls"], &["tap", "classify"]] {
        let refused = test.refused(command, 1, &["no results are stored in", "causeway up", "--nats"]).await;
        assert_one_line(&refused);
        assert!(refused.stderr.contains("nothing runs here"), "{}", refused.stderr);
    }
    let stage = test.refused(&["dlq", "ls", "--stage", "classifi"], 1, &["[stage.classifi]", "did you mean"]).await;
    assert_one_line(&stage);
}

#[tokio::test]
async fn files_are_checked_and_drawn_without_a_server() {
    let test = Try::new();
    let validated = causeway(&test.tools, &["validate", "pipelines/faces.toml"]).await.ok();
    assert_eq!((&validated.stdout[..], &validated.stderr[..]), ("ok  pipelines/faces.toml  5 stages, 6 tests\n", ""));
    let graph = causeway(&test.tools, &["graph"]).await.ok();
    assert_eq!(
        graph.stdout,
        "\
faces: 5 stages
capture (edge)
└─ frame → preprocess (edge)
   └─ crop → extract (edge)
      ├─ feature → classify (edge)
      │  └─ decision → outcome
      └─ feature → cluster (edge)
         └─ assignment → outcome
"
    );
    let stages = causeway(&test.tools, &["graph", "--json"]).await.ok().json();
    assert_eq!(stages["stages"].as_array().map(Vec::len), Some(5));
    let svg = causeway(&test.tools, &["graph", "--svg"]).await.ok().stdout;
    assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>") && svg.contains("preprocess"), "{svg}");
    let script = causeway(&test.tools, &["completions", "bash"]).await.ok().stdout;
    let script = test.write("completions", script.as_bytes());
    let asked = format!(
        ". {script}; COMP_WORDS=(causeway va); COMP_CWORD=1; _causeway causeway va causeway; echo \"${{COMPREPLY[*]}}\""
    );
    let bash = tokio::process::Command::new("bash").args(["-c", &asked]).output().await.expect("bash runs");
    assert_eq!(String::from_utf8_lossy(&bash.stdout).trim(), "validate", "{bash:?}");
}

/// A terminal of Python's: which `./dev` needs anyway.
const ON_A_TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

#[tokio::test]
async fn no_color_means_none_on_a_terminal_too() {
    let test = Try::new();
    let empty = tempfile::tempdir().expect("a folder");
    test.run(&["up", "--until-drained", "--input", &text(empty.path())]).await.ok();
    let wrong = test.write("wrong.toml", faces_with("threshold = 0.40", "thresholds = 0.40").as_bytes());
    let home = text(test.home.path());
    let commands = [&["validate", &wrong][..], &["status", "--home", &home], &["dlq", "ls", "--home", &home]];
    for command in commands {
        let shown = on_a_terminal(&test.tools, command, true).await;
        assert!(!shown.is_empty() && !shown.contains('\x1b'), "{command:?}: {shown}");
    }
    let coloured = on_a_terminal(&test.tools, &["status", "--home", &home], false).await;
    assert!(coloured.contains('\x1b'), "colours where nobody minds: {coloured}");
}

async fn on_a_terminal(tools: &Tools, arguments: &[&str], no_color: bool) -> String {
    let mut command = tokio::process::Command::new("python3");
    command.args(["-c", ON_A_TERMINAL]).arg(tools.program("causeway")).args(arguments);
    command.current_dir(workspace()).envs(tools.env.iter().cloned());
    command.env_remove("CAUSEWAY_NATS").env_remove("NO_COLOR").env("TERM", "xterm-256color");
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let output = command.stdin(std::process::Stdio::null()).output().await.expect("python3 runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
