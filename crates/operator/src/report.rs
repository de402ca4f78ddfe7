//! The report of a run: one page that needs nothing but itself.

use std::collections::HashSet;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use causeway_pipelines::{Keep, Pipeline};
use causeway_schemas::{DeadLetter, Empty, Id, Meta};

use crate::results::{Cluster, Face, Found, Numbers, Recognised, Results};
use crate::session::Session;
use crate::subject::Subject;
use crate::terminal::{bytes, count, date_time};
use crate::thumbnails::{self, Thumbnails, Wanted};
use crate::up::Crossed;

/// Most faces that are shown: about 4 MB of thumbnails, which every browser opens.
const MAX_FACES: usize = 500;
/// Most entries of a list of items without a result, and most dead letters.
const MAX_LISTED: usize = 200;

/// The page's looks.
const STYLE: &str = include_str!("report.css");

/// Nothing is fetched from anywhere, and nothing runs.
const POLICY: &str = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/// Writes the report of everything that is stored now; says where.
pub(crate) async fn write(session: &Session, results: &Results, crossed: &[Crossed]) -> anyhow::Result<PathBuf> {
    let (pipeline, home) = (&session.pipeline, &session.home);
    let shown = shown(results);
    let wanted = shown.iter().map(|face| Wanted { id: face.id, root: face.meta.root, region: face.region.clone() });
    let thumbnails = thumbnails::cut(&session.seen(), wanted.collect()).await?;
    let shown = shown.iter().map(|face| face.id).collect();
    let page = Page { pipeline, results, shown, thumbnails, subject: Subject::of(pipeline), crossed }.page();
    let path = crate::session::absolute(&home.report())?;
    replace(&path, &page).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// Whole or not at all, and readable by its owner alone: there are faces in it.
fn replace(path: &Path, page: &str) -> std::io::Result<()> {
    let next = path.with_extension("next");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(page.as_bytes())?;
    std::fs::rename(&next, path)
}

/// The faces that the page has room for, in the order in which they stand on it.
fn shown(results: &Results) -> Vec<Face<'_>> {
    let named = results.people().into_iter().flat_map(|person| person.faces);
    let clustered = results.clusters().into_iter().flat_map(|cluster| cluster.faces);
    let mut seen = HashSet::new();
    named.chain(clustered).chain(results.faces()).filter(|face| seen.insert(face.id)).take(MAX_FACES).collect()
}

struct Page<'a> {
    pipeline: &'a Pipeline,
    results: &'a Results,
    shown: HashSet<Id>,
    thumbnails: Thumbnails,
    subject: Subject,
    /// What crossed between sites in the run that ends with this report.
    crossed: &'a [Crossed],
}

impl Page<'_> {
    fn page(&self) -> String {
        let name = Text(&self.pipeline.name);
        let sections = [
            self.header(),
            "<main>".into(),
            self.picture(),
            self.sites(),
            self.people(),
            self.clusters(),
            self.no_cluster(),
        ]
        .concat();
        let rest = [self.empties(), self.dead_letters(), "</main>".into(), self.footer()].concat();
        format!(
            r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="referrer" content="no-referrer">
<title>Causeway: {name}</title>
<style>
{STYLE}</style>
</head>
<body>
{sections}{rest}</body>
</html>
"#
        )
    }

    fn header(&self) -> String {
        let now = date_time(causeway_stage::now_ns());
        let Numbers { photos, faces, people, clusters, unknown_clusters, empties, dead_letters } =
            self.results.numbers();
        let named = self.results.faces().iter().filter(|face| face.label().is_some()).count();
        let told = match self.subject {
            Subject::Faces => vec![
                ("Faces", faces),
                ("People recognised", people),
                ("Clusters", clusters),
                ("Unknown clusters", unknown_clusters),
            ],
            Subject::Objects => vec![("Labelled", named), ("Different labels", people), ("Unknown", faces - named)],
        };
        let rest = [("Without a result", empties), ("Dead letters", dead_letters)];
        let numbers = [("Photos", photos)].into_iter().chain(told).chain(rest);
        let numbers = each(numbers, |(what, count)| format!("<div><dt>{what}</dt><dd>{count}</dd></div>\n"));
        let (name, file) = (Text(&self.pipeline.name), self.pipeline.file.display().to_string());
        let (hidden, region) = (faces - self.shown.len(), self.subject.region());
        let cut = match hidden {
            0 => String::new(),
            _ => format!(
                "<p>This page shows {MAX_FACES} {region}s; {hidden} more are stored: <code>nats sub '{name}.&gt;'</code> or <code>causeway tap</code> give them all.</p>\n"
            ),
        };
        format!(
            "<header>\n<h1>Pipeline {name}</h1>\n<p class=\"soft\">Everything that is stored of <code>{}</code>, {now} UTC</p>\n<dl class=\"numbers\">\n{numbers}</dl>\n{cut}</header>\n",
            Text(&file)
        )
    }

    fn picture(&self) -> String {
        let svg = self.pipeline.to_svg(|stage| Some(self.on_link(stage).to_string()));
        format!(
            "<section aria-labelledby=\"pipeline\">\n<h2 id=\"pipeline\">What went where</h2>\n<p class=\"soft\">Each arrow carries the messages of one stage to the next; the number says how many led to the results below.</p>\n<div class=\"picture\" tabindex=\"0\" role=\"region\" aria-label=\"Picture of the pipeline\">\n{svg}</div>\n</section>\n"
        )
    }

    /// Which stages are where, and what crossed between them.
    fn sites(&self) -> String {
        if !self.pipeline.is_split() {
            return String::new();
        }
        let places = each(&self.pipeline.sites, |site| {
            let stages: Vec<&str> = self
                .pipeline
                .stages
                .iter()
                .filter(|stage| stage.runs_at(&site.name))
                .map(|stage| stage.name.as_str())
                .collect();
            let hub = if site.is_hub { " <span class=\"badge known\">hub</span>" } else { "" };
            format!("<div><dt>{}{hub}</dt><dd>{}</dd></div>\n", Text(&site.name), Text(&stages.join(", ")))
        });
        let rows = each(self.crossed, |one| {
            format!(
                "<tr><td>{}</td><td>{} → {}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                Text(&one.stream),
                Text(&one.from),
                Text(&one.to),
                one.messages,
                bytes(one.bytes),
                bytes(one.bytes / one.messages.max(1))
            )
        });
        let crossed = if rows.is_empty() {
            "<p>Nothing crossed in this run.</p>\n".into()
        } else {
            format!(
                "<div class=\"table\" tabindex=\"0\" role=\"region\" aria-label=\"What crossed\">\n<table>\n<thead><tr><th>Messages of</th><th>Way</th><th>Messages</th><th>Bytes</th><th>Each</th></tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
            )
        };
        let about = "<p class=\"soft\">What a stage at the other site takes crosses, and so do outcomes, to the hub and back to where they were captured. Bytes are those of the last run, with headers.</p>\n";
        section(
            "sites",
            "Where it ran, and what crossed",
            about,
            &format!("<dl class=\"sites\">\n{places}</dl>\n{crossed}"),
        )
    }

    /// How many messages of a stage led to the results: what it gave as outcomes, or what reached those that take from it.
    ///
    /// A link forgets what all have taken, so it is told from the outcomes: each is one part of one captured item. (A part
    /// that was divided once more further on counts as its pieces.)
    fn on_link(&self, stage: &str) -> usize {
        let outcomes = &self.results.outcomes;
        if self.pipeline.is_final(stage) {
            let of_stage = |meta: &Meta| meta.stage == stage;
            let early = self.results.empties.iter().filter(|found| of_stage(&found.meta)).count()
                + self.results.dead_letters.iter().filter(|found| of_stage(&found.meta)).count()
                + self.results.receipts.iter().filter(|meta| of_stage(meta)).count();
            return outcomes.iter().filter(|outcome| outcome.stage == stage).count() - early;
        }
        let others = self.pipeline.stages.iter().map(|other| other.name.as_str()).filter(|other| *other != stage);
        let behind: HashSet<&str> = others.filter(|other| self.pipeline.upstream(other).contains(stage)).collect();
        let reached = outcomes.iter().filter(|outcome| behind.contains(outcome.stage.as_str()));
        if self.pipeline.stage(stage).is_some_and(causeway_pipelines::StageSpec::is_source) {
            reached.map(|outcome| outcome.root).collect::<HashSet<_>>().len()
        } else {
            reached.map(|outcome| (outcome.root, &outcome.part)).collect::<HashSet<_>>().len()
        }
    }

    fn people(&self) -> String {
        let people = self.results.people();
        let cards = each(people, |person| self.person(&person));
        if self.subject == Subject::Objects {
            let about = "<p class=\"soft\">The number is the probability that the model gives the label, 0 to 1.</p>\n";
            let none = "<p>None: no picture has a label that is likely enough.</p>\n";
            return section("people", "Labels", about, if cards.is_empty() { none } else { &cards });
        }
        let none = "<p>Nobody. Teach the gallery who somebody is with <code>causeway enrol NAME=DIR</code>, then run again with <code>--again</code>.</p>\n";
        let about = "<p class=\"soft\">The number is the likeness to the nearest enrolled photo, a cosine: 1 is the same.</p>\n";
        let content = if cards.is_empty() { none } else { &cards };
        section("people", "People recognised", about, content)
    }

    fn person(&self, person: &Recognised<'_>) -> String {
        let faces = self.faces(&person.faces, |face| {
            let score = face.decision.map_or(0.0, |decision| decision.score);
            format!("<b>{score:.2}</b> {}", file_name(face))
        });
        let (name, count) = (Text(person.name), count(person.faces.len(), self.subject.region()));
        format!(
            "<article class=\"card\"><div><h3>{name}</h3><span class=\"soft\">{count}</span></div>\n{faces}</article>\n"
        )
    }

    fn clusters(&self) -> String {
        let clusters = self.results.clusters();
        if clusters.is_empty() {
            return String::new();
        }
        let about = "<p class=\"soft\">Faces that are alike, the largest cluster first. Unknown: none of its faces was given a name.</p>\n";
        let cards = each(clusters, |cluster| self.cluster(&cluster));
        section("clusters", "Clusters", about, &format!("<div class=\"clusters\">\n{cards}</div>\n"))
    }

    fn cluster(&self, cluster: &Cluster<'_>) -> String {
        let names: Vec<String> = cluster.names().into_iter().map(|name| Text(name).to_string()).collect();
        let title = match &names[..] {
            [] => "<h3><span class=\"badge unknown\">unknown</span></h3>".into(),
            names => format!("<h3>{}</h3><span class=\"badge known\">known</span>", names.join(", ")),
        };
        let faces = self.faces(&cluster.faces, file_name);
        let (id, count) = (cluster.id.to_string(), count(cluster.faces.len(), "face"));
        let wide = if cluster.faces.len() > 1 { " wide" } else { "" };
        format!(
            "<article class=\"card{wide}\"><div>{title}<span class=\"soft\" title=\"cluster {id}\">{count}</span></div>\n{faces}</article>\n"
        )
    }

    /// Faces that nobody put into a cluster and nobody named: the pipeline has no such stage, or they are on their way.
    fn no_cluster(&self) -> String {
        let mut faces = self.results.faces();
        faces.retain(|face| face.cluster.is_none() && face.label().is_none());
        if faces.is_empty() {
            return String::new();
        }
        if self.subject == Subject::Objects {
            let about = "<p class=\"soft\">No label is likely enough, or two are nearly as likely. Below each, what it could be.</p>\n";
            let pictures = self.faces(&faces, guesses);
            return section("others", "Unknown", about, &format!("<div class=\"card\">{pictures}</div>\n"));
        }
        let faces = self.faces(&faces, file_name);
        section("others", "Faces without a name or a cluster", "", &format!("<div class=\"card\">{faces}</div>\n"))
    }

    /// A row of thumbnails with a caption each.
    fn faces(&self, faces: &[Face<'_>], caption: impl Fn(&Face<'_>) -> String) -> String {
        let (shown, hidden): (Vec<_>, Vec<_>) = faces.iter().partition(|face| self.shown.contains(&face.id));
        let row = each(shown, |face: &Face<'_>| {
            let picture = match self.thumbnails.get(&face.id) {
                Some(address) => {
                    format!(
                        "<img src=\"{address}\" width=\"96\" height=\"96\" alt=\"{}\">",
                        Text(&described(face, self.subject))
                    )
                }
                None => "<div class=\"lost\">photo no longer kept</div>".into(),
            };
            format!(
                "<li><figure title=\"{}\">{picture}<figcaption>{}</figcaption></figure></li>\n",
                Text(&face.capture.item),
                caption(face)
            )
        });
        let more = match hidden.len() {
            0 => String::new(),
            more => {
                let more = count(more, self.subject.region());
                format!("<p class=\"soft\">and {more} that this page has no room for</p>\n")
            }
        };
        format!("<ul class=\"faces\">\n{row}</ul>\n{more}")
    }

    fn empties(&self) -> String {
        let empties = &self.results.empties;
        if empties.is_empty() {
            return String::new();
        }
        let about = "<p class=\"soft\">They were looked at, and there was nothing to recognise.</p>\n";
        let list = each(empties.iter().take(MAX_LISTED), empty);
        section("empties", "Without a result", about, &listed(&list, empties.len()))
    }

    fn dead_letters(&self) -> String {
        let letters = &self.results.dead_letters;
        if letters.is_empty() {
            return section("dead", "Dead letters", "", "<p>None: every message could be handled.</p>\n");
        }
        let about = "<p class=\"soft\">What a stage can never handle, kept whole: <code>causeway dlq show</code> gives each with its original bytes.</p>\n";
        let list = each(letters.iter().take(MAX_LISTED), |found| self.dead_letter(found));
        section("dead", "Dead letters", about, &listed(&list, letters.len()))
    }

    fn dead_letter(&self, found: &Found<DeadLetter>) -> String {
        let letter = &found.message;
        let item =
            self.results.capture(found.meta.root).map_or(letter.subject.as_str(), |capture| capture.item.as_str());
        let picture = thumbnails::of_dead_letter(letter).map_or(String::new(), |address| {
            format!("<img src=\"{address}\" width=\"72\" height=\"72\" alt=\"What was set aside\">")
        });
        let tries = match letter.attempts {
            1 => "1 delivery".to_owned(),
            attempts => format!("{attempts} deliveries"),
        };
        format!(
            "<li class=\"card dead\">{picture}<div><h3><b>{}</b> {}</h3><p class=\"soft\">at stage {} after {tries}, {}</p><p>{}</p></div></li>\n",
            Text(&letter.reason),
            Text(item),
            Text(&letter.stage),
            count(letter.body.len(), "byte"),
            Text(&letter.detail)
        )
    }

    fn footer(&self) -> String {
        let Pipeline { keep_captured, keep_outcomes, .. } = self.pipeline;
        if self.subject == Subject::Objects {
            return format!(
                "<footer>\n<p>Photos are kept for {}; labels and dead letters for {}: the table <code>[keep]</code> of the pipeline file says so. <code>causeway up --again</code> forgets all results before it runs anew. This page holds pictures too: delete it when they have to go.</p>\n<p>Made by Causeway. This page loads nothing from anywhere.</p>\n</footer>\n",
                kept(*keep_captured),
                kept(*keep_outcomes)
            );
        }
        format!(
            "<footer>\n<p>Photos are kept for {}; names, clusters and dead letters for {}: the table <code>[keep]</code> of the pipeline file says so. <code>causeway forget NAME</code> removes a person from the gallery; <code>causeway up --again</code> forgets all results before it runs anew. This page holds faces too: delete it when they have to go.</p>\n<p>Made by Causeway. This page loads nothing from anywhere.</p>\n</footer>\n",
            kept(*keep_captured),
            kept(*keep_outcomes)
        )
    }
}

fn described(face: &Face<'_>, subject: Subject) -> String {
    let item = &face.capture.item;
    if subject == Subject::Objects {
        return face.label().map_or_else(|| format!("Unknown in {item}"), |label| format!("{label} in {item}"));
    }
    match (face.label(), face.decision) {
        (Some(name), _) => format!("Face of {name} in {item}"),
        (None, Some(_)) => format!("Unknown face in {item}"),
        (None, None) => format!("Face in {item}"),
    }
}

/// The likeliest labels of a picture that was given none.
fn guesses(face: &Face<'_>) -> String {
    const SHOWN: usize = 2;
    let top = face.decision.into_iter().flat_map(|decision| decision.top.iter().take(SHOWN));
    let guesses = each(top, |one| format!("{} {:.2}<br>", Text(&one.label), one.score));
    format!("{guesses}{}", file_name(face))
}

/// Without the folders, and with places where a narrow column may break it.
fn file_name(face: &Face<'_>) -> String {
    let item = face.capture.item.as_str();
    let name = item.rsplit('/').next().unwrap_or(item);
    Text(name).to_string().replace('_', "_<wbr>")
}

fn empty(found: &Found<Empty>) -> String {
    let Empty { capture, stage, reason, detail } = &found.message;
    format!(
        "<li class=\"card\"><div><h3>{}</h3><p class=\"soft\">{} at stage {}</p><p>{}</p></div></li>\n",
        Text(&capture.item),
        Text(reason),
        Text(stage),
        Text(detail)
    )
}

fn section(id: &str, title: &str, about: &str, content: &str) -> String {
    format!("<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>\n{about}{content}</section>\n")
}

fn listed(items: &str, all: usize) -> String {
    let more = match all.saturating_sub(MAX_LISTED) {
        0 => String::new(),
        more => format!("<p class=\"soft\">and {more} more</p>\n"),
    };
    format!("<ul class=\"list\">\n{items}</ul>\n{more}")
}

fn each<T>(items: impl IntoIterator<Item = T>, html: impl Fn(T) -> String) -> String {
    items.into_iter().map(html).collect::<Vec<_>>().concat()
}

/// `7 days or 1 GiB, whichever is reached first`
fn kept(keep: Keep) -> String {
    const DAY: u64 = 24 * 60 * 60;
    let age = keep.age.as_secs();
    let age = match age % DAY {
        0 => count((age / DAY) as usize, "day"),
        _ => humantime::format_duration(Duration::from_secs(age)).to_string(),
    };
    let (unit, name) = [(30, "GiB"), (20, "MiB"), (10, "KiB")]
        .into_iter()
        .find(|(shift, _)| keep.bytes.is_multiple_of(1 << shift) && keep.bytes > 0)
        .unwrap_or((0, "bytes"));
    format!("{age} or {} {name}, whichever is reached first", keep.bytes >> unit)
}

/// A text on the page: whatever it holds, it stays a text. What would steer or reorder the text around it is replaced.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Overrides of the writing direction (Unicode UAX #9) and control characters.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_str("\u{fffd}")?,
                other if other.is_control() => f.write_str("\u{fffd}")?,
                other => write!(f, "{other}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::{Told, pipeline};

    fn page(told: &Told) -> String {
        let pipeline = pipeline();
        let results = &told.results;
        let shown: Vec<_> = shown(results);
        let thumbnails = shown.iter().take(1).map(|face| (face.id, "data:image/jpeg;base64,AAAA".into())).collect();
        let shown = shown.iter().map(|face| face.id).collect();
        Page { pipeline: &pipeline, results, shown, thumbnails, subject: Subject::of(&pipeline), crossed: &[] }.page()
    }

    #[test]
    fn a_text_stays_a_text() {
        let mut told = Told::new();
        let item = "a\"><script>alert('x')</script>\u{202e}.jpg";
        told.face(item, 0, 1, Some("<b>Ada</b>"), None);
        let html = page(&told);
        assert!(!html.contains("<script") && !html.contains("<b>Ada"), "{html}");
        assert!(html.contains("&lt;b&gt;Ada&lt;/b&gt;") && !html.contains('\u{202e}'));
    }

    #[test]
    fn it_asks_nobody_for_anything() {
        let mut told = Told::new();
        told.face("a.jpg", 0, 1, Some("Ada"), None);
        let html = page(&told).replace("http://www.w3.org/2000/svg", "");
        for fetching in ["http:", "https:", "src=\"/", "href=", "url(http", "@import", "<script", "<link"] {
            assert!(!html.contains(fetching), "{fetching}");
        }
        assert!(html.contains("default-src 'none'"));
    }

    #[test]
    fn every_link_has_its_count() {
        let mut told = Told::new();
        told.face("group.jpg", 0, 2, Some("Ada"), None);
        told.face("group.jpg", 1, 2, None, None);
        told.face("one.jpg", 0, 1, None, None);
        told.empty("cat.png");
        told.dead("text.jpg", "camera");
        let pipeline = pipeline();
        let (shown, thumbnails) = (HashSet::new(), Thumbnails::new());
        let (subject, crossed) = (Subject::Faces, &[][..]);
        let page = Page { pipeline: &pipeline, results: &told.results, shown, thumbnails, subject, crossed };
        let counts: Vec<usize> = pipeline.stages.iter().map(|stage| page.on_link(&stage.name)).collect();
        // Three photos reached `find`; three faces went on, to both that take them.
        assert_eq!(counts, [3, 3, 3, 3, 3]);
    }

    #[test]
    fn what_is_not_kept_and_what_has_no_room_is_said() {
        let mut told = Told::new();
        let founder = told.face("group.jpg", 0, 2, None, None);
        told.face("group.jpg", 1, 2, None, Some(founder));
        let html = page(&told);
        assert_eq!((html.matches("<img ").count(), html.matches("photo no longer kept").count()), (1, 1));
        let pipeline = pipeline();
        let shown = HashSet::from([founder]);
        let (results, thumbnails, subject) = (&told.results, Thumbnails::new(), Subject::Faces);
        let few = Page { pipeline: &pipeline, results, shown, thumbnails, subject, crossed: &[] }.page();
        assert!(few.contains("and 1 face that this page has no room for"), "{few}");
        assert!(few.contains("1 more are stored"));
    }

    #[test]
    fn how_long_things_are_kept() {
        let day = Duration::from_hours(24);
        assert_eq!(kept(Keep { age: day * 7, bytes: 1 << 30 }), "7 days or 1 GiB, whichever is reached first");
        assert_eq!(kept(Keep { age: day / 2, bytes: 1500 }), "12h or 1500 bytes, whichever is reached first");
    }
}
