//! Handing a stage over from one site to another: who begins to take where, and who ends once he has answered what.
//!
//! What goes through the streams of a pipeline is taken by durables, of stages and of relays. A move changes who takes at some of them.
//! A new taker begins behind what the one had answered that it takes the place of, so that nothing is between the two. Where there is
//! none it begins with what comes, and what came before is finished where the stage was. What is done in both places has the same id.

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::sites::{For, Served, When};
use crate::{Flow, Pipeline, Plan, Who};

/// All that changes hands.
#[derive(Debug, Default)]
pub struct Handover<'a> {
    /// Takers that are new.
    pub begins: Vec<Begins<'a>>,
    /// Takers that there will not be any more, and those that take less.
    pub ends: Vec<Ends<'a>>,
    /// The sites that have a part in it.
    pub sites: BTreeSet<&'a str>,
}

/// A taker that is new at a stream of a site.
#[derive(Debug, PartialEq, Eq)]
pub struct Begins<'a> {
    /// There.
    pub site: &'a str,
    /// Of this.
    pub flow: Flow<'a>,
    /// Who takes.
    pub who: Who,
    /// It begins behind what all of these have answered; with what comes from now on where there are none.
    pub behind: Vec<Who>,
}

/// A taker that there will not be any more; or one that goes on with other things, and that others wait for who are behind it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ends<'a> {
    /// There.
    pub site: &'a str,
    /// Of this.
    pub flow: Flow<'a>,
    /// Who took.
    pub who: Who,
    /// Others take all that it has not answered: it ends at once. Otherwise it first answers all that has come.
    pub is_covered: bool,
    /// It goes on for others: it only answers all that has come.
    pub stays: bool,
    /// What may still come to it comes from these, by their place: they end first.
    pub behind: Vec<usize>,
}

/// Why a stage cannot be handed over.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandoverError {
    /// A taker stays, and takes something else.
    #[error(
        "cannot move it in one step: at {site}, {who} would take what is captured elsewhere than now; move it to another site first"
    )]
    Differs {
        /// There.
        site: String,
        /// Who.
        who: String,
    },
}

/// Somebody who takes at a stream of a site, before, after or both.
struct Change<'a, 'p> {
    site: &'a str,
    flow: Flow<'a>,
    who: Who,
    before: Option<Served<'p>>,
    after: Option<Served<'p>>,
}

impl Pipeline {
    /// What has to be done so that the stage that is on the move is where it will be, with nothing lost on the way.
    pub fn handover(&self) -> Result<Handover<'_>, HandoverError> {
        let (before, after) = (self.plan_of(&[When::Before]), self.plan_of(&[When::After]));
        let mut handover = Handover::default();
        let flows = || self.stages.iter().map(|stage| Flow::Stage(&stage.name)).chain([Flow::Ends]);
        let mut changes = Vec::new();
        for site in self.sites.iter().map(|site| site.name.as_str()) {
            for flow in flows() {
                changes.extend(changes_at(&before, &after, flow, site)?);
                if before.share(flow, site).is_some() != after.share(flow, site).is_some() {
                    handover.sites.insert(site);
                }
            }
        }
        let moved = self.stages.iter().filter(|stage| !stage.moves_to.is_empty());
        handover.sites.extend(moved.flat_map(|stage| stage.sites.iter().chain(&stage.moves_to)).map(String::as_str));
        for change in &changes {
            let beside = || changes.iter().filter(|other| (other.site, other.flow) == (change.site, change.flow));
            match (&change.before, &change.after) {
                (None, Some(after)) => handover.begins.push(Begins {
                    site: change.site,
                    flow: change.flow,
                    who: change.who.clone(),
                    behind: beside()
                        .filter(|other| other.served_any_of(after))
                        .map(|other| other.who.clone())
                        .collect(),
                }),
                (Some(before), after) => {
                    let stays = after.is_some();
                    let still = |one: &_| after.as_ref().is_some_and(|after| after.contains(one));
                    let is_covered = before.iter().all(|one| still(one) || beside().any(|other| other.is_new_for(one)));
                    // Where one stays who takes less, what it has under way has to be taken behind it.
                    if !stays || !is_covered {
                        let (site, flow, who) = (change.site, change.flow, change.who.clone());
                        handover.ends.push(Ends { site, flow, who, is_covered, stays, behind: Vec::new() });
                    }
                }
                (None, None) => {}
            }
        }
        for place in 0..handover.ends.len() {
            let ends = &handover.ends;
            let behind = (0..ends.len()).filter(|&other| feeds(&ends[other], &ends[place])).collect();
            handover.ends[place].behind = behind;
        }
        handover.sites.extend(handover.begins.iter().map(|begins| begins.site));
        handover.sites.extend(handover.ends.iter().map(|ends| ends.site));
        Ok(handover)
    }
}

/// Whether what one taker has under way may still come to the other.
fn feeds(giver: &Ends<'_>, taker: &Ends<'_>) -> bool {
    let makes = match (&giver.who, taker.flow) {
        (Who::Stage(stage), Flow::Stage(made)) => stage == made,
        (Who::Stage(_), Flow::Ends) => true,
        (Who::Site(_), _) => false,
    };
    let carries = giver.flow == taker.flow && giver.who == Who::Site(taker.site.into());
    (makes && giver.site == taker.site) || carries
}

/// Who takes at a stream of a site before, after, or both.
fn changes_at<'a, 'p>(
    before: &'p Plan<'_>,
    after: &'p Plan<'_>,
    flow: Flow<'a>,
    site: &'a str,
) -> Result<Vec<Change<'a, 'p>>, HandoverError> {
    let (served_before, mut served_after) = (before.served(flow, site), after.served(flow, site));
    let some_of = |plan: &Plan<'_>, who: &Who| {
        let share = plan.share(flow, site)?;
        let taker = share.takers.iter().find(|taker| taker.who == *who)?;
        Some(share.some_of(taker))
    };
    let mut changes = Vec::new();
    for (who, served) in served_before {
        let now = served_after.remove(&who);
        // What a durable gives of its stream is not changed: what it passed over before it would not give any more.
        if now.is_some() && some_of(before, &who) != some_of(after, &who) {
            return Err(HandoverError::Differs { site: site.into(), who: who.to_string() });
        }
        changes.push(Change { site, flow, who, before: Some(served), after: now });
    }
    let new = served_after.into_iter();
    changes.extend(new.map(|(who, served)| Change { site, flow, who, before: None, after: Some(served) }));
    Ok(changes)
}

impl<'p> Change<'_, 'p> {
    /// Whether it took some of this before.
    fn served_any_of(&self, served: &Served<'_>) -> bool {
        self.before.as_ref().is_some_and(|before| before.iter().any(|one| served.contains(one)))
    }

    /// Whether it is new and takes this.
    fn is_new_for(&self, one: &(&'p str, For<'p>)) -> bool {
        self.before.is_none() && self.after.as_ref().is_some_and(|after| after.contains(one))
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stage(name) => write!(f, "[stage.{name}]"),
            Self::Site(site) => write!(f, "the relay to {site}"),
        }
    }
}
