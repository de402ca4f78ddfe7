//! Moments on the command line: a time (`2026-11-27T08:00:00Z`), or an age before now (`2h`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads a moment as Unix time in ns.
pub(crate) fn when(text: &str) -> Result<u64, String> {
    when_before(text, SystemTime::now())
}

fn when_before(text: &str, now: SystemTime) -> Result<u64, String> {
    let moment = match humantime::parse_duration(text) {
        Ok(age) => now.checked_sub(age),
        Err(_) => humantime::parse_rfc3339_weak(text).ok(),
    };
    let since_epoch = moment.and_then(|moment| moment.duration_since(UNIX_EPOCH).ok());
    let ns = since_epoch.map(|since| since.as_nanos()).and_then(|ns| u64::try_from(ns).ok());
    ns.ok_or_else(|| format!("`{text}` is no age like 90s, 2h or 3d, and no time like 2026-11-27T08:00:00Z (UTC)"))
}

/// A span of time with its ends, either of which may be open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    /// The first moment that is in it, Unix time in ns.
    pub(crate) from: Option<u64>,
    /// The first moment behind it, Unix time in ns.
    pub(crate) to: Option<u64>,
}

impl Span {
    /// Whether a moment is in it.
    pub(crate) fn has(self, at: u64) -> bool {
        self.from.is_none_or(|from| at >= from) && self.to.is_none_or(|to| at < to)
    }

    /// An error where it ends before it begins: nothing could be in it.
    pub(crate) fn check(self, from: &str, to: &str) -> anyhow::Result<()> {
        match (self.from, self.to) {
            (Some(begin), Some(end)) if begin >= end => {
                let ago = |at: u64| humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(at));
                anyhow::bail!(
                    "nothing can be between {from} {} and {to} {}: it ends before it begins",
                    ago(begin),
                    ago(end)
                )
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_times() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        assert_eq!(when_before("2h", now), Ok((1_000_000 - 7200) * 1_000_000_000));
        assert_eq!(when_before("1970-01-01T00:00:01Z", now), Ok(1_000_000_000));
        assert_eq!(when_before("1970-01-02 00:00:00", now), Ok(86_400_000_000_000));
        for wrong in ["", "yesterday", "2", "1969-12-31T00:00:00Z", "900y"] {
            assert!(when_before(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_span_has_its_beginning_and_not_its_end() {
        let span = Span { from: Some(5), to: Some(7) };
        assert_eq!([4, 5, 6, 7].map(|at| span.has(at)), [false, true, true, false]);
        assert!(Span::default().has(0));
        assert!(Span { from: Some(7), to: Some(7) }.check("--since", "--until").is_err());
    }
}
