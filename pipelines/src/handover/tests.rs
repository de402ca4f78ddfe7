use super::*;
use crate::sites::TestSites;
use crate::{Moving, Phase, Placement};

pub(super) const TWO: &str = "[site.edge]\n[site.cloud]\nhub = true";
pub(super) const THREE: &str = "[site.edge-1]\n[site.edge-2]\n[site.cloud]\nhub = true";

fn moving(sites: &str, at: [&str; 5], stage: &str, to: &str) -> Option<Pipeline> {
    let pipeline = TestSites::read(sites, at).ok()?;
    let moving = Moving { stage: stage.into(), to: vec![to.into()], phase: Phase::HandOver, since: 0 };
    pipeline.placed(&Placement { epoch: 1, moving: Some(moving), ..Placement::default() }).ok()
}

/// What begins (`SITE STREAM TAKER <BEHIND`) and what ends (`SITE STREAM TAKER`, with `!` where it is covered, `~` where it stays).
fn shown(pipeline: &Pipeline) -> (Vec<String>, Vec<String>) {
    let handover = pipeline.handover().unwrap();
    let of = |flow: Flow<'_>| match flow {
        Flow::Stage(name) => name.to_owned(),
        Flow::Ends => "ends".to_owned(),
    };
    let who = |who: &Who| match who {
        Who::Stage(name) => name.clone(),
        Who::Site(site) => format!("→{site}"),
    };
    let begins = handover.begins.iter().map(|one| {
        let behind: Vec<String> = one.behind.iter().map(who).collect();
        format!("{} {} {} <{}", one.site, of(one.flow), who(&one.who), behind.join(" "))
    });
    let ends = handover.ends.iter().map(|one| {
        let mark = match (one.is_covered, one.stays) {
            (true, _) => "!",
            (false, true) => "~",
            (false, false) => "",
        };
        format!("{} {} {}{mark}", one.site, of(one.flow), who(&one.who))
    });
    (begins.collect(), ends.collect())
}

#[test]
fn a_stage_that_goes_to_the_cloud() {
    let moved = moving(TWO, ["edge", "edge", "edge", "cloud", "cloud"], "extract", "cloud").unwrap();
    let (begins, ends) = shown(&moved);
    // What waits at the edge goes over too; the relay that carried features is needed until they are all over.
    assert_eq!(begins, ["edge preprocess →cloud <extract", "cloud preprocess extract <"]);
    assert_eq!(ends, ["edge preprocess extract!", "edge extract →cloud"]);
    let handover = moved.handover().unwrap();
    assert_eq!(handover.ends[1].behind, [0]);
    assert_eq!(handover.sites.into_iter().collect::<Vec<_>>(), ["cloud", "edge"]);
}

#[test]
fn a_stage_that_comes_to_the_edge() {
    let moved = moving(TWO, ["edge", "edge", "edge", "cloud", "cloud"], "classify", "edge").unwrap();
    let (begins, ends) = shown(&moved);
    // What the relay holds, its spool when the link is down, is classified here.
    assert_eq!(begins, ["edge extract classify <→cloud", "edge classify →cloud <"]);
    assert_eq!(ends, ["cloud extract classify", "cloud classify →edge"]);
}

#[test]
fn where_a_relay_carries_already_what_came_before_is_finished() {
    let moved = moving(TWO, ["edge", "edge", "edge", "edge", "cloud"], "classify", "cloud").unwrap();
    let (begins, ends) = shown(&moved);
    assert_eq!(begins, ["cloud extract classify <", "cloud classify →edge <"]);
    assert_eq!(ends, ["edge extract classify", "edge classify →cloud"]);
}

#[test]
fn what_comes_by_two_relays_is_waited_for() {
    let moved = moving(THREE, ["edge-2", "cloud", "edge-2", "edge-1", "edge-1"], "cluster", "edge-2").unwrap();
    let (begins, ends) = shown(&moved);
    assert_eq!(begins, ["edge-2 extract cluster <→cloud", "edge-2 cluster →cloud <"]);
    // What the first relay had carried is under way at the cloud, where the second carries on for `classify`.
    assert_eq!(
        ends,
        ["edge-1 extract cluster", "edge-1 cluster →cloud", "cloud extract →edge-1~", "cloud cluster →edge-2"]
    );
    assert_eq!(moved.handover().unwrap().ends[0].behind, [2]);
}

#[test]
fn nothing_changes_hands_where_nothing_moves() {
    let still = TestSites::read(TWO, ["edge"; 5]).unwrap();
    let handover = still.handover().unwrap();
    assert!(handover.begins.is_empty() && handover.ends.is_empty() && handover.sites.is_empty());
}
