//! A user's own classifier needs a manifest and a pipeline and no code: `docs/own-model.md` is run as it stands. What can be
//! wrong with either is told.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use harness::{Finished, Tools, workspace};
use tempfile::TempDir;
use tokio::process::Command;

/// The page, and a folder in which its files are.
struct Shown {
    tools: Tools,
    folder: TempDir,
    commands: Vec<Shell>,
}

/// A command of the page and the lines that are shown below it.
struct Shell {
    command: String,
    output: Vec<String>,
}

impl Shown {
    /// Writes every file of the page; its script is the one that it names.
    fn read() -> Self {
        let page = std::fs::read_to_string(workspace().join("docs/own-model.md")).expect("the page");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir(folder.path().join("models")).expect("a folder");
        let script = workspace().join("docs/own-model/make_colours.py");
        std::fs::copy(script, folder.path().join("make_colours.py")).expect("the script");
        let mut commands: Vec<Shell> = Vec::new();
        // Odd pieces are within fences.
        for block in page.split("```").skip(1).step_by(2) {
            let (language, text) = block.split_once('\n').expect("a block has lines");
            match language {
                "toml" => {
                    let name = text.lines().next().and_then(|line| line.strip_prefix("# ")).expect("a file's name");
                    std::fs::write(folder.path().join(name), text).expect("it is written");
                }
                "console" => {
                    for line in text.lines() {
                        match line.strip_prefix("$ ") {
                            Some(command) => commands.push(Shell { command: command.into(), output: Vec::new() }),
                            None => commands.last_mut().expect("a command").output.push(line.into()),
                        }
                    }
                }
                other => panic!("a block of `{other}`"),
            }
        }
        Self { tools: Tools::find(), folder, commands }
    }

    async fn run(&self, command: &str) -> Finished {
        let venv = self.tools.env.iter().find(|(name, _)| name == "CAUSEWAY_NATS_SERVER").expect("the server");
        let venv = Path::new(&venv.1).parent().expect("it lies in the venv").to_owned();
        let path = std::env::join_paths(
            [self.tools.bin.clone(), venv]
                .into_iter()
                .chain(std::env::split_paths(&std::env::var_os("PATH").expect("a PATH"))),
        );
        let mut shell = Command::new("sh");
        shell.args(["-euc", command]).current_dir(self.folder.path()).env("PATH", path.expect("a PATH"));
        shell.envs(self.tools.env.iter().cloned()).env("NO_COLOR", "1").env_remove("CAUSEWAY_NATS");
        let output = shell.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("a shell");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Finished { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// The page's files, its model made.
    async fn made() -> Self {
        let shown = Self::read();
        shown.run(&shown.commands[0].command).await.ok();
        shown
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Changes one piece of a file.
    fn change(&self, name: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.file(name)).expect("the file");
        assert!(text.contains(from), "`{from}` is not in {name}");
        std::fs::write(self.file(name), text.replacen(from, to, 1)).expect("it is written");
    }

    /// `up` ends at once, with one message that has all of `words`.
    async fn refused(&self, words: &[&str]) {
        // What an earlier try left on the links would be taken up: there has to be something to do for every stage.
        let up = "rm -rf .causeway && causeway up colours.toml --models models --input pictures --until-drained";
        let finished = self.run(up).await;
        assert!(finished.code.is_some_and(|code| code != 0), "{finished:?}");
        for word in words {
            assert!(finished.stderr.contains(word), "`{word}` is not in {}", finished.stderr);
        }
        assert_eq!(finished.stderr.matches(words[0]).count(), 1, "said once: {}", finished.stderr);
        for never in ["panicked", "starting it again"] {
            assert!(!finished.stderr.contains(never), "{}", finished.stderr);
        }
    }
}

#[tokio::test]
async fn the_page_does_what_it_shows() {
    let shown = Shown::read();
    assert!(shown.commands.len() >= 4, "commands of the page");
    for Shell { command, output } in &shown.commands {
        let finished = shown.run(command).await.ok();
        for line in output {
            assert!(
                finished.stdout.contains(line.trim_end()),
                "`{line}` is not what `{command}` prints: {}",
                finished.stdout
            );
        }
    }
    let report = std::fs::read_to_string(shown.file(".causeway/report.html")).expect("the report");
    for word in ["<h2 id=\"people\">Labels</h2>", "<h3>magenta</h3>", "Labelled"] {
        assert!(report.contains(word), "{word}");
    }
    assert!(!report.contains("Clusters") && !report.contains("Faces"), "it is not about faces");
}

#[tokio::test]
async fn labels_that_do_not_fit_the_outputs_are_refused() {
    let shown = Shown::made().await;
    let manifest = std::fs::read_to_string(shown.file("models/colours.toml")).expect("the manifest");
    std::fs::write(shown.file("models/colours.labels.txt"), "black\nwhite\n").expect("it is written");
    shown.refused(&["colours.labels.txt: its SHA-256 is ", "[stage.classify]", "the manifest says"]).await;
    let sha256 = shown.run("sha256sum models/colours.labels.txt").await.ok().stdout;
    let old = manifest.rsplit("sha256 = \"").next().and_then(|rest| rest.split('"').next()).expect("a hash");
    shown.change("models/colours.toml", old, &sha256[..64]);
    let words = ["it has 2 labels, and the model `colours` gives 8 numbers", "[stage.classify]", "colours.labels.txt"];
    shown.refused(&words).await;
    // Where the whole model runs in `extract`, that is who says so.
    shown.change("colours.toml", "output = \"mean\"\n", "");
    shown.refused(&["it has 2 labels, and the model `colours` gives 8 numbers", "[stage.extract]"]).await;
}

#[tokio::test]
async fn a_model_with_another_input_or_output_is_refused() {
    let shown = Shown::made().await;
    shown.change("models/colours.toml", "size = [48, 32]", "size = [64, 64]");
    let words = [
        "cannot use the model `colours` here",
        "[stage.extract]",
        "`image` f32 [1, 64, 64, 3]",
        "`image` f32 [N, 32, 48, 3]",
    ];
    shown.refused(&words).await;
    shown.change("models/colours.toml", "size = [64, 64]", "size = [48, 32]");
    shown.change("models/colours.toml", "layout = \"nhwc\"", "layout = \"nchw\"");
    shown.refused(&["cannot use the model `colours` here", "`image` f32 [1, 3, 32, 48]"]).await;
    shown.change("models/colours.toml", "layout = \"nchw\"", "layout = \"nhwc\"");
    shown.change("models/colours.toml", "name = \"probability\"", "name = \"probabilities\"");
    shown.refused(&["[stage.classify]", "it has no tensor `probabilities`; did you mean `probability`?"]).await;
}

#[tokio::test]
async fn a_model_of_another_type_is_refused() {
    let shown = Shown::made().await;
    // The same model, but for bytes.
    let script = "import onnx; m = onnx.load('models/colours.onnx'); g = m.graph; \
                  g.input[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8; \
                  g.node.insert(0, onnx.helper.make_node('Cast', ['image'], ['floats'], to=1)); g.node[1].input[0] = 'floats'; \
                  onnx.save(m, 'models/colours.onnx')";
    shown.run(&format!("python -c \"{script}\"")).await.ok();
    shown.refused(&["cannot trust ", "colours.onnx", "SHA-256"]).await;
    let sha256 = shown.run("sha256sum models/colours.onnx").await.ok().stdout;
    let manifest = std::fs::read_to_string(shown.file("models/colours.toml")).expect("the manifest");
    let old = manifest.split("sha256 = \"").nth(1).and_then(|rest| rest.split('"').next()).expect("a hash");
    shown.change("models/colours.toml", old, &sha256[..64]);
    shown
        .refused(&["cannot use the model `colours` here", "`image` f32 [1, 32, 48, 3]", "`image` u8 [N, 32, 48, 3]"])
        .await;
}

#[tokio::test]
async fn a_cut_that_is_not_there_is_told_with_those_that_are() {
    let shown = Shown::made().await;
    shown.change("colours.toml", "output = \"mean\"", "output = \"means\"");
    // Both ends look for it; whichever is first says so.
    shown.refused(&["causeway: cannot run", "it has no tensor `means`; did you mean `mean`?", "`likeness`"]).await;
}

#[tokio::test]
async fn a_manifest_without_what_a_classifier_needs_is_refused() {
    let shown = Shown::made().await;
    let manifest = std::fs::read_to_string(shown.file("models/colours.toml")).expect("the manifest");
    let (before, rest) = manifest.split_once("[input]").expect("the table");
    let (_, after) = rest.split_once("[output]").expect("the table");
    std::fs::write(shown.file("models/colours.toml"), format!("{before}[output]{after}")).expect("it is written");
    shown.refused(&["the table `[input]` is missing", "models/colours.toml"]).await;
    // No detector, and nothing that says what it sees.
    let text = manifest.replace("task = \"classify\"", "task = \"detect\"");
    std::fs::write(shown.file("models/colours.toml"), text).expect("it is written");
    shown.refused(&["cannot use the model `colours` here"]).await;
}

#[tokio::test]
async fn two_ends_of_different_models_are_told_by_validate() {
    let shown = Shown::made().await;
    shown.change("colours.toml", "model = \"colours\"\ntop_k", "model = \"shapes\"\ninput = \"likeness\"\ntop_k");
    let finished = shown.run("causeway validate colours.toml || exit $?").await;
    assert_eq!(finished.code, Some(64), "{finished:?}");
    for word in [
        "`extract` gives tensors of the model `colours`",
        "rest of `shapes`",
        "`input` is `likeness`, and `extract` gives `mean`",
    ] {
        let said = finished.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(said.contains(word), "`{word}` is not in {}", finished.stderr);
    }
}
