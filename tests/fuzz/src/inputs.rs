//! Messages as stages take them, binary. Before the body stands one byte: 0 a feature, 1 a crop, 2 crop with axes and colours the
//! other way round.

use causeway_classify::{Classify, Gallery};
use causeway_extract::fuzz::tensor;
use causeway_pipelines::{ClassifyOptions, Colour, InputSpec, Layout, VoteOptions};
use causeway_schemas::{Codec, Crop, Decision, Feature, Message, decode, decode_body, encode};
use causeway_stage::{Answer, Live, Stage as _, Table as _};

pub(crate) fn run(bytes: &[u8]) {
    let Some((&which, body)) = bytes.split_first() else { return };
    match which {
        0 => feature(body),
        1 => crop(body, Layout::Nchw, Colour::Rgb),
        2 => crop(body, Layout::Nhwc, Colour::Bgr),
        _ => {}
    }
}

/// Compared with somebody, judged twice in a stream.
fn feature(body: &[u8]) {
    let Ok(feature) = decode::<Feature>(Some("feature.v1"), Codec::Bincode, body) else { return };
    let mut gallery = Gallery::default();
    let dim = feature.shape.first().copied().unwrap_or(1).clamp(1, 8) as usize;
    let person = serde_json::json!({
        "name": "Ada", "space": feature.space, "vectors": [vec![1.0; dim]], "photos": [], "enrolled_at": 0,
    });
    gallery.put("ada", person.to_string().as_bytes(), 1).expect("she can be enrolled");
    let vote = Some(VoteOptions::default());
    let options = ClassifyOptions { model: None, input: None, top_k: 5, threshold: 0.4, margin: 0.05, vote };
    let mut classify = Classify::with_gallery(&options, Live::fixed(gallery)).expect("the default options will do");
    let mut later = feature.clone();
    later.capture.sequence = later.capture.sequence.saturating_add(1);
    for answer in classify.process(vec![feature.clone(), feature, later]) {
        for decision in messages(answer) {
            let written = encode(&decision, Codec::Json);
            decode_body::<Decision>(&written, Codec::Json).expect("a decision reads back");
        }
    }
}

fn messages<T>(answer: Result<Answer<T>, causeway_stage::Failure>) -> Vec<T> {
    match answer {
        Ok(Answer::Messages(messages)) => messages,
        Ok(Answer::Nothing { .. }) | Err(_) => Vec::new(),
    }
}

fn crop(body: &[u8], layout: Layout, colour: Colour) {
    let Ok(crop) = decode::<Crop>(Some(&Crop::kind()), Codec::Bincode, body) else { return };
    let spec = InputSpec {
        name: "x".into(),
        size: [2, 1],
        resize: None,
        colour,
        layout,
        divide_by: 255.0,
        mean: [0.5; 3],
        std: [0.25; 3],
    };
    if let Some((shape, numbers)) = tensor(&spec, &crop) {
        assert_eq!(shape.iter().product::<usize>(), numbers.len());
        assert!(numbers.iter().all(|number| (-2.0..=2.0).contains(number)), "{numbers:?}");
    }
}
