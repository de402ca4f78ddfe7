use std::collections::{BTreeSet, HashMap};

use crate::StageSpec;
use crate::check::{Check, Draught};
use crate::fault::{Draft, did_you_mean};
use crate::sites::taken_at;

/// What is wrong between stages: who takes from whom, where, and on which subjects.
impl Check<'_, '_> {
    pub(crate) fn graph(&mut self, stages: &[Draught<'_>]) {
        let by_name: HashMap<&str, &Draught<'_>> = stages.iter().map(|stage| (stage.name.as_str(), stage)).collect();
        for stage in stages {
            self.has_from(stage);
            for (place, (from, at)) in stage.from.iter().enumerate() {
                let draft = |message: String| Draft::new(message).stage(Some(&stage.name)).key("from");
                let Some(before) = by_name.get(from.as_str()) else {
                    let near = did_you_mean(from, by_name.keys().copied().filter(|&name| name != stage.name));
                    self.findings
                        .push(at.clone(), draft(format!("there is no stage `{from}`")).help(near).of_absence());
                    continue;
                };
                if stage.from[..place].iter().any(|(earlier, _)| earlier == from) {
                    self.findings.push(at.clone(), draft(format!("`{from}` stands here twice")));
                } else if let (Some(takes), Some(gives)) =
                    (stage.uses.and_then(|uses| uses.takes), before.uses.map(|uses| uses.gives))
                    && takes != gives
                {
                    let giver = stages.iter().find(|other| other.uses.is_some_and(|uses| uses.gives == takes));
                    let help = giver.map(|giver| format!("`{}` gives a {takes}", giver.name));
                    let uses = stage.uses.map_or("", |uses| uses.name);
                    self.findings.push(
                        at.clone(),
                        draft(format!("{uses} takes a {takes}, but `{from}` gives a {gives}")).help(help),
                    );
                }
            }
        }
        // A stage that cannot be told from a source is given the benefit of the doubt.
        if !stages.is_empty() && stages.iter().all(|stage| stage.uses.is_some_and(|uses| uses.takes.is_some())) {
            let help = Some("add a stage that brings something in: [stage.capture]".to_owned());
            let draft = Draft::new("the pipeline has no source: nothing ever comes in").key("stage").help(help);
            self.findings.push(stages[0].name_at.clone(), draft.of_absence());
        }
        self.cycles(stages);
    }

    fn has_from(&mut self, stage: &Draught<'_>) {
        let Some(uses) = stage.uses.filter(|_| !stage.from_unreadable) else { return };
        let draft = |message: String| Draft::new(message).stage(Some(&stage.name)).key("from");
        match uses.takes {
            None if !stage.from.is_empty() => {
                self.findings
                    .push(stage.at("from"), draft(format!("{} is a source: it takes from no stage", uses.name)));
            }
            Some(takes) if stage.from.is_empty() => {
                let help = Some(format!("add: from = \"…\", a stage that gives a {takes}"));
                let draft = draft(format!("`from` is missing: {} takes a {takes}", uses.name)).help(help);
                self.findings.push(stage.at("from"), draft.of_absence());
            }
            _ => {}
        }
    }

    /// Each cycle once, named from its first stage in the file along the way that messages would go.
    fn cycles(&mut self, stages: &[Draught<'_>]) {
        let place: HashMap<&str, usize> =
            stages.iter().enumerate().map(|(at, stage)| (stage.name.as_str(), at)).collect();
        let before: Vec<Vec<usize>> = stages
            .iter()
            // A source that takes from a stage was told.
            .map(|stage| if stage.uses.is_some_and(|uses| uses.takes.is_none()) { &[][..] } else { &stage.from })
            .map(|from| from.iter().filter_map(|(from, _)| place.get(from.as_str()).copied()).collect())
            .collect();
        let mut told = vec![false; stages.len()];
        for start in 0..stages.len() {
            let Some(cycle) = way_back(&before, start).filter(|_| !told[start]) else { continue };
            for &at in &cycle {
                told[at] = true;
            }
            let mut names: Vec<&str> = cycle.iter().map(|&at| stages[at].name.as_str()).collect();
            names.reverse();
            let start_name = names.pop().unwrap_or_default();
            let way = [&[start_name][..], &names, &[start_name]].concat().join(" → ");
            let stage = &stages[start];
            let draft = Draft::new(format!("the stages go in a circle: {way}")).stage(Some(&stage.name)).key("from");
            self.findings.push(stage.at("from"), draft);
        }
    }

    /// What runs at several sites takes at each what is made there.
    pub(crate) fn places(&mut self, stages: &[Draught<'_>]) {
        let made = made_at(stages);
        for stage in stages {
            let (here, by_name) = (stage.sites.join(", "), |name: &str| stages.iter().find(|other| other.name == name));
            let mut say = |message: String, help: Option<&str>| {
                let draft = Draft::new(message).stage(Some(&stage.name)).key("site").help(help.map(Into::into));
                self.findings.push(stage.at("site"), draft);
            };
            let before = || stage.from.iter().filter_map(|(from, _)| by_name(from));
            if stage.sites.len() == 1 {
                let at_each = |source: &&Draught<'_>| {
                    let is_source = source.uses.is_some_and(|uses| uses.takes.is_none());
                    is_source && source.sites.len() > 1 && source.sites.contains(&stage.sites[0])
                };
                if let Some(source) = before().find(at_each) {
                    let source = &source.name;
                    let message = format!(
                        "`{source}` runs at {here} and elsewhere: what came from there would lie among what is captured here"
                    );
                    say(message, Some("let it run where that does, or at another site"));
                }
                continue;
            }
            if stage.uses.is_some_and(|uses| uses.folds) {
                say("it folds, and its state has one writer: it runs at one site".into(), None);
                continue;
            }
            let lonely = before().find_map(|before| {
                let site = made.get(before.name.as_str())?.iter().find(|site| !stage.runs_at(site))?;
                Some((&before.name, *site))
            });
            let idle =
                stage.sites.iter().find(|site| !made.get(&*stage.name).is_some_and(|at| at.contains(site.as_str())));
            if let Some((from, site)) = lonely {
                let message = format!(
                    "`{from}` runs at {site}, where this stage does not: it runs at {here}, and none of them is the one that takes it"
                );
                say(message, Some(&format!("let it run at {site} too, or at one site alone")));
            } else if let Some(site) = idle.filter(|_| !stage.from.is_empty()) {
                say(format!("nothing that it takes is made at {site}"), Some("leave that site out"));
            }
        }
    }

    /// Streams may not share subjects: the broker refuses the second.
    pub(crate) fn links(&mut self, stages: &[Draught<'_>], pipeline: &str) {
        let mut owners: HashMap<&str, &str> = HashMap::new();
        for stage in stages {
            let Some(link) = &stage.link else { continue };
            let Some(owner) = owners.get(link.as_str()) else {
                owners.insert(link, &stage.name);
                continue;
            };
            let pipeline = if pipeline.is_empty() { "PIPELINE" } else { pipeline };
            let help = Some(format!("give one of them a link of its own: emits = \"{}-{link}\"", stage.name));
            let message = format!("it would publish on `{pipeline}.{link}.…`, as `{owner}` does");
            self.findings.push(stage.at("emits"), Draft::new(message).stage(Some(&stage.name)).key("emits").help(help));
        }
    }
}

/// At which sites each stage has something to do, as far as that can be told.
fn made_at<'a>(stages: &'a [Draught<'_>]) -> HashMap<&'a str, BTreeSet<&'a str>> {
    let mut made: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    // A round for each stage reaches the end of every way, also where they go in a circle.
    for _ in stages {
        for stage in stages {
            let own = || stage.sites.iter().map(String::as_str);
            let at: BTreeSet<&str> = if stage.from.is_empty() {
                own().collect()
            } else {
                let before = stage.from.iter().filter_map(|(from, _)| made.get(from.as_str()));
                before.flatten().map(|site| taken_at(&stage.sites, site)).collect()
            };
            made.insert(&stage.name, at);
        }
    }
    made
}

/// The shortest way from `start` back to itself, `start` first; none where it is in no cycle.
fn way_back(before: &[Vec<usize>], start: usize) -> Option<Vec<usize>> {
    let mut came_from = HashMap::new();
    let mut edge = vec![start];
    while !edge.is_empty() {
        let mut next = Vec::new();
        for at in edge {
            for &other in &before[at] {
                if other == start {
                    let mut way = vec![at];
                    while way[way.len() - 1] != start {
                        way.push(came_from[&way[way.len() - 1]]);
                    }
                    way.reverse();
                    return Some(way);
                }
                if let std::collections::hash_map::Entry::Vacant(place) = came_from.entry(other) {
                    place.insert(at);
                    next.push(other);
                }
            }
        }
        edge = next;
    }
    None
}

/// A stage stands behind all that it takes from; where that leaves a choice, in the order of the file.
pub(crate) fn in_graph_order(stages: &mut Vec<Draught<'_>>) -> Vec<StageSpec> {
    let mut ordered: Vec<StageSpec> = Vec::new();
    let mut waiting: Vec<StageSpec> = stages.drain(..).filter_map(|stage| stage.spec).collect();
    let is_placed = |ordered: &[StageSpec], name: &String| ordered.iter().any(|stage| stage.name == *name);
    while let Some(ready) = waiting.iter().position(|stage| stage.from.iter().all(|from| is_placed(&ordered, from))) {
        ordered.push(waiting.remove(ready));
    }
    // What is left is in a cycle, which was told.
    ordered
}
