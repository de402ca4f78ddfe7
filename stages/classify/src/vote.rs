//! A vote over the appearances of one face in a stream: a person who walks by is seen in twenty frames, and the best of them say who
//! it is. Nobody is tracked: an appearance is of the same face when its feature is alike, or when it is where that face was a moment
//! ago.
//!
//! The weights are those that users of Frigate know
//! (<https://docs.frigate.video/configuration/face_recognition/>): large faces count more, up to a bound, and so do sure ones.

use std::collections::{HashMap, VecDeque};

use causeway_pipelines::VoteOptions;
use causeway_schemas::{Capture, Decision, Region};

/// The appearances of the last moments, stream by stream.
pub(crate) struct Votes {
    options: VoteOptions,
    streams: HashMap<(String, u64), Stream>,
    /// Counts what was judged: the stream judged longest ago is forgotten first.
    judged: u64,
}

#[derive(Default)]
struct Stream {
    appearances: VecDeque<Appearance>,
    judged: u64,
}

/// One face in one frame, and what was said of it alone.
struct Appearance {
    sequence: u64,
    captured_at: u64,
    region: Region,
    space: String,
    vector: Vec<f32>,
    label: Option<String>,
    score: f32,
    margin: f32,
}

/// Streams that are remembered at once: more cameras than one replica serves.
const MOST_STREAMS: usize = 64;
/// Appearances of a stream that are remembered: ten faces a frame for a second.
const MOST_APPEARANCES: usize = 256;
/// How long a face stays where it was, as far as its box tells: three frames at 10 a second.
const NEAR_NS: u64 = 300_000_000;
/// A face of this many px² and more has the full weight (Frigate's bound): 63 × 63.
const FULL_AREA: f32 = 4000.0;

impl Votes {
    pub(crate) fn new(options: VoteOptions) -> Self {
        Self { options, streams: HashMap::new(), judged: 0 }
    }

    /// What the appearances of this face up to this one say together. The one that comes again votes once, and is answered as
    /// the first time as long as those before it are remembered.
    pub(crate) fn vote(&mut self, space: &str, vector: Vec<f32>, decision: Decision) -> Decision {
        self.judged += 1;
        let key = (decision.capture.source.clone(), decision.capture.epoch);
        if !self.streams.contains_key(&key) && self.streams.len() >= MOST_STREAMS {
            let oldest = self.streams.iter().min_by_key(|(_, stream)| stream.judged).map(|(key, _)| key.clone());
            oldest.map(|oldest| self.streams.remove(&oldest));
        }
        let stream = self.streams.entry(key).or_default();
        stream.judged = self.judged;
        let own = Appearance::of(space, vector, &decision);
        let linked = stream.linked(&own, &self.options);
        let voted = tally(&linked, &own, &self.options, decision);
        stream.remember(own, self.options.window_ms * 1_000_000);
        voted
    }
}

impl Stream {
    /// Of each frame before, the appearance that is of the same face.
    fn linked(&self, own: &Appearance, options: &VoteOptions) -> Vec<&Appearance> {
        let mut linked: Vec<(&Appearance, f32)> = Vec::new();
        for other in &self.appearances {
            let age = own.captured_at.saturating_sub(other.captured_at);
            let is_before = other.sequence < own.sequence && other.captured_at <= own.captured_at;
            if !is_before || age > options.window_ms * 1_000_000 || other.space != own.space {
                continue;
            }
            let likeness = own.likeness(other);
            let is_there = age <= NEAR_NS && overlap(&own.region, &other.region) >= options.overlap;
            if likeness < options.likeness && !is_there {
                continue;
            }
            // One face is once in a frame.
            match linked.iter_mut().find(|(known, _)| known.sequence == other.sequence) {
                Some(known) if known.1 < likeness => *known = (other, likeness),
                Some(_) => {}
                None => linked.push((other, likeness)),
            }
        }
        linked.into_iter().map(|(appearance, _)| appearance).collect()
    }

    fn remember(&mut self, own: Appearance, window_ns: u64) {
        let newest = self.appearances.iter().map(|known| known.captured_at).max().unwrap_or(0).max(own.captured_at);
        self.appearances.retain(|known| newest - known.captured_at <= window_ns && !known.is_same(&own));
        if self.appearances.len() == MOST_APPEARANCES {
            self.appearances.pop_front();
        }
        self.appearances.push_back(own);
    }
}

impl Appearance {
    fn of(space: &str, vector: Vec<f32>, decision: &Decision) -> Self {
        let Capture { sequence, captured_at, .. } = decision.capture;
        Self {
            sequence,
            captured_at,
            region: decision.region.clone(),
            space: space.into(),
            vector,
            label: decision.label.clone(),
            score: decision.score,
            margin: decision.margin,
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        self.sequence == other.sequence && self.region == other.region
    }

    /// Cosine of the two faces; -1 where they cannot be compared.
    fn likeness(&self, other: &Self) -> f32 {
        if self.vector.len() != other.vector.len() {
            return -1.0;
        }
        self.vector.iter().zip(&other.vector).map(|(a, b)| a * b).sum()
    }

    /// What its name counts: area, up to a bound, times how sure the detector and the gallery are.
    fn weight(&self) -> f32 {
        let area = (self.region.w * self.region.h).clamp(0.0, FULL_AREA);
        area * self.region.score.max(0.0) * self.score.max(0.0)
    }
}

/// The name with the most weight, where that is more than all others have together and enough appearances bear it; else unknown.
fn tally(linked: &[&Appearance], own: &Appearance, options: &VoteOptions, alone: Decision) -> Decision {
    if linked.is_empty() && options.min <= 1 {
        return alone;
    }
    let mut names: Vec<Tally<'_>> = Vec::new();
    for voter in linked.iter().copied().chain(std::iter::once(own)) {
        let Some(label) = &voter.label else { continue };
        let at = names.iter().position(|name| name.label == label).unwrap_or_else(|| {
            names.push(Tally { label, ..Tally::default() });
            names.len() - 1
        });
        let (name, weight) = (&mut names[at], voter.weight());
        name.weight += weight;
        name.score += weight * voter.score;
        name.margin += weight * voter.margin;
        name.voters += 1;
    }
    let all: f32 = names.iter().map(|name| name.weight).sum();
    let winner = names
        .iter()
        .filter(|name| name.weight > 0.0)
        .max_by(|a, b| a.weight.total_cmp(&b.weight).then_with(|| b.label.cmp(a.label)));
    let route = "vote".to_owned();
    let Some(winner) = winner else { return Decision { label: None, route, ..alone } };
    let is_sure = winner.weight * 2.0 > all && winner.voters >= options.min;
    Decision {
        label: is_sure.then(|| winner.label.to_owned()),
        score: winner.score / winner.weight,
        margin: winner.margin / winner.weight,
        nearest: Some(winner.label.to_owned()),
        route,
        ..alone
    }
}

/// What one name has got so far: sums of weights, and of scores and margins by weight.
#[derive(Default)]
struct Tally<'a> {
    label: &'a str,
    weight: f32,
    score: f32,
    margin: f32,
    voters: usize,
}

/// Intersection over union of two boxes.
fn overlap(a: &Region, b: &Region) -> f32 {
    let width = (a.x + a.w).min(b.x + b.w) - a.x.max(b.x);
    let height = (a.y + a.h).min(b.y + b.h) - a.y.max(b.y);
    let common = width.max(0.0) * height.max(0.0);
    let all = a.w * a.h + b.w * b.h - common;
    if all > 0.0 { common / all } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use causeway_schemas::ModelRef;

    use super::*;

    const OPTIONS: VoteOptions = VoteOptions { window_ms: 2000, likeness: 0.5, overlap: 0.4, min: 1 };

    /// A face at `x`, of `size` px, in the frame at `ms`; named or not.
    fn seen(ms: u64, x: f32, size: f32, label: Option<&str>, score: f32) -> Decision {
        let capture = Capture {
            source: "door".into(),
            item: String::new(),
            epoch: 1,
            sequence: ms / 100,
            captured_at: ms * 1_000_000,
        };
        let region = Region {
            x,
            y: 0.0,
            w: size,
            h: size,
            score: 1.0,
            sharpness: 50.0,
            landmarks: Vec::new(),
            frame: [1000, 1000],
        };
        Decision {
            capture,
            region,
            label: label.map(Into::into),
            score,
            margin: 0.1,
            nearest: label.map(Into::into),
            model: ModelRef { name: "m".into(), version: "1".into(), sha256: "0".into() },
            gallery: 1,
            route: "classify".into(),
            top: Vec::new(),
        }
    }

    fn said(decision: &Decision) -> (Option<&str>, &str) {
        (decision.label.as_deref(), &decision.route)
    }

    const ANN: [f32; 2] = [1.0, 0.0];
    const BOB: [f32; 2] = [0.0, 1.0];

    #[test]
    fn large_and_sure_faces_outvote_small_ones() {
        let mut votes = Votes::new(OPTIONS);
        let first = votes.vote("f", ANN.into(), seen(0, 0.0, 60.0, Some("ann"), 0.8));
        assert_eq!(said(&first), (Some("ann"), "classify"), "alone there is nothing to vote on");
        let blurred = votes.vote("f", ANN.into(), seen(100, 500.0, 20.0, Some("bob"), 0.41));
        assert_eq!(said(&blurred), (Some("ann"), "vote"));
        let unknown = votes.vote("f", ANN.into(), seen(200, 900.0, 20.0, None, 0.3));
        assert_eq!(said(&unknown), (Some("ann"), "vote"));
        let score = (3600.0 * 0.8 * 0.8) / (3600.0 * 0.8);
        assert!((unknown.score - score).abs() < 1e-6, "{}", unknown.score);
    }

    #[test]
    fn others_have_no_say() {
        let mut votes = Votes::new(OPTIONS);
        votes.vote("f", ANN.into(), seen(0, 0.0, 60.0, Some("ann"), 0.8));
        // Not alike and elsewhere; in the same frame; in another space, stream or start; too long ago.
        assert_eq!(said(&votes.vote("f", BOB.into(), seen(100, 500.0, 60.0, None, 0.3))), (None, "classify"));
        assert_eq!(said(&votes.vote("f", ANN.into(), seen(0, 500.0, 60.0, None, 0.3))), (None, "classify"));
        assert_eq!(said(&votes.vote("g", ANN.into(), seen(100, 500.0, 60.0, None, 0.3))), (None, "classify"));
        let mut other = seen(100, 0.0, 60.0, None, 0.3);
        other.capture.epoch = 2;
        assert_eq!(said(&votes.vote("f", ANN.into(), other)), (None, "classify"));
        assert_eq!(said(&votes.vote("f", ANN.into(), seen(5000, 0.0, 60.0, None, 0.3))), (None, "classify"));
    }

    #[test]
    fn a_face_that_turns_away_is_still_where_it_was() {
        let mut votes = Votes::new(OPTIONS);
        votes.vote("f", ANN.into(), seen(0, 0.0, 60.0, Some("ann"), 0.8));
        assert_eq!(said(&votes.vote("f", BOB.into(), seen(100, 10.0, 60.0, None, 0.2))), (Some("ann"), "vote"));
        assert_eq!(said(&votes.vote("f", BOB.into(), seen(1500, 10.0, 60.0, None, 0.2))), (None, "vote"), "too late");
    }

    #[test]
    fn who_comes_again_votes_once_and_is_answered_alike() {
        let mut votes = Votes::new(OPTIONS);
        votes.vote("f", ANN.into(), seen(0, 0.0, 30.0, Some("ann"), 0.6));
        let once = votes.vote("f", ANN.into(), seen(100, 0.0, 30.0, Some("bob"), 0.7));
        assert_eq!(once.label.as_deref(), Some("bob"));
        for _ in 0..3 {
            assert_eq!(votes.vote("f", ANN.into(), seen(100, 0.0, 30.0, Some("bob"), 0.7)), once);
        }
        let two = votes.vote("f", ANN.into(), seen(200, 0.0, 30.0, Some("ann"), 0.6));
        assert_eq!(two.label.as_deref(), Some("ann"), "two of ann, one of bob, however often it came");
        assert_eq!(votes.vote("f", ANN.into(), seen(100, 0.0, 30.0, Some("bob"), 0.7)), once, "later ones have no say");
    }

    #[test]
    fn no_majority_and_too_few_are_unknown() {
        let mut votes = Votes::new(VoteOptions { min: 2, ..OPTIONS });
        let first = votes.vote("f", ANN.into(), seen(0, 0.0, 60.0, Some("ann"), 0.8));
        assert_eq!(said(&first), (None, "vote"));
        assert_eq!(first.nearest.as_deref(), Some("ann"));
        assert_eq!(votes.vote("f", ANN.into(), seen(100, 0.0, 60.0, Some("ann"), 0.8)).label.as_deref(), Some("ann"));
        let mut votes = Votes::new(OPTIONS);
        votes.vote("f", ANN.into(), seen(0, 0.0, 60.0, Some("ann"), 0.8));
        let tie = votes.vote("f", ANN.into(), seen(100, 0.0, 60.0, Some("bob"), 0.8));
        assert_eq!((tie.label, tie.nearest.as_deref()), (None, Some("ann")));
    }

    #[test]
    fn memory_is_bounded() {
        let mut votes = Votes::new(VoteOptions { window_ms: 1_000_000, ..OPTIONS });
        for number in 0..1000 {
            votes.vote("f", ANN.into(), seen(number * 100, 0.0, 60.0, Some("ann"), 0.8));
            let mut elsewhere = seen(0, 0.0, 60.0, None, 0.0);
            elsewhere.capture.epoch = number;
            votes.vote("f", BOB.into(), elsewhere);
        }
        assert_eq!(votes.streams.len(), MOST_STREAMS);
        assert!(votes.streams.values().all(|stream| stream.appearances.len() <= MOST_APPEARANCES));
    }
}
