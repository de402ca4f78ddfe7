//! What a stage's process and its quarantine say to each other, and what stands on stdin and stdout of a stage without a bus. From
//! a first byte below 128 on a frame, else a line.

use causeway_stage::{OnceAnswer, OnceInput, fuzz};

pub(crate) fn run(bytes: &[u8]) {
    let Some((&first, rest)) = bytes.split_first() else { return };
    if first < 128 {
        for again in fuzz::quarantine(rest).into_iter().flatten() {
            // A time of more than 10⁹ ns beside its seconds is carried over: what is written is read as the same all the same.
            let written = fuzz::quarantine(&again);
            assert!(written.contains(&Some(again)), "what was written does not read back");
        }
        return;
    }
    if let Ok(input) = serde_json::from_slice::<OnceInput>(rest) {
        let written = serde_json::to_vec(&input).expect("what was read can be written");
        serde_json::from_slice::<OnceInput>(&written).expect("what was written reads");
    }
    if let Ok(answer) = serde_json::from_slice::<OnceAnswer>(rest) {
        let written = serde_json::to_vec(&answer).expect("what was read can be written");
        serde_json::from_slice::<OnceAnswer>(&written).expect("what was written reads");
    }
}
