use std::collections::BTreeMap;

/// A set of places in a stream that mostly stand side by side: what it takes is that of their gaps. Of each range it knows how old
/// its newest message is: a stream that was set back gives a number again, to a message that is newer than all that had it.
#[derive(Debug, Default)]
pub(super) struct Ranges(BTreeMap<u64, Range>);

/// To the last number of a range, and when its newest message was stored, Unix ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    last: u64,
    newest: u64,
}

impl Ranges {
    /// Whether the message of this number that was stored then is in it.
    pub(super) fn contains(&self, number: u64, stored_at: u64) -> bool {
        self.range_of(number).is_some_and(|(_, range)| stored_at <= range.newest)
    }

    fn range_of(&self, number: u64) -> Option<(u64, Range)> {
        let (&first, &range) = self.0.range(..=number).next_back()?;
        (number <= range.last).then_some((first, range))
    }

    pub(super) fn insert(&mut self, number: u64, stored_at: u64) {
        if let Some((first, range)) = self.range_of(number) {
            self.0.insert(first, Range { newest: range.newest.max(stored_at), ..range });
            return;
        }
        let mut range = Range { last: number, newest: stored_at };
        if let Some(after) = number.checked_add(1).and_then(|next| self.0.remove(&next)) {
            range = Range { last: after.last, newest: after.newest.max(stored_at) };
        }
        let before = self.0.range(..number).next_back().filter(|(_, before)| before.last + 1 == number);
        let (first, newest) = before.map_or((number, 0), |(&first, before)| (first, before.newest));
        self.0.insert(first, Range { newest: range.newest.max(newest), ..range });
    }

    /// Takes a number out, if it is there.
    pub(super) fn remove(&mut self, number: u64) {
        let Some((first, range)) = self.range_of(number) else { return };
        self.0.remove(&first);
        if first < number {
            self.0.insert(first, Range { last: number - 1, ..range });
        }
        if number < range.last {
            self.0.insert(number + 1, range);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn it_is_a_set() {
        let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
        let mut state = 1_u64;
        for _ in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 40) % 300;
            if state >> 63 == 0 {
                ranges.insert(number, 1);
                set.insert(number);
            } else {
                ranges.remove(number);
                set.remove(&number);
            }
        }
        for number in 0..300 {
            assert_eq!(ranges.contains(number, 1), set.contains(&number), "{number}");
        }
        let gaps = set.iter().filter(|&&number| !set.contains(&(number + 1))).count();
        assert_eq!(ranges.0.len(), gaps, "side by side is one range");
    }

    #[test]
    fn a_number_that_was_given_again_is_another_message() {
        let mut ranges = Ranges::default();
        for number in 10..20 {
            ranges.insert(number, 100 + number);
        }
        assert!(ranges.contains(15, 115));
        assert!(!ranges.contains(15, 200), "the stream was set back");
    }
}
