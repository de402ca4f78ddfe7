//! What an editor shows of a pipeline file: the real language server, fed with the schema of the repository and nothing else.

use std::process::Stdio;

use harness::{eventually, workspace};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A pipeline as it is while somebody types: `¦` marks where.
const TYPED: &str = r#"#:schema ../schemas/pipeline.schema.json
pipeline = "door"
[stage.capture]
¦
[stage.preprocess]
from = "capture"
model = "yunet"
gate = { min_score = 0.8 }
[stage.who]
uses = "classify"
threshold = 0.4
from = "extract"
workers = 9000
"#;

/// `taplo lsp`, which speaks JSON-RPC over stdio.
struct Editor {
    _child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    uri: String,
    requests: u64,
    /// What the server last said is wrong with the file.
    diagnostics: Option<Value>,
}

impl Editor {
    /// Opens the text as a file of the folder of pipelines; nothing where there is no language server to be had.
    async fn open(text: &str) -> Option<Self> {
        let mut command = Command::new("taplo");
        command.args(["lsp", "stdio"]).current_dir(workspace()).kill_on_drop(true);
        // Whatever it wants from the net, it does not get.
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            command.env(proxy, "http://127.0.0.1:9");
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        let Ok(mut child) = spawned else {
            assert!(std::env::var_os("CI").is_none(), "taplo is missing: ./dev brings it");
            eprintln!("skipped: there is no taplo here (./dev brings it where there is a build of it)");
            return None;
        };
        let (stdin, stdout) =
            (child.stdin.take().expect("stdin"), BufReader::new(child.stdout.take().expect("stdout")));
        let uri = format!("file://{}", workspace().join("pipelines/typed.toml").display());
        let mut editor = Self { _child: child, stdin, stdout, uri, requests: 0, diagnostics: None };
        let root = format!("file://{}", workspace().display());
        editor
            .ask(
                "initialize",
                json!({
                    "processId": std::process::id(),
                    "rootUri": root,
                    "workspaceFolders": [{ "uri": root, "name": "causeway" }],
                    "capabilities": { "workspace": { "configuration": true, "workspaceFolders": true } },
                    "initializationOptions": { "configurationSection": "evenBetterToml" },
                }),
            )
            .await;
        editor.tell("initialized", json!({})).await;
        let document = json!({ "uri": editor.uri, "languageId": "toml", "version": 1, "text": text });
        editor.tell("textDocument/didOpen", json!({ "textDocument": document })).await;
        Some(editor)
    }

    async fn send(&mut self, message: Value) {
        let body = message.to_string();
        let text = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.stdin.write_all(text.as_bytes()).await.expect("the server reads");
    }

    async fn tell(&mut self, method: &str, params: Value) {
        self.send(json!({ "jsonrpc": "2.0", "method": method, "params": params })).await;
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.requests += 1;
        let id = self.requests;
        self.send(json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })).await;
        loop {
            let message = self.next().await;
            if message["id"] == id && message.get("method").is_none() {
                assert!(message.get("error").is_none(), "{message}");
                return message["result"].clone();
            }
        }
    }

    /// The next message; what the server asks is answered, what it says of the file is kept.
    async fn next(&mut self) -> Value {
        let mut length = 0;
        loop {
            let mut line = String::new();
            assert!(self.stdout.read_line(&mut line).await.expect("it speaks") > 0, "the server ended");
            match line.trim().split_once(": ") {
                Some(("Content-Length", value)) => length = value.parse().expect("a length"),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        self.stdout.read_exact(&mut body).await.expect("a whole message");
        let message: Value = serde_json::from_slice(&body).expect("JSON");
        if message.get("method").is_some() && message.get("id").is_some() {
            let settings = json!({ "schema": { "enabled": true, "catalogs": [], "links": false } });
            let asked = message["params"]["items"].as_array().map_or(0, Vec::len);
            let answer =
                if message["method"] == "workspace/configuration" { json!(vec![settings; asked]) } else { Value::Null };
            self.send(json!({ "jsonrpc": "2.0", "id": message["id"], "result": answer })).await;
        }
        if message["method"] == "textDocument/publishDiagnostics" && message["params"]["uri"] == self.uri {
            self.diagnostics = Some(message["params"]["diagnostics"].clone());
        }
        message
    }

    async fn at(&mut self, method: &str, line: usize, column: usize) -> Value {
        let place = json!({ "textDocument": { "uri": self.uri }, "position": { "line": line, "character": column } });
        self.ask(method, place).await
    }

    /// What stands in the box over a word of the file.
    async fn hover(&mut self, text: &str, word: &str) -> String {
        let (line, column) = place(text, word);
        let hover = self.at("textDocument/hover", line, column + 1).await;
        hover["contents"]["value"].as_str().unwrap_or_default().to_owned()
    }
}

/// Line and column of a word, from 0.
fn place(text: &str, word: &str) -> (usize, usize) {
    let at = text.find(word).unwrap_or_else(|| panic!("{word} is in the text"));
    let line_start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    (text[..at].matches('\n').count(), at - line_start)
}

#[tokio::test]
async fn keys_are_completed_explained_and_judged() {
    let (line, column) = place(TYPED, "¦");
    let text = TYPED.replace('¦', "");
    let Some(mut editor) = Editor::open(&text).await else { return };

    // The schema is read in the background: the first answers may be none.
    let completions = eventually("completions", async || {
        let found = editor.at("textDocument/completion", line, column).await;
        found.as_array().filter(|found| !found.is_empty()).cloned()
    })
    .await;
    let labels: Vec<&str> = completions.iter().filter_map(|one| one["label"].as_str()).collect();
    for key in ["input", "rate", "max_pixels", "workers", "emits"] {
        assert!(labels.contains(&key), "{key} is not offered: {labels:?}");
    }
    for key in ["model", "from", "threshold", "input_size"] {
        assert!(!labels.contains(&key), "{key} is no key of capture: {labels:?}");
    }
    let rate = completions.iter().find(|one| one["label"] == "rate").expect("it was offered");
    let documentation = rate["documentation"]["value"].as_str().unwrap_or_default();
    assert!(documentation.contains("pictures a second"), "{rate}");

    let model = editor.hover(&text, "model").await;
    assert!(model.contains("The detector"), "{model}");
    let gate = editor.hover(&text, "min_score").await;
    assert!(gate.contains("Detector score"), "{gate}");
    let threshold = editor.hover(&text, "threshold").await;
    assert!(threshold.contains("Unknown below this cosine"), "{threshold}");

    while editor.diagnostics.as_ref().and_then(Value::as_array).is_none_or(Vec::is_empty) {
        editor.next().await;
    }
    let said = editor.diagnostics.expect("it came").to_string();
    assert!(said.contains("9000"), "{said}");
}
