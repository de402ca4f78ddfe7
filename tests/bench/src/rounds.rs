//! Rounds: every contender once a round, every other round backwards (ABBA), so that what drifts hits all alike.

use std::collections::BTreeMap;

use anyhow::Context as _;

use crate::machine::Usage;

/// What one contender did in one round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Round {
    /// Items a second: photos, or messages.
    pub(crate) per_s: f64,
    /// What its processes used.
    pub(crate) usages: BTreeMap<String, Usage>,
    /// How many items it handled.
    pub(crate) items: usize,
}

/// All rounds of all contenders.
#[derive(Debug, Default)]
pub(crate) struct Rounds(BTreeMap<String, Vec<Round>>);

/// A median and how far the rounds lie apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of some numbers; `None` of none.
    pub(crate) fn of(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        let (&least, &most) = (numbers.first()?, numbers.last()?);
        let (low, high) = (numbers[(numbers.len() - 1) / 2], numbers[numbers.len() / 2]);
        Some(Self { median: f64::midpoint(low, high), least, most })
    }
}

impl Rounds {
    /// Runs `contenders` for as many rounds.
    pub(crate) async fn run<C: Copy + std::fmt::Display>(
        what: &str,
        rounds: usize,
        contenders: &[C],
        mut measure: impl AsyncFnMut(C) -> anyhow::Result<Round>,
    ) -> anyhow::Result<Self> {
        let mut all = Self::default();
        for round in 0..rounds {
            let mut order: Vec<C> = contenders.to_vec();
            if round % 2 == 1 {
                order.reverse();
            }
            for contender in order {
                let done = measure(contender).await.with_context(|| format!("cannot measure {contender}"))?;
                eprintln!("bench: {what}, round {}/{rounds}: {contender} {:.1}/s", round + 1, done.per_s);
                all.0.entry(contender.to_string()).or_default().push(done);
            }
        }
        Ok(all)
    }

    /// Its rounds; none for who did not run.
    pub(crate) fn of(&self, contender: &str) -> &[Round] {
        self.0.get(contender).map_or(&[], Vec::as_slice)
    }

    /// Items a second.
    pub(crate) fn per_s(&self, contender: &str) -> Option<Spread> {
        Spread::of(self.of(contender).iter().map(|round| round.per_s).collect())
    }

    /// How many times the one is as fast as the other, round by round.
    pub(crate) fn ratio(&self, one: &str, other: &str) -> Option<Spread> {
        let pairs = self.of(one).iter().zip(self.of(other));
        Spread::of(pairs.map(|(one, other)| one.per_s / other.per_s).collect())
    }

    /// The median over the rounds of what each process used, the time on a core as ms an item.
    pub(crate) fn usages(&self, contender: &str) -> Vec<(String, f64, f64)> {
        let rounds = self.of(contender);
        let Some(first) = rounds.first() else { return Vec::new() };
        let median = |name: &String, number: &dyn Fn(&Round, &Usage) -> f64| {
            let numbers = rounds.iter().filter_map(|round| Some(number(round, round.usages.get(name)?)));
            Spread::of(numbers.collect()).map_or(0.0, |spread| spread.median)
        };
        let of = |name: &String| {
            let cpu = median(name, &|round, usage| 1e3 * usage.cpu_s / round.items.max(1) as f64);
            (name.clone(), median(name, &|_, usage| usage.rss_mb), cpu)
        };
        first.usages.keys().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        let spread = Spread::of(vec![3.0, 1.0, 2.0, 10.0]).unwrap();
        let found = [spread.median, spread.least, spread.most];
        assert!(found.iter().zip([2.5, 1.0, 10.0]).all(|(found, wanted)| (found - wanted).abs() < 1e-9), "{spread:?}");
        assert!(Spread::of(Vec::new()).is_none());
    }

    #[tokio::test]
    async fn every_other_round_goes_backwards() {
        let mut order = String::new();
        let rounds = Rounds::run("test", 3, &['a', 'b'], async |contender| {
            order.push(contender);
            Ok(Round { per_s: if contender == 'a' { 4.0 } else { 2.0 }, ..Round::default() })
        });
        let rounds = rounds.await.unwrap();
        assert_eq!(order, "abbaab");
        assert!((rounds.ratio("a", "b").unwrap().median - 2.0).abs() < 1e-9);
    }
}
