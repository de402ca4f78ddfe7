use std::collections::HashMap;

use anyhow::{Context as _, ensure};
use causeway_schemas::Id;

/// Inputs whose changes are gone and that are remembered all the same. More than outcomes are held against the changelog at a start,
/// so that none of those is called lost.
const MARGIN: u64 = 10_000;

/// Which inputs the state had, each with the place of its change in the changelog. As far back as the changelog goes, and a little
/// further: what is older comes as a new one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Known {
    changes: HashMap<Id, u64>,
    /// There were others.
    forgot: bool,
}

impl Known {
    pub(crate) fn get(&self, input: Id) -> Option<u64> {
        self.changes.get(&input).copied()
    }

    pub(crate) fn insert(&mut self, input: Id, sequence: u64) {
        self.changes.insert(input, sequence);
    }

    /// Whether inputs were forgotten.
    pub(crate) fn forgot(&self) -> bool {
        self.forgot
    }

    /// The changelog begins with `first` now.
    pub(crate) fn forget_before(&mut self, first: u64) {
        let oldest = first.saturating_sub(MARGIN);
        let before = self.changes.len();
        self.changes.retain(|_, sequence| *sequence >= oldest);
        self.forgot |= self.changes.len() < before;
        // A map never gives back what it grew to.
        if self.changes.capacity() > 4 * self.changes.len().max(1024) {
            self.changes.shrink_to_fit();
        }
    }

    /// One byte, then each input with its place, both as they are.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + ENTRY * self.changes.len());
        bytes.push(self.forgot.into());
        for (input, sequence) in &self.changes {
            bytes.extend_from_slice(&input.bits().to_le_bytes());
            bytes.extend_from_slice(&sequence.to_le_bytes());
        }
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        let (&forgot, entries) = bytes.split_first().context("it is empty")?;
        let (entries, rest) = entries.as_chunks::<ENTRY>();
        ensure!(rest.is_empty(), "{} bytes are left over", rest.len());
        let entry = |entry: &[u8; ENTRY]| {
            let (input, sequence) = entry.split_at(ENTRY - 8);
            let input = u128::from_le_bytes(input.try_into().expect("16 bytes"));
            (Id::from_bits(input), u64::from_le_bytes(sequence.try_into().expect("8 bytes")))
        };
        Ok(Self { changes: entries.iter().map(entry).collect(), forgot: forgot != 0 })
    }
}

/// Bytes of an id and of a place.
const ENTRY: usize = 16 + 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn known(from: u64, to: u64) -> Known {
        let mut known = Known::default();
        (from..=to).for_each(|number| known.insert(Id::stored("test", number), number));
        known
    }

    #[test]
    fn what_the_changelog_has_is_remembered_and_a_little_more() {
        let mut known = known(1, 30_000);
        known.forget_before(5_000);
        assert!(!known.forgot() && known.get(Id::stored("test", 1)) == Some(1));
        known.forget_before(20_001);
        assert_eq!((known.forgot(), known.changes.len()), (true, 20_000));
        assert_eq!(known.get(Id::stored("test", 10_000)), None);
        assert_eq!(known.get(Id::stored("test", 10_001)), Some(10_001));
    }

    #[test]
    fn it_survives_a_snapshot_and_no_other_bytes() {
        let mut some = known(1, 12_000);
        some.forget_before(11_000);
        let bytes = some.to_bytes();
        assert_eq!(Known::from_bytes(&bytes).unwrap(), some);
        assert_eq!(Known::from_bytes(&Known::default().to_bytes()).unwrap(), Known::default());
        assert!(Known::from_bytes(&[]).is_err() && Known::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    }
}
