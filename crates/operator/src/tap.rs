//! `causeway tap`: messages as they come, decoded.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use causeway_bus::{Bus, Record, Records, names};
use causeway_pipelines::{Pipeline, did_you_mean};
use causeway_schemas::header;
use causeway_stage::now_ns;
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cli::{Connection, PipelineFlags, PlaceArgs, connect};
use crate::content::Content;
use crate::terminal::{Paint, one_line, print_line, time};

/// How often it is looked whether the `up` that is followed still runs.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Errors in a row after which a stream is not followed any more.
const MAX_ERRORS: u32 = 25;
/// Pause after each of them.
const ERROR_PAUSE: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
Examples:
  causeway tap classify                     what is decided, as it is decided
  causeway tap classify --last 10           the last ten decisions too
  causeway tap dead --from-start --json     every dead letter, an object a line
  causeway tap 'faces.*.edge.>'             any NATS subject: what comes from now on

A stage's name, `empty` or `dead` reads the stream of what it gives. What goes from stage to stage is only \
stored until it is taken: earlier crops and features cannot be shown. Ends with Ctrl-C or after --count messages; \
where nothing runs, after what is stored.";

/// The arguments of `tap`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TapArgs {
    /// A NATS subject (it has a `.` or a wildcard), the name of a stage, `empty` or `dead`
    #[arg(value_name = "SUBJECT|STAGE")]
    what: String,
    #[command(flatten)]
    pipeline: PipelineFlags,
    /// Begin with the last N messages that are stored
    #[arg(long, value_name = "N", conflicts_with = "from_start")]
    last: Option<u64>,
    /// Begin with the first message that is stored
    #[arg(long)]
    from_start: bool,
    /// End after N messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

/// What is tapped.
#[derive(Debug, PartialEq, Eq)]
enum What {
    /// The stream of this name.
    Stream(String),
    Subject(String),
}

pub(crate) async fn tap(args: TapArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    let what = resolve(&pipeline, &args.what)?;
    let connection = connect(&pipeline, &args.place).await?;
    let result = async {
        let records = open(&connection, &what, &args).await?;
        let home = args.place.nats.is_none().then(|| args.place.home());
        let running = || home.as_ref()?.address_if_running(&pipeline.here);
        show(&connection.bus, records, &args, running).await
    }
    .await;
    connection.close().await;
    result.map(|()| ExitCode::SUCCESS)
}

fn resolve(pipeline: &Pipeline, what: &str) -> anyhow::Result<What> {
    if what.contains(['.', '*', '>']) {
        if what.split('.').any(str::is_empty) || what.contains(char::is_whitespace) {
            bail!("cannot tap `{what}`: it is no NATS subject; its words are not empty and have no spaces");
        }
        return Ok(What::Subject(what.into()));
    }
    let ends = || [names::EMPTY, names::DEAD].into_iter().chain(pipeline.is_split().then_some(names::RECEIPT));
    let known = || pipeline.stages.iter().map(|stage| stage.name.as_str()).chain(ends());
    if known().any(|name| name == what) {
        return Ok(What::Stream(names::stream(&pipeline.name, what)));
    }
    let hint = did_you_mean(what, known()).map_or(String::new(), |hint| format!("{hint} "));
    let known: Vec<_> = known().collect();
    bail!(
        "cannot tap `{what}`: {} has no such stage; {hint}It has {}; a NATS subject has a `.`, like {}.>",
        pipeline.file.display(),
        known.join(", "),
        pipeline.name
    )
}

async fn open(connection: &Connection, what: &What, args: &TapArgs) -> anyhow::Result<Records> {
    let bus = &connection.bus;
    let (stored_only, asked) = (connection.is_store_only(), args.from_start || args.last.is_some());
    let stream = match what {
        What::Subject(subject) if stored_only => {
            bail!("cannot tap {subject}: nothing runs here, so nothing will come; a stage's name shows what is stored")
        }
        What::Subject(subject) if asked => {
            bail!(
                "cannot show earlier messages of {subject}: a subject shows what comes from now on; tap a stage by its name"
            )
        }
        What::Subject(subject) => return Ok(bus.subscribe(subject).await?),
        What::Stream(stream) => stream,
    };
    let Some(state) = bus.stream_state(stream).await? else {
        bail!("cannot tap the stream {stream}: it is not on this server; `causeway up` or `causeway apply` makes it");
    };
    let from = match args.last {
        Some(last) => state.last_sequence.saturating_sub(last) + 1,
        None if args.from_start || stored_only => 1,
        None => state.last_sequence + 1,
    };
    if stored_only {
        eprintln!("nothing runs here: this is what is stored");
        return Ok(bus.scan(stream, from, false).await?);
    }
    Ok(bus.follow(stream, from, false).await?)
}

/// Shows records until there are no more, enough, or it is told to stop.
async fn show(
    bus: &Bus,
    mut records: Records,
    args: &TapArgs,
    running: impl Fn() -> Option<String>,
) -> anyhow::Result<()> {
    let stop = crate::stop::Stop::on_signals()?.told();
    tokio::pin!(stop);
    let followed = running();
    let mut look = tokio::time::interval(LOOK_EVERY);
    let (mut shown, mut errors) = (0, 0);
    while args.count.is_none_or(|count| shown < count) {
        let record = tokio::select! {
            () = &mut stop => return Ok(()),
            _ = look.tick() => {
                if followed.is_some() && running() != followed {
                    eprintln!("`up` has ended");
                    return Ok(());
                }
                continue;
            }
            record = records.next() => record,
        };
        match record {
            None => return Ok(()),
            Some(Ok(record)) => {
                errors = 0;
                shown += 1;
                print_line(tell(bus, record, args.json).await)?;
            }
            Some(Err(error)) => {
                errors += 1;
                if errors == MAX_ERRORS {
                    return Err(error.into());
                }
                tracing::debug!(%error, "not read; trying again");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
    Ok(())
}

async fn tell(bus: &Bus, record: Record, json: bool) -> String {
    let body = bus.body(&record.headers, record.body.clone()).await;
    let (content, size) = match &body {
        Ok(body) => (Content::decode(record.headers.kind(), record.headers.codec(), body), body.len() as u64),
        Err(error) => (Content::Other { why: error.to_string(), len: 0, looks: None }, record.size),
    };
    if json { object(&record, &content, size).to_string() } else { line(&record, &content) }
}

/// `17:05:09.123 decision  photo.jpg  Ada Lovelace 0.74 (margin 0.31)  2/3`
fn line(record: &Record, content: &Content) -> String {
    let at = if record.stored_at == 0 { now_ns() } else { record.stored_at };
    let part = record
        .headers
        .get(header::PART)
        .filter(|part| *part != "1/1")
        .map_or(String::new(), |part| format!("  {}", Paint::Dim.on(&format!("part {}", one_line(part, 40)))));
    // Where it lies says more than a kind that is not known.
    let name = match content {
        Content::Other { .. } => one_line(&record.subject, 80),
        _ => one_line(record.headers.kind().unwrap_or_default().split('.').next().unwrap_or_default(), 20),
    };
    format!("{} {name:10} {}{part}", Paint::Dim.on(&time(at)), content.line())
}

fn object(record: &Record, content: &Content, size: u64) -> Value {
    let header = |name: &str| record.headers.get(name);
    json!({
        "subject": record.subject,
        "sequence": (record.sequence > 0).then_some(record.sequence),
        "stored_at": (record.stored_at > 0).then_some(record.stored_at),
        "kind": record.headers.kind(),
        "id": header(header::ID),
        "parent": header(header::PARENT),
        "root": header(header::ROOT),
        "part": header(header::PART),
        "bytes": size,
        "message": content.to_json(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline() -> Pipeline {
        Pipeline::load(concat!(env!("CARGO_MANIFEST_DIR"), "/../../pipelines/faces.toml")).unwrap()
    }

    #[test]
    fn a_stage_is_its_stream_and_a_dot_makes_a_subject() {
        let pipeline = pipeline();
        assert_eq!(resolve(&pipeline, "classify").unwrap(), What::Stream("faces_classify".into()));
        assert_eq!(resolve(&pipeline, "dead").unwrap(), What::Stream("faces_dead".into()));
        assert_eq!(resolve(&pipeline, "faces.>").unwrap(), What::Subject("faces.>".into()));
        assert_eq!(resolve(&pipeline, ">").unwrap(), What::Subject(">".into()));
    }

    #[test]
    fn a_slip_is_put_right() {
        let error = |what| resolve(&pipeline(), what).unwrap_err().to_string();
        assert!(error("clasify").contains("did you mean `classify`?"), "{}", error("clasify"));
        assert!(error("nothing-like-it").contains("It has capture, preprocess, "), "{}", error("nothing-like-it"));
        assert!(error("faces..x").contains("no NATS subject"));
    }

    #[test]
    fn a_stranger_is_shown_with_subject_and_length() {
        let record = Record {
            subject: "faces.frame.x".into(),
            sequence: 0,
            stored_at: 1_769_879_109_123_456_789,
            headers: causeway_bus::Headers::default(),
            body: vec![0, 1, 2].into(),
            size: 3,
        };
        let content = Content::decode(None, record.headers.codec(), &record.body);
        assert_eq!(line(&record, &content), "17:05:09.123 faces.frame.x not readable: no kind; 3 bytes");
        let object = object(&record, &content, 3);
        assert_eq!((&object["subject"], &object["message"]["bytes"]), (&json!("faces.frame.x"), &json!(3)));
    }
}
