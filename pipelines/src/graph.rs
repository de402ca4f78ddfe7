use std::collections::HashMap;

use crate::{Pipeline, StageSpec};

impl Pipeline {
    /// The graph for a terminal: a tree from each source, outcomes as its leaves. What several stages lead to is drawn once
    /// and named again.
    pub fn to_text(&self) -> String {
        let stages = if self.stages.len() == 1 { "1 stage" } else { &format!("{} stages", self.stages.len()) };
        let mut out = vec![format!("{}: {stages}\n", self.name)];
        let mut drawn = Vec::new();
        for source in self.stages.iter().filter(|stage| stage.is_source()) {
            out.push(format!("{}\n", heading(source)));
            self.branch(source, "", &mut drawn, &mut out);
        }
        out.concat()
    }

    fn branch<'a>(&'a self, stage: &'a StageSpec, indent: &str, drawn: &mut Vec<&'a str>, out: &mut Vec<String>) {
        drawn.push(&stage.name);
        let takers: Vec<&StageSpec> = self.takers(&stage.name).collect();
        if takers.is_empty() {
            out.push(format!("{indent}└─ {} → outcome\n", stage.link));
        }
        for (place, taker) in takers.iter().enumerate() {
            let last = place + 1 == takers.len();
            let (corner, below) = if last { ("└─", "   ") } else { ("├─", "│  ") };
            let again = drawn.contains(&taker.name.as_str());
            let note = if again { ", drawn above" } else { "" };
            out.push(format!("{indent}{corner} {} → {}{note}\n", stage.link, heading(taker)));
            if !again {
                self.branch(taker, &format!("{indent}{below}"), drawn, out);
            }
        }
    }

    /// The graph as a picture of its own, from left to right on a light ground. `labels` gives what is shown beside a
    /// stage's link: a count.
    pub fn to_svg(&self, labels: impl Fn(&str) -> Option<String>) -> String {
        Picture::new(self, &labels).draw(&labels)
    }
}

/// `who (classify, edge)`
fn heading(stage: &StageSpec) -> String {
    format!("{} ({})", stage.name, subtitle(stage, ", "))
}

fn subtitle(stage: &StageSpec, between: &str) -> String {
    let sites = match stage.sites.len() {
        1..=NAMED_SITES => stage.sites.join(", "),
        more => format!("{more} sites"),
    };
    if stage.uses == stage.name { sites } else { format!("{}{between}{sites}", stage.uses) }
}

/// Sites of a stage that are named; of more it is said how many they are.
const NAMED_SITES: usize = 3;

/// Sizes of the picture, px.
const BOX_HEIGHT: f32 = 54.0;
const OUTCOME_HEIGHT: f32 = 34.0;
const ROW: f32 = BOX_HEIGHT + 34.0;
const MARGIN: f32 = 16.0;
/// Least width of a box and of the room for an arrow with its label.
const BOX_WIDTH: f32 = 124.0;
const ARROW_WIDTH: f32 = 118.0;
/// The piece of an arrow that changes rows.
const BEND: f32 = 30.0;
/// The piece of an arrow under its head, which stays straight.
const HEAD: f32 = 10.0;
/// Width of one letter at 14 px and at 12 px, on the wide side: the font is the reader's.
const LETTER: f32 = 8.4;
const SMALL_LETTER: f32 = 7.2;

/// What stands in one place of the picture.
enum Spot<'a> {
    Stage(&'a StageSpec),
    /// What no stage takes, with the name of its link.
    Outcome(&'a str),
    /// A link on its way past a column.
    Passing,
}

struct Slot<'a> {
    spot: Spot<'a>,
    column: usize,
    /// The slots to its left that lead to it.
    from: Vec<usize>,
    /// Middle, px.
    y: f32,
}

struct Arrow<'a> {
    /// The stage whose link it is.
    of: &'a StageSpec,
    /// The slots on its way, first and last included.
    way: Vec<usize>,
}

struct Picture<'a> {
    name: &'a str,
    slots: Vec<Slot<'a>>,
    arrows: Vec<Arrow<'a>>,
    /// Widths of every box and of every room between two, px.
    widths: (f32, f32),
    height: f32,
}

impl<'a> Picture<'a> {
    fn new(pipeline: &'a Pipeline, labels: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut picture = Self {
            name: &pipeline.name,
            slots: Vec::new(),
            arrows: Vec::new(),
            widths: (BOX_WIDTH, ARROW_WIDTH),
            height: 0.0,
        };
        let mut slot_of: HashMap<&str, usize> = HashMap::new();
        for stage in &pipeline.stages {
            // Graph order: all that it takes from has its column.
            let before = stage.from.iter().filter_map(|from| slot_of.get(from.as_str()));
            let column = before.map(|&before| picture.slots[before].column + 1).max().unwrap_or(0);
            let slot = picture.add(Spot::Stage(stage), column);
            slot_of.insert(&stage.name, slot);
            for before in stage.from.iter().filter_map(|from| pipeline.stage(from)) {
                picture.connect(before, slot_of[before.name.as_str()], slot);
            }
            if pipeline.is_final(&stage.name) {
                let end = picture.add(Spot::Outcome(&stage.link), column + 1);
                picture.connect(stage, slot, end);
            }
            let label = labels(&stage.name).map_or(0, |label| label.chars().count());
            let (in_box, on_arrow) = (stage.name.chars().count(), stage.link.chars().count().max(label));
            let small = subtitle(stage, " · ").chars().count().max(stage.link.chars().count());
            let (boxes, arrows) = &mut picture.widths;
            *boxes = boxes.max(in_box as f32 * LETTER + 24.0).max(small as f32 * SMALL_LETTER + 24.0);
            *arrows = arrows.max(on_arrow as f32 * SMALL_LETTER + BEND + 20.0);
        }
        picture.place();
        picture
    }

    fn add(&mut self, spot: Spot<'a>, column: usize) -> usize {
        self.slots.push(Slot { spot, column, from: Vec::new(), y: 0.0 });
        self.slots.len() - 1
    }

    /// An arrow that keeps a row free in every column it passes.
    fn connect(&mut self, of: &'a StageSpec, from: usize, to: usize) {
        let mut way = vec![from];
        for column in self.slots[from].column + 1..self.slots[to].column {
            let passing = self.add(Spot::Passing, column);
            self.slots[passing].from.push(way[way.len() - 1]);
            way.push(passing);
        }
        self.slots[to].from.push(way[way.len() - 1]);
        way.push(to);
        self.arrows.push(Arrow { of, way });
    }

    /// Column by column, each slot as near as can be to the middle of what leads to it.
    fn place(&mut self) {
        let last = self.slots.iter().map(|slot| slot.column).max().unwrap_or(0);
        let columns: Vec<Vec<usize>> = (0..=last)
            .map(|column| (0..self.slots.len()).filter(|&slot| self.slots[slot].column == column).collect())
            .collect();
        let rows = columns.iter().map(Vec::len).max().unwrap_or(0);
        self.height = rows.max(1) as f32 * ROW - (ROW - BOX_HEIGHT) + 2.0 * MARGIN;
        for mut column in columns {
            let middle = |&slot: &usize| {
                let from = &self.slots[slot].from;
                from.iter().map(|&before| self.slots[before].y).sum::<f32>() / from.len().max(1) as f32
            };
            column.sort_by(|a, b| middle(a).total_cmp(&middle(b)));
            let top = (self.height - (column.len() as f32 - 1.0) * ROW) / 2.0;
            for (row, slot) in column.into_iter().enumerate() {
                self.slots[slot].y = top + row as f32 * ROW;
            }
        }
    }

    fn left(&self, slot: usize) -> f32 {
        MARGIN + self.slots[slot].column as f32 * (self.widths.0 + self.widths.1)
    }

    fn draw(&self, labels: &dyn Fn(&str) -> Option<String>) -> String {
        let width = (0..self.slots.len()).map(|slot| self.left(slot) + self.widths.0).fold(0.0, f32::max) + MARGIN;
        let (height, name) = (self.height, escape(self.name));
        let mut out = vec![format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" text-anchor="middle">
<title>Pipeline {name}</title>
<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#64748b"/></marker></defs>
<rect width="100%" height="100%" fill="#ffffff"/>
"##
        )];
        for arrow in &self.arrows {
            self.line(arrow, &mut out);
        }
        for arrow in &self.arrows {
            self.words(arrow, labels(&arrow.of.name), &mut out);
        }
        for slot in 0..self.slots.len() {
            self.spot(slot, &mut out);
        }
        out.push("</svg>\n".into());
        out.concat()
    }

    fn line(&self, arrow: &Arrow<'_>, out: &mut Vec<String>) {
        let (width, _) = self.widths;
        let start = (self.left(arrow.way[0]) + width, self.slots[arrow.way[0]].y);
        let mut path = vec![format!("M{} {}", start.0, start.1)];
        for pair in arrow.way.windows(2) {
            let (x0, y0) = (self.left(pair[0]) + width, self.slots[pair[0]].y);
            let (x1, y1) = (self.left(pair[1]), self.slots[pair[1]].y);
            // The bend at one end leaves a straight piece for the words.
            let (bend, end) = if self.bends_late(arrow) { (x1 - HEAD - BEND, x1 - HEAD) } else { (x0, x0 + BEND) };
            let middle = f32::midpoint(bend, end);
            path.push(format!("H{x0} H{bend} C{middle} {y0} {middle} {y1} {end} {y1} H{x1}"));
        }
        let path = path.join(" ");
        out.push(format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"#64748b\" stroke-width=\"1.5\" marker-end=\"url(#arrow)\"/>\n"
        ));
    }

    /// Where arrows meet they bend at their ends, else where they part.
    fn bends_late(&self, arrow: &Arrow<'_>) -> bool {
        arrow.way.last().is_some_and(|&end| self.slots[end].from.len() > 1)
    }

    /// The kind above the straight piece of the arrow, what it is labelled with below.
    fn words(&self, arrow: &Arrow<'_>, label: Option<String>, out: &mut Vec<String>) {
        let [first, .., last] = arrow.way[..] else { return };
        let (width, room) = self.widths;
        let leave = self.arrows.iter().filter(|other| other.way[0] == first).count();
        let (x, y) = if arrow.way.len() == 2 && leave == 1 && self.slots[last].from.len() == 1 {
            (self.left(last) - room / 2.0, self.slots[last].y)
        } else if self.bends_late(arrow) {
            (self.left(first) + width + (room - BEND) / 2.0, self.slots[first].y)
        } else {
            (self.left(last) - (room - BEND) / 2.0, self.slots[last].y)
        };
        let mut text = |y: f32, colour: &str, weight: u32, text: &str| {
            let text = escape(text);
            out.push(format!(
                "<text x=\"{x}\" y=\"{y}\" font-size=\"12\" font-weight=\"{weight}\" fill=\"{colour}\">{text}</text>\n"
            ));
        };
        text(y - 7.0, "#475569", 400, &arrow.of.link);
        if let Some(label) = label {
            text(y + 17.0, "#0f172a", 600, &label);
        }
    }

    fn spot(&self, slot: usize, out: &mut Vec<String>) {
        let (left, y, width) = (self.left(slot), self.slots[slot].y, self.widths.0);
        let middle = left + width / 2.0;
        let mut boxed = |height: f32, radius: f32, fill: &str, stroke: &str| {
            let top = y - height / 2.0;
            out.push(format!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" rx=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"1.5\"/>\n"
            ));
        };
        match self.slots[slot].spot {
            Spot::Stage(stage) => {
                boxed(BOX_HEIGHT, 10.0, "#eff6ff", "#2563eb");
                let (name, small) = (escape(&stage.name), escape(&subtitle(stage, " · ")));
                let (above, below) = (y - 3.0, y + 15.0);
                out.push(format!(
                    "<text x=\"{middle}\" y=\"{above}\" font-size=\"14\" font-weight=\"600\" fill=\"#0f172a\">{name}</text>\n<text x=\"{middle}\" y=\"{below}\" font-size=\"12\" fill=\"#475569\">{small}</text>\n"
                ));
            }
            Spot::Outcome(link) => {
                boxed(OUTCOME_HEIGHT, OUTCOME_HEIGHT / 2.0, "#f0fdf4", "#16a34a");
                let (link, y) = (escape(link), y + 4.5);
                out.push(format!("<text x=\"{middle}\" y=\"{y}\" font-size=\"13\" fill=\"#14532d\">{link}</text>\n"));
            }
            Spot::Passing => {}
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use crate::Pipeline;

    fn load(text: &str) -> Pipeline {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.toml");
        std::fs::write(&path, text).unwrap();
        Pipeline::load(path).unwrap_or_else(|error| panic!("{error}"))
    }

    const JOINED: &str = r#"
pipeline = "doors"
[stage.front]
uses = "capture"
[stage.back]
uses = "capture"
emits = "back-frame"
[stage.preprocess]
from = ["front", "back"]
model = "yunet"
[stage.extract]
from = "preprocess"
model = "sface"
[stage.who]
uses = "classify"
from = "extract"
[stage.cluster]
from = "extract"
"#;

    #[test]
    fn a_tree_for_the_terminal() {
        assert_eq!(
            load(JOINED).to_text(),
            "\
doors: 6 stages
front (capture, edge)
└─ frame → preprocess (edge)
   └─ crop → extract (edge)
      ├─ feature → who (classify, edge)
      │  └─ decision → outcome
      └─ feature → cluster (edge)
         └─ assignment → outcome
back (capture, edge)
└─ back-frame → preprocess (edge), drawn above
"
        );
    }

    #[test]
    fn a_picture_names_every_stage_and_escapes_labels() {
        let svg = load(JOINED).to_svg(|stage| (stage == "who").then(|| "3 < \"4\" & more".to_owned()));
        for text in [
            ">front<",
            ">capture · edge<",
            ">back-frame<",
            ">who<",
            ">assignment<",
            ">3 &lt; &quot;4&quot; &amp; more<",
        ] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
        assert!(!svg.contains("currentColor") && !svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(svg.matches("<path d=\"M").count(), 7 + 1, "seven arrows and the marker's head");
    }
}
