//! What the pipeline stored of the labelled photos: the faces that the changelog has, and why others have none.

use std::collections::{BTreeMap, HashSet};

use anyhow::{anyhow, bail, ensure};
use causeway_bus::{Bus, names};
use causeway_cluster::{Change, Merges};
use causeway_pipelines::Pipeline;
use causeway_preprocess::largest_centred;
use causeway_schemas::{Codec, Crop, DeadLetter, Feature, Frame, Id, Message, Region, decode, decode_body, header};
use futures::StreamExt as _;

use crate::accuracy::folder::Labelled;
use crate::results::Results;

/// What became of the labelled photos.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The face that counts, of each photo that has any; in the order of the photos.
    pub(crate) labelled: Vec<LabelledFace>,
    /// All faces, those beside the labelled ones too.
    pub(crate) faces: usize,
    /// The photos that have none; in the order of the photos.
    pub(crate) without: Vec<Without>,
}

#[derive(Debug)]
pub(crate) struct LabelledFace {
    /// The place of its photo.
    pub(crate) photo: usize,
    /// Its feature, L2-normalised.
    pub(crate) vector: Vec<f32>,
    /// The cluster it is in at the end, all merges followed.
    pub(crate) cluster: Id,
}

/// A photo without a face.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Without {
    /// The place of the photo.
    pub(crate) photo: usize,
    /// The stage that found none.
    pub(crate) stage: String,
    /// Its reason, with figures.
    pub(crate) why: String,
}

impl Answers {
    /// Reads the changelog of `fold` and the outcomes. Every photo has one, else the run was cut short: that is an error.
    pub(crate) async fn read(sites: &[(Bus, Pipeline)], fold: &str, labelled: &Labelled) -> anyhow::Result<Self> {
        let of_fold = |(_, pipeline): &&(Bus, Pipeline)| pipeline.stages_here().any(|stage| stage.name == fold);
        let (bus, pipeline) = sites.iter().find(of_fold).ok_or_else(|| anyhow!("[stage.{fold}] runs nowhere"))?;
        let changes = read_changelog(bus, pipeline, fold).await?;
        let results = Results::read_all(sites).await?;
        let (faces, counting) = (changes.len(), label(changes, labelled));
        ensure!(
            counting
                .iter()
                .all(|(face, space)| (face.vector.len(), space) == (counting[0].0.vector.len(), &counting[0].1)),
            "cannot compare the faces: their features are of different spaces"
        );
        let counting: Vec<LabelledFace> = counting.into_iter().map(|(face, _)| face).collect();
        let without = without_face(&results, &counting, labelled)?;
        Ok(Self { labelled: counting, faces, without })
    }
}

/// Every change in order: it is what the stage's state is the sum of.
async fn read_changelog(bus: &Bus, pipeline: &Pipeline, fold: &str) -> anyhow::Result<Vec<Change>> {
    let stream = names::changelog(&pipeline.name, fold);
    let mut changes = Vec::new();
    let mut records = bus.scan(&stream, 1, false).await?;
    while let Some(record) = records.next().await {
        let record = record?;
        let change = decode_body(&record.body, Codec::Bincode);
        changes.push(change.map_err(|why| anyhow!("cannot read change {} of {stream}: {why}", record.sequence))?);
    }
    Ok(changes)
}

/// Of each photo the face that counts, the largest nearest the centre, with its space.
fn label(changes: Vec<Change>, labelled: &Labelled) -> Vec<(LabelledFace, String)> {
    let mut clusters = Merges::default();
    for change in &changes {
        clusters.add(change);
    }
    let mut by_photo: BTreeMap<usize, Vec<Change>> = BTreeMap::new();
    for change in changes {
        if let Some(photo) = labelled.place(&change.capture.item) {
            by_photo.entry(photo).or_default().push(change);
        }
    }
    let counts = |(photo, mut faces): (usize, Vec<Change>)| {
        let regions: Vec<Region> = faces.iter().map(|face| face.region.clone()).collect();
        let Change { vector, cluster, space, .. } = faces.swap_remove(largest_centred(&regions)?);
        Some((LabelledFace { photo, vector, cluster: clusters.current(cluster) }, space))
    };
    by_photo.into_iter().filter_map(counts).collect()
}

/// Why the other photos have no face.
fn without_face(results: &Results, counting: &[LabelledFace], labelled: &Labelled) -> anyhow::Result<Vec<Without>> {
    let mut whys: BTreeMap<usize, Without> = BTreeMap::new();
    let mut say = |item: Option<&str>, stage: &str, reason: &str, detail: &str| {
        let photo = item.and_then(|item| labelled.place(item));
        if let Some(photo) = photo {
            let why = || Without { photo, stage: stage.into(), why: format!("{reason}: {detail}") };
            whys.entry(photo).or_insert_with(why);
        }
        photo.is_some()
    };
    for found in &results.empties {
        let empty = &found.message;
        say(Some(&empty.capture.item), &empty.stage, &empty.reason, &empty.detail);
    }
    let mut nameless = 0;
    for found in &results.dead_letters {
        let letter = &found.message;
        nameless += usize::from(!say(item(letter).as_deref(), &letter.stage, &letter.reason, &letter.detail));
    }
    let with: HashSet<usize> = counting.iter().map(|face| face.photo).collect();
    let mut unanswered = 0;
    let without = (0..labelled.photos.len()).filter(|photo| !with.contains(photo)).map(|photo| {
        whys.remove(&photo).unwrap_or_else(|| {
            unanswered += 1;
            Without { photo, stage: "?".into(), why: "a dead letter that does not name its photo".into() }
        })
    });
    let without: Vec<Without> = without.collect();
    if unanswered > nameless {
        bail!(
            "cannot measure: {unanswered} of {} photos have no outcome; the run was cut short",
            labelled.photos.len()
        );
    }
    Ok(without)
}

/// The captured item that a dead letter is about: capture says it, every other stage set a message aside that does.
fn item(letter: &DeadLetter) -> Option<String> {
    let get = |name: &str| letter.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let Some(kind) = get(header::KIND) else { return Some(letter.subject.clone()) };
    let codec = Codec::of(get(header::CONTENT_TYPE));
    item_of::<Frame>(kind, codec, &letter.body)
        .or_else(|| item_of::<Crop>(kind, codec, &letter.body))
        .or_else(|| item_of::<Feature>(kind, codec, &letter.body))
}

fn item_of<M: Message>(kind: &str, codec: Codec, body: &[u8]) -> Option<String> {
    decode::<M>(Some(kind), codec, body).ok().map(|message| message.capture().item.clone())
}

#[cfg(test)]
mod tests {
    use causeway_schemas::{Capture, encode};

    use super::*;

    fn capture(item: &str) -> Capture {
        Capture { source: "capture".into(), item: item.into(), epoch: 0, sequence: 0, captured_at: 0 }
    }

    fn change(id: Id, item: &str, side: f32, cluster: Id, merges: Vec<Id>) -> Change {
        let start = 50.0 - side / 2.0;
        let frame = [100, 100];
        let region =
            Region { x: start, y: start, w: side, h: side, score: 1.0, sharpness: 0.0, landmarks: Vec::new(), frame };
        let (space, vector) = ("s".into(), vec![side]);
        Change { id, space, vector, capture: capture(item), region, cluster, score: 1.0, merges }
    }

    fn labelled(dir: &tempfile::TempDir) -> Labelled {
        for file in ["Ada/a.jpg", "Bob/b.jpg"] {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        Labelled::read(dir.path()).unwrap()
    }

    #[test]
    fn the_largest_face_counts_and_merges_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|item| Id::captured("test", item));
        let changes = vec![
            change(a, "0000000-0000000/Ada/a.jpg", 20.0, a, Vec::new()),
            change(b, "0000001-0000001/Bob/b.jpg", 30.0, b, Vec::new()),
            change(c, "0000001-0000001/Bob/b.jpg", 10.0, a, vec![b]),
        ];
        let found = label(changes, &labelled(&dir));
        let found: Vec<_> = found.iter().map(|(face, _)| (face.photo, face.vector[0], face.cluster)).collect();
        assert_eq!(found, [(0, 20.0, a), (1, 30.0, a)]);
    }

    #[test]
    fn a_dead_letter_is_told_by_the_message_in_it() {
        let frame = Frame { capture: capture("0-1/Bob/b.jpg"), image: vec![1, 2, 3] };
        let letter = |headers: Vec<(String, String)>, body| DeadLetter {
            stage: "preprocess".into(),
            reason: "rejected".into(),
            detail: String::new(),
            attempts: 1,
            models: Vec::new(),
            at: 0,
            subject: "subject".into(),
            headers,
            body,
        };
        let headers = vec![
            (header::KIND.to_owned(), Frame::kind()),
            (header::CONTENT_TYPE.to_owned(), Codec::Bincode.content_type().to_owned()),
        ];
        let body = encode(&frame, Codec::Bincode);
        assert_eq!(item(&letter(headers.clone(), body)).as_deref(), Some("0-1/Bob/b.jpg"));
        assert_eq!(item(&letter(headers, Vec::new())), None);
        assert_eq!(item(&letter(Vec::new(), Vec::new())).as_deref(), Some("subject"));
    }
}
