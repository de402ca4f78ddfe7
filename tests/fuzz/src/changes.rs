//! Entries of a fold's changelog, one behind the other, each with its length in two bytes before it. Whatever a stranger put
//! there, the fold comes back with a state that answers.

use causeway_cluster::{Change, Cluster};
use causeway_schemas::{Codec, Dtype, Feature, Id, ModelRef, decode_body, encode};
use causeway_stage::Fold as _;

use crate::taken::Taken;

/// As many as show what one does to others.
const MOST: usize = 64;

pub(crate) fn run(bytes: &[u8]) {
    let (mut fold, mut ids, mut taken) = (Cluster::with_threshold(0.4), Vec::new(), Taken(bytes));
    while !taken.0.is_empty() && ids.len() < MOST {
        let len = taken.u16();
        let Ok(change) = decode_body::<Change>(taken.bytes(len.into()), Codec::Bincode) else { continue };
        fold.apply(&change);
        let known = fold.known(change.id).expect("a change that was applied is known");
        let _ = encode(&fold.output(&known), Codec::Json);
        ids.extend([change.id, change.cluster]);
        ids.extend(change.merges.iter().take(MOST));
        next(&mut fold, change);
    }
    for id in ids {
        let _ = fold.current(id);
    }
    assert!(fold.clusters().all(|(_, members)| !members.is_empty()), "a cluster without a member");
}

/// What follows is decided on the state as it is.
fn next(fold: &mut Cluster, change: Change) {
    let model = ModelRef { name: String::new(), version: String::new(), sha256: String::new() };
    let feature = Feature {
        capture: change.capture,
        region: change.region,
        dtype: Dtype::F32,
        shape: vec![change.vector.len() as u32],
        data: Feature::encode_f32(&change.vector),
        space: change.space,
        model,
    };
    let id: Id = change.id.derived("next", 0);
    if let Ok(change) = fold.decide(id, &feature) {
        fold.apply(&change);
    }
}
