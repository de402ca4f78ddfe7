//! What processes take.

use std::path::Path;

use harness::http_get;

/// The sum of a metric over all processes, or of one stage.
pub(crate) async fn sum(home: &Path, metric: &str, stage: Option<&str>) -> f64 {
    let text = tokio::fs::read(home.join("prometheus-targets.json")).await.unwrap_or_default();
    let targets: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let mut sum = 0.0;
    for target in targets.as_array().into_iter().flatten() {
        let process = target["labels"]["process"].as_str();
        let Some(address) = target["targets"][0].as_str().filter(|_| stage.is_none() || process == stage) else {
            continue;
        };
        let Some(text) = http_get(address, "/metrics").await else { continue };
        let is_asked =
            |line: &&str| line.starts_with(metric) && (stage.is_none() || line.contains("result=\"handled\""));
        let values = text.lines().filter(is_asked);
        sum += values.filter_map(|line| line.split(' ').nth(1)?.parse::<f64>().ok()).sum::<f64>();
    }
    sum
}

/// RSS in MB, and open files; `None` where there is no such process.
pub(crate) fn usage(pid: u32) -> Option<(f64, usize)> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: f64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some((pages * 4096.0 / 1e6, std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count()))
}

/// What a process, or a thread of this one, has computed so far, seconds.
pub(crate) fn cpu(of: &Path) -> f64 {
    let stat = std::fs::read_to_string(of.join("stat")).unwrap_or_default();
    // Behind the name, which may hold anything: `utime` and `stime`, fields 14 and 15, ticks of 10 ms.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// Of the line with the least squares.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let both: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    both / points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>()
}
