use std::time::Duration;

use clap::ValueEnum;

/// A sort of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Sort {
    /// Kill a stage (SIGKILL)
    Stage,
    /// Kill all stages at once
    All,
    /// Kill nats-server
    Server,
    /// Stop a stage for longer than the ack wait (SIGSTOP), then let it go on: a zombie
    Pause,
    /// Stop nats-server for as long: a broker that hangs
    PauseServer,
}

/// What is done, after a pause.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Fault {
    pub(super) after: Duration,
    pub(super) sort: Sort,
    /// Whom it is done to: one stage, or all of them; of a server, all depend on it.
    pub(super) stages: Vec<String>,
    /// The site whose server it is done to.
    pub(super) server: Option<String>,
    /// Whether there are servers of several sites.
    is_one_of_many: bool,
}

/// Whom harm may be done to.
pub(super) struct Whom<'a> {
    pub(super) stages: &'a [String],
    /// Sites, by their servers.
    pub(super) servers: &'a [String],
}

impl Sort {
    pub(super) fn is_kill(self) -> bool {
        matches!(self, Self::Stage | Self::All | Self::Server)
    }
}

impl Fault {
    /// `kill extract`, `pause nats-server`.
    pub(super) fn name(&self) -> String {
        let stage = || self.stages.first().map_or("", String::as_str);
        let site = self.server.as_ref().filter(|_| self.is_one_of_many);
        let at = site.map_or(String::new(), |site| format!(" at {site}"));
        match self.sort {
            Sort::Stage => format!("kill {}", stage()),
            Sort::All => "kill all stages".into(),
            Sort::Server => format!("kill nats-server{at}"),
            Sort::Pause => format!("pause {}", stage()),
            Sort::PauseServer => format!("pause nats-server{at}"),
        }
    }
}

/// So many faults, of these sorts in turn, at stages and servers in turn; which comes when follows from the seed alone. In turn and then
/// shuffled, so that each has its share: a stage that chance passes over proves nothing.
pub(super) fn plan(seed: u64, count: usize, every: Duration, sorts: &[Sort], whom: &Whom<'_>) -> Vec<Fault> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let fault = |number: usize| {
        let (sort, turn) = (sorts[number % sorts.len()], number / sorts.len());
        let in_turn = |of: &[String]| of[turn % of.len()].clone();
        let (stages, server) = match sort {
            Sort::Stage | Sort::Pause => (vec![in_turn(whom.stages)], None),
            Sort::All => (whom.stages.to_vec(), None),
            Sort::Server | Sort::PauseServer => (whom.stages.to_vec(), Some(in_turn(whom.servers))),
        };
        Fault { after: every, sort, stages, server, is_one_of_many: whom.servers.len() > 1 }
    };
    let mut faults: Vec<Fault> = (0..count).map(fault).collect();
    chance.shuffle(&mut faults);
    for fault in &mut faults {
        fault.after = every.mul_f64(0.5 + chance.f64());
    }
    faults
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_each_has_its_share() {
        let stages = ["extract", "classify"].map(str::to_owned);
        let sorts = [Sort::Stage, Sort::Server];
        let servers = ["edge".to_owned()];
        let whom = Whom { stages: &stages, servers: &servers };
        let made = |seed| plan(seed, 40, Duration::from_secs(1), &sorts, &whom);
        assert_eq!(made(7), made(7));
        assert_ne!(made(7), made(8));
        let mut shares: BTreeMap<String, usize> = BTreeMap::new();
        for fault in made(7) {
            *shares.entry(fault.name()).or_default() += 1;
            assert!((0.5..1.5).contains(&fault.after.as_secs_f64()));
        }
        let expected = [("kill classify", 10), ("kill extract", 10), ("kill nats-server", 20)];
        assert_eq!(shares, expected.map(|(name, times)| (name.to_owned(), times)).into());
        let servers = ["edge", "cloud"].map(str::to_owned);
        let whom = Whom { stages: &stages, servers: &servers };
        let many = plan(7, 8, Duration::from_secs(1), &sorts, &whom);
        assert_eq!(many.iter().filter(|fault| fault.name() == "kill nats-server at cloud").count(), 2);
    }
}
