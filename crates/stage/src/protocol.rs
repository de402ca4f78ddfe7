//! The decisions of the delivery contract, apart from the bus and the clock: whether a delivery may run with others, who is set
//! aside, what is done in which order with an answer, what a publish that failed asks for. A stage's life carries them out on
//! NATS; the simulation in the tests carries them out on a broker that loses, repeats and reorders, with a crash at every point.

use causeway_bus::{PublishError, Stored};
use serde::{Deserialize, Serialize};

use crate::stage_life::Verdict;

/// How an input is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its first delivery: in a batch with others.
    Batch,
    /// It came again, and may be why: alone in the quarantine, with a mark.
    Alone,
}

/// How a delivery is handled that is the `delivered`th of its message.
pub(crate) fn way(delivered: u64) -> Way {
    if delivered > 1 { Way::Alone } else { Way::Batch }
}

/// What is done with an answer, one after the other; each step is done before the next begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// What the answer gives is stored, in any order: every output, or the dead letter with the original bytes.
    Store,
    /// The dead letter goes that the input was sent again for.
    CloseLetter,
    /// The input is acked.
    Ack,
    /// The input is asked for again later.
    Later,
}

/// Ack after store, whatever the answer.
pub(crate) fn steps(verdict: &Verdict) -> &'static [Step] {
    match verdict {
        Verdict::Outputs { .. } | Verdict::Reject { .. } => &[Step::Store, Step::CloseLetter, Step::Ack],
        Verdict::Retry { .. } => &[Step::Later],
    }
}

/// How a message came to be stored; `None` while nobody can tell, or it was not: the same is published again, under the same id.
pub(crate) fn stored(published: &Result<Stored, PublishError>) -> Option<Stored> {
    published.as_ref().ok().copied()
}

/// What is known of the runs of an input that came again and has no answer yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks {
    /// Runs that the quarantine did not survive, while its stage's process lived on: the input's doing.
    pub(crate) fatal: u32,
    /// Runs of which nobody saw the end: the stage's process was killed meanwhile. It cannot be the input that did it.
    pub(crate) unseen: u32,
    /// What ended the last of the fatal ones.
    pub(crate) death: Option<Death>,
}

/// How a quarantine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Death {
    /// A short fixed name: `killed`, `hung`, `out-of-memory`.
    pub(crate) reason: String,
    /// For a person.
    pub(crate) detail: String,
}

/// Runs that end the quarantine, until the input is set aside.
pub(crate) const MAX_FATAL: u32 = 2;
/// Runs of which nobody saw the end, until the input is set aside: more than chance does, since an input that harms more than the
/// process it runs in may not go on doing so for ever.
pub(crate) const MAX_UNSEEN: u32 = 100;

impl Marks {
    /// With one more run begun; `None` when there may be no more: the input is set aside without being run.
    pub(crate) fn begin(&self) -> Option<Self> {
        let may = self.fatal < MAX_FATAL && self.unseen < MAX_UNSEEN;
        may.then(|| Self { unseen: self.unseen + 1, ..self.clone() })
    }

    /// The run that was begun last ended the quarantine.
    pub(crate) fn fatal(&self, death: Death) -> Self {
        Self { fatal: self.fatal + 1, unseen: self.unseen.saturating_sub(1), death: Some(death) }
    }

    /// Why it is set aside.
    pub(crate) fn verdict(&self) -> (String, String) {
        match &self.death {
            Some(death) if self.fatal >= MAX_FATAL => {
                (death.reason.clone(), format!("{} of {} times: {}", self.fatal, self.fatal, death.detail))
            }
            _ => {
                (KILLED.into(), format!("the stage's process ended {} times while this message was tried", self.unseen))
            }
        }
    }
}

/// The reason where nothing more is known.
pub(crate) const KILLED: &str = "killed";

/// Most outputs of one input.
const MAX_OUTPUTS: usize = 10_000;
/// Most bytes that the outputs of one input have together.
pub(crate) const MAX_OUTPUT_BYTES: usize = 256 << 20;
/// The reason of an input whose stage gave more.
pub(crate) const TOO_MUCH: &str = "too-much";

/// What is too much of an input's outputs, so many with so many bytes; `None` where they are taken.
pub(crate) fn too_much(outputs: usize, bytes: usize) -> Option<String> {
    if outputs > MAX_OUTPUTS {
        Some(format!("{outputs} outputs; {MAX_OUTPUTS} may be"))
    } else if bytes > MAX_OUTPUT_BYTES {
        Some(format!("{bytes} bytes of outputs; {MAX_OUTPUT_BYTES} may be"))
    } else {
        None
    }
}
