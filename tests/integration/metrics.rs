//! Metrics as a real Prometheus reads them: found, scraped, well named, with exemplars; and the alert rules as its own tool tests
//! them.

use std::process::Stdio;

use harness::{Collector, Prometheus, Running, Tools, copy_photos, debian_program, eventually, http_get, workspace};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

async fn promtool(arguments: &[&str]) -> Option<()> {
    let promtool = debian_program("promtool", "prometheus")?;
    let output = Command::new(promtool).args(arguments).current_dir(workspace()).output().await.expect("it can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    Some(())
}

#[tokio::test]
async fn the_alert_rules_do_what_their_tests_say() {
    for arguments in [
        ["check", "config", "deploy/prometheus/prometheus.yml"],
        ["check", "rules", "deploy/prometheus/rules.yml"],
        ["test", "rules", "deploy/prometheus/rules.test.yml"],
    ] {
        if promtool(&arguments).await.is_none() {
            return;
        }
    }
}

#[test]
fn every_alert_has_a_test_a_fault_and_a_line_in_the_docs() {
    let read = |path: &str| std::fs::read_to_string(workspace().join(path)).expect("a file");
    let rules = read("deploy/prometheus/rules.yml");
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let files = ["deploy/prometheus/rules.test.yml", "tests/integration/alerts.rs", "docs/observability.md"];
    for file in files {
        let text = read(file);
        for alert in &alerts {
            assert!(text.contains(alert), "{file} has no {alert}");
        }
    }
}

/// What one target of `prometheus-targets.json` is called, and where it answers.
async fn targets(home: &std::path::Path) -> Option<Vec<(String, String)>> {
    let text = tokio::fs::read(home.join("prometheus-targets.json")).await.ok()?;
    let targets: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let targets = targets.as_array()?.iter();
    let text = |value: &serde_json::Value| value.as_str().map(ToOwned::to_owned);
    targets.map(|target| Some((text(&target["labels"]["process"])?, text(&target["targets"][0])?))).collect()
}

#[tokio::test]
async fn prometheus_finds_and_reads_every_process() {
    let tools = Tools::find();
    let (input, home) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let Some(prometheus) = Prometheus::start(home.path()).await else { return };
    let Some(collector) = Collector::start().await else { return };
    let photos = copy_photos(&tools, input.path(), 1);
    let input = input.path().to_str().expect("a path");
    let running =
        Running::start_in(&tools, home.path(), &["up", "pipelines/faces.toml", "--input", input], &[collector.env()]);
    let all = ["classify", "cluster", "extract", "preprocess", "up"];
    eventually("all targets", async || {
        let up = prometheus.up().await;
        all.iter().all(|name| up.iter().any(|target| target == name)).then_some(())
    })
    .await;
    let handled = "causeway_stage_messages_total{stage=\"preprocess\",result=\"handled\"}";
    eventually("all photos", async || prometheus.value(handled).await.filter(|&value| value >= photos as f64)).await;
    for (query, least) in [
        ("causeway_stream_stored_messages_total{stage=\"capture\"}", photos as f64),
        ("causeway_stage_queue_seconds_count{stage=\"extract\"}", 1.0),
        ("causeway_stage_publish_seconds_count{stage=\"extract\"}", 1.0),
        ("causeway_stage_ack_seconds_count{stage=\"extract\"}", 1.0),
        ("causeway_model_run_seconds_count{stage=\"extract\",model=\"sface\"}", 1.0),
        ("causeway_model_info{stage=\"preprocess\",model=\"yunet\"}", 1.0),
        ("causeway_stage_process_limit_seconds{stage=\"extract\"}", 30.0),
        ("causeway_replicas{stage=\"classify\"}", 1.0),
        ("causeway_restarts_total{stage=\"classify\"}", 0.0),
        ("causeway_durable_waiting_pulls{stage=\"classify\",from=\"extract\"}", 0.0),
        ("causeway_stream_limit_bytes{stage=\"preprocess\",sort=\"link\"}", 1e6),
        ("causeway_spans_exported_total{stage=\"preprocess\"}", 1.0),
        ("process_resident_memory_bytes{process=\"extract\"}", 1e6),
        ("process_cpu_seconds_total{process=\"extract\"}", 0.0),
        ("count(causeway_build_info)", 5.0),
    ] {
        eventually(query, async || prometheus.value(query).await.filter(|&value| value >= least)).await;
    }
    assert_exemplar_is_a_trace(&prometheus, &collector).await;

    for (process, address) in targets(home.path()).await.expect("targets") {
        let text = http_get(&address, "/metrics").await.expect("metrics");
        lint(&process, &text).await;
    }
    running.stop().await.ok();
    assert_eq!(targets(home.path()).await, Some(vec![]), "nothing is left to scrape");
}

/// The histogram of process times names traces that the collector has.
async fn assert_exemplar_is_a_trace(prometheus: &Prometheus, collector: &Collector) {
    let query = "query_exemplars?query=causeway_stage_process_seconds_bucket&start=0&end=9999999999";
    let trace = eventually("an exemplar", async || {
        let data = prometheus.api(query).await?;
        let series = data.as_array()?.iter().find(|series| series["seriesLabels"]["stage"] == "extract")?.clone();
        Some(series["exemplars"][0]["labels"]["trace_id"].as_str()?.to_owned())
    })
    .await;
    collector.spans_once("its trace", |spans| spans.iter().any(|span| span.trace == trace)).await;
}

/// Names, units and help texts as Prometheus' own tool wants them.
async fn lint(process: &str, text: &str) {
    let Some(promtool) = debian_program("promtool", "prometheus") else { return };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it can be run");
    let mut stdin = child.stdin.take().expect("its input");
    stdin.write_all(text.as_bytes()).await.expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{process}: {said}\n{text}");
}
