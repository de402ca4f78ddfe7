//! Entries of a fold's changelog, one behind the other, each with its length in two bytes before it. Whatever a stranger put
//! there, the fold comes back with a state that answers, and a snapshot of it gives the same; the bytes themselves may be one.

use causeway_cluster::{Change, Cluster, Merges};
use causeway_schemas::{Codec, Dtype, Feature, Id, ModelRef, decode_body, encode};
use causeway_stage::Fold as _;

use crate::taken::Taken;

/// As many as show what one does to others.
const MOST: usize = 64;

pub(crate) fn run(bytes: &[u8]) {
    let _ = Cluster::with_threshold(0.4).restore(bytes);
    let (mut fold, mut merges) = (Cluster::with_threshold(0.4), Merges::default());
    let (mut ids, mut taken) = (Vec::new(), Taken(bytes));
    while !taken.0.is_empty() && ids.len() < MOST {
        let len = taken.u16();
        let Ok(change) = decode_body::<Change>(taken.bytes(len.into()), Codec::Bincode) else { continue };
        fold.apply(&change);
        merges.add(&change);
        let _ = encode(&fold.output(&change), Codec::Json);
        ids.extend([change.id, change.cluster]);
        ids.extend(change.merges.iter().take(MOST));
        next(&mut fold, change);
    }
    for id in ids {
        let _ = merges.current(id);
    }
    assert!(fold.clusters().all(|(_, size)| size > 0), "a cluster without a member");
    let mut restored = Cluster::with_threshold(0.4);
    restored.restore(&fold.snapshot()).expect("its own snapshot");
    assert_eq!(restored.snapshot(), fold.snapshot(), "a snapshot gives another state");
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
