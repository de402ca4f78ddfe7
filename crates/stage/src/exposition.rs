//! Metrics as Prometheus reads them: `OpenMetrics` with exemplars for whoever asks for it, else the classic text, which is made of
//! it; and what every process of ours says of itself.

use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a scrape.
pub fn answer(registry: &Registry, asked: &HeaderMap) -> impl IntoResponse + use<> {
    let accepted = asked.get(header::ACCEPT).and_then(|accepted| accepted.to_str().ok()).unwrap_or_default();
    let mut text = String::new();
    let _ = prometheus_client::encoding::text::encode(&mut text, registry);
    let (kind, text) = if accepted.contains("application/openmetrics-text") {
        (OPEN_METRICS, text)
    } else {
        (CLASSIC, classic(&text))
    };
    ([(header::CONTENT_TYPE, kind)], text)
}

/// What every process says of itself: its version, its memory, its processor time, since when it runs. The names are those that
/// Prometheus' own clients use (<https://prometheus.io/docs/instrumenting/writing_clientlibs/#process-metrics>).
pub fn register_process(registry: &mut Registry) {
    #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Build {
        version: &'static str,
    }
    let build = Family::<Build, Gauge>::default();
    build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("causeway_build_info", "1, with the version", build);
    registry.register_collector(Box::new(Process));
}

/// Read out of /proc at each scrape.
#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        if let Some(rss) = rss() {
            let gauge = ConstGauge::new(rss as f64);
            let name = "process_resident_memory";
            let unit = prometheus_client::registry::Unit::Bytes;
            gauge.encode(encoder.encode_descriptor(name, "Resident memory", Some(&unit), gauge.metric_type())?)?;
        }
        if let Some((cpu, started)) = times() {
            let unit = prometheus_client::registry::Unit::Seconds;
            let cpu = ConstCounter::new(cpu);
            let help = "User and system processor time";
            cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&unit), cpu.metric_type())?)?;
            let started = ConstGauge::new(started);
            let help = "When it started, since the Unix epoch";
            started.encode(encoder.encode_descriptor(
                "process_start_time",
                help,
                Some(&unit),
                started.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

/// Resident memory of this process, bytes: the second number of /proc/self/statm, in pages of 4 KiB.
pub(crate) fn rss() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    statm.split(' ').nth(1)?.parse::<u64>().ok().map(|pages| pages * 4096)
}

/// Clock ticks a second in /proc: 100 on every Linux there is (`sysconf(_SC_CLK_TCK)`).
const TICKS: f64 = 100.0;

/// Processor time of this process, s, and when it started, Unix time in s: fields 14, 15 and 22 of /proc/self/stat, counted behind
/// the name, and the machine's start out of /proc/stat.
fn times() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place)?.parse::<f64>().ok();
    let machine = std::fs::read_to_string("/proc/stat").ok()?;
    let booted: f64 = machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(((ticks(11)? + ticks(12)?) / TICKS, booted + ticks(19)? / TICKS))
}

/// The classic text format out of `OpenMetrics`: counters are named with their `_total`, exemplars, units and the end go.
fn classic(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    let counters: Vec<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    for line in open.lines() {
        let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
        if let Some((name, rest)) = described.and_then(|described| described.split_once(' ')) {
            let total = if counters.contains(&name) && !name.ends_with("_total") { "_total" } else { "" };
            text.extend([&line[..7], name, total, " ", rest, "\n"]);
        } else if !line.starts_with('#') {
            let sample = line.split_once(" # {").map_or(line, |(sample, _)| sample);
            text.extend([sample, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_classic_text_is_made_of_open_metrics() {
        let open = "# HELP m Messages.\n# TYPE m counter\nm_total{a=\"# {\"} 3\n# HELP t_seconds Time.\n# TYPE t_seconds histogram\n\
                    # UNIT t_seconds seconds\nt_seconds_bucket{le=\"1.0\"} 1 # {trace_id=\"ab\"} 0.5\n# EOF\n";
        assert_eq!(
            classic(open),
            "# HELP m_total Messages.\n# TYPE m_total counter\nm_total{a=\"# {\"} 3\n# HELP t_seconds Time.\n\
             # TYPE t_seconds histogram\nt_seconds_bucket{le=\"1.0\"} 1\n"
        );
    }

    #[test]
    fn a_process_knows_its_memory_and_its_times() {
        assert!(rss().unwrap() > 1 << 20);
        let (cpu, started) = times().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(cpu >= 0.0 && started <= now + 1.0 && started > now - 3600.0, "{started} {now}");
    }
}
