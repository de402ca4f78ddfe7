//! What the kernel says of the machine and its processes.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};

/// How long the machine is watched before anything is measured.
const WATCH: Duration = Duration::from_secs(3);
/// More of all cores in use by others than this, and the figures would be theirs.
const QUIET: f64 = 0.10;

/// How much of the machine others use, 0..1. An error when that is too much, unless `anyway`.
pub(crate) fn quiet(anyway: bool) -> anyhow::Result<f64> {
    let before = busy_and_all()?;
    std::thread::sleep(if anyway { WATCH / 3 } else { WATCH });
    let after = busy_and_all()?;
    let load = (after.0 - before.0) / (after.1 - before.1).max(1.0);
    if load > QUIET && !anyway {
        bail!(
            "cannot measure: others use {:.0} % of this machine's cores; stop them and run this again, or measure anyway with \
             --anyway",
            100.0 * load
        );
    }
    Ok(load)
}

/// Cores.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The processor's name.
pub(crate) fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    name.unwrap_or("an unnamed processor").trim().to_owned()
}

/// Clock ticks of all cores since boot: in use, and all. First line of /proc/stat; the fourth and fifth number are idle.
fn busy_and_all() -> anyhow::Result<(f64, f64)> {
    let text = std::fs::read_to_string("/proc/stat").context("cannot tell how busy the machine is")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).take(8).filter_map(|number| number.parse().ok()).collect();
    let all: f64 = ticks.iter().sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}

/// What a process has used.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Usage {
    /// Resident memory, MB (10⁶ bytes).
    pub(crate) rss_mb: f64,
    /// Time on a core, user and system together, seconds.
    pub(crate) cpu_s: f64,
}

/// Clock ticks a second: `USER_HZ`, 100 on every Linux that matters here.
const TICKS: f64 = 100.0;

/// What a process uses; nothing once it has ended.
pub(crate) fn usage(pid: u32) -> Usage {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let pages: f64 = read("statm").split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
    let stat = read("stat");
    let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    // Fields 14 and 15 of the line; two stand before the `)`.
    Usage { rss_mb: pages * 4096.0 / 1e6, cpu_s: (ticks(11) + ticks(12)) / TICKS }
}

/// What several processes use, by name; those of one name are added up.
pub(crate) fn usages(processes: &[(String, u32)]) -> BTreeMap<String, Usage> {
    let mut usages = BTreeMap::<String, Usage>::new();
    for (name, pid) in processes {
        let used = usage(*pid);
        let sum = usages.entry(name.clone()).or_default();
        sum.rss_mb += used.rss_mb;
        sum.cpu_s += used.cpu_s;
    }
    usages
}
