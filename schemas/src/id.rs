use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A logical id: 128 bits, written as 26 characters of Crockford's base 32 in lower case.
///
/// It is derived, never drawn: whoever handles the same input again, after a crash or elsewhere, ends on the same id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id([u8; 16]);

/// Crockford's base 32 (<https://www.crockford.com/base32.html>), lower case: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Characters of a written id: ⌈128 / 5⌉.
const WRITTEN_LEN: usize = 26;

impl Id {
    /// The id of a captured item: `H(source, item)`.
    pub fn captured(source: &str, item: &str) -> Self {
        Self::hash(&[b"captured", source.as_bytes(), item.as_bytes()])
    }

    /// The id of the output number `index` (from 0) that `stage` makes of the message `self`.
    #[must_use]
    pub fn derived(&self, stage: &str, index: usize) -> Self {
        Self::hash(&[b"derived", &self.0, stage.as_bytes(), &(index as u64).to_le_bytes()])
    }

    /// The id of a message that carries none: where it lies is all that names it.
    pub fn stored(stream: &str, sequence: u64) -> Self {
        Self::hash(&[b"stored", stream.as_bytes(), &sequence.to_le_bytes()])
    }

    /// The id as a number.
    pub fn bits(self) -> u128 {
        u128::from_be_bytes(self.0)
    }

    /// The id that `bits` gave.
    pub fn from_bits(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }

    /// SHA-256 over length-prefixed parts, cut to 128 bits; the prefix keeps `("ab", "c")` and `("a", "bc")` apart.
    fn hash(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let digest = hasher.finalize();
        let mut id = [0; 16];
        id.copy_from_slice(&digest[..16]);
        Self(id)
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = u128::from_be_bytes(self.0);
        let mut written = [0; WRITTEN_LEN];
        for (place, character) in written.iter_mut().rev().enumerate() {
            *character = ALPHABET[(bits >> (5 * place)) as usize & 31];
        }
        f.pad(std::str::from_utf8(&written).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is no id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an id: an id is 26 characters out of 0-9 a-z without i, l, o, u")]
pub struct IdError(String);

impl FromStr for Id {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let refuse = || IdError(text.chars().take(64).collect());
        // The first character carries 3 bits only: 26 × 5 is two more than 128.
        if text.len() != WRITTEN_LEN || text.as_bytes()[0] > b'7' {
            return Err(refuse());
        }
        let mut bits: u128 = 0;
        for character in text.bytes() {
            let digit = ALPHABET.iter().position(|&a| a == character).ok_or_else(refuse)?;
            bits = bits << 5 | digit as u128;
        }
        Ok(Self(bits.to_be_bytes()))
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() { serializer.collect_str(self) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.parse().map_err(serde::de::Error::custom)
        } else {
            <[u8; 16]>::deserialize(deserializer).map(Self)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed by another program, out of the description of `hash`.
    #[test]
    fn ids_are_what_they_were() {
        let photo = Id::captured("photos", "a.jpg");
        assert_eq!(photo.to_string(), "6wnh8zegqqnykccwbcjay92cvy");
        assert_eq!(photo.derived("preprocess", 0).to_string(), "231s0stjah0cbnrk1j0j9nwsgg");
    }

    #[test]
    fn what_is_written_reads_back() {
        for index in 0..100 {
            let id = Id::captured("s", "i").derived("stage", index);
            assert_eq!(id.to_string().parse::<Id>().unwrap(), id);
        }
        for wrong in ["", "short", "8zzzzzzzzzzzzzzzzzzzzzzzzz", "0000000000000000000000000i"] {
            assert!(wrong.parse::<Id>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(Id::captured("ab", "c"), Id::captured("a", "bc"));
    }
}
