//! `causeway enrol`, `people`, `forget`: who the pipeline knows.

mod examine;
mod gallery;
mod verdict;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use causeway_bus::{Bus, names};
use causeway_pipelines::{Pipeline, did_you_mean};
use causeway_schemas::Person;
use serde_json::{Value, json};

use crate::cli::{PipelineArgs, PipelineFlags, PlaceArgs, connect, connect_or_create};
use crate::terminal::{age, count, date_time, one_line, print, print_line, table};
use examine::Photo;
pub(crate) use examine::{Examined, Examiner, photos_in};
pub(crate) use gallery::{person, read_people};
pub(crate) use verdict::PhotoVerdict;

/// Longest name, characters: it becomes a key of a table, three characters for each byte at worst.
const MAX_NAME: usize = 100;
/// Most characters of a photo's name that are shown.
const MAX_PHOTO_NAME: usize = 60;

const ENROL_EXAMPLES: &str = "\
Examples:
  causeway enrol 'Ada Lovelace=photos/ada' 'Alan Turing=photos/alan.jpg'
  causeway enrol --pipeline pipelines/doors.toml 'Ada Lovelace=photos/ada'

Several photos of a person, from different days, make recognition surer. Where a photo shows several faces, \
the largest nearest the centre counts. Only the names of photos and the vectors are stored, never the photos. \
A pipeline that runs knows the person at once.";

/// The arguments of `enrol`.
#[derive(Debug, clap::Args)]
#[command(after_help = ENROL_EXAMPLES)]
pub(crate) struct EnrolArgs {
    /// Who, and a folder of photos or one photo
    #[arg(value_name = "NAME=DIR", required = true)]
    people: Vec<String>,
    #[command(flatten)]
    pipeline: PipelineFlags,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The arguments of `people`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  causeway people --json | jq -r '.people[].name'")]
pub(crate) struct PeopleArgs {
    #[command(flatten)]
    pipeline: PipelineArgs,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The arguments of `forget`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  causeway forget 'Ada Lovelace'")]
pub(crate) struct ForgetArgs {
    /// The name, as `causeway people` shows it
    name: String,
    #[command(flatten)]
    pipeline: PipelineFlags,
    #[command(flatten)]
    place: PlaceArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) async fn enrol(args: EnrolArgs) -> anyhow::Result<ExitCode> {
    let wanted = parse_all(&args.people)?;
    let pipeline = args.pipeline.load_at(&args.place)?;
    at_hub(&pipeline)?;
    let mut photos = Vec::new();
    for (name, path) in wanted {
        photos.push((name, examine::photos_in(&path)?));
    }
    let mut examiner = Some(Examiner::new(&pipeline, &args.place.models)?);
    let connection = connect_or_create(&pipeline, &args.place).await?;
    let result = enrol_all(&connection.bus, &pipeline, &mut examiner, photos, args.json).await;
    connection.close().await;
    result
}

/// The gallery is changed at the hub: what relays bring from there takes the place of what is elsewhere.
fn at_hub(pipeline: &Pipeline) -> anyhow::Result<()> {
    let hub = &pipeline.hub().name;
    if pipeline.here != *hub {
        bail!("cannot change the gallery at {}: it is kept at the hub; say --site {hub}", pipeline.here);
    }
    Ok(())
}

/// Enrols one person after the other, telling of each photo; fails when somebody has no vector of these photos.
async fn enrol_all(
    bus: &Bus,
    pipeline: &Pipeline,
    examiner: &mut Option<Examiner>,
    wanted: Vec<(String, Vec<Photo>)>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    crate::layout::apply_table(bus, pipeline, names::PEOPLE).await?;
    let mut objects = Vec::new();
    let mut unknown = Vec::new();
    for (name, photos) in wanted {
        let (verdicts, vectors) = enrol_photos(bus, examiner, &name, photos).await?;
        let enrolled = verdicts.iter().filter(|(_, verdict)| matches!(verdict, PhotoVerdict::Enrolled(_))).count();
        if !verdicts.iter().any(|(_, verdict)| verdict.is_known()) {
            unknown.push(name.clone());
        }
        if json {
            let photos: Vec<_> = verdicts.iter().map(|(photo, verdict)| verdict.to_json(photo)).collect();
            objects.push(json!({ "name": name, "enrolled": enrolled, "vectors": vectors, "photos": photos }));
            continue;
        }
        let width = verdicts.iter().map(|(photo, _)| photo.chars().count()).max().unwrap_or(0).min(MAX_PHOTO_NAME);
        let mut text = format!("{name}: {}, {enrolled} new\n", count(vectors, "vector"));
        for (photo, verdict) in &verdicts {
            let photo = one_line(photo, MAX_PHOTO_NAME);
            text.extend([format!("  {photo:width$}  {verdict}\n")]);
        }
        print(text)?;
    }
    if json {
        print_line(json!({ "people": objects }))?;
    }
    eprintln!("Known from now on. Photos that have their results already keep them, until `causeway up --again`.");
    if unknown.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!("cannot enrol {}: no photo gave a face that is good enough", unknown.join(", "))
}

/// Enrols one person from a folder of photos, or one photo, with the pipeline's own models and options. Gives each photo with
/// what became of it.
pub(crate) async fn enrol_folder(
    bus: &Bus,
    pipeline: &Pipeline,
    models: &Path,
    name: &str,
    folder: &Path,
) -> anyhow::Result<Vec<(String, PhotoVerdict)>> {
    let photos = examine::photos_in(folder)?;
    let mut examiner = Some(Examiner::new(pipeline, models)?);
    Ok(enrol_photos(bus, &mut examiner, name, photos).await?.0)
}

/// Enrols one person; gives each photo's verdict and how many vectors the person has now. Photos that are enrolled already are
/// not looked at again.
async fn enrol_photos(
    bus: &Bus,
    examiner: &mut Option<Examiner>,
    name: &str,
    photos: Vec<Photo>,
) -> anyhow::Result<(Vec<(String, PhotoVerdict)>, usize)> {
    let known = gallery::read_person(bus, name).await?.map(|(person, _)| person);
    let mut examined = Vec::new();
    for photo in photos {
        // Models run on a thread of their own: the connection's is not held up. They are lost only if that thread panics.
        let mut models = examiner.take().context("cannot enrol: an earlier photo ended the models")?;
        let known = known.clone();
        let (models, answer) = tokio::task::spawn_blocking(move || {
            let answer = models.examine(&photo, known.as_ref());
            (models, answer.map(|answer| (photo, answer)))
        })
        .await?;
        *examiner = Some(models);
        examined.push(answer?);
    }
    let space = examiner.as_ref().map(Examiner::space).unwrap_or_default();
    gallery::enrol(bus, name, space, examined).await
}

/// Every `NAME=DIR`, or all that is wrong with them.
fn parse_all(arguments: &[String]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let (right, wrong): (Vec<_>, Vec<_>) = arguments.iter().map(|text| parse(text)).partition(Result::is_ok);
    let wrong: Vec<String> = wrong.into_iter().filter_map(Result::err).collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n          "));
    }
    Ok(right.into_iter().flatten().collect())
}

fn parse(text: &str) -> Result<(String, PathBuf), String> {
    let Some((name, path)) = text.split_once('=') else {
        return Err(match Path::new(text).file_stem() {
            Some(stem) if Path::new(text).exists() => {
                let name = stem.to_string_lossy();
                format!("cannot tell who `{text}` shows: write NAME=DIR, for example '{name}={text}'")
            }
            _ => {
                format!("cannot tell where the photos of `{text}` are: write NAME=DIR, for example '{text}=photos/ada'")
            }
        });
    };
    let (name, shown) = (name.trim(), one_line(text, MAX_NAME));
    if name.is_empty() {
        return Err(format!("cannot enrol `{shown}`: the name before the `=` is empty"));
    }
    if name.chars().count() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(format!(
            "cannot enrol `{shown}`: a name has at most {MAX_NAME} characters, none of them control characters"
        ));
    }
    if path.is_empty() {
        return Err(format!("cannot enrol {name}: the folder of photos behind the `=` is missing"));
    }
    if !Path::new(path).exists() {
        return Err(format!("cannot enrol {name}: {path} does not exist"));
    }
    Ok((name.into(), path.into()))
}

pub(crate) async fn people(args: PeopleArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    let connection = connect(&pipeline, &args.place).await?;
    let people = read_people(&connection.bus).await;
    connection.close().await;
    let people = people?;
    if args.json {
        let people: Vec<_> = people.iter().map(person_json).collect();
        print_line(json!({ "people": people }))?;
    } else if people.is_empty() {
        eprintln!("nobody is enrolled; causeway enrol NAME=DIR teaches who somebody is");
    } else {
        print(people_table(&people))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn people_table(people: &[Person]) -> String {
    let row = |person: &Person| {
        let (name, space) = (one_line(&person.name, MAX_NAME), one_line(&person.space, MAX_NAME));
        vec![name, person.vectors.len().to_string(), space, date_time(person.enrolled_at)]
    };
    table(&["NAME", "PHOTOS", "SPACE", "ENROLLED (UTC)"], &[1], people.iter().map(row).collect())
}

fn person_json(person: &Person) -> Value {
    let photos: Vec<_> = person.photos.iter().map(|photo| gallery::photo_name(photo)).collect();
    json!({
        "name": person.name,
        "vectors": person.vectors.len(),
        "photos": photos,
        "space": person.space,
        "enrolled_at": person.enrolled_at,
    })
}

pub(crate) async fn forget(args: ForgetArgs) -> anyhow::Result<ExitCode> {
    let pipeline = args.pipeline.load_at(&args.place)?;
    at_hub(&pipeline)?;
    let connection = connect(&pipeline, &args.place).await?;
    let forgotten = forget_person(&connection.bus, &args.name).await;
    connection.close().await;
    let vectors = forgotten?;
    if args.json {
        print_line(json!({ "forgotten": args.name, "vectors": vectors }))?;
    } else {
        print_line(format_args!("{} is forgotten: {} removed from the gallery", args.name, count(vectors, "vector")))?;
    }
    eprintln!("{}", kept(&pipeline, &args.name));
    Ok(ExitCode::SUCCESS)
}

/// Removes a person; gives how many vectors that were.
async fn forget_person(bus: &Bus, name: &str) -> anyhow::Result<usize> {
    let people = read_people(bus).await?;
    let Some(person) = people.iter().find(|person| person.name == name) else {
        let hint = did_you_mean(name, people.iter().map(|person| person.name.as_str()));
        let hint = hint.unwrap_or_else(|| "`causeway people` lists who is enrolled".into());
        bail!("cannot forget `{name}`: nobody of this name is enrolled; {hint}");
    };
    bus.table_remove(names::PEOPLE, &names::token(name)).await?;
    Ok(person.vectors.len())
}

/// What a removal does not touch.
fn kept(pipeline: &Pipeline, name: &str) -> String {
    let (captured, outcomes) = (age(pipeline.keep_captured.age), age(pipeline.keep_outcomes.age));
    format!(
        "Decisions that are stored already keep the name {name} for up to {outcomes} ([keep] outcomes of {file}), photos for \
         up to {captured}.\nTo remove them now: `causeway up {file} --input DIR --again` forgets all results and runs everything anew; \
         deleting the folder given by --home, while nothing runs, removes everything.",
        file = pipeline.file.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_a_place() {
        assert_eq!(parse("Ada Lovelace=/").unwrap(), ("Ada Lovelace".into(), PathBuf::from("/")));
        assert_eq!(parse(" Ada = /").unwrap_err(), "cannot enrol Ada:  / does not exist");
    }

    #[test]
    fn what_is_wrong_is_said_with_what_to_write() {
        for (wrong, why) in [
            ("Ada", "cannot tell where the photos of `Ada` are: write NAME=DIR, for example 'Ada=photos/ada'"),
            ("/proc", "cannot tell who `/proc` shows: write NAME=DIR, for example 'proc=/proc'"),
            ("=photos", "cannot enrol `=photos`: the name before the `=` is empty"),
            ("Ada=", "cannot enrol Ada: the folder of photos behind the `=` is missing"),
            ("Ada=/no/such/folder", "cannot enrol Ada: /no/such/folder does not exist"),
        ] {
            assert_eq!(parse(wrong).unwrap_err(), why);
        }
        assert!(parse(&format!("{}=/", "x".repeat(MAX_NAME + 1))).is_err());
        assert!(parse("a\x1b[31m=/").unwrap_err().contains("\\u{1b}"));
    }

    #[test]
    fn all_that_is_wrong_comes_at_once() {
        let error = parse_all(&["Ada".into(), "=x".into(), "Alan=/".into()]).unwrap_err().to_string();
        assert!(error.contains("`Ada`") && error.contains("`=x`"), "{error}");
    }
}
