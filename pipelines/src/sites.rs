//! Sites: what of a pipeline lies at which, who takes it there, and what crosses to another.
//!
//! Sites stand in a star: every other one dials the hub, and what goes from one edge to another passes through it. All of it follows
//! from where stages run and where things are captured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::registry::USES;
use crate::{Batch, Pipeline, StageSpec, defaults};

/// A place with a NATS server, or cluster, of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteSpec {
    /// A token of the subjects of what is captured there.
    pub name: String,
    /// Whether the others dial it. A pipeline's only site is its own hub.
    pub is_hub: bool,
    /// Where its server is; where none is named `up` starts one.
    pub address: Option<String>,
    /// The credentials for it: a file, or a folder with a key for everybody.
    pub credentials: Option<PathBuf>,
    /// Most bytes a second that its relay sends to the hub.
    pub bytes_per_s: Option<u64>,
    /// What goes to the hub first when much waits.
    pub first: First,
}

/// What goes first when much waits to cross.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum First {
    /// What has waited longest.
    #[default]
    Oldest,
    /// What comes from now on; what waits has the rest of the way.
    Newest,
}

/// The program that carries between sites, and what its stage is called.
pub const RELAY: &str = "relay";

/// What of a pipeline may cross sites.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow<'a> {
    /// What a stage gives. Where nobody takes it, it is an outcome: it goes to the hub, and back to where its item was captured.
    Stage(&'a str),
    /// What any stage says of an item that ends there; it goes where outcomes go.
    Ends,
}

/// What a site has of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    /// Of which sites' captures it is.
    pub captured: BTreeSet<String>,
    /// Who takes it here.
    pub takers: Vec<Taker>,
}

/// Somebody who takes at a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    /// Who.
    pub who: Who,
    /// Of which sites' captures.
    pub captured: BTreeSet<String>,
}

/// Who takes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// The stage of this name.
    Stage(String),
    /// A relay, for this site.
    Site(String),
}

/// What a relay carries between its site and the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crossing<'a> {
    /// The stream.
    pub flow: Flow<'a>,
    /// From there.
    pub from: &'a str,
    /// To there.
    pub to: &'a str,
    /// Of which sites' captures, where not of all that lie there.
    pub captured: Vec<String>,
}

impl Share {
    /// Of which sites' captures a taker takes, where not of all that lie here: what only passes through is somebody else's.
    pub fn some_of(&self, taker: &Taker) -> Vec<String> {
        if taker.captured == self.captured { Vec::new() } else { taker.captured.iter().cloned().collect() }
    }
}

/// A site that a pipeline does not have.
#[derive(Debug, thiserror::Error)]
#[error("cannot find the site `{site}` in {}: it has {known}", file.display())]
pub struct UnknownSite {
    site: String,
    file: PathBuf,
    known: String,
}

/// Where everything is, worked out once. While a stage is handed over both where it was and where it will be.
pub struct Plan<'a> {
    pipeline: &'a Pipeline,
    handled: Vec<Handled<'a>>,
}

/// Where what is captured at a site is handled.
struct Handled<'a> {
    captured: &'a str,
    when: When,
    /// At which sites each stage handles, or captures, it.
    at: BTreeMap<&'a str, BTreeSet<&'a str>>,
}

/// Which sites of a stage that is on the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Those that it has.
    Before,
    /// Those that it will have.
    After,
}

/// One way of a message: from where it is made to who wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Route<'a> {
    made: &'a str,
    wanted: &'a str,
    /// The stage that takes it there; none where it is read.
    taker: Option<&'a str>,
}

/// For whom somebody takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum For<'a> {
    /// This stage.
    Stage(&'a str),
    /// Who reads outcomes at this site.
    Readers(&'a str),
}

/// What somebody takes: of what was captured there, and for whom.
pub(crate) type Served<'a> = BTreeSet<(&'a str, For<'a>)>;

impl Pipeline {
    /// The site of this name.
    pub fn site(&self, name: &str) -> Option<&SiteSpec> {
        self.sites.iter().find(|site| site.name == name)
    }

    /// The site that the others dial; the only one is its own.
    pub fn hub(&self) -> &SiteSpec {
        self.sites.iter().find(|site| site.is_hub).unwrap_or(&self.sites[0])
    }

    /// The sites that dial the hub.
    pub fn edges(&self) -> impl Iterator<Item = &SiteSpec> {
        self.sites.iter().filter(|site| !site.is_hub)
    }

    /// Whether more than one site has a part of it.
    pub fn is_split(&self) -> bool {
        self.sites.len() > 1
    }

    /// The names of its sites, for a person.
    pub fn site_names(&self) -> String {
        self.sites.iter().map(|site| site.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// The same as it is seen from another of its sites.
    pub fn at(mut self, site: &str) -> Result<Self, UnknownSite> {
        if self.site(site).is_none() {
            return Err(UnknownSite { site: site.into(), known: self.site_names(), file: self.file });
        }
        site.clone_into(&mut self.here);
        Ok(self)
    }

    /// The stages that run where it is seen from.
    pub fn stages_here(&self) -> impl Iterator<Item = &StageSpec> {
        self.stages.iter().filter(|stage| stage.runs_at(&self.here))
    }

    /// Whether a stage captures where it is seen from.
    pub fn captures_here(&self, stage: &StageSpec) -> bool {
        stage.is_source() && stage.runs_at(&self.here)
    }

    /// Whether anything is captured where it is seen from.
    pub fn captures(&self) -> bool {
        self.stages_here().any(StageSpec::is_source)
    }

    /// The stage that carries between sites: it runs at every site that dials the hub. None where there is one site.
    pub fn relay(&self) -> Option<StageSpec> {
        self.is_split().then(|| StageSpec {
            name: RELAY.into(),
            uses: RELAY.into(),
            from: Vec::new(),
            sites: self.edges().map(|site| site.name.clone()).collect(),
            may_move_to: Vec::new(),
            workers: defaults::WORKERS,
            batch: Batch { max: defaults::BATCH_MAX, wait: defaults::BATCH_WAIT },
            takes: None,
            gives: "",
            link: RELAY.into(),
            link_bytes: defaults::LINK_BYTES,
            max_process: defaults::MAX_PROCESS,
            quarantine_bytes: defaults::QUARANTINE_BYTES,
            folds: false,
            moves_to: Vec::new(),
            options: toml::Table::new(),
        })
    }

    /// The tables that stages at a site read, and that are set at the hub.
    pub fn tables_at(&self, site: &str) -> BTreeSet<&'static str> {
        self.stages.iter().filter(|stage| stage.runs_at(site)).flat_map(StageSpec::tables).copied().collect()
    }

    /// Where everything is.
    pub fn plan(&self) -> Plan<'_> {
        self.plan_of(if self.is_handed_over() { &[When::Before, When::After] } else { &[When::Before] })
    }

    pub(crate) fn plan_of(&self, when: &[When]) -> Plan<'_> {
        let captures = self.stages.iter().filter(|stage| stage.is_source()).flat_map(|stage| &stage.sites);
        let captures: BTreeSet<&str> = captures.map(String::as_str).collect();
        let each = |captured| when.iter().map(move |&when| (captured, when));
        let handled = captures.into_iter().flat_map(each);
        let handled = handled.map(|(captured, when)| Handled { captured, when, at: self.handled(captured, when) });
        Plan { pipeline: self, handled: handled.collect() }
    }

    /// At which sites each stage handles what was captured at one.
    fn handled<'a>(&'a self, captured: &'a str, when: When) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut handled: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        // Graph order: all that a stage takes from is known.
        for stage in &self.stages {
            let at = if stage.is_source() {
                stage.runs_at(captured).then_some(captured).into_iter().collect()
            } else {
                let before = stage.from.iter().filter_map(|from| handled.get(from.as_str()));
                before.flatten().map(|made| stage.takes_at(made, when)).collect()
            };
            handled.insert(&stage.name, at);
        }
        handled
    }
}

impl StageSpec {
    /// The tables that it may read.
    pub fn tables(&self) -> &'static [&'static str] {
        USES.iter().find(|known| known.name == self.uses).map_or(&[], |uses| uses.tables)
    }

    /// Whether it runs at a site, also where it only gets ready there to take over.
    pub fn runs_at(&self, site: &str) -> bool {
        self.sites.iter().chain(&self.moves_to).any(|known| known == site)
    }

    /// Its sites, before or after a move.
    pub(crate) fn sites_of(&self, when: When) -> &[String] {
        if when == When::After && !self.moves_to.is_empty() { &self.moves_to } else { &self.sites }
    }

    /// Where it takes what is made at a site.
    fn takes_at<'a>(&'a self, made: &'a str, when: When) -> &'a str {
        taken_at(self.sites_of(when), made)
    }
}

/// Where a stage that runs at these sites takes what is made at a site: there, where it runs there. (One that does not, and runs at several
/// others, is refused when the file is read.)
pub fn taken_at<'a>(sites: &'a [String], made: &'a str) -> &'a str {
    if sites.iter().any(|site| site == made) { made } else { &sites[0] }
}

impl<'a> Plan<'a> {
    /// What a site has of a flow; `None` where it has nothing of it.
    pub fn share(&self, flow: Flow<'_>, site: &str) -> Option<Share> {
        let (mut share, mut takers) = (Share::default(), BTreeMap::new());
        for handled in &self.handled {
            for route in self.routes(flow, handled) {
                let stops = self.stops(route.made, route.wanted);
                let Some(place) = stops.iter().position(|&stop| stop == site) else { continue };
                share.captured.insert(handled.captured.into());
                if let Some(who) = Who::of(route, &stops, place) {
                    takers.entry(who).or_insert_with(BTreeSet::new).insert(handled.captured.into());
                }
            }
        }
        share.takers = takers.into_iter().map(|(who, captured)| Taker { who, captured }).collect();
        (!share.captured.is_empty()).then_some(share)
    }

    /// What each taker of a flow takes at a site.
    pub(crate) fn served(&self, flow: Flow<'_>, site: &str) -> BTreeMap<Who, Served<'_>> {
        let mut served: BTreeMap<Who, Served<'_>> = BTreeMap::new();
        for handled in &self.handled {
            for route in self.routes(flow, handled) {
                let stops = self.stops(route.made, route.wanted);
                let place = stops.iter().position(|&stop| stop == site);
                if let Some(who) = place.and_then(|place| Who::of(route, &stops, place)) {
                    let whose = route.taker.map_or(For::Readers(route.wanted), For::Stage);
                    served.entry(who).or_default().insert((handled.captured, whose));
                }
            }
        }
        served
    }

    /// The stages whose messages a stage takes at the site that the pipeline is seen from.
    pub fn taken_here<'b>(&self, stage: &'b StageSpec) -> Vec<&'b str> {
        let is_taken = |from: &&str| {
            let share = self.share(Flow::Stage(from), &self.pipeline.here);
            let who = Who::Stage(stage.name.clone());
            share.is_some_and(|share| share.takers.iter().any(|taker| taker.who == who))
        };
        stage.from.iter().map(String::as_str).filter(is_taken).collect()
    }

    /// All that crosses between a site and the hub, either way.
    pub fn crossings(&self, site: &'a str) -> Vec<Crossing<'a>> {
        let hub = self.pipeline.hub().name.as_str();
        let flows = self.pipeline.stages.iter().map(|stage| Flow::Stage(&stage.name)).chain([Flow::Ends]);
        let mut crossings = Vec::new();
        for flow in flows {
            for (from, to) in [(site, hub), (hub, site)] {
                let share = self.share(flow, from).unwrap_or_default();
                if let Some(taker) = share.takers.iter().find(|taker| taker.who == Who::Site(to.into())) {
                    crossings.push(Crossing { flow, from, to, captured: share.some_of(taker) });
                }
            }
        }
        crossings
    }

    /// The ways of what was captured at a site.
    fn routes<'b>(&'b self, flow: Flow<'_>, handled: &'b Handled<'_>) -> BTreeSet<Route<'b>> {
        let hub = self.pipeline.hub().name.as_str();
        let mut routes = BTreeSet::new();
        let takers = self.takers(flow);
        for made in handled_by(&handled.at, flow) {
            routes.extend(takers.iter().map(|taker| {
                let wanted = taker.takes_at(made, handled.when);
                Route { made, wanted, taker: Some(&taker.name) }
            }));
            if takers.is_empty() {
                routes.extend([hub, handled.captured].map(|wanted| Route { made, wanted, taker: None }));
            }
        }
        routes
    }

    /// Who takes what a stage gives.
    fn takers(&self, flow: Flow<'_>) -> Vec<&'a StageSpec> {
        match flow {
            Flow::Stage(name) => self.pipeline.stages.iter().filter(|stage| stage.takes_from(name)).collect(),
            Flow::Ends => Vec::new(),
        }
    }

    /// The sites on the way between two, both included.
    fn stops<'b>(&'b self, from: &'b str, to: &'b str) -> Vec<&'b str> {
        let hub = self.pipeline.hub().name.as_str();
        let mut stops = vec![from, hub, to];
        stops.dedup();
        if from == to { vec![from] } else { stops }
    }
}

impl Who {
    /// Who takes on a way at one of its stops: a relay to the next one, or at the last the stage that wants it.
    fn of(route: Route<'_>, stops: &[&str], place: usize) -> Option<Self> {
        match stops.get(place + 1) {
            Some(&next) => Some(Self::Site(next.into())),
            None => route.taker.map(|stage| Self::Stage(stage.into())),
        }
    }
}

/// Where a flow is made.
fn handled_by<'b>(handled: &BTreeMap<&'b str, BTreeSet<&'b str>>, flow: Flow<'_>) -> BTreeSet<&'b str> {
    match flow {
        Flow::Stage(name) => handled.get(name).cloned().unwrap_or_default(),
        Flow::Ends => handled.values().flatten().copied().collect(),
    }
}

/// Face pipelines for tests.
#[cfg(test)]
pub(crate) struct TestSites;

#[cfg(test)]
impl TestSites {
    /// With its stages at these sites.
    pub(crate) fn read(sites: &str, at: [&str; 5]) -> Result<Pipeline, crate::PipelineError> {
        let [capture, preprocess, extract, classify, cluster] = at;
        let text = format!(
            r#"
pipeline = "faces"
{sites}
[stage.capture]
site = {capture:?}
[stage.preprocess]
site = {preprocess:?}
from = "capture"
model = "yunet"
[stage.extract]
site = {extract:?}
from = "preprocess"
model = "sface"
[stage.classify]
site = {classify:?}
from = "extract"
[stage.cluster]
site = {cluster:?}
from = "extract"
"#
        );
        Pipeline::of_bytes(text.as_bytes(), &[])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pipeline(sites: &str, at: [&str; 5]) -> Pipeline {
        TestSites::read(sites, at).unwrap_or_else(|error| panic!("{error}"))
    }

    const TWO: &str = "[site.edge]\n[site.cloud]\nhub = true";
    const THREE: &str = "[site.edge-1]\n[site.edge-2]\n[site.cloud]\nhub = true";

    /// What a site has of a flow: `captures: takers`, each taker with its captures where they are not all.
    fn shown(pipeline: &Pipeline, flow: Flow<'_>, site: &str) -> String {
        let Some(share) = pipeline.plan().share(flow, site) else { return "nothing".into() };
        let join = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join("+");
        let takers = share.takers.iter().map(|taker| {
            let who = match &taker.who {
                Who::Stage(name) => name.clone(),
                Who::Site(site) => format!("→{site}"),
            };
            if taker.captured == share.captured { who } else { format!("{who}[{}]", join(&taker.captured)) }
        });
        format!("{}: {}", join(&share.captured), takers.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn at_one_site_nothing_crosses() {
        let all = pipeline("", ["edge"; 5]);
        let of = |flow| shown(&all, flow, "edge");
        assert_eq!(of(Flow::Stage("capture")), "edge: preprocess");
        assert_eq!(of(Flow::Stage("extract")), "edge: classify cluster");
        assert_eq!((of(Flow::Stage("classify")), of(Flow::Ends)), ("edge: ".into(), "edge: ".into()));
        assert_eq!(all.plan().crossings("edge"), []);
    }

    #[test]
    fn features_go_to_the_cloud_and_outcomes_come_back() {
        let split = pipeline(TWO, ["edge", "edge", "edge", "cloud", "cloud"]);
        let at = |flow| [shown(&split, flow, "edge"), shown(&split, flow, "cloud")];
        assert_eq!(at(Flow::Stage("preprocess")), ["edge: extract", "nothing"]);
        assert_eq!(at(Flow::Stage("extract")), ["edge: →cloud", "edge: classify cluster"], "once for both");
        assert_eq!(at(Flow::Stage("classify")), ["edge: ", "edge: →edge"]);
        assert_eq!(at(Flow::Ends), ["edge: →cloud", "edge: →edge"]);
        let plan = split.plan();
        let crossings = plan.crossings("edge");
        let crossings: Vec<_> = crossings.iter().map(|one| (one.flow, one.from, one.to)).collect();
        assert_eq!(
            crossings,
            [
                (Flow::Stage("extract"), "edge", "cloud"),
                (Flow::Stage("classify"), "cloud", "edge"),
                (Flow::Stage("cluster"), "cloud", "edge"),
                (Flow::Ends, "edge", "cloud"),
                (Flow::Ends, "cloud", "edge"),
            ]
        );
    }

    #[test]
    fn each_edge_gets_its_own_outcomes() {
        let fleet = pipeline(THREE, ["edge-*", "edge-*", "edge-*", "cloud", "cloud"]);
        let of = |stage, site| shown(&fleet, Flow::Stage(stage), site);
        assert_eq!(of("capture", "edge-2"), "edge-2: preprocess");
        assert_eq!(of("extract", "cloud"), "edge-1+edge-2: classify cluster");
        assert_eq!(of("classify", "cloud"), "edge-1+edge-2: →edge-1[edge-1] →edge-2[edge-2]");
        assert_eq!(of("classify", "edge-1"), "edge-1: ");
    }

    #[test]
    fn from_edge_to_edge_it_goes_through_the_hub_and_never_back() {
        let moved = pipeline(THREE, ["edge-*", "edge-*", "edge-*", "edge-2", "cloud"]);
        let of = |stage, site| shown(&moved, Flow::Stage(stage), site);
        assert_eq!(of("extract", "edge-1"), "edge-1: →cloud");
        assert_eq!(of("extract", "cloud"), "edge-1+edge-2: cluster →edge-2[edge-1]");
        assert_eq!(of("extract", "edge-2"), "edge-1+edge-2: classify →cloud[edge-2]");
        assert_eq!(of("classify", "edge-2"), "edge-1+edge-2: →cloud");
        assert_eq!(of("classify", "cloud"), "edge-1+edge-2: →edge-1[edge-1]");
    }

    #[test]
    fn it_is_seen_from_the_hub_or_from_another_of_its_sites() {
        let split = pipeline(TWO, ["edge", "edge", "edge", "cloud", "cloud"]);
        let here = |pipeline: &Pipeline| pipeline.stages_here().map(|stage| stage.name.clone()).collect::<Vec<_>>();
        assert_eq!((split.here.as_str(), here(&split)), ("cloud", vec!["classify".into(), "cluster".into()]));
        let edge = split.clone().at("edge").unwrap();
        assert_eq!(here(&edge), ["capture", "preprocess", "extract"]);
        assert!(split.clone().at("moon").is_err());
        let run = edge.of_run("r");
        assert_eq!(
            (run.sites.len(), here(&run).len(), run.is_split()),
            (1, 5, false),
            "an isolated run is at one site"
        );
    }

    /// The sites that a flow comes to, from where it is made, by following relays.
    fn reached(plan: &Plan<'_>, flow: Flow<'_>, captured: &str) -> BTreeSet<String> {
        let handled = plan.handled.iter().find(|handled| handled.captured == captured).unwrap();
        let made = handled_by(&handled.at, flow);
        let mut reached: BTreeSet<String> = made.into_iter().map(ToOwned::to_owned).collect();
        loop {
            let shares = reached.iter().filter_map(|site| plan.share(flow, site));
            let takers: Vec<Taker> = shares.flat_map(|share| share.takers).collect();
            let next = takers.into_iter().filter(|taker| taker.captured.contains(captured)).filter_map(|taker| {
                match taker.who {
                    Who::Site(site) => Some(site),
                    Who::Stage(_) => None,
                }
            });
            let before = reached.len();
            reached.extend(next.collect::<Vec<_>>());
            if reached.len() == before {
                return reached;
            }
        }
    }

    proptest! {
        #[test]
        fn wherever_stages_run_everything_comes_where_it_is_wanted(edges in 1..4_usize, at in prop::array::uniform5(0..5_usize)) {
            let names: Vec<String> = (1..=edges).map(|edge| format!("edge-{edge}")).collect();
            let tables = names.iter().map(|name| format!("[site.{name}]\n")).collect::<Vec<_>>().concat();
            let place = |chosen: usize| match chosen {
                0 => "edge-*",
                1 => "cloud",
                edge => names[(edge - 2) % edges].as_str(),
            };
            let Ok(pipeline) = TestSites::read(&(tables + "[site.cloud]\nhub = true"), at.map(place)) else { return Ok(()) };
            let plan = pipeline.plan();
            for Handled { captured, at, .. } in &plan.handled {
                for stage in &pipeline.stages {
                    let flow = Flow::Stage(&stage.name);
                    let there = reached(&plan, flow, captured);
                    let takers = plan.takers(flow);
                    for made in handled_by(at, flow) {
                        for taker in &takers {
                            let wanted = taker.takes_at(made, When::Before);
                            let share = plan.share(flow, wanted).expect("some of it lies there");
                            let is_it = |one: &&Taker| one.who == Who::Stage(taker.name.clone());
                            let taken = share.takers.iter().find(is_it).is_some_and(|one| one.captured.contains(*captured));
                            prop_assert!(there.contains(wanted) && taken, "{} of {captured} at {wanted}", stage.name);
                        }
                        if takers.is_empty() {
                            prop_assert!(there.contains("cloud") && there.contains(*captured), "{} of {captured}", stage.name);
                        }
                    }
                }
                let ends = reached(&plan, Flow::Ends, captured);
                prop_assert!(ends.contains("cloud") && ends.contains(*captured), "ends of {captured}");
            }
        }
    }
}
