//! How figures, times and tables look on stdout, the same in every command.

use std::fmt::{Display, Write as _};
use std::io::{self, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use comfy_table::{CellAlignment, Table, presets};

/// Writes to stdout, whole and at once. A reader that went away is an error that `main` takes for an end.
pub(crate) fn print(text: impl Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")?;
    out.flush()
}

/// Writes a line.
pub(crate) fn print_line(text: impl Display) -> io::Result<()> {
    print(format_args!("{text}\n"))
}

/// A colour of the terminal's own palette (SGR).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Paint {
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
}

impl Paint {
    /// The text in this colour where stdout shows colours, else as it is.
    pub(crate) fn on(self, text: &str) -> String {
        if crate::cli::colours() { format!("\x1b[{}m{text}\x1b[0m", self.code()) } else { text.into() }
    }

    fn code(self) -> u8 {
        match self {
            Self::Bold => 1,
            Self::Dim => 2,
            Self::Red => 31,
            Self::Green => 32,
            Self::Yellow => 33,
        }
    }
}

/// A table without lines, for a terminal as for `awk`: text to the left, the columns in `figures` to the right.
pub(crate) fn table(head: &[&str], figures: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head.iter().copied());
    table.add_rows(rows);
    for &column in figures {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let lines = table.lines().map(|line| line.trim_end().to_owned() + "\n");
    lines.collect()
}

/// Bytes as people read them: `640 B`, `37.6 kB`, `1.1 GB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Unix time in ns as `2026-01-31 17:05:09` (UTC).
pub(crate) fn date_time(ns: u64) -> String {
    let written = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_nanos(ns)).to_string();
    written.trim_end_matches('Z').replace('T', " ")
}

/// Unix time in ns as `17:05:09.123` (UTC).
pub(crate) fn time(ns: u64) -> String {
    let written = humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(ns)).to_string();
    written.split(['T', 'Z']).nth(1).unwrap_or_default().into()
}

/// A time as `3 s`, `5 min`, `2 h`, `8 d`: the largest unit that it has.
pub(crate) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// `1 photo`, `2 photos`.
pub(crate) fn count(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A text of strangers in one line of at most `most` characters: no control character reaches the terminal.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (place, character) in text.chars().enumerate() {
        if place == most {
            shown.push('…');
            break;
        }
        if character.is_control() {
            let _ = write!(shown, "{}", character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(37_632), "37.6 kB");
        assert_eq!(bytes(1 << 30), "1.1 GB");
        assert_eq!(bytes(5_000_000_000_000), "5.0 TB");
        assert_eq!(age(Duration::from_secs(59)), "59 s");
        assert_eq!(age(Duration::from_hours(7 * 24)), "7 d");
        assert_eq!(count(1, "photo"), "1 photo");
        assert_eq!(count(0, "photo"), "0 photos");
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(date_time(1_769_879_109_123_456_789), "2026-01-31 17:05:09");
        assert_eq!(time(1_769_879_109_123_456_789), "17:05:09.123");
    }

    #[test]
    fn a_stranger_cannot_paint_the_terminal() {
        assert_eq!(one_line("a\x1b[31mb\nc", 80), "a\\u{1b}[31mb\\nc");
        assert_eq!(one_line("abcdef", 3), "abc…");
    }

    #[test]
    fn a_table_has_no_lines_and_no_trailing_spaces() {
        let text = table(&["NAME", "PHOTOS"], &[1], vec![vec!["Ada".into(), "12".into()]]);
        assert_eq!(text, "NAME  PHOTOS\nAda       12\n");
    }
}
