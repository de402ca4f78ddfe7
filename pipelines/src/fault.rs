use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::io::IsTerminal;
use std::ops::Range;
use std::path::{Path, PathBuf};

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteError, NamedSource, SourceCode, SourceSpan,
    SpanContents,
};
use serde::Serialize;

/// Longest pipeline file that is read, bytes: some hundred times what people write.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// Most faults that are told of one file; who has more mends these first.
const MAX_FAULTS: usize = 100;

/// Width of a rendered report, characters: fits a terminal and a log.
const REPORT_WIDTH: usize = 110;

/// Most bytes of a line that are shown to either side of where a fault begins.
const MAX_SHOWN: usize = 160;

/// What `Fault::file` says of a value that was given with `--set`; its line is the place among the overrides.
const COMMAND_LINE: &str = "--set";

/// Stands between the file and the overrides, so that the end of the one is not the start of the other.
pub(crate) const SEPARATOR: &str = "\n";

/// One thing that is wrong with a pipeline file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The file; `--set` for what the command line set.
    pub file: String,
    /// Line, from 1; among overrides, the place of the override.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// The stage it is about.
    pub stage: Option<String>,
    /// The key it is about: within the stage where there is one, else in the file; nested ones with dots.
    pub key: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What may mend it.
    pub help: Option<String>,
    /// Its bytes in its source.
    #[serde(skip)]
    span: Range<usize>,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if let Some(stage) = &self.stage {
            write!(f, "[stage.{stage}] ")?;
        }
        f.write_str(&self.message)?;
        self.help.iter().try_for_each(|help| write!(f, " ({help})"))
    }
}

/// Why a pipeline file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// Not readable at all.
    #[error("cannot read the pipeline file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too long to be one.
    #[error("cannot use {path} as a pipeline file: it has more than {MAX_FILE_BYTES} bytes")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Read, and wrong.
    #[error(transparent)]
    Wrong(Box<Faults>),
}

impl PipelineError {
    /// What is wrong, in the order of the file; nothing where the file could not be read.
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Wrong(faults) => &faults.list,
            Self::Read { .. } | Self::TooLong { .. } => &[],
        }
    }

    /// For a person at a terminal: each fault with its line of the file. Coloured where standard error is a terminal and
    /// `NO_COLOR` is not set.
    pub fn report(&self) -> String {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        self.render(!no_color && std::io::stderr().is_terminal())
    }

    /// The same, with or without colour.
    pub fn render(&self, colour: bool) -> String {
        match self {
            Self::Wrong(faults) => faults.render(colour),
            Self::Read { .. } | Self::TooLong { .. } => format!("{self}\n"),
        }
    }
}

/// All that is wrong with one pipeline file.
#[derive(Debug)]
pub struct Faults {
    list: Vec<Fault>,
    file: NamedSource<String>,
    command_line: NamedSource<String>,
}

impl std::error::Error for Faults {}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.headline())?;
        self.list.iter().try_for_each(|fault| write!(f, "\n{fault}"))
    }
}

impl Faults {
    fn headline(&self) -> String {
        let count = match self.list.len() {
            1 => "1 fault".to_owned(),
            MAX_FAULTS => format!("{MAX_FAULTS} faults or more"),
            many => format!("{many} faults"),
        };
        format!("cannot use the pipeline file {}: {count}", self.file.name())
    }

    fn render(&self, colour: bool) -> String {
        let theme = if colour { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
        let handler = GraphicalReportHandler::new_themed(theme).with_width(REPORT_WIDTH).with_context_lines(1);
        let mut out = format!("{}\n", self.headline());
        for fault in &self.list {
            out.push('\n');
            let source = if fault.file == COMMAND_LINE { &self.command_line } else { &self.file };
            // A place that cannot be shown still has its words.
            if handler.render_report(&mut out, &Shown { fault, source: WholeLine(source) }).is_err() {
                writeln!(out, "{fault}").expect("a string takes all");
            }
        }
        out
    }
}

/// A fault with the text that it points into.
#[derive(Debug)]
struct Shown<'a> {
    fault: &'a Fault,
    source: WholeLine<'a>,
}

/// Shows the line of a fault whole and nothing of its neighbours, where miette would show either a piece or both.
#[derive(Debug)]
struct WholeLine<'a>(&'a NamedSource<String>);

impl SourceCode for WholeLine<'_> {
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        before: usize,
        after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        if before + after == 0 {
            return self.0.read_span(span, 0, 0);
        }
        let text = self.0.inner();
        let at = text.floor_char_boundary(span.offset());
        let (before, behind) = text.split_at(at);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line_end = behind.find('\n').map_or(text.len(), |length| at + length);
        let line_start = line_start.max(text.ceil_char_boundary(at.saturating_sub(MAX_SHOWN)));
        let line_end = line_end.min(text.floor_char_boundary(at + MAX_SHOWN));
        self.0.read_span(&(line_start..line_end).into(), 0, 0)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(stage) = &self.fault.stage {
            write!(f, "[stage.{stage}] ")?;
        }
        f.write_str(&self.fault.message)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.fault.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.fault.span.clone();
        Some(Box::new(std::iter::once(LabeledSpan::underline(span))))
    }
}

/// A fault before its place is known as line and column.
pub(crate) struct Draft {
    stage: Option<String>,
    key: Option<String>,
    message: String,
    help: Option<String>,
    of_absence: bool,
}

impl Draft {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { stage: None, key: None, message: message.into(), help: None, of_absence: false }
    }

    pub(crate) fn stage(self, stage: Option<&str>) -> Self {
        Self { stage: stage.map(Into::into), ..self }
    }

    pub(crate) fn key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into()), ..self }
    }

    pub(crate) fn help(self, help: Option<String>) -> Self {
        Self { help, ..self }
    }

    /// It says that something is not there. Where the file has faults of syntax, that may only not have been understood.
    pub(crate) fn of_absence(self) -> Self {
        Self { of_absence: true, ..self }
    }
}

/// A text that may be shown: users and passwords in URLs are blotted out, byte for byte, so that every place stays where it was.
fn without_passwords(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut parts = text.split_inclusive("://");
    shown.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let authority = part.find(['/', '"', '\'', ' ', '\n']).unwrap_or(part.len());
        let user = part[..authority].rfind('@').unwrap_or(0);
        shown.extend(std::iter::repeat_n('*', user));
        shown.push_str(&part[user..]);
    }
    shown
}

/// Gathers the faults of one text: a file with the overrides of the command line behind it.
pub(crate) struct Findings<'i> {
    path: &'i Path,
    text: &'i str,
    /// Where the overrides begin in `text`.
    overrides_at: usize,
    list: Vec<(usize, Fault)>,
    /// Starts of lines that TOML could not read.
    unreadable_lines: HashSet<usize>,
}

impl<'i> Findings<'i> {
    pub(crate) fn new(path: &'i Path, text: &'i str, overrides_at: usize) -> Self {
        Self { path, text, overrides_at, list: Vec::new(), unreadable_lines: HashSet::new() }
    }

    /// Whether as many were found as are told.
    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= MAX_FAULTS
    }

    /// Adds a fault of syntax.
    pub(crate) fn unreadable(&mut self, span: Range<usize>, message: impl Into<String>) {
        if self.unreadable_lines.insert(self.line_start(span.start)) {
            self.add(span, Draft::new(message));
        }
    }

    /// Adds a fault of meaning; leaves out what is only the echo of a fault of syntax.
    pub(crate) fn push(&mut self, span: Range<usize>, draft: Draft) {
        let in_doubt = self.unreadable_lines.contains(&self.line_start(span.start));
        let echo = draft.of_absence && !self.unreadable_lines.is_empty();
        if !in_doubt && !echo {
            self.add(span, draft);
        }
    }

    /// The line of a place in the file, from 1.
    pub(crate) fn line_of(&self, at: usize) -> usize {
        self.text[..self.text.floor_char_boundary(at)].matches('\n').count() + 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// What was found, as an error.
    pub(crate) fn into_error(mut self) -> PipelineError {
        self.list.sort_by_key(|&(at, _)| at);
        let (file, overrides) = self.text.split_at(self.overrides_at);
        PipelineError::Wrong(Box::new(Faults {
            list: self.list.into_iter().map(|(_, fault)| fault).collect(),
            file: NamedSource::new(self.path.display().to_string(), without_passwords(file)),
            command_line: NamedSource::new(COMMAND_LINE, without_passwords(overrides)),
        }))
    }

    fn add(&mut self, span: Range<usize>, draft: Draft) {
        if self.is_full() {
            return;
        }
        let (file, base, end) = if span.start >= self.overrides_at {
            (COMMAND_LINE.to_owned(), self.overrides_at, self.text.len())
        } else {
            (self.path.display().to_string(), 0, self.overrides_at - SEPARATOR.len())
        };
        let mut start = self.text.floor_char_boundary(span.start.clamp(base, end));
        // What is missing at the end of a line is shown at its last character, for there is nothing else to point at.
        if self.text[start..].starts_with('\n') && start > self.line_start(start) {
            start = self.text.floor_char_boundary(start - 1);
        }
        // A value of several lines, or a very long one, is shown by how it begins.
        let line_end = self.text[start..end].find('\n').map_or(end, |length| start + length);
        let end = self.text.floor_char_boundary(span.end.clamp(start, line_end).min(start + MAX_SHOWN));
        let before = &self.text[base..start];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let fault = Fault {
            file,
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            stage: draft.stage,
            key: draft.key,
            message: draft.message,
            help: draft.help,
            span: start - base..end - base,
        };
        self.list.push((span.start, fault));
    }

    fn line_start(&self, at: usize) -> usize {
        self.text.as_bytes()[..at.min(self.text.len())]
            .iter()
            .rposition(|&b| b == b'\n')
            .map_or(0, |newline| newline + 1)
    }
}

/// `did you mean` for the known name nearest to `wrong`, if one is near.
pub fn did_you_mean<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    // One slip for each three letters: enough for a typo, too little for another word.
    let most = (wrong.chars().count() / 3).clamp(1, 3);
    let near = known.into_iter().map(|name| (edit_distance(wrong, name), name)).filter(|&(slips, _)| slips <= most);
    near.min_by_key(|&(slips, _)| slips).map(|(_, name)| format!("did you mean `{name}`?"))
}

/// Slips between two names: letters put in, left out or changed, and neighbours swapped
/// (<https://en.wikipedia.org/wiki/Damerau–Levenshtein_distance>, optimal string alignment).
fn edit_distance(a: &str, b: &str) -> usize {
    /// Longer names than this are no typo of ours.
    const LONGEST: usize = 64;
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(LONGEST).collect(), b.chars().take(LONGEST).collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = changed.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_near_name_is_offered_and_a_far_one_is_not() {
        let known = ["threshold", "margin", "from"];
        assert_eq!(did_you_mean("thresold", known).unwrap(), "did you mean `threshold`?");
        assert_eq!(did_you_mean("form", known).unwrap(), "did you mean `from`?");
        assert_eq!(did_you_mean("colour", known), None);
        assert_eq!(did_you_mean("", known), None);
    }

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("form", "from"), 1);
        assert_eq!(edit_distance("", "abc"), 3);
    }
}
