//! Files of the store that a disk has changed, cut or lost: each is put right, or what is lost is said. `./dev chaos --part corruption`
//! has 200 of them.

use harness::Became::{self, Healed, NoEffect, Repaired, Told};
use harness::Harm::{Bit, Cut, Emptied, Removed};
use harness::Sort::{Block, DurableState, Settings};
use harness::{Corruption, Stage, Tools};

#[tokio::test]
async fn damage_to_the_store_is_put_right_or_told() {
    let corruption = Corruption::new(&Tools::find(), &[Stage::Drained]).await;
    let cases: [(&str, _, _, &[Became]); 6] = [
        // Nothing is lost by it; but the server would not know the stream any more.
        ("faces_classify", Settings, Bit, &[Healed]),
        ("faces_preprocess", DurableState, Emptied, &[Healed, NoEffect]),
        ("faces_classify", Block, Removed, &[Repaired]),
        // The copies that `reconcile` would run again: it says that they are gone.
        ("faces_capture", Block, Emptied, &[Healed]),
        ("faces_cluster_log", Block, Emptied, &[Told, Healed]),
        ("KV_faces_people", Block, Cut, &[Told]),
    ];
    for (stream, sort, harm, expected) in cases {
        let judged = corruption.judge(corruption.case(Stage::Drained, stream, sort, harm, 7)).await;
        assert!(expected.contains(&judged.became), "{judged:#?}");
    }
}
