//! Small pictures for the report, cut from the captured frames that are still kept.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use causeway_bus::{Bus, Record, names};
use causeway_imaging::{Picture, thumbnail};
use causeway_pipelines::Pipeline;
use causeway_schemas::{Codec, DeadLetter, Frame, Id, Message as _, Region, decode, header};
use futures::{StreamExt as _, TryStreamExt as _};

/// Side of a thumbnail, px: about 4 KB each.
const SIZE: u32 = 96;
/// Pictures with more pixels are not decoded for a thumbnail; what `capture` lets through by default.
const MAX_PIXELS: u64 = 50_000_000;
/// Pictures that are decoded at once: of 50 million pixels each takes 150 MB.
const AT_ONCE: usize = 2;

/// One region of a captured frame.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// The thumbnail's name.
    pub(crate) id: Id,
    /// The captured item.
    pub(crate) root: Id,
    /// What is shown of it.
    pub(crate) region: Region,
}

/// Thumbnails by their name, each as the address of an `<img>`. What is not there is no longer kept.
pub(crate) type Thumbnails = HashMap<Id, String>;

/// Cuts each wanted thumbnail whose frame is still in a capture stream at one of these sites: where it was captured.
pub(crate) async fn cut(sites: &[(Bus, Pipeline)], wanted: Vec<Wanted>) -> anyhow::Result<Thumbnails> {
    let mut regions: HashMap<Id, Vec<Wanted>> = HashMap::new();
    for one in wanted {
        regions.entry(one.root).or_default().push(one);
    }
    let mut frames = HashMap::new();
    for (bus, pipeline) in sites {
        let there = find(bus, pipeline, &regions).await?;
        frames.extend(there.into_iter().map(|(root, (stream, sequence))| (root, (bus, stream, sequence))));
    }
    let work = frames.into_iter().filter_map(|(root, (bus, stream, sequence))| {
        let regions = regions.remove(&root)?;
        Some(async move {
            // Between the look and the reading the agent may have removed it.
            let Some(record) = bus.message_at(&stream, sequence).await? else { return Ok(Vec::new()) };
            let body = bus.body(&record.headers, record.body.clone()).await?;
            anyhow::Ok(tokio::task::spawn_blocking(move || cut_all(&record, &body, &regions)).await?)
        })
    });
    let cut: Vec<_> = futures::stream::iter(work).buffer_unordered(AT_ONCE).try_collect().await?;
    Ok(cut.into_iter().flatten().collect())
}

/// Where the frames lie, read off the headers alone: the pictures of other items are not fetched.
async fn find<T>(bus: &Bus, pipeline: &Pipeline, roots: &HashMap<Id, T>) -> anyhow::Result<HashMap<Id, (String, u64)>> {
    let mut found = HashMap::new();
    if roots.is_empty() {
        return Ok(found);
    }
    for source in pipeline.stages_here().filter(|stage| stage.is_source()) {
        let stream = names::stream(&pipeline.name, &source.name);
        let mut records = bus.scan(&stream, 1, true).await?;
        while let Some(record) = records.next().await {
            let record = record?;
            if let Some(root) = record.headers.id(header::ID).filter(|root| roots.contains_key(root)) {
                found.insert(root, (stream.clone(), record.sequence));
            }
        }
    }
    Ok(found)
}

fn cut_all(record: &Record, body: &[u8], regions: &[Wanted]) -> Vec<(Id, String)> {
    let Ok(frame) = decode::<Frame>(record.headers.kind(), record.headers.codec(), body) else { return Vec::new() };
    let Ok(picture) = causeway_imaging::decode(&frame.image, MAX_PIXELS) else { return Vec::new() };
    regions.iter().map(|wanted| (wanted.id, address(&thumbnail(&picture, &wanted.region, SIZE)))).collect()
}

/// A dead letter's picture: what was set aside, if it is one and can be decoded.
pub(crate) fn of_dead_letter(letter: &DeadLetter) -> Option<String> {
    let get = |name: &str| letter.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let frame = decode::<Frame>(get(header::KIND), Codec::of(get(header::CONTENT_TYPE)), &letter.body);
    let image = frame.map_or_else(|_| letter.body.clone(), |frame| frame.image);
    if image.len() > Frame::MAX_BYTES {
        return None;
    }
    let picture = causeway_imaging::decode(&image, MAX_PIXELS).ok()?;
    Some(address(&thumbnail(&picture, &whole(&picture), SIZE)))
}

fn whole(picture: &Picture) -> Region {
    let (w, h) = (picture.width() as f32, picture.height() as f32);
    let frame = [picture.width(), picture.height()];
    Region { x: 0.0, y: 0.0, w, h, score: 1.0, sharpness: 0.0, landmarks: Vec::new(), frame }
}

fn address(jpeg: &[u8]) -> String {
    format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))
}
