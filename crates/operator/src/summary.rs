//! What a run was like: a table for a person, or one JSON object for a program.

use std::collections::BTreeMap;
use std::path::Path;

use causeway_pipelines::{Pipeline, StageSpec};
use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::colours;
use crate::results::{Numbers, Results};
use crate::subject::Subject;
use crate::terminal::{bytes, count, one_line, print, print_line, table};
use crate::up::{Crossed, RunStats};

/// Names that are written out; the report has all of them.
const MAX_NAMES: usize = 20;
/// Longest line, characters: a person's name and a folder's path may be anything.
const MAX_LINE: usize = 2000;

/// A run and everything that is stored after it.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    #[serde(flatten)]
    numbers: Numbers,
    /// Each recognised person with the number of faces.
    names: BTreeMap<&'a str, usize>,
    /// Why items gave nothing, and how many.
    empty_reasons: BTreeMap<&'a str, usize>,
    /// Why messages were set aside, and how many.
    dead_reasons: BTreeMap<&'a str, usize>,
    /// Outcomes that do not read.
    unreadable: usize,
    run: RunSummary,
    stages: Vec<StageSummary<'a>>,
    /// What crossed between sites in this run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    crossed: Vec<Crossed>,
    report: Option<&'a Path>,
    /// The pipeline file, for the command that shows dead letters.
    #[serde(skip)]
    file: &'a Path,
    #[serde(skip)]
    subject: Subject,
}

/// This run alone.
#[derive(Debug, Serialize)]
struct RunSummary {
    /// Items that were captured.
    new: u64,
    /// Items that were passed over: they had their outcomes.
    skipped: u64,
    took_s: f64,
    photos_per_s: f64,
    faces_per_s: f64,
}

/// What the replicas of a stage did in this run.
#[derive(Debug, Serialize)]
struct StageSummary<'a> {
    stage: &'a str,
    handled: u64,
    /// Mean time in `process` for one message.
    ms: Option<f64>,
    /// Resident memory of its largest process, bytes.
    rss: u64,
    restarts: u32,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(
        results: &'a Results,
        pipeline: &'a Pipeline,
        stats: &RunStats,
        report: Option<&'a Path>,
    ) -> Self {
        let people = results.people();
        Self {
            numbers: results.numbers(),
            names: people.iter().map(|person| (person.name, person.faces.len())).collect(),
            empty_reasons: Results::reasons(&results.empties, |empty| &empty.reason),
            dead_reasons: Results::reasons(&results.dead_letters, |letter| &letter.reason),
            unreadable: results.unreadable,
            run: RunSummary::new(pipeline, stats),
            stages: pipeline.stages.iter().map(|stage| StageSummary::new(stage, stats)).collect(),
            crossed: stats.crossed(),
            report,
            file: &pipeline.file,
            subject: Subject::of(pipeline),
        }
    }

    /// Prints it on stdout: two tables, or one object on one line.
    pub(crate) fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            print_line(self.object()?)?;
        } else {
            print(self.text(colours()))?;
        }
        Ok(())
    }

    /// One object. Of labels it says `decisions`, `unknown` and `labels` in place of faces, people and clusters.
    fn object(&self) -> serde_json::Result<Value> {
        let mut value = serde_json::to_value(self)?;
        if let (Subject::Objects, Some(object)) = (self.subject, value.as_object_mut()) {
            for key in ["faces", "people", "names", "clusters", "unknown_clusters"] {
                object.remove(key);
            }
            object.insert("decisions".into(), json!(self.numbers.faces));
            object.insert("unknown".into(), json!(self.unknown()));
            object.insert("labels".into(), json!(self.names));
            if let Some(pace) = object["run"].as_object_mut().and_then(|run| run.remove("faces_per_s")) {
                object["run"]["decisions_per_s"] = pace;
            }
        }
        Ok(value)
    }

    /// Decisions without a label.
    fn unknown(&self) -> usize {
        self.numbers.faces - self.names.values().sum::<usize>().min(self.numbers.faces)
    }

    fn text(&self, coloured: bool) -> String {
        let report = self.report.map(|report| one_line(&report.display().to_string(), MAX_LINE));
        let report = report.map_or(String::new(), |report| format!("\nreport: {report}\n"));
        let crossed = if self.crossed.is_empty() { String::new() } else { format!("\n{}", self.crossed_table()) };
        format!("{}\n{}{crossed}{report}", self.results_table(coloured), self.stages_table())
    }

    /// What, how many, and more about it; as wide as the terminal.
    fn results_table(&self, coloured: bool) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
        if !coloured {
            table.force_no_tty();
        }
        let mut row = |what: &str, count: usize, note: &str, colour: Option<Color>| {
            let count = Cell::new(count).set_alignment(CellAlignment::Right).add_attribute(Attribute::Bold);
            let count = if let Some(colour) = colour { count.fg(colour) } else { count };
            table.add_row([Cell::new(what), count, Cell::new(one_line(note, MAX_LINE))]);
        };
        let Numbers { photos, faces, people, clusters, unknown_clusters, empties, dead_letters } = self.numbers;
        row("photos", photos, &self.photos_note(), None);
        match self.subject {
            Subject::Faces => {
                row("faces", faces, "", None);
                row("people recognised", people, &self.names_note(), (people > 0).then_some(Color::Green));
                row("clusters", clusters, &format!("{unknown_clusters} of them unknown"), None);
            }
            Subject::Objects => {
                let labelled = faces - self.unknown();
                row("labelled", labelled, &self.names_note(), (labelled > 0).then_some(Color::Green));
                row("unknown", self.unknown(), "no label is likely enough", None);
            }
        }
        row("without a result", empties, &counted(&self.empty_reasons), None);
        let hint =
            if dead_letters > 0 { format!("; see `causeway dlq ls {}`", self.file.display()) } else { String::new() };
        let alarm = (dead_letters > 0).then_some(Color::Yellow);
        row("dead letters", dead_letters, &(counted(&self.dead_reasons) + &hint), alarm);
        if self.unreadable > 0 {
            let why = "outcomes of a stranger or of a newer version";
            row("not readable", self.unreadable, why, Some(Color::Yellow));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
    }

    fn photos_note(&self) -> String {
        let RunSummary { new, skipped, took_s, photos_per_s, faces_per_s } = self.run;
        let skipped = match skipped {
            0 => String::new(),
            _ => format!("{skipped} skipped: they already had an outcome (--again runs them anew); "),
        };
        match new {
            0 => format!("{skipped}0 new"),
            _ if self.subject == Subject::Objects => {
                format!("{skipped}{new} new in {took_s:.1} s: {photos_per_s:.1} photos/s")
            }
            _ => format!("{skipped}{new} new in {took_s:.1} s: {photos_per_s:.1} photos/s, {faces_per_s:.1} faces/s"),
        }
    }

    fn names_note(&self) -> String {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|&(_, &faces)| std::cmp::Reverse(faces));
        let shown: Vec<String> = names
            .iter()
            .take(MAX_NAMES)
            .map(|&(name, &regions)| format!("{name} ({})", self.regions(regions)))
            .collect();
        let more = names.len().saturating_sub(MAX_NAMES);
        shown.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
    }

    /// `3 faces`; of labels the number alone.
    fn regions(&self, regions: usize) -> String {
        match self.subject {
            Subject::Faces => count(regions, "face"),
            Subject::Objects => regions.to_string(),
        }
    }

    fn stages_table(&self) -> String {
        let rows = self.stages.iter().map(|stage| {
            let ms = stage.ms.map_or("–".into(), |ms| if ms < 1.0 { format!("{ms:.2}") } else { format!("{ms:.1}") });
            vec![stage.stage.into(), stage.handled.to_string(), ms, bytes(stage.rss), stage.restarts.to_string()]
        });
        table(&["STAGE", "HANDLED", "MS EACH", "MEMORY", "RESTARTS"], &[1, 2, 3, 4], rows.collect())
    }
}

impl Summary<'_> {
    fn crossed_table(&self) -> String {
        let rows = self.crossed.iter().map(|one| {
            let way = format!("{} -> {}", one.from, one.to);
            let each = bytes(one.bytes / one.messages.max(1));
            vec![one.stream.clone(), way, one.messages.to_string(), bytes(one.bytes), each]
        });
        table(&["CROSSED", "WAY", "MESSAGES", "BYTES", "EACH"], &[2, 3, 4], rows.collect())
    }
}

impl RunSummary {
    fn new(pipeline: &Pipeline, stats: &RunStats) -> Self {
        let sum = |stages: &mut dyn Iterator<Item = &StageSpec>, count: fn(&causeway_stage::Heartbeat) -> u64| {
            stages.map(|stage| stats.total(&stage.name, count)).collect::<Vec<_>>()
        };
        let sources = || pipeline.stages.iter().filter(|stage| stage.is_source());
        let new: u64 = sum(&mut sources(), |beat| beat.handled).iter().sum();
        let skipped = sum(&mut sources(), |beat| beat.skipped).iter().sum();
        // Every final stage is given every face: the largest count is the number of them.
        let mut finals = pipeline.stages.iter().filter(|stage| pipeline.is_final(&stage.name));
        let faces = sum(&mut finals, |beat| beat.handled).into_iter().max().unwrap_or(0);
        let took_s = stats.took.as_secs_f64();
        let pace = |count: u64| if took_s > 0.0 { count as f64 / took_s } else { 0.0 };
        Self { new, skipped, took_s, photos_per_s: pace(new), faces_per_s: pace(faces) }
    }
}

impl<'a> StageSummary<'a> {
    fn new(stage: &'a StageSpec, stats: &RunStats) -> Self {
        let name = stage.name.as_str();
        let handled = stats.total(name, |beat| beat.handled);
        let ms = (handled > 0).then(|| stats.busy_s(name) * 1000.0 / handled as f64);
        Self { stage: name, handled, ms, rss: stats.rss(name), restarts: stats.restarts(name) }
    }
}

/// `no-face: 2, below-quality: 1`
fn counted(reasons: &BTreeMap<&str, usize>) -> String {
    reasons.iter().map(|(reason, count)| format!("{reason}: {count}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary<'a>(new: u64, skipped: u64) -> Summary<'a> {
        let numbers =
            Numbers { photos: 9, faces: 11, people: 2, clusters: 8, unknown_clusters: 6, empties: 2, dead_letters: 1 };
        Summary {
            numbers,
            names: BTreeMap::from([("Ada\u{1b}[2J", 3), ("Bob", 1)]),
            empty_reasons: BTreeMap::from([("no-face", 2)]),
            dead_reasons: BTreeMap::from([("truncated", 1)]),
            unreadable: 0,
            run: RunSummary { new, skipped, took_s: 2.0, photos_per_s: 4.5, faces_per_s: 5.5 },
            stages: vec![
                StageSummary { stage: "capture", handled: 9, ms: Some(1.25), rss: 12 << 20, restarts: 0 },
                StageSummary { stage: "cluster", handled: 0, ms: None, rss: 8 << 20, restarts: 2 },
            ],
            crossed: Vec::new(),
            report: Some(Path::new("r.html")),
            file: Path::new("f.toml"),
            subject: Subject::Faces,
        }
    }

    #[test]
    fn labels_as_a_person_and_a_program_see_them() {
        let mut summary = summary(9, 0);
        summary.subject = Subject::Objects;
        summary.names = BTreeMap::from([("tabby cat", 7), ("lynx", 1)]);
        let text = summary.text(false);
        let told = "labelled          8  tabby cat (7), lynx (1)\nunknown           3  no label is likely enough\n";
        assert!(text.contains(told) && !text.contains("faces") && !text.contains("recognised"), "{text}");
        let object = summary.object().unwrap();
        assert_eq!((&object["decisions"], &object["unknown"]), (&11.into(), &3.into()));
        assert_eq!((&object["labels"]["tabby cat"], &object["faces"]), (&7.into(), &Value::Null));
        assert_eq!(object["run"]["decisions_per_s"], 5.5);
    }

    #[test]
    fn a_first_run_as_a_person_sees_it() {
        assert_eq!(
            summary(9, 0).text(false),
            "\
photos              9  9 new in 2.0 s: 4.5 photos/s, 5.5 faces/s
faces              11
people recognised   2  Ada\\u{1b}[2J (3 faces), Bob (1 face)
clusters            8  6 of them unknown
without a result    2  no-face: 2
dead letters        1  truncated: 1; see `causeway dlq ls f.toml`

STAGE    HANDLED  MS EACH   MEMORY  RESTARTS
capture        9      1.2  12.6 MB         0
cluster        0        –   8.4 MB         2

report: r.html
"
        );
    }

    #[test]
    fn what_crossed_is_told_where_there_are_sites() {
        let mut summary = summary(9, 0);
        let [stream, from, to] = ["extract", "edge", "cloud"].map(ToOwned::to_owned);
        summary.crossed = vec![Crossed { stream, from, to, messages: 11, bytes: 15_400 }];
        let text = summary.text(false);
        let told =
            "CROSSED  WAY            MESSAGES    BYTES    EACH\nextract  edge -> cloud        11  15.4 kB  1.4 kB\n";
        assert!(text.contains(told), "{text}");
        assert_eq!(summary.object().unwrap()["crossed"][0]["bytes"], 15_400);
    }

    #[test]
    fn a_second_run_says_what_it_skipped() {
        let text = summary(0, 9).text(false);
        assert!(text.contains("9 skipped: they already had an outcome (--again runs them anew); 0 new\n"), "{text}");
    }

    #[test]
    fn one_object_for_a_program() {
        let object = summary(9, 0).object().unwrap();
        assert_eq!(
            (&object["photos"], &object["run"]["skipped"], &object["report"]),
            (&9.into(), &0.into(), &"r.html".into())
        );
    }
}
