//! A pipeline at work, as far as who takes what is concerned, of which one stage after another moves: everybody takes, carries and moves in
//! any order, and at the end nothing is missing.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::{THREE, TWO};
use crate::sites::{TestSites, When};
use crate::{Flow, Moving, Phase, Pipeline, Placement, Who};

/// A number from 0 to `below`, another one each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, below: usize) -> usize {
        // Knuth, The Art of Computer Programming, vol. 2, 3.3.4: MMIX.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

/// What lies in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    item: usize,
    captured: String,
    /// The stage at which it ended.
    ended: Option<String>,
    /// The site that it was carried from.
    via: Option<String>,
}

#[derive(Default)]
struct Durable {
    begin: usize,
    /// Of which sites' captures it gives; none: of all.
    captured: Vec<String>,
    acked: BTreeSet<usize>,
}

impl Durable {
    fn gives(&self, message: &Message) -> bool {
        self.captured.is_empty() || self.captured.contains(&message.captured)
    }
}

#[derive(Default)]
struct Stream {
    messages: Vec<Message>,
    takers: BTreeMap<Who, Durable>,
}

/// A stream of a site; `None` in place of a stage: what ends there.
type At = (String, Option<String>);

fn at(site: &str, flow: Flow<'_>) -> At {
    let flow = match flow {
        Flow::Stage(name) => Some(name.to_owned()),
        Flow::Ends => None,
    };
    (site.into(), flow)
}

impl Stream {
    fn open(&self, taker: &Durable) -> Vec<usize> {
        let is_its = |&place: &usize| taker.gives(&self.messages[place]) && !taker.acked.contains(&place);
        (taker.begin..self.messages.len()).filter(is_its).collect()
    }

    /// The place behind the last one up to which all is acked.
    fn floor(&self, taker: &Durable) -> usize {
        self.open(taker).first().copied().unwrap_or(self.messages.len())
    }

    /// What nobody has to take any more is gone.
    fn begin(&mut self, who: &Who, captured: &[String], behind: Option<&[Who]>) {
        let (all, mut acked) = (self.messages.len(), BTreeSet::new());
        let begin = match behind {
            None => 0,
            Some([]) => all,
            Some(behind) => behind.iter().map(|who| self.floor(&self.takers[who])).min().unwrap_or(all),
        };
        for place in begin..all {
            let has_had = |taker: &Durable| {
                place < taker.begin || taker.acked.contains(&place) || !taker.gives(&self.messages[place])
            };
            if self.takers.values().all(has_had) {
                acked.insert(place);
            }
        }
        self.takers.insert(who.clone(), Durable { begin, captured: captured.to_vec(), acked });
    }
}

/// A pipeline at work, as far as who takes what is concerned.
struct World<'a> {
    pipeline: &'a Pipeline,
    streams: BTreeMap<At, Stream>,
    captured: Vec<(usize, String)>,
    /// Whether the stage that moves takes where it will be.
    is_handed_over: bool,
    /// Whether it takes where it was.
    is_before: bool,
    /// A stage, or a relay to a site, that is slow: what it takes waits.
    slow: Option<Who>,
}

/// A stream, who takes there (none: it is only read), and of which sites' captures.
type Taken = (At, Option<Who>, Vec<String>);

/// All streams, with who takes there.
fn taken(pipeline: &Pipeline, when: When) -> Vec<Taken> {
    let plan = pipeline.plan_of(&[when]);
    let flows = || pipeline.stages.iter().map(|stage| Flow::Stage(&stage.name)).chain([Flow::Ends]);
    let mut taken = Vec::new();
    for site in &pipeline.sites {
        for flow in flows() {
            let Some(share) = plan.share(flow, &site.name) else { continue };
            taken.push((at(&site.name, flow), None, Vec::new()));
            for taker in &share.takers {
                taken.push((at(&site.name, flow), Some(taker.who.clone()), share.some_of(taker)));
            }
        }
    }
    taken
}

impl World<'_> {
    fn publish(&mut self, place: &At, message: Message) {
        let is_outcome = place.1.as_ref().is_none_or(|flow| self.pipeline.is_final(flow));
        let stream = self.streams.get_mut(place).unwrap_or_else(|| panic!("no stream takes {place:?}"));
        let is_same = |known: &Message| (known.item, &known.ended) == (message.item, &message.ended);
        // Outcomes are put if absent.
        if !is_outcome || !stream.messages.iter().any(is_same) {
            stream.messages.push(message);
        }
    }

    fn is_at_work(&self, who: &Who, site: &str) -> bool {
        let Who::Stage(name) = who else { return true };
        let stage = self.pipeline.stage(name).unwrap();
        let is_in = |sites: &[String]| sites.iter().any(|known| known == site);
        let moves = !stage.moves_to.is_empty();
        (is_in(&stage.sites) && (self.is_before || !moves))
            || (moves && self.is_handed_over && is_in(stage.sites_of(When::After)))
    }

    /// Whether a stream crosses the other way too.
    fn crosses_back(&self, from: &str, (_, flow): &At, to: &str) -> bool {
        let back = (to.to_owned(), flow.clone());
        let is_back = |one: &Taken| one.0 == back && one.1 == Some(Who::Site(from.into()));
        taken(self.pipeline, When::Before).iter().any(is_back)
            || (self.is_handed_over && taken(self.pipeline, When::After).iter().any(is_back))
    }

    /// Somebody takes one message, not always the first. `false`: there is none.
    fn step(&mut self, chance: &mut Chance) -> bool {
        let mut open = Vec::new();
        for ((site, flow), stream) in &self.streams {
            for (who, taker) in &stream.takers {
                if self.is_at_work(who, site) {
                    let some = stream.open(taker).into_iter().take(3);
                    open.extend(some.map(|message| ((site.clone(), flow.clone()), who.clone(), message)));
                }
            }
        }
        if open.is_empty() {
            return false;
        }
        let (place, who, number) = open.swap_remove(chance.below(open.len()));
        if self.slow.as_ref() == Some(&who) && chance.below(32) > 0 {
            return true;
        }
        let message = self.streams[&place].messages[number].clone();
        let (site, flow) = &place;
        match &who {
            Who::Site(to) => {
                let there = (to.clone(), flow.clone());
                // What is not there any more the sender keeps.
                if !self.streams.contains_key(&there) {
                    return true;
                }
                let goes_round = message.via.as_ref() == Some(to) && self.crosses_back(site, &place, to);
                if !goes_round {
                    self.publish(&there, Message { via: Some(site.clone()), ..message });
                }
            }
            Who::Stage(name) => {
                let number = self.pipeline.stages.iter().position(|stage| stage.name == *name).unwrap();
                // Some items end early, at one stage or another.
                let ended = (message.item + number).is_multiple_of(8).then(|| name.clone());
                let flow = if ended.is_some() { None } else { Some(name.clone()) };
                self.publish(&(site.clone(), flow), Message { ended, via: None, ..message });
            }
        }
        self.streams.get_mut(&place).unwrap().takers.get_mut(&who).unwrap().acked.insert(number);
        true
    }

    /// Goes on for a while.
    fn work(&mut self, chance: &mut Chance, captures: bool) {
        let source = &self.pipeline.stages[0];
        for _ in 0..chance.below(24) {
            if captures && chance.below(4) == 0 {
                let captured = source.sites[chance.below(source.sites.len())].clone();
                let item = self.captured.len() + 1;
                self.captured.push((item, captured.clone()));
                let place = (captured.clone(), Some(source.name.clone()));
                self.publish(&place, Message { item, captured, ended: None, via: None });
            }
            self.step(chance);
        }
    }

    /// Moves the stage that is on the move, with what is done at each site in one of all orders.
    fn moves(&mut self, chance: &mut Chance) {
        let Ok(handover) = self.pipeline.handover() else { return };
        self.slow = match chance.below(self.pipeline.stages.len() + 2) {
            0 => None,
            1 => Some(Who::Site(self.pipeline.sites[chance.below(self.pipeline.sites.len())].name.clone())),
            number => Some(Who::Stage(self.pipeline.stages[number - 2].name.clone())),
        };
        let after = taken(self.pipeline, When::After);
        // Each site prepares when it hears of it.
        let mut sites: Vec<&str> = self.pipeline.sites.iter().map(|site| site.name.as_str()).collect();
        while !sites.is_empty() {
            self.work(chance, true);
            let site = sites.swap_remove(chance.below(sites.len()));
            for begins in handover.begins.iter().filter(|begins| begins.site == site) {
                let place = at(site, begins.flow);
                let is_it = |one: &&Taken| one.0 == place && one.1.as_ref() == Some(&begins.who);
                let captured = &after.iter().find(is_it).unwrap().2;
                self.streams.entry(place).or_default().begin(&begins.who, captured, Some(&begins.behind));
            }
            for (place, ..) in after.iter().filter(|(place, ..)| place.0 == site) {
                self.streams.entry(place.clone()).or_default();
            }
        }
        self.is_handed_over = true;
        let mut ended = vec![false; handover.ends.len()];
        let mut goals: Vec<Option<usize>> = vec![None; ended.len()];
        let mut idle = 0;
        while ended.contains(&false) {
            self.work(chance, idle < 20);
            let place = chance.below(ended.len());
            let ends = &handover.ends[place];
            idle += 1;
            assert!(idle < 100_000, "it never ends: {ended:?} of {:?}", handover.ends);
            let waits = !ends.is_covered && ends.behind.iter().any(|&before| !ended[before]);
            if ended[place] || waits {
                continue;
            }
            let stream = self.streams.get_mut(&at(ends.site, ends.flow)).unwrap();
            let goal = *goals[place].get_or_insert(stream.messages.len());
            if ends.is_covered || stream.floor(&stream.takers[&ends.who]) >= goal {
                if !ends.stays {
                    stream.takers.remove(&ends.who);
                }
                ended[place] = true;
            }
        }
        // Links that nobody takes from are gone.
        let is_kept = |place: &At| {
            let is_outcome = place.1.as_ref().is_none_or(|flow| self.pipeline.is_final(flow));
            is_outcome || after.iter().any(|one| one.0 == *place)
        };
        self.streams.retain(|place, _| is_kept(place));
        self.is_before = false;
    }

    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (item, captured) in &self.captured {
            for stage in self.pipeline.stages.iter().filter(|stage| self.pipeline.is_final(&stage.name)) {
                let before = self.pipeline.upstream(&stage.name);
                let is_answer = |message: &&Message| {
                    message.item == *item && message.ended.as_ref().is_none_or(|ended| before.contains(ended))
                };
                for site in [&self.pipeline.hub().name, captured] {
                    let flows = [Some(stage.name.clone()), None];
                    let streams = flows.into_iter().filter_map(|flow| self.streams.get(&(site.clone(), flow)));
                    if streams.flat_map(|stream| &stream.messages).find(is_answer).is_none() {
                        missing.push(format!("{} of item {item} of {captured} at {site}", stage.name));
                    }
                }
            }
        }
        missing
    }
}

/// Moves one stage after another while everything works; gives what is missing at the end.
fn missing(sites: &str, at: [&str; 5], moves: &[(&str, &str)], seed: u64) -> Vec<String> {
    let Ok(file) = TestSites::read(sites, at) else { return Vec::new() };
    let (mut placement, mut steps) = (Placement::default(), Vec::new());
    for (stage, to) in moves {
        let moving = Moving { stage: (*stage).into(), to: vec![(*to).into()], phase: Phase::HandOver, since: 0 };
        placement = Placement { epoch: placement.epoch + 1, moving: Some(moving), ..placement };
        let Ok(moved) = file.placed(&placement) else { break };
        // Names with a `*` are those of sites.
        let to = moved.stage(stage).map(|stage| stage.moves_to.clone()).unwrap_or_default();
        if to.is_empty() || moved.handover().is_err() {
            break;
        }
        placement.sites.insert((*stage).into(), to);
        placement.moving = None;
        steps.push(moved);
    }
    let Some(first) = steps.first() else { return Vec::new() };
    let mut streams: BTreeMap<At, Stream> = BTreeMap::new();
    for (place, who, captured) in taken(first, When::Before) {
        let stream = streams.entry(place).or_default();
        if let Some(who) = who {
            stream.begin(&who, &captured, None);
        }
    }
    let mut chance = Chance(seed);
    let new = |pipeline| World {
        pipeline,
        streams: BTreeMap::new(),
        captured: Vec::new(),
        is_handed_over: false,
        is_before: true,
        slow: None,
    };
    let mut world = World { streams, ..new(first) };
    for (number, pipeline) in steps.iter().enumerate() {
        if number > 0 {
            world = World { streams: world.streams, captured: world.captured, ..new(pipeline) };
        }
        world.moves(&mut chance);
    }
    while world.step(&mut chance) {}
    world.missing()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_moves_in_whatever_order_nothing_is_lost(
        edges in 1..3_usize,
        places in prop::array::uniform5(0..4_usize),
        moves in prop::collection::vec((1..5_usize, 0..4_usize), 1..4),
        seed: u64,
    ) {
        let sites = if edges == 1 { TWO } else { THREE };
        let edge = |number: usize| if edges == 1 { "edge" } else { ["edge-1", "edge-2"][number % 2] };
        let name = |place: usize| match place {
            0 => "edge*",
            1 => "cloud",
            place => edge(place),
        };
        let stage = |number: usize| ["capture", "preprocess", "extract", "classify", "cluster"][number];
        let moves: Vec<(&str, &str)> = moves.into_iter().map(|(moved, to)| (stage(moved), name(to))).collect();
        let missing = missing(sites, places.map(name), &moves, seed);
        prop_assert!(missing.is_empty(), "{missing:?}");
    }
}
