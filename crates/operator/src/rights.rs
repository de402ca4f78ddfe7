//! Who may do what on the bus of a site: all of it follows from the pipeline.
//!
//! Every identity has an account of its own on the server and meets the pipeline's only in the subjects that it is given there: what it may
//! ask, and what it may hear. Permissions of users within one account would not do. An answer goes wherever the one who asks wants it to
//! go, so whoever may pull could have what it pulls put into any stream; in an account of its own the answer stays there.

mod config;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use causeway_bus::names;
use causeway_pipelines::{Flow, Pipeline, RELAY, StageSpec, taken_at};
use causeway_stage::{epoch_key, links_of, report_key, source_at, unfolded_key};
use serde_json::Value;

use self::config::accounts;
use crate::keys::Users;

/// Who signs in at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its name at the site: a stage, `relay`, `agent`, a reader; at the hub `relay@SITE` is the relay of that site.
    pub(crate) name: String,
    /// The site whose keys it has.
    pub(crate) site: String,
    /// What it may do; none are listed for the agent, who may do everything with the pipeline.
    pub(crate) rights: BTreeSet<Right>,
}

/// What somebody may do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Right {
    /// Send to a subject, and have one answer: ask the server something, store a message.
    Ask(String),
    /// The same with any number of answers: pull, read on from somewhere.
    AskMany(String),
    /// Hear what is stored under a subject, once it is: outcomes whole, of tables that there is something.
    Hear(String),
}

/// The identity with all rights at a site.
pub(crate) const AGENT: &str = "agent";

/// The accounts of a site's server: of everybody whose key its folder has.
pub(crate) fn accounts_here(pipeline: &Pipeline, keys: &Path) -> anyhow::Result<Value> {
    let users = Users::read(keys)?;
    let readers: Vec<String> = users.readers.keys().cloned().collect();
    Ok(accounts(&pipeline.name, &identities(pipeline, &readers), &users.all()))
}

/// Everybody at the site that a pipeline is seen from, with these readers of its results.
pub(crate) fn identities(pipeline: &Pipeline, readers: &[String]) -> Vec<Identity> {
    let here = &pipeline.here;
    let of = |name: &str, site: &str, rights| Identity { name: name.into(), site: site.into(), rights };
    let mut all = vec![of(AGENT, here, BTreeSet::new())];
    for stage in pipeline.stages.iter().filter(|stage| may_run_at(stage, here)) {
        all.push(of(&stage.name, here, Rights::of_stage(pipeline, stage)));
    }
    if pipeline.is_split() {
        if pipeline.hub().name == *here {
            for edge in pipeline.edges() {
                all.push(of(&relay_of(&edge.name), &edge.name, Rights::of_relay(pipeline, &edge.name, here)));
            }
        } else {
            all.push(of(RELAY, here, Rights::of_relay(pipeline, here, here)));
        }
    }
    all.extend(readers.iter().map(|reader| of(reader, here, Rights::of_reader(pipeline))));
    all
}

/// What the relay of a site is called at the hub.
pub(crate) fn relay_of(site: &str) -> String {
    format!("{RELAY}@{site}")
}

/// Whether a stage may be moved to a site, or is there.
pub(crate) fn may_run_at(stage: &StageSpec, site: &str) -> bool {
    stage.sites.iter().chain(&stage.may_move_to).any(|known| known == site)
}

/// Where what is captured at a site may be handled, wherever stages are moved to.
struct Ways<'a> {
    pipeline: &'a Pipeline,
    /// By the site where it is captured, and the stage.
    handled: BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>,
}

impl<'a> Ways<'a> {
    fn of(pipeline: &'a Pipeline) -> Self {
        let sources = pipeline.stages.iter().filter(|stage| stage.is_source());
        let captures: BTreeSet<&str> = sources.flat_map(|stage| &stage.sites).map(String::as_str).collect();
        let handled = captures.into_iter().map(|captured| {
            let mut at: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
            // Graph order: all that a stage takes from is known.
            for stage in &pipeline.stages {
                let sites = if stage.is_source() {
                    stage.runs_at(captured).then_some(captured).into_iter().collect()
                } else {
                    let made = stage.from.iter().filter_map(|from| at.get(from.as_str())).flatten();
                    made.flat_map(|made| may_take_at(stage, made)).collect()
                };
                at.insert(&stage.name, sites);
            }
            (captured, at)
        });
        Self { pipeline, handled: handled.collect() }
    }

    /// Of which sites' captures something of a flow may cross from a site to the next.
    fn cross(&self, flow: Flow<'_>, from: &str, to: &str) -> BTreeSet<&'a str> {
        let hub = self.pipeline.hub().name.as_str();
        let takers: Vec<&StageSpec> = match flow {
            Flow::Stage(name) => self.pipeline.stages.iter().filter(|stage| stage.takes_from(name)).collect(),
            Flow::Ends => Vec::new(),
        };
        let crosses = |captured: &str, at: &BTreeMap<&str, BTreeSet<&str>>| {
            let made: BTreeSet<&str> = match flow {
                Flow::Stage(name) => at.get(name).cloned().unwrap_or_default(),
                Flow::Ends => at.values().flatten().copied().collect(),
            };
            made.into_iter().any(|made| {
                // An outcome goes to the hub, and back to where its item was captured.
                let wanted: BTreeSet<&str> = if takers.is_empty() {
                    BTreeSet::from([hub, captured])
                } else {
                    takers.iter().flat_map(|&taker| may_take_at(taker, made)).collect()
                };
                wanted.into_iter().any(|wanted| {
                    let stops = [made, hub, wanted];
                    made != wanted && stops.windows(2).any(|way| way == [from, to])
                })
            })
        };
        self.handled.iter().filter(|(captured, at)| crosses(captured, at)).map(|(&captured, _)| captured).collect()
    }
}

/// Where a stage may take what is made at a site: of one that moves, at any of its sites.
fn may_take_at<'a>(stage: &'a StageSpec, made: &'a str) -> BTreeSet<&'a str> {
    if stage.may_move_to.is_empty() {
        return BTreeSet::from([taken_at(&stage.sites, made)]);
    }
    stage.sites.iter().chain(&stage.may_move_to).map(String::as_str).collect()
}

/// What is given to one identity.
struct Rights<'a> {
    pipeline: &'a Pipeline,
    given: BTreeSet<Right>,
}

impl<'a> Rights<'a> {
    /// What everybody of ours needs to be connected.
    fn begin(pipeline: &'a Pipeline) -> Self {
        Self { pipeline, given: BTreeSet::from([Right::Ask("$JS.API.INFO".into())]) }
    }

    /// A stage publishes its own subjects, pulls and acks its own durables, reads its tables, and nothing else.
    fn of_stage(pipeline: &'a Pipeline, stage: &StageSpec) -> BTreeSet<Right> {
        let (mut rights, name) = (Self::begin(pipeline), &stage.name);
        rights.lives(name);
        let link = if stage.is_source() {
            names::subject(&pipeline.name, &stage.link, &pipeline.here, name)
        } else {
            names::link(&pipeline.name, &stage.link)
        };
        // A source that is final gives outcomes, whose subjects end in an id.
        let link = if stage.is_source() && pipeline.is_final(name) { format!("{link}.*") } else { link };
        rights.ask(link);
        rights.ask(names::link(&pipeline.name, names::EMPTY));
        for ends in [names::DEAD, names::RECEIPT].into_iter().filter(|&ends| ends == names::DEAD || pipeline.is_split())
        {
            rights.ask(names::of_stage(&pipeline.name, ends, name));
        }
        rights.writes_bodies();
        for from in &stage.from {
            rights.pulls(&names::stream(&pipeline.name, from), name);
        }
        if stage.is_source() {
            rights.swaps_key(names::CONTROL, &epoch_key(&source_at(stage, &pipeline.here)));
            rights.ask(names::done(&pipeline.name, &pipeline.here));
        } else {
            rights.reads_bodies();
            rights.ask(names::letter(&pipeline.name, &pipeline.here, name));
            rights.swaps_key(names::ATTEMPTS, &format!("{name}.*"));
        }
        for table in stage.tables() {
            rights.reads_table(table);
        }
        if stage.folds {
            rights.has_state(name);
            if pipeline.is_final(name) {
                rights.reads(&names::stream(&pipeline.name, name));
            }
            rights.swaps_key(names::CONTROL, &unfolded_key(name));
        }
        rights.given
    }

    /// The relay of a site, there or at the hub: it takes its own durables, stores what comes from the other side, and keeps the tables that
    /// its site needs.
    fn of_relay(pipeline: &'a Pipeline, site: &str, here: &str) -> BTreeSet<Right> {
        let (mut rights, is_home) = (Self::begin(pipeline), site == here);
        let hub = pipeline.hub().name.as_str();
        rights.lives(&if is_home { RELAY.into() } else { relay_of(site) });
        let ways = Ways::of(pipeline);
        let flows = pipeline.stages.iter().map(|stage| Flow::Stage(&stage.name)).chain([Flow::Ends]);
        for (flow, (from, to)) in flows.flat_map(|flow| [(flow, (site, hub)), (flow, (hub, site))]) {
            let captured = ways.cross(flow, from, to);
            if captured.is_empty() {
                continue;
            }
            for link in links_of(flow) {
                let stream = names::stream(&pipeline.name, link);
                if from == here {
                    rights.pulls(&stream, &names::relay(to));
                    if is_home {
                        // What comes from now on goes first, where that is wanted.
                        rights.reads(&stream);
                    }
                    rights.reads_bodies();
                    continue;
                }
                let link = pipeline.stage(link).map_or(link, |stage| &stage.link);
                for site in &captured {
                    rights.ask(names::link_of_site(&pipeline.name, link, site));
                }
                rights.writes_bodies();
            }
        }
        let tables = pipeline.stages.iter().filter(|stage| may_run_at(stage, site));
        for table in tables.flat_map(StageSpec::tables).copied().chain([names::PLACEMENT]) {
            rights.reads_table(table);
            if is_home {
                rights.writes_key(table, ">");
            }
        }
        if !is_home {
            rights.writes_key(names::PLACEMENT, &report_key(site));
        }
        for fold in pipeline.stages.iter().filter(|stage| stage.folds && !stage.may_move_to.is_empty()) {
            if may_run_at(fold, site) && may_run_at(fold, hub) {
                rights.has_state(&fold.name);
            }
        }
        rights.given
    }

    /// Whoever reads results: outcomes, those that come and those that are kept.
    fn of_reader(pipeline: &'a Pipeline) -> BTreeSet<Right> {
        let mut rights = Self::begin(pipeline);
        let plan = pipeline.plan();
        let is_here = |flow| plan.share(flow, &pipeline.here).is_some();
        let finals = pipeline.stages.iter().filter(|stage| pipeline.is_final(&stage.name));
        let finals = finals.filter(|stage| is_here(Flow::Stage(&stage.name)));
        let mut links: Vec<(&str, &str)> = finals.map(|stage| (stage.name.as_str(), stage.link.as_str())).collect();
        if is_here(Flow::Ends) {
            links.push((names::EMPTY, names::EMPTY));
        }
        for (stream, link) in links {
            let stream = names::stream(&pipeline.name, stream);
            rights.given.insert(Right::Hear(names::link(&pipeline.name, link)));
            rights.gets(&stream);
        }
        rights.given
    }

    /// Says how it is, and hears where stages are.
    fn lives(&mut self, name: &str) {
        self.writes_key(names::REPLICAS, &format!("{}.*", names::token(name)));
        if self.pipeline.is_split() {
            self.reads_table(names::PLACEMENT);
        }
    }

    /// Has the changelog and the snapshots of a fold.
    fn has_state(&mut self, fold: &str) {
        let pipeline = &self.pipeline.name;
        let streams = [
            (names::changelog(pipeline, fold), names::changelog_subject(pipeline, fold)),
            (names::snapshots(pipeline, fold), names::snapshots_subject(pipeline, fold)),
        ];
        for (stream, subject) in streams {
            self.reads(&stream);
            self.ask(subject);
        }
    }

    fn pulls(&mut self, stream: &str, durable: &str) {
        self.looks_at(stream);
        self.ask(format!("$JS.API.CONSUMER.INFO.{stream}.{durable}"));
        self.many(format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"));
        self.ask(format!("$JS.ACK.{stream}.{durable}.>"));
    }

    /// All of a stream.
    fn reads(&mut self, stream: &str) {
        self.looks_at(stream);
        self.many(format!("$JS.API.DIRECT.GET.{stream}"));
        self.ask(format!("$JS.API.STREAM.MSG.GET.{stream}"));
    }

    /// The same from any copy of it, also the last message of a subject.
    fn gets(&mut self, stream: &str) {
        self.looks_at(stream);
        self.many(format!("$JS.API.DIRECT.GET.{stream}"));
        self.ask(format!("$JS.API.DIRECT.GET.{stream}.>"));
    }

    fn reads_table(&mut self, table: &str) {
        let stream = names::stream_of_table(&self.pipeline.name, table);
        self.reads(&stream);
        self.gets(&stream);
        self.given.insert(Right::Hear(names::keys_of_table(&self.pipeline.name, table)));
    }

    /// Keys that it may read and set.
    fn swaps_key(&mut self, table: &str, keys: &str) {
        self.writes_key(table, keys);
        let stream = names::stream_of_table(&self.pipeline.name, table);
        let subject = names::key_of_table(&self.pipeline.name, table, keys);
        self.ask(format!("$JS.API.DIRECT.GET.{stream}.{subject}"));
    }

    fn writes_key(&mut self, table: &str, keys: &str) {
        self.looks_at(&names::stream_of_table(&self.pipeline.name, table));
        self.ask(names::key_of_table(&self.pipeline.name, table, keys));
    }

    fn reads_bodies(&mut self) {
        let (stream, _) = names::bodies_of(&self.pipeline.name);
        self.gets(&stream);
    }

    fn writes_bodies(&mut self) {
        let (stream, subjects) = names::bodies_of(&self.pipeline.name);
        self.looks_at(&stream);
        self.ask(format!("$JS.API.DIRECT.GET.{stream}.>"));
        self.ask(subjects);
    }

    fn looks_at(&mut self, stream: &str) {
        self.ask(format!("$JS.API.STREAM.INFO.{stream}"));
    }

    fn ask(&mut self, subject: String) {
        self.given.insert(Right::Ask(subject));
    }

    fn many(&mut self, subject: String) {
        self.given.insert(Right::AskMany(subject));
    }
}
