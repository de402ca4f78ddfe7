//! The bench measures what it says: every figure is there and can be true. How large it is, no test says.

use std::process::Stdio;
use std::time::Duration;

use harness::Tools;
use serde_json::Value;
use tokio::process::Command;

/// The keys that a measurement may leave out, where the machine lacks the peers.
const PEERS: [&str; 6] = [
    "plumbing_2k_over_redis_python",
    "plumbing_2k_over_nats_python",
    "redis_python_per_s",
    "ours_over_redis_python",
    "nats_python_per_s",
    "ours_over_nats_python",
];

const FIGURES: [&str; 9] = [
    "plumbing_40k_over_server",
    "l0_per_s",
    "l1_per_s",
    "ours_per_s",
    "ours_over_l1",
    "ours_one_over_l1",
    "p50_ms",
    "p99_ms",
    "in_process_p99_ms",
];

/// Runs a smoke test; every key is there, those of `figures` and `peers` with a figure above zero.
async fn quick(more: &[&str], figures: &[&str], peers: &[&str]) -> Value {
    let tools = Tools::find();
    let mut command = Command::new(tools.program("causeway-bench"));
    command.args(["--quick", "--json"]).args(more).envs(tools.env.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_mins(4), command.output()).await;
    let output = output.expect("it ends in time").expect("it can be run");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let text = String::from_utf8(output.stdout).expect("text");
    let found: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("an object");
    let skipped = text.lines().find(|line| line.contains("peers skipped"));
    if let Some(why) = skipped {
        println!("{why}");
        assert!(std::env::var_os("CI").is_none(), "the peers have to run here: {why}");
    }
    for key in figures.iter().chain(peers.iter().filter(|_| skipped.is_none())) {
        let good = found[key].as_f64().is_some_and(|figure| figure > 0.0 && figure.is_finite());
        assert!(good, "{key}: {found}\n{said}");
    }
    for process in ["broker", "capture", "preprocess", "extract", "classify", "cluster"] {
        assert!(found["rss_mb"][process].as_f64().is_some_and(|mb| mb > 1.0), "{process}: {found}");
    }
    let object = found.as_object().expect("an object");
    assert!(FIGURES.iter().chain(&PEERS).all(|&key| object.contains_key(key)), "{found}");
    assert_eq!(object.len(), FIGURES.len() + PEERS.len() + 1, "no other keys: {found}");
    found
}

#[tokio::test]
async fn a_quick_bench_of_the_plumbing_has_its_figures() {
    quick(&["--only", "plumbing"], &FIGURES[..1], &PEERS[..2]).await;
}

#[tokio::test]
#[ignore = "half a minute and more"]
async fn a_quick_bench_has_every_figure() {
    let found = quick(&[], &FIGURES, &PEERS).await;
    let number = |key: &str| found[key].as_f64().expect("a number");
    let ratio = number("ours_per_s") / number("l1_per_s");
    assert!((ratio - number("ours_over_l1")).abs() < 0.01, "one round: the ratio is that of its rates: {found}");
    assert!(number("p50_ms") <= number("p99_ms"), "{found}");
}
