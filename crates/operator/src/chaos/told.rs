use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use causeway_schemas::Id;
use serde_json::{Value, json};

use super::plan::Fault;
use crate::terminal::{count, print_line, table};

/// Most ids and subjects that are named to a person.
const NAMED: usize = 10;

/// How a fault was recovered from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Recovery {
    /// All that was held had its outcomes after this long.
    Took(Duration),
    /// Something had not in the time that it has.
    Never,
    /// Nothing was held, or it is not measured.
    Unknown,
}

/// What happened.
#[derive(Debug)]
pub(super) struct Told {
    seed: u64,
    began: Instant,
    kills: usize,
    faults: BTreeMap<String, Faults>,
    captured: usize,
    missing: Vec<Id>,
    doubled: Vec<String>,
}

/// All of a name.
#[derive(Debug, Default)]
struct Faults {
    times: usize,
    never: usize,
    /// Seconds.
    warm: Vec<f64>,
    restart: Vec<f64>,
}

impl Told {
    pub(super) fn new(seed: u64) -> Self {
        let (faults, missing, doubled) = (BTreeMap::new(), Vec::new(), Vec::new());
        Self { seed, began: Instant::now(), kills: 0, faults, captured: 0, missing, doubled }
    }

    pub(super) fn note(&mut self, fault: &Fault, is_warm: bool, recovery: Recovery) {
        self.kills += usize::from(fault.sort.is_kill());
        let faults = self.faults.entry(fault.name()).or_default();
        faults.times += 1;
        match recovery {
            Recovery::Took(took) if is_warm => faults.warm.push(took.as_secs_f64()),
            Recovery::Took(took) => faults.restart.push(took.as_secs_f64()),
            Recovery::Never => faults.never += 1,
            Recovery::Unknown => {}
        }
    }

    pub(super) fn end(&mut self, captured: usize, missing: Vec<Id>, doubled: Vec<String>) {
        (self.captured, self.missing, self.doubled) = (captured, missing, doubled);
    }

    pub(super) fn is_well(&self) -> bool {
        self.missing.is_empty() && self.doubled.is_empty() && self.faults.values().all(|faults| faults.never == 0)
    }

    pub(super) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            print_line(self.to_json())?;
            return Ok(());
        }
        let row = |(name, faults): (&String, &Faults)| {
            let (warm, restart) = (Times::of(&faults.warm), Times::of(&faults.restart));
            let times = [warm.median, warm.worst, restart.median, restart.worst];
            let mut row = vec![name.clone(), faults.times.to_string()];
            row.extend(times.map(|time| time.map_or("–".into(), |time| format!("{time:.2} s"))));
            row.push(faults.never.to_string());
            row
        };
        let head = ["fault", "times", "warm: median", "worst", "restart: median", "worst", "not recovered"];
        print_line(table(&head, &[1, 2, 3, 4, 5, 6], self.faults.iter().map(row).collect()))?;
        print_line(format_args!(
            "{} captured: {} missing, {} doubled; {} in {:.0} s, --seed {}",
            self.captured,
            self.missing.len(),
            self.doubled.len(),
            count(self.faults.values().map(|faults| faults.times).sum(), "fault"),
            self.began.elapsed().as_secs_f64(),
            self.seed
        ))?;
        for id in self.missing.iter().take(NAMED) {
            print_line(format_args!("missing: {id}; `causeway reconcile` runs it again"))?;
        }
        for subject in self.doubled.iter().take(NAMED) {
            print_line(format_args!("doubled: {subject}"))?;
        }
        Ok(())
    }

    fn to_json(&self) -> Value {
        let all = |of: fn(&Faults) -> &Vec<f64>| -> Vec<f64> { self.faults.values().flat_map(of).copied().collect() };
        let by = |(name, faults): (&String, &Faults)| {
            let (warm, restart) = (Times::of(&faults.warm), Times::of(&faults.restart));
            let times = json!({
                "times": faults.times,
                "not_recovered": faults.never,
                "warm_s": { "measured": faults.warm.len(), "median": warm.median, "worst": warm.worst },
                "restart_s": { "measured": faults.restart.len(), "median": restart.median, "worst": restart.worst },
            });
            (name.clone(), times)
        };
        json!({
            "seed": self.seed,
            "kills": self.kills,
            "captured": self.captured,
            "missing": self.missing.len(),
            "doubled": self.doubled.len(),
            "missing_ids": self.missing.iter().map(Id::to_string).collect::<Vec<_>>(),
            "doubled_subjects": self.doubled,
            "worst_recovery_warm_s": Times::of(&all(|faults| &faults.warm)).worst,
            "worst_recovery_restart_s": Times::of(&all(|faults| &faults.restart)).worst,
            "faults": self.faults.iter().map(by).collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Of some times, seconds.
struct Times {
    median: Option<f64>,
    worst: Option<f64>,
}

impl Times {
    fn of(times: &[f64]) -> Self {
        let mut sorted = times.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { median: sorted.get(sorted.len() / 2).copied(), worst: sorted.last().copied() }
    }
}
