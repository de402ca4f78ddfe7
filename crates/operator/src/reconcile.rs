//! `causeway reconcile`: finds what was captured and has not all its outcomes, and runs it again.

mod look;

use std::collections::{BTreeSet, HashMap};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use causeway_bus::{Bus, BusError, PublishError};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Frame, Id, Message as _, decode, header};
use causeway_stage::{Unfolded, again, read_ledger};
use serde_json::json;

use crate::cli::{PipelineArgs, PlaceArgs};
use crate::content::short;
use crate::reached::Reached;
use crate::results::Results;
use crate::terminal::{count, one_line, print_line};
use crate::{generation, kept};
use look::{Captured, Gone, Lost};
pub(crate) use look::{Look, is_home};

/// How long a full capture stream is waited for before the command gives up.
const FULL_PATIENCE: Duration = Duration::from_secs(30);
/// Pause before a publish that failed is tried again.
const STORE_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether what was sent has its outcomes: each time all of them are read.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Most gaps of a stream that are named.
const MAX_GAPS: usize = 8;
/// Most characters of an item's name.
const MAX_ITEM: usize = 120;
/// How a lost item is told.
const LOST: &str = "lost      ";

/// What `--help` says.
pub(crate) const LONG: &str = "\
Find what was captured, has not all its outcomes and is not under way, and run it again from the copy that is kept of it. It \
ends on the ids that it would have had, so what is there already is not there twice. It may be done while the pipeline runs.

Messages get lost when a broker loses its last writes (a power failure), when somebody removes them, or when a disk breaks. What \
has no copy left is named as lost: a folder is read again by the next `causeway up`, a camera's frame is gone.

What a fold has lost of its changelog, for which it stops and names this command, is run again too: it puts each where its outcome \
says that it was, and goes on.

Of a pipeline with several sites all that run here are looked at; with --site that one, and the hub where its address and credentials \
in the pipeline file let it be read. An outcome that is gone where its item was captured, and that another site has, is brought back.

Messages of the capture stream that the broker gave once and has no more are told as gone, once; those of which nothing else \
is stored cannot be named.

Exit code 0: nothing is lost, though some may have been sent again; 1: something is.";

/// The arguments of `reconcile`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  causeway reconcile --dry-run\n  causeway reconcile --wait 60\n  causeway reconcile --json | jq .lost"
)]
pub(crate) struct ReconcileArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Only say what is open
    #[arg(long)]
    dry_run: bool,
    /// Wait until all that was sent again has its outcomes, at most this long
    #[arg(long, value_name = "SECONDS", conflicts_with = "dry_run")]
    wait: Option<u64>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found and done.
#[derive(Debug, Default)]
struct Found {
    captured: usize,
    complete: usize,
    under_way: usize,
    /// Captured before the oldest outcome that is kept: their outcomes may have been there.
    not_judged: usize,
    /// What has outcomes that another site had, which were brought back, or would be, with the item's name.
    brought: Vec<(Id, String)>,
    /// What was sent again, or would be, with the item's name.
    again: Vec<(Id, String)>,
    /// What has no copy to be run from, with the item's name where any outcome tells it.
    lost: Vec<(Id, String)>,
    /// What is missing of the capture streams, and was not told before.
    gone: Vec<Gone>,
    /// How many a fold has lost and that were captured at sites that were not looked at: it does not go on yet.
    elsewhere: usize,
    /// Sent again and without its outcomes when the time was over.
    unanswered: usize,
}

pub(crate) async fn reconcile(args: ReconcileArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    let reached = Reached::with_hub(&pipeline, &args.place).await?;
    let stored_only = reached.is_store_only();
    let found = async {
        reached.check_runs("reconcile")?;
        if stored_only && args.wait.is_some() {
            bail!("cannot wait for outcomes: nothing runs here; without --wait they come with the next `causeway up`");
        }
        let sites = reached.sites().await?;
        if !sites.iter().any(|(_, seen)| seen.captures()) {
            bail!(
                "cannot reconcile {}: nothing is captured at {}; run it where something is, with --site",
                pipeline.name,
                reached.names()
            );
        }
        run(&sites, &args).await
    }
    .await;
    let not_reached = reached.not_reached().cloned();
    reached.close().await;
    let found = found?;
    if let Some((site, why)) = not_reached {
        eprintln!(
            "{site} was not looked at: {why}; what is under way there counts as open, and done twice it counts once"
        );
    }
    if args.json {
        print_line(found.to_json(args.wait.is_some()))?;
    } else {
        found.print(&args, stored_only)?;
    }
    let well = found.lost.is_empty() && found.unknown() == 0 && found.unanswered == 0 && found.elsewhere == 0;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn run(sites: &[(Bus, Pipeline)], args: &ReconcileArgs) -> anyhow::Result<Found> {
    let mut look = Look::at(sites).await?;
    let brought = bring_back(sites, &mut look, args.dry_run).await?;
    let unfolded = look.unfolded();
    let mut found = Found {
        captured: look.captured.len(),
        complete: look.captured.keys().filter(|id| look.ledger.is_complete(**id) && !unfolded.contains(id)).count(),
        under_way: look.captured.keys().filter(|id| look.is_under_way(**id) && !unfolded.contains(id)).count(),
        elsewhere: look
            .lost_by_folds
            .iter()
            .flat_map(|lost| &lost.unfolded.open)
            .filter(|id| !look.is_known(id))
            .count(),
        ..Found::default()
    };
    let mut generations = HashMap::new();
    let is_to_run = |id: &Id| look.is_open(*id) || unfolded.contains(id);
    let mut to_run: Vec<_> = look.captured.iter().filter(|(id, _)| is_to_run(id)).collect();
    to_run.sort_by_key(|(_, captured)| captured.place());
    for (&id, captured) in to_run {
        if !look.is_judged(captured) && !unfolded.contains(&id) {
            found.not_judged += 1;
            continue;
        }
        let generation = generations.entry(captured.site.as_str()).or_insert(None);
        match run_again(bus_at(sites, &captured.site), id, captured, args.dry_run, generation).await {
            Ok(Some(item)) => found.again.push((id, item)),
            Ok(None) => found.lost.push((id, String::new())),
            Err(error) => bail!("{} sent again, then: {error:#}", count(found.again.len(), "item")),
        }
    }
    found.lost.extend(look.without_copy().map(|id| (id, String::new())));
    found.brought = brought.into_iter().map(|id| (id, String::new())).collect();
    let is_to_name = !(found.lost.is_empty() && found.brought.is_empty());
    for (bus, pipeline) in sites.iter().filter(|_| is_to_name) {
        let results = Results::read(bus, pipeline).await?;
        let name = |id: Id| Some(results.capture(id)?.item.clone());
        for (id, item) in found.lost.iter_mut().filter(|(_, item)| item.is_empty()) {
            *item = name(*id).unwrap_or_default();
        }
        for (id, item) in found.brought.iter_mut().filter(|(_, item)| item.is_empty()) {
            *item = name(*id).unwrap_or_default();
        }
    }
    found.gone = look.gone();
    if !args.dry_run {
        for Lost { site, stage, unfolded } in &look.lost_by_folds {
            let seen_to: Vec<Id> = unfolded.open.iter().filter(|id| look.is_known(id)).copied().collect();
            unfolded.clone().see_to(seen_to).store(bus_at(sites, site), stage).await?;
        }
        for Gone { site, stream, ranges, .. } in &found.gone {
            kept::told(bus_at(sites, site), stream, ranges).await?;
        }
        for Captured { site, stream, sequence, .. } in look.needless_copies() {
            let bus = bus_at(sites, site);
            kept::removed(bus, stream, &[(*sequence, *sequence)]).await?;
            bus.delete_message(stream, *sequence).await?;
        }
    }
    if let Some(seconds) = args.wait {
        found.unanswered = wait(sites, &look, &found.again, Duration::from_secs(seconds)).await?;
    }
    Ok(found)
}

/// The bus of a site that was looked at.
fn bus_at<'a>(sites: &'a [(Bus, Pipeline)], site: &str) -> &'a Bus {
    let at = sites.iter().find(|(_, seen)| seen.here == site);
    &at.expect("what was found was found at one of them").0
}

/// Stores outcomes where their items were captured that another site has: their way back was lost with the store that they had come
/// to, and nobody would bring them once more, since where they were made they are there. Gives the items.
async fn bring_back(sites: &[(Bus, Pipeline)], look: &mut Look, dry_run: bool) -> anyhow::Result<BTreeSet<Id>> {
    let (mut items, mut outcomes) = (BTreeSet::new(), Vec::new());
    for one in look.to_bring() {
        let from = bus_at(sites, &one.site);
        let Some(record) = from.message_at(&one.stream, one.sequence).await? else { continue };
        if !dry_run {
            match bus_at(sites, &one.home).bring(from, &one.site, record).await {
                Ok(_) => {}
                // It is run again.
                Err(BusError::NoBody(_)) => continue,
                Err(error) => return Err(error.into()),
            }
        }
        items.insert(one.outcome.root);
        outcomes.push(one.outcome.clone());
    }
    for outcome in &outcomes {
        look.ledger.outcome(outcome);
    }
    Ok(items)
}

/// Runs again what the changelog of a fold, at the first of these sites, has lost at its end, where all of it is kept at one of them:
/// nothing is lost then, and nobody has to decide. Gives how many items; `None` where it has lost none, or some have no copy.
pub(crate) async fn run_lost_again(sites: &[(Bus, Pipeline)], fold: &str) -> anyhow::Result<Option<usize>> {
    let bus = &sites[0].0;
    let unfolded = Unfolded::read(bus, fold).await?;
    if unfolded.open.is_empty() {
        return Ok(None);
    }
    let look = Look::at(sites).await?;
    let kept: Option<Vec<_>> = unfolded.open.iter().map(|id| Some((*id, look.captured.get(id)?))).collect();
    let Some(mut kept) = kept else { return Ok(None) };
    kept.sort_by_key(|(_, captured)| captured.place());
    let mut generations = HashMap::new();
    for dry_run in [true, false] {
        for (id, captured) in &kept {
            let generation = generations.entry(captured.site.as_str()).or_insert(None);
            if run_again(bus_at(sites, &captured.site), *id, captured, dry_run, generation).await?.is_none() {
                return Ok(None);
            }
        }
    }
    let count = kept.len();
    unfolded.settle().store(bus, fold).await?;
    Ok(Some(count))
}

/// Stores an item once more under a new generation, and gives its name. `None`: it is not there any more.
async fn run_again(
    bus: &Bus,
    id: Id,
    captured: &Captured,
    dry_run: bool,
    generation: &mut Option<u32>,
) -> anyhow::Result<Option<String>> {
    let Some(record) = bus.message_at(&captured.stream, captured.sequence).await? else { return Ok(None) };
    let body = match bus.body(&record.headers, record.body.clone()).await {
        Ok(body) => body,
        Err(BusError::NoBody(_)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let frame = decode::<Frame>(record.headers.kind(), record.headers.codec(), &body);
    let item = frame.map_or_else(|_| record.subject.clone(), |frame| frame.capture().item.clone());
    if dry_run {
        return Ok(Some(item));
    }
    let generation = match *generation {
        Some(generation) => generation,
        None => *generation.insert(generation::next(bus).await?),
    };
    let mut outgoing = again(&record.subject, id, generation, |name| record.headers.get(name), body);
    // It says where its original lies: so it is told from that.
    if record.headers.get(header::ORIGIN).is_none() {
        outgoing.headers.push((header::ORIGIN, captured.origin()));
    }
    let began = Instant::now();
    loop {
        match bus.publish(&outgoing).await {
            Ok(_) => return Ok(Some(item)),
            Err(error @ (PublishError::Full { .. } | PublishError::Unsure { .. }))
                if began.elapsed() < FULL_PATIENCE =>
            {
                tracing::debug!(%error, "not stored; trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(STORE_PAUSE).await;
    }
}

/// Waits until all of them are complete; gives how many are not when the time is over.
async fn wait(
    sites: &[(Bus, Pipeline)],
    look: &Look,
    sent: &[(Id, String)],
    patience: Duration,
) -> anyhow::Result<usize> {
    let began = Instant::now();
    let mut open: BTreeSet<Id> = sent.iter().map(|&(id, _)| id).collect();
    while !open.is_empty() {
        for (bus, pipeline) in sites {
            let ledger = read_ledger(bus, pipeline).await?;
            open.retain(|id| look.captured[id].site != pipeline.here || !ledger.is_complete(*id));
        }
        if began.elapsed() > patience {
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(open.len())
}

impl Found {
    /// Captured items that are gone without a trace.
    fn unknown(&self) -> usize {
        self.gone.iter().map(|gone| gone.unknown).sum()
    }

    fn print(&self, args: &ReconcileArgs, stored_only: bool) -> anyhow::Result<()> {
        let verb = if args.dry_run { "open      " } else { "sent again" };
        let brought = self.brought.iter().map(|one| ("elsewhere ", one));
        let again = self.again.iter().map(|one| (verb, one));
        for (what, (id, item)) in brought.chain(again).chain(self.lost.iter().map(|one| (LOST, one))) {
            // A lost one is named whole: a reader searches for it.
            let id = if what == LOST { id.to_string() } else { short(id) };
            print_line(format!("{what}  {id}  {}", one_line(item, MAX_ITEM)).trim_end())?;
        }
        for gone in &self.gone {
            print_line(gone.line())?;
        }
        let Self { captured, complete, under_way, not_judged, again, lost, unanswered, brought, elsewhere, .. } = self;
        let sent = if args.dry_run { "open" } else { "sent again" };
        let not_judged = match not_judged {
            0 => String::new(),
            old => format!(", {old} older than the outcomes that are kept"),
        };
        eprintln!(
            "{} captured: {complete} complete, {under_way} under way, {} {sent}, {} lost{not_judged}",
            count(*captured, "item"),
            again.len(),
            lost.len()
        );
        if !brought.is_empty() {
            let verb = if args.dry_run { "would be brought back" } else { "were brought back" };
            eprintln!("outcomes of {} were at another site alone and {verb}", count(brought.len(), "item"));
        }
        if *elsewhere > 0 {
            let items = count(*elsewhere, "item");
            eprintln!(
                "a fold waits for {items} that it has lost, captured at sites that were not looked at: reconcile there"
            );
        }
        if args.wait.is_some() {
            eprintln!("{unanswered} of those sent again have not all their outcomes yet");
        } else if stored_only && !args.dry_run && !again.is_empty() {
            eprintln!("nothing runs here: their outcomes come with the next `causeway up`");
        }
        Ok(())
    }

    fn to_json(&self, waited: bool) -> serde_json::Value {
        let named =
            |list: &[(Id, String)]| list.iter().map(|(id, item)| json!({ "id": id, "item": item })).collect::<Vec<_>>();
        json!({
            "captured": self.captured,
            "complete": self.complete,
            "under_way": self.under_way,
            "not_judged": self.not_judged,
            "brought_back": named(&self.brought),
            "again": named(&self.again),
            "lost": named(&self.lost),
            "waits_elsewhere": self.elsewhere,
            "unanswered": waited.then_some(self.unanswered),
            "gone": self.gone.iter().map(Gone::to_json).collect::<Vec<_>>(),
        })
    }
}

impl Gone {
    /// It is told once.
    fn line(&self) -> String {
        let Self { stream, ranges, unknown, .. } = self;
        let messages: u64 = ranges.iter().map(|(first, last)| last - first + 1).sum();
        let gaps: Vec<String> =
            ranges.iter().take(MAX_GAPS).map(|(first, last)| format!("{first} to {last}")).collect();
        let more = if ranges.len() > MAX_GAPS { ", …" } else { "" };
        let what = match unknown {
            0 => "all of them have left their mark: no item is lost by it".into(),
            some => format!(
                "of {some} of them nothing else is stored: they are lost, unless their source is read again by the next `causeway up`"
            ),
        };
        format!("gone        {} of {stream} ({}{more}): {what}", count(messages as usize, "message"), gaps.join(", "))
    }

    fn to_json(&self) -> serde_json::Value {
        json!({ "site": self.site, "stream": self.stream, "ranges": self.ranges, "unknown": self.unknown })
    }
}
