//! `causeway move`: a stage goes to another site while it works.

mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use causeway_bus::Bus;
use causeway_pipelines::{Flow, Handover, Moving, Phase, Pipeline, Placement, did_you_mean};
use causeway_stage::{SiteReport, now_ns, read_placement};
use serde_json::json;

use crate::cli::{PipelineFlags, PlaceArgs, beside, connect};
use crate::placement::{reports, write};
use crate::rights::may_run_at;
use crate::terminal::{count, print_line};
use watch::{Became, Watch};

/// What `--help` says.
pub(crate) const LONG: &str = "\
Move a stage to another site while it works. Nothing is lost by that and nothing counts twice: what is done in both places has the \
same ids.

First all is made that the stage needs where it will be, its replicas there load their models and wait (`prepare`). Then it takes \
there, and where it was it finishes what is not taken there (`hand-over`). A stage with a state, as `cluster`, goes on with its state \
there, change by change with the same numbers. Where it takes from a stream that stays where it is, all \
that waits there goes over with it; a stage that comes to an edge takes what waits there for a link that is down.

Every site where `up` or `causeway agent` runs does its part by itself, and goes on after a crash: this command only says what is \
wanted, and watches. Ended, it may be \
given again to watch on; with `--timeout` it ends by itself where a site that has a part in it does not run or is not reached. While \
a move is prepared `--back` calls it off; from the hand-over on it goes on to its end.

A place that is given so stays over restarts, in place of the one in the file. Sources and relays do not move, nor does the hub: what \
others dial stays where they find it.";

/// How often it is looked how far a move is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A site that has not heard of a move for so long may not run: after a cut it takes some seconds.
const SILENCE: Duration = Duration::from_secs(10);

/// The arguments of `move`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway move extract --to cloud --dry-run\n  causeway move extract --to cloud\n  causeway move classify --to edge-1,edge-2 --json\n  causeway move extract --back"
)]
pub(crate) struct MoveArgs {
    /// The stage
    #[arg(value_name = "STAGE")]
    stage: String,
    /// The site that it goes to, or sites with commas
    #[arg(long, value_name = "SITE", value_delimiter = ',', required_unless_present = "back")]
    to: Vec<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Call off a move that is being prepared
    #[arg(long, conflicts_with_all = ["to", "dry_run"])]
    back: bool,
    /// Watch no longer than so many seconds; what was begun goes on by itself
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    timeout: Option<u64>,
    #[command(flatten)]
    pipeline: PipelineFlags,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: MoveArgs) -> anyhow::Result<ExitCode> {
    let file = crate::cli::load(&args.pipeline.pipeline, &args.pipeline.set)?;
    if !file.is_split() {
        bail!("cannot move a stage of {}: it has one site", file.file.display());
    }
    let hub = file.hub().name.clone();
    if let Some(site) = args.place.site.as_ref().filter(|site| **site != hub) {
        bail!("cannot move a stage at {site}: where stages are is written down at the hub, {hub}; leave out --site");
    }
    let file = file.at(&hub)?;
    check(&file, &args.stage)?;
    let connection = connect(&file, &args.place).await?;
    let done = if connection.is_store_only() {
        Err(anyhow::anyhow!("nothing runs here: start `causeway up`, or say where the hub's server is with --nats"))
    } else {
        act(&connection.bus, &file, &args).await
    };
    connection.close().await;
    done
}

/// Whether it is a stage that moves.
fn check(file: &Pipeline, name: &str) -> anyhow::Result<()> {
    let Some(stage) = file.stage(name) else {
        let names = file.stages.iter().map(|stage| stage.name.as_str());
        let help = did_you_mean(name, names.clone())
            .unwrap_or_else(|| format!("stages here: {}", names.collect::<Vec<_>>().join(", ")));
        bail!("cannot find [stage.{name}] in {}: {help}", file.file.display());
    };
    if stage.is_source() {
        bail!("cannot move [stage.{name}]: it is a source, and what it reads is where it is");
    }
    Ok(())
}

/// Where everybody has a key of his own, a stage has one at the sites alone that the file names for it.
fn check_keys(file: &Pipeline, place: &PlaceArgs, name: &str, to: &[String]) -> anyhow::Result<()> {
    let written = file.site(&file.here).and_then(|site| site.credentials.as_ref()).map(|at| beside(file, at));
    let is_keyed = place.credentials.iter().chain(&written).any(|at| at.is_dir());
    let Some(stage) = file.stage(name).filter(|_| is_keyed) else { return Ok(()) };
    if let Some(site) = to.iter().find(|site| !may_run_at(stage, site)) {
        bail!(
            "cannot move [stage.{name}] to {site}: it has no key there; say `may_move_to = [\"{site}\"]` in its table, and run \
             `causeway keys` and `causeway deploy nats` again"
        );
    }
    Ok(())
}

/// A state goes between the hub and a site that dials it.
fn check_state(whole: &Pipeline, name: &str) -> anyhow::Result<()> {
    let hub = &whole.hub().name;
    let Some(stage) = whole.stage(name).filter(|stage| stage.folds) else { return Ok(()) };
    if stage.sites[0] != *hub && stage.moves_to[0] != *hub {
        bail!(
            "cannot move [stage.{name}] from {} to {} in one step: its state goes with it, and every way goes through the hub; move \
             it to {hub} first",
            stage.sites[0],
            stage.moves_to[0]
        );
    }
    Ok(())
}

async fn act(bus: &Bus, file: &Pipeline, args: &MoveArgs) -> anyhow::Result<ExitCode> {
    let (placement, revision) = read_placement(bus).await?;
    if args.back {
        return back(bus, file, placement, revision, args).await;
    }
    let moving = Moving { stage: args.stage.clone(), to: args.to.clone(), phase: Phase::Prepare, since: now_ns() };
    let mut next = Placement { epoch: placement.epoch + 1, moving: Some(moving), ..placement.clone() };
    let mut whole = file.placed(&next)?;
    let Some(stage) = whole.stage(&args.stage) else { bail!("cannot find [stage.{}]", args.stage) };
    let (there, to) = (stage.sites.join(", "), stage.moves_to.clone());
    // Names with a `*` are those of sites from here on.
    next.moving.iter_mut().for_each(|moving| moving.to.clone_from(&to));
    if let Some(under_way) = &placement.moving {
        if under_way.stage != args.stage || under_way.to != to || under_way.phase == Phase::Back {
            bail!(
                "cannot move {} now: {} is on its way to {} (`causeway move {1} --back` calls that off while it is prepared)",
                args.stage,
                under_way.stage,
                under_way.to.join(", ")
            );
        }
        // Somebody has begun it: it is watched on.
        next = placement.clone();
        whole = file.placed(&next)?;
    } else if to.is_empty() {
        return stays(args, &there, placement.epoch, &format!("{} is at {there} already", args.stage));
    }
    check_keys(file, &args.place, &args.stage, &to)?;
    check_state(&whole, &args.stage)?;
    let handover = whole.handover()?;
    if args.dry_run {
        tell(&whole, &handover, args)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut watch = Watch::begin(&whole, &handover, &args.stage, &args.place, bus).await?;
    if placement.moving.is_none() && !write(bus, &next, revision).await? {
        bail!("cannot move {}: another move was begun at the same time", args.stage);
    }
    let began = Instant::now();
    let moved = follow(bus, file, &next, &handover.sites, &mut watch, args).await?;
    let took = began.elapsed();
    if !moved {
        bail!("the move of {} was called off", args.stage);
    }
    let became = watch.end().await;
    say(&next, &became, took, args.json)?;
    let is_well = became.lost.unwrap_or(0) == 0 && became.doubled.unwrap_or(0) == 0;
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls a move off.
async fn back(
    bus: &Bus,
    file: &Pipeline,
    placement: Placement,
    revision: u64,
    args: &MoveArgs,
) -> anyhow::Result<ExitCode> {
    let Some(moving) = placement.moving.clone().filter(|moving| moving.stage == args.stage) else {
        bail!("cannot call the move of {} off: it is not on the move", args.stage);
    };
    if moving.phase == Phase::HandOver {
        bail!(
            "cannot call the move of {} off: it is handed over to {} already, and goes on to its end; move it back then",
            args.stage,
            moving.to.join(", ")
        );
    }
    let in_phase = |phase| Placement { moving: Some(Moving { phase, ..moving.clone() }), ..placement.clone() };
    let next = in_phase(Phase::Back);
    if !write(bus, &next, revision).await? {
        bail!("cannot call the move of {} off: it has just gone on; look at `causeway status`", args.stage);
    }
    // Whoever has a part in it has a part in calling it off. A file that was changed since may know nothing of it any more.
    let whole = file.placed(&in_phase(Phase::Prepare)).ok();
    let handover = whole.as_ref().and_then(|whole| whole.handover().ok()).unwrap_or_default();
    let (mut off, mut patience) = (next.clone(), Patience::of(args));
    while off.epoch == next.epoch && off.moving.is_some() {
        patience.look(&waits_for(&off, &handover.sites, &reports(bus, file).await.unwrap_or_default()))?;
        tokio::time::sleep(LOOK_EVERY).await;
        off = read_placement(bus).await?.0;
    }
    let there = file.placed(&off)?.stage(&args.stage).map(|stage| stage.sites.join(", ")).unwrap_or_default();
    stays(args, &there, off.epoch, &format!("{} stays at {there}", args.stage))
}

/// Nothing has moved.
fn stays(args: &MoveArgs, there: &str, epoch: u64, said: &str) -> anyhow::Result<ExitCode> {
    if args.json {
        print_line(json!({ "stage": args.stage, "to": there, "epoch": epoch, "moved": 0 }))?;
    } else {
        print_line(said)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Watches a move to its end, and says how far it is. `false`: it was called off.
async fn follow(
    bus: &Bus,
    file: &Pipeline,
    next: &Placement,
    sites: &BTreeSet<&str>,
    watch: &mut Watch,
    args: &MoveArgs,
) -> anyhow::Result<bool> {
    let mut patience = Patience::of(args);
    loop {
        // A hub that is just started anew is asked again.
        let now = match read_placement(bus).await {
            Ok((now, _)) => now,
            Err(error) => {
                tracing::debug!(%error, "the hub does not answer");
                patience.look(&Waits { line: "the hub does not answer".into(), silent: Vec::new() })?;
                watch.wait(LOOK_EVERY).await;
                continue;
            }
        };
        if now.epoch != next.epoch || now.moving.is_none() {
            return Ok(is_placed(file, &now, next));
        }
        let reports = reports(bus, file).await.unwrap_or_default();
        patience.look(&waits_for(&now, sites, &reports))?;
        watch.wait(LOOK_EVERY).await;
    }
}

/// What a move waits for.
struct Waits {
    line: String,
    /// Sites that have not heard of it.
    silent: Vec<String>,
}

fn waits_for(now: &Placement, sites: &BTreeSet<&str>, reports: &BTreeMap<String, SiteReport>) -> Waits {
    let phase = match now.phase() {
        Some(Phase::Prepare) => "prepare",
        Some(Phase::HandOver) => "hand-over",
        Some(Phase::Back) | None => "back",
    };
    let mut silent = Vec::new();
    let waits = sites.iter().filter_map(|&site| {
        let Some(report) = reports.get(site).filter(|report| report.is_of(now)) else {
            silent.push(site.to_owned());
            return Some(format!("{site} to hear of it"));
        };
        (!report.done).then(|| report.waits_for.clone().unwrap_or_else(|| site.to_owned()))
    });
    let waits: Vec<String> = waits.collect();
    let line = if waits.is_empty() { String::new() } else { format!("{phase}: waits for {}", waits.join(", ")) };
    Waits { line, silent }
}

/// How long a move is watched, and what was said of it.
struct Patience<'a> {
    args: &'a MoveArgs,
    began: Instant,
    said: String,
    has_told_silence: bool,
}

impl<'a> Patience<'a> {
    fn of(args: &'a MoveArgs) -> Self {
        Self { args, began: Instant::now(), said: String::new(), has_told_silence: false }
    }

    /// Says what is new of it; an error once that was long enough.
    fn look(&mut self, waits: &Waits) -> anyhow::Result<()> {
        let Waits { line, silent } = waits;
        if !self.args.json && !line.is_empty() && *line != self.said {
            eprintln!("  {line}");
            self.said.clone_from(line);
        }
        let silence = (!silent.is_empty()).then(|| {
            let silent = silent.join(", ");
            format!("nothing is heard of {silent}: does `causeway up` or `causeway agent` run there, and does it reach the hub?")
        });
        let took = self.began.elapsed();
        if self.args.timeout.is_some_and(|most| took.as_secs() >= most) {
            let line = if line.is_empty() { "it has just gone on" } else { line };
            let silence = silence.map(|silence| format!("; {silence}")).unwrap_or_default();
            bail!(
                "the move of {} is not at its end after {} s ({line}{silence}). What was begun goes on by itself; give the command again to \
                 watch on",
                self.args.stage,
                took.as_secs()
            );
        }
        if let Some(silence) = silence.filter(|_| !self.has_told_silence && took > SILENCE) {
            eprintln!("  {silence}");
            self.has_told_silence = true;
        }
        Ok(())
    }
}

/// Whether a stage is where the move would bring it.
fn is_placed(file: &Pipeline, now: &Placement, next: &Placement) -> bool {
    let Some(moving) = &next.moving else { return false };
    let placed = file.placed(now).ok();
    placed.is_some_and(|placed| placed.stage(&moving.stage).is_some_and(|stage| stage.sites == moving.to))
}

/// What would be done.
fn tell(whole: &Pipeline, handover: &Handover<'_>, args: &MoveArgs) -> anyhow::Result<()> {
    let of = |flow: Flow<'_>| match flow {
        Flow::Stage(name) => name.to_owned(),
        Flow::Ends => "what ends early".to_owned(),
    };
    let stage = whole.stage(&args.stage).context("the stage is there")?;
    let (from, to) = (stage.sites.join(", "), stage.moves_to.join(", "));
    if args.json {
        let begins = handover
            .begins
            .iter()
            .map(|one| json!({ "site": one.site, "of": of(one.flow), "taker": one.who.to_string() }));
        let ends = handover.ends.iter().filter(|one| !one.stays).map(|one| {
            json!({ "site": one.site, "of": of(one.flow), "taker": one.who.to_string(), "waits_go_over": one.is_covered })
        });
        let (begins, ends): (Vec<_>, Vec<_>) = (begins.collect(), ends.collect());
        print_line(
            json!({ "stage": args.stage, "from": from, "to": to, "sites": handover.sites, "begins": begins, "ends": ends }),
        )?;
        return Ok(());
    }
    print_line(format_args!("{} from {from} to {to}", args.stage))?;
    for one in &handover.begins {
        let behind = if one.behind.is_empty() { "what comes from then on" } else { "all that waits" };
        print_line(format_args!("  at {}: {} takes {}: {behind}", one.site, one.who, of(one.flow)))?;
    }
    for one in handover.ends.iter().filter(|one| !one.stays) {
        let how = if one.is_covered { "at once" } else { "once it has answered what had come" };
        print_line(format_args!("  at {}: {} takes no more of {}, {how}", one.site, one.who, of(one.flow)))?;
    }
    Ok(())
}

/// What it was like.
fn say(next: &Placement, became: &Became, took: Duration, json: bool) -> anyhow::Result<()> {
    let Some(moving) = &next.moving else { return Ok(()) };
    let Became { moved, again, lost, doubled, longest_gap } = became;
    if json {
        print_line(json!({
            "stage": moving.stage,
            "to": moving.to.join(", "),
            "epoch": next.epoch,
            "took_ms": took.as_millis() as u64,
            "moved": moved,
            "done_twice": again,
            "lost": lost,
            "doubled": doubled,
            "longest_gap_ms": longest_gap.map(|gap| gap.as_millis() as u64),
        }))?;
        return Ok(());
    }
    let known = |count: Option<usize>| count.map_or("not known from here".into(), |count| count.to_string());
    let gap = longest_gap.map_or("not known: too little came".into(), |gap| format!("{} ms", gap.as_millis()));
    print_line(format_args!(
        "{} is at {} (epoch {}) after {:.1} s: messages given there meanwhile {}, lost {}, doubled {}, longest gap {gap}",
        moving.stage,
        moving.to.join(", "),
        next.epoch,
        took.as_secs_f64(),
        known(*moved),
        known(*lost),
        known(*doubled),
    ))?;
    if *again > 0 {
        print_line(format_args!("  {} in both places, under the same ids", count(*again, "message")))?;
    }
    Ok(())
}
