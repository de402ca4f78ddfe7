use std::ops::Range;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::fault::{Draft, Findings, did_you_mean};

/// One value set on the command line: `--set STAGE.KEY=VALUE`. It takes the place of the file's before anything is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The stage's name.
    pub stage: String,
    /// The key in its table; a nested one with dots: `gate.min_score`.
    pub key: String,
    /// The value as it was typed.
    pub value: String,
    /// Whether `value` is a text whatever it looks like.
    literal: bool,
}

impl Override {
    /// Sets a text, also where it looks like a number or a date: a folder may be called `2024`.
    pub fn text(stage: impl Into<String>, key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { stage: stage.into(), key: key.into(), value: value.into(), literal: true }
    }

    /// Sets the sites of a stage.
    pub(crate) fn sites(stage: &str, sites: &[String]) -> Self {
        // Names of sites have nothing in them that TOML would take for something else.
        let names: Vec<String> = sites.iter().map(|site| format!("{site:?}")).collect();
        Self { stage: stage.into(), key: "site".into(), value: format!("[{}]", names.join(", ")), literal: false }
    }

    /// As typed: where it begins to be the value, and the whole.
    fn typed(&self) -> (usize, String) {
        let head = format!("{}.{}=", self.stage, self.key);
        (head.len(), head + &self.value)
    }
}

/// A text that is no override.
#[derive(Debug, thiserror::Error)]
#[error("cannot read `{0}` as STAGE.KEY=VALUE, for example `classify.threshold=0.5`")]
pub struct OverrideError(String);

impl FromStr for Override {
    type Err = OverrideError;

    /// `STAGE.KEY=VALUE`; the value is TOML (`8`, `0.5`, `true`, `"x"`), else a text.
    fn from_str(text: &str) -> Result<Self, OverrideError> {
        let refuse = || OverrideError(text.to_owned());
        let (place, value) = text.split_once('=').ok_or_else(refuse)?;
        let (stage, key) = place.trim().split_once('.').ok_or_else(refuse)?;
        if stage.is_empty() || key.split('.').any(str::is_empty) {
            return Err(refuse());
        }
        Ok(Self { stage: stage.into(), key: key.into(), value: value.trim().into(), literal: false })
    }
}

/// The overrides as a text to point into, one a line.
pub(crate) fn overrides_text(overrides: &[Override]) -> String {
    overrides.iter().map(|set| set.typed().1 + "\n").collect()
}

/// Puts the overrides, which stand in the text from `at` on, into what the file says.
pub(crate) fn merge<'i>(root: &mut DeTable<'i>, overrides: &'i [Override], mut at: usize, findings: &mut Findings<'_>) {
    for set in overrides {
        let (value_at, typed) = set.typed();
        let value = set.parse(at + value_at);
        let place = Place { stage: at..at + set.stage.len(), key: at + set.stage.len() + 1..at + value_at - 1 };
        if let Err((span, draft)) = set.put(root, value, &place) {
            findings.push(span, draft.stage(Some(&set.stage)).key(&set.key));
        }
        at += typed.len() + 1;
    }
}

/// Where the parts of an override stand.
struct Place {
    stage: Range<usize>,
    key: Range<usize>,
}

impl Override {
    fn parse(&self, at: usize) -> Spanned<DeValue<'_>> {
        let text = || Spanned::new(0..self.value.len(), DeValue::String(self.value.as_str().into()));
        let value = if self.literal { text() } else { DeValue::parse(&self.value).unwrap_or_else(|_| text()) };
        moved(value, at)
    }

    fn put<'i>(
        &'i self,
        root: &mut DeTable<'i>,
        value: Spanned<DeValue<'i>>,
        place: &Place,
    ) -> Result<(), (Range<usize>, Draft)> {
        let is_told_elsewhere =
            |value: Option<&Spanned<DeValue<'_>>>| value.is_some_and(|value| !value.get_ref().is_table());
        let stages = root.get("stage");
        if is_told_elsewhere(stages) || is_told_elsewhere(stages.and_then(|stages| stages.get_ref().get(&*self.stage)))
        {
            return Ok(());
        }
        let stages = root.get_mut("stage").and_then(as_table);
        let known: Vec<String> =
            stages.iter().flat_map(|stages| stages.keys()).map(|key| key.get_ref().to_string()).collect();
        let Some(mut table) = stages.and_then(|stages| stages.get_mut(self.stage.as_str())).and_then(as_table) else {
            let help = did_you_mean(&self.stage, known.iter().map(String::as_str));
            return Err((
                place.stage.clone(),
                Draft::new(format!("there is no stage `{}`", self.stage)).help(help).of_absence(),
            ));
        };
        let mut keys: Vec<&str> = self.key.split('.').collect();
        let last = keys.pop().unwrap_or_default();
        for key in keys {
            if !table.contains_key(key) {
                let nested = Spanned::new(place.key.clone(), DeValue::Table(DeTable::new()));
                table.insert(Spanned::new(place.key.clone(), key.into()), nested);
            }
            let Some(nested) = table.get_mut(key).and_then(as_table) else {
                return Err((place.key.clone(), Draft::new(format!("`{key}` is no table: it has no key in it"))));
            };
            table = nested;
        }
        table.remove(last);
        table.insert(Spanned::new(place.key.clone(), last.into()), value);
        Ok(())
    }
}

fn as_table<'a, 'i>(value: &'a mut Spanned<DeValue<'i>>) -> Option<&'a mut DeTable<'i>> {
    match value.get_mut() {
        DeValue::Table(table) => Some(table),
        _ => None,
    }
}

/// The value with all its places `by` further on.
fn moved(value: Spanned<DeValue<'_>>, by: usize) -> Spanned<DeValue<'_>> {
    let shift = |span: Range<usize>| span.start + by..span.end + by;
    let span = shift(value.span());
    let value = match value.into_inner() {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| moved(item, by)).collect()),
        DeValue::Table(table) => {
            let entries = table.into_iter();
            DeValue::Table(
                entries
                    .map(|(key, value)| (Spanned::new(shift(key.span()), key.into_inner()), moved(value, by)))
                    .collect(),
            )
        }
        plain => plain,
    };
    Spanned::new(span, value)
}

/// Reads all of `table` that can be read as `T`; what cannot be is told and left out. `T` has a default for every key.
///
/// serde stops at the first fault: so each is told, its key taken out, and the rest read again.
pub(crate) fn read<T: DeserializeOwned>(
    table: &Spanned<DeTable<'_>>,
    stage: Option<&str>,
    also_known: &[&str],
    findings: &mut Findings<'_>,
) -> Option<Read<T>> {
    let mut rest = table.clone();
    let mut left_out = Vec::new();
    while !findings.is_full() {
        let error = match T::deserialize(toml::de::Deserializer::from(rest.clone())) {
            Ok(value) => return Some(Read { value, left_out }),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_else(|| table.span());
        let Some(path) = path_of(rest.get_ref(), &span) else {
            findings.push(span, Draft::new(error.message()).stage(stage));
            return None;
        };
        let key = path.join(".");
        let (message, help) = reword(&key, error.message(), also_known);
        findings.push(span, Draft::new(message).stage(stage).key(&key).help(help));
        take_out(rest.get_mut(), &path);
        left_out.push(key);
    }
    None
}

/// What could be read, and the keys that could not.
pub(crate) struct Read<T> {
    pub(crate) value: T,
    pub(crate) left_out: Vec<String>,
}

/// The entries of a table in the order of the file.
pub(crate) fn in_file_order<'a, 'i>(
    table: &'a DeTable<'i>,
) -> Vec<(&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// Where the value of a dotted key stands.
pub(crate) fn span_of(table: &DeTable<'_>, key: &str) -> Option<Range<usize>> {
    let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
    let value = table.get(first)?;
    match (rest, value.get_ref()) {
        (None, _) => Some(value.span()),
        (Some(rest), DeValue::Table(nested)) => span_of(nested, rest),
        (Some(_), _) => None,
    }
}

/// The deepest key whose own place or whose value's place holds `span`.
fn path_of(table: &DeTable<'_>, span: &Range<usize>) -> Option<Vec<String>> {
    for (key, value) in table {
        let name = key.get_ref().to_string();
        if key.span() == *span {
            return Some(vec![name]);
        }
        // Into tables first: the place of `[a.b]` is its header, its keys stand behind it.
        if let DeValue::Table(nested) = value.get_ref()
            && let Some(mut path) = path_of(nested, span)
        {
            path.insert(0, name);
            return Some(path);
        }
        if value.span().start <= span.start && span.end <= value.span().end {
            return Some(vec![name]);
        }
    }
    None
}

fn take_out(table: &mut DeTable<'_>, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        table.remove(first.as_str());
    } else if let Some(DeValue::Table(nested)) = table.get_mut(first.as_str()).map(Spanned::get_mut) {
        take_out(nested, rest);
    }
}

/// serde's message in our words, with help where there is some.
fn reword(key: &str, message: &str, also_known: &[&str]) -> (String, Option<String>) {
    let message = message.lines().next().unwrap_or_default();
    if let Some(rest) = message.strip_prefix("unknown field `") {
        let (wrong, known) = rest.split_once('`').unwrap_or((rest, ""));
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        let near = did_you_mean(wrong, known.iter().chain(if key.contains('.') { &[] } else { also_known }).copied());
        let list = || match &known[..] {
            [] => "it takes no keys".to_owned(),
            known => format!("known here: {}", known.join(", ")),
        };
        return (format!("unknown key `{wrong}`"), Some(near.unwrap_or_else(list)));
    }
    let stripped = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match stripped.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => (format!("`{key}` must be {}, not {}", wanted(expected), found_as(found)), None),
        None => (format!("`{key}`: {message}"), None),
    }
}

fn wanted(expected: &str) -> &str {
    match expected {
        "usize" | "u64" | "u32" => "a whole number, 0 or more",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" => "a text in quotes",
        "an integer or string" | "parsable string" | "integer overflow" => "a size such as \"256MiB\"",
        other if other.starts_with("struct ") || other == "a map" => "a table of keys",
        other => other,
    }
}

fn found_as(found: &str) -> String {
    let bare = found.replace('`', "");
    match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some(("integer" | "boolean", _)) => bare.split_once(' ').map_or(bare.clone(), |(_, value)| value.to_owned()),
        Some(("floating", _)) => bare.trim_start_matches("floating point ").to_owned(),
        _ if found == "map" => "a table".to_owned(),
        _ if found == "sequence" => "an array".to_owned(),
        _ => bare,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_read() {
        let set: Override = "who.gate.min_score = 0.5".parse().unwrap();
        assert_eq!((set.stage.as_str(), set.key.as_str(), set.value.as_str()), ("who", "gate.min_score", "0.5"));
        assert_eq!("a.b=c=d".parse::<Override>().unwrap().value, "c=d");
        for wrong in ["", "x", "a=b", "a.=b", ".b=c", "a.b", "a..b=c"] {
            assert!(wrong.parse::<Override>().is_err(), "{wrong}");
        }
    }
}
