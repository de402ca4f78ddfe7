//! A site's part in a move: it makes what is new here, lets those end whose work others have taken over, and says so. At the hub it also
//! says when the next phase begins.
//!
//! Every step may be done again, so that whoever dies in the middle goes on from what is there.

mod state;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use causeway_bus::{Bus, DurableState, Retention, StreamWish};
use causeway_pipelines::{Begins, Ends, Handover, Moving, Phase, Pipeline, Placement};
use causeway_stage::{Placed, SiteReport, is_placed_anew, now_ns, read_placement, read_report};

use crate::layout::durable_of;
use crate::placement::{report, reports, streams_of, write};
use crate::up::heartbeats_at;
use crate::{kept, layout};

/// How often it is looked how far a move is: at first, and where it takes long.
const LOOK_EVERY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];
/// A move that takes long, as over a link that is down.
const LONG: Duration = Duration::from_secs(30);
/// How often it is looked whether something was left that is not wanted where stages were moved.
const TIDY_EVERY: Duration = Duration::from_secs(5);

/// Who changes streams and durables at a site: one at a time.
pub(super) type Turn = Arc<tokio::sync::Mutex<()>>;

/// Takes part in every move, for ever. `file` is the pipeline as its file has it.
pub(super) async fn take_part(bus: Bus, file: Pipeline, mut placed: Placed, turn: Turn) {
    let mut part = Part { bus, file, of: (0, 0), goals: HashMap::new(), said: None };
    let mut troubled = String::new();
    loop {
        let now = placed.borrow_and_update().clone();
        let pause = if let Some(moving) = &now.placement.moving {
            let bus = part.bus.clone();
            let done = {
                let _turn = turn.lock().await;
                bus.unless_renewed(Box::pin(part.round(&now.placement, moving))).await
            };
            let trouble = done.and_then(Result::err).map(|error| format!("{error:#}")).unwrap_or_default();
            if !trouble.is_empty() && trouble != troubled {
                tracing::warn!(trouble, "this site's part in the move is not done yet; it is tried again");
            }
            troubled = trouble;
            let is_long = now_ns().saturating_sub(moving.since) > LONG.as_nanos() as u64;
            LOOK_EVERY[usize::from(is_long)]
        } else {
            let _turn = turn.lock().await;
            if let Err(error) = part.tidy(&now).await {
                tracing::debug!(error = format!("{error:#}"), "not tidied; it comes again");
            }
            TIDY_EVERY
        };
        tokio::select! {
            () = is_placed_anew(&mut placed) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Part {
    bus: Bus,
    file: Pipeline,
    /// Of which move the rest is: its epoch, and when it began.
    of: (u64, u64),
    /// Up to which message those answer that end, by stream and durable.
    goals: HashMap<(String, String), u64>,
    /// What was said last of the move that is under way.
    said: Option<SiteReport>,
}

/// The pipeline on its move, before and after it.
struct Move<'a> {
    handover: Handover<'a>,
    moving: &'a Moving,
    before: Pipeline,
    after: Pipeline,
    /// The streams of this site before and after it.
    streams: [Vec<StreamWish>; 2],
}

impl Move<'_> {
    /// Of a stage with a state: where it is, and where it will be.
    fn state(&self) -> Option<(&str, &str)> {
        let (before, after) = (self.before.stage(&self.moving.stage)?, self.after.stage(&self.moving.stage)?);
        before.folds.then(|| (before.sites[0].as_str(), after.sites[0].as_str()))
    }

    /// A stream that this site has only after the move.
    fn is_new(&self, stream: &str) -> bool {
        !self.streams[0].iter().any(|wish| wish.name == stream)
    }

    /// One that it has only before it.
    fn is_old(&self, stream: &str) -> bool {
        !self.streams[1].iter().any(|wish| wish.name == stream)
    }
}

impl Part {
    /// Removes durables that the file has and a move has ended, where somebody made them again who did not know of it yet: a site whose
    /// store is new. Those who take now began at the same time, or before.
    async fn tidy(&self, now: &Pipeline) -> anyhow::Result<()> {
        if now.placement.sites.is_empty() {
            return Ok(());
        }
        let wanted = layout::streams(now);
        for wish in layout::streams(&self.file) {
            let kept = wanted.iter().find(|kept| kept.name == wish.name);
            let is_wanted = |name: &str| kept.is_some_and(|kept| kept.durables.iter().any(|one| one.name == name));
            for durable in wish.durables.iter().filter(|durable| !is_wanted(&durable.name)) {
                if self.bus.stream_state(&wish.name).await?.is_some()
                    && self.bus.durable_state(&wish.name, &durable.name).await?.is_some()
                {
                    tracing::info!(stream = wish.name, durable = durable.name, "its stage was moved: it is removed");
                    self.bus.end_durable(&wish.name, &durable.name).await?;
                }
            }
        }
        Ok(())
    }

    async fn round(&mut self, placement: &Placement, moving: &Moving) -> anyhow::Result<()> {
        // By its time too: epochs begin anew where the hub has lost its store.
        if self.of != (placement.epoch, moving.since) {
            (self.of, self.goals, self.said) = ((placement.epoch, moving.since), HashMap::new(), None);
        }
        // Called off, its stage is on the move no more: what was made is known from when it was.
        let mut whole = placement.clone();
        if let Some(moving) = &mut whole.moving {
            moving.phase = Phase::Prepare;
        }
        let whole = self.file.placed(&whole)?;
        let (before, after) = (whole.before(), whole.after());
        let streams = [layout::streams(&before), layout::streams(&after)];
        let this = Move { handover: whole.handover()?, moving, before, after, streams };
        let here = self.file.here.clone();
        if this.handover.sites.contains(here.as_str()) {
            // The agent before this one may have said something too.
            let before = match self.said.take() {
                Some(said) => said,
                None => read_report(&self.bus, &here).await?.unwrap_or_default(),
            };
            let before = if before.is_of_move(placement) { before } else { SiteReport::default() };
            // What is done stays done.
            self.said = Some(if before.is_of(placement) && before.done {
                before
            } else {
                let said = self.part(&this, placement, &before).await?;
                if said != before {
                    report(&self.bus, &here, &said).await?;
                }
                said
            });
        }
        if self.file.hub().name == here {
            self.go_on(&this, placement).await?;
        }
        Ok(())
    }

    /// Does what can be done of this site's part of the phase. `before` is what was said of the move last.
    async fn part(
        &mut self,
        this: &Move<'_>,
        placement: &Placement,
        before: &SiteReport,
    ) -> anyhow::Result<SiteReport> {
        let SiteReport { log, sealed, has_state, .. } = before.clone();
        let (epoch, since, phase) = (placement.epoch, this.moving.since, placement.phase());
        let mut said = SiteReport { epoch, since, phase, log, sealed, has_state, ..SiteReport::default() };
        match this.moving.phase {
            Phase::Prepare => self.prepare(this, placement, &mut said).await?,
            Phase::HandOver => self.hand_over(this, placement, &mut said).await?,
            Phase::Back => self.take_back(this).await?,
        }
        said.done = said.waits_for.is_none();
        Ok(said)
    }

    /// Makes the streams and durables that are new here, and waits until the stage is ready to take over where it will be.
    async fn prepare(&self, this: &Move<'_>, placement: &Placement, said: &mut SiteReport) -> anyhow::Result<()> {
        let is_made = |wish: &&StreamWish| this.is_new(&wish.name) && wish.retention != Retention::Changelog;
        for wish in this.streams[1].iter().filter(is_made) {
            if self.bus.stream_state(&wish.name).await?.is_none() {
                kept::forgotten(&self.bus, &wish.name).await?;
            }
            self.bus.apply_stream(wish).await?;
        }
        if this.moving.to.contains(&self.file.here) {
            said.waits_for = self.is_not_ready(this).await?;
        }
        if let Some((from, to)) = this.state() {
            self.prepare_state(this, placement, (from, to), said).await?;
        }
        said.ready = said.waits_for.is_none();
        // A taker that has its place keeps messages for it: so not before there is somebody who will take them.
        let others = reports(&self.bus, &self.file).await?;
        let is_ready = |site: &&String| {
            let other = others.get(*site).filter(|other| other.is_of(placement));
            **site == self.file.here || other.is_some_and(|other| other.ready)
        };
        if let Some(site) = this.moving.to.iter().find(|site| !is_ready(site)) {
            said.waits_for.get_or_insert_with(|| format!("{site} to be ready"));
        }
        if said.waits_for.is_some() {
            return Ok(());
        }
        for begins in this.handover.begins.iter().filter(|begins| begins.site == self.file.here) {
            for stream in streams_of(&self.file, begins.flow).iter().filter(|stream| !this.is_new(stream)) {
                self.begin(this, begins, stream).await?;
            }
        }
        Ok(())
    }

    async fn begin(&self, this: &Move<'_>, begins: &Begins<'_>, stream: &str) -> anyhow::Result<()> {
        let durable = durable_of(&begins.who);
        let wishes = this.streams[1].iter().filter(|wish| wish.name == stream);
        let Some(wish) = wishes.flat_map(|wish| &wish.durables).find(|wish| wish.name == durable) else {
            return Ok(());
        };
        let Some(state) = self.bus.stream_state(stream).await? else { return Ok(()) };
        let mut from = state.last_sequence + 1;
        for before in &begins.behind {
            let before = self.bus.durable_state(stream, &durable_of(before)).await?;
            from = from.min(before.map_or(1, |state| state.ack_floor + 1));
        }
        let made = self.bus.begin_durable(stream, wish, from).await?;
        tracing::info!(stream, durable, from, ?made, "a taker that is on its way here has its place");
        Ok(())
    }

    /// What the stage lacks to take over here.
    async fn is_not_ready(&self, this: &Move<'_>) -> anyhow::Result<Option<String>> {
        let beats = heartbeats_at(&self.bus).await?;
        let (stage, here) = (&this.moving.stage, &self.file.here);
        if *here != self.file.hub().name {
            let copied: Vec<&String> = beats.iter().flat_map(|beat| &beat.tables).collect();
            let missing =
                this.after.tables_at(here).into_iter().find(|table| !copied.iter().any(|known| *known == table));
            if let Some(table) = missing {
                return Ok(Some(format!("the table {table} to be copied to {here}")));
            }
        }
        let is_ready = beats.iter().any(|beat| beat.stage == *stage && beat.is_up());
        Ok((!is_ready).then(|| format!("a replica of {stage} at {here}")))
    }

    /// Lets those end whose work is done, or done by others.
    async fn hand_over(&mut self, this: &Move<'_>, placement: &Placement, said: &mut SiteReport) -> anyhow::Result<()> {
        let (others, ends) = (reports(&self.bus, &self.file).await?, &this.handover.ends);
        let mut left = Vec::new();
        for one in ends.iter().filter(|one| one.site == self.file.here) {
            for stream in streams_of(&self.file, one.flow) {
                let durable = durable_of(&one.who);
                match self.bus.durable_state(&stream, &durable).await? {
                    Some(state) => left.push((one, stream, durable, state)),
                    None => said.ended.push((stream, durable)),
                }
            }
        }
        for (one, stream, durable, state) in left {
            let mut before = one.behind.iter().map(|&place| &ends[place]);
            let before = before.find(|before| !self.has_ended(before, said, &others, placement));
            if let Some(before) = before.filter(|_| !one.is_covered) {
                said.waits_for = Some(format!("{} at {}", before.who, before.site));
                continue;
            }
            let left = if one.is_covered { 0 } else { self.left(&stream, &durable, &state).await? };
            if left == 0 {
                if !one.stays {
                    self.bus.end_durable(&stream, &durable).await?;
                    tracing::info!(stream, durable, "others take what it took");
                }
                said.ended.push((stream, durable));
            } else {
                said.waits_for.get_or_insert_with(|| format!("{} to answer {left}", one.who));
            }
        }
        if let Some((from, to)) = this.state() {
            self.hand_over_state(this, &others, placement, (from, to), said).await?;
        }
        if said.waits_for.is_some() {
            return Ok(());
        }
        // Nobody takes there any more: what a late one stores would be kept for nobody. What it holds still is of one who was late before.
        for wish in this.streams[0].iter().filter(|wish| this.is_old(&wish.name)) {
            if matches!(wish.retention, Retention::Link { .. } | Retention::Changelog) {
                self.bus.remove_stream(&wish.name).await?;
                kept::forgotten(&self.bus, &wish.name).await?;
            }
        }
        Ok(())
    }

    /// How much a taker still has to answer: what had come when it was first asked.
    async fn left(&mut self, stream: &str, durable: &str, state: &DurableState) -> anyhow::Result<u64> {
        let key = (stream.to_owned(), durable.to_owned());
        let goal = if let Some(&goal) = self.goals.get(&key) {
            goal
        } else {
            let last = self.bus.stream_state(stream).await?.map_or(0, |state| state.last_sequence);
            self.goals.insert(key, last);
            last
        };
        // What a durable passes over, since it is not its, does not move its floor.
        let is_done = state.pending == 0 && state.unacked == 0;
        Ok(if is_done { 0 } else { goal.saturating_sub(state.ack_floor) })
    }

    /// Whether a taker has ended, here or elsewhere.
    fn has_ended(
        &self,
        one: &Ends<'_>,
        said: &SiteReport,
        others: &BTreeMap<String, SiteReport>,
        placement: &Placement,
    ) -> bool {
        let report = if one.site == self.file.here { Some(said) } else { others.get(one.site) };
        let Some(report) = report.filter(|report| report.is_of(placement)) else { return false };
        let durable = durable_of(&one.who);
        let is_there = |stream: &String| report.ended.iter().any(|ended| ended.0 == *stream && ended.1 == durable);
        streams_of(&self.file, one.flow).iter().all(is_there)
    }

    /// Removes what was made for a move that was called off.
    async fn take_back(&self, this: &Move<'_>) -> anyhow::Result<()> {
        for begins in this.handover.begins.iter().filter(|begins| begins.site == self.file.here) {
            for stream in streams_of(&self.file, begins.flow) {
                if self.bus.stream_state(&stream).await?.is_some() {
                    self.bus.end_durable(&stream, &durable_of(&begins.who)).await?;
                }
            }
        }
        // Outcomes of before stay.
        let is_made = |wish: &&StreamWish| {
            this.is_new(&wish.name) && matches!(wish.retention, Retention::Link { .. } | Retention::Changelog)
        };
        for wish in this.streams[1].iter().filter(is_made) {
            self.bus.remove_stream(&wish.name).await?;
            kept::forgotten(&self.bus, &wish.name).await?;
        }
        Ok(())
    }

    /// At the hub: begins the next phase once all sites have done their part of this one.
    async fn go_on(&self, this: &Move<'_>, placement: &Placement) -> anyhow::Result<()> {
        let reports = reports(&self.bus, &self.file).await?;
        let is_done = |site: &&str| reports.get(*site).is_some_and(|report| report.is_of(placement) && report.done);
        if !this.handover.sites.iter().all(is_done) {
            return Ok(());
        }
        let (now, revision) = read_placement(&self.bus).await?;
        if now != *placement {
            return Ok(());
        }
        let mut next = now;
        match (next.phase(), &mut next.moving) {
            (Some(Phase::Prepare), Some(moving)) => moving.phase = Phase::HandOver,
            (Some(Phase::HandOver), _) => {
                next.sites = placement.after();
                let is_as_written = |stage: &str, sites: &[String]| {
                    self.file.stage(stage).is_some_and(|written| written.sites == sites)
                };
                next.sites.retain(|stage, sites| !is_as_written(stage, sites));
                next.moving = None;
            }
            _ => next.moving = None,
        }
        if write(&self.bus, &next, revision).await? {
            let phase = next.phase();
            tracing::info!(stage = this.moving.stage, epoch = next.epoch, ?phase, "the move goes on");
        }
        Ok(())
    }
}
