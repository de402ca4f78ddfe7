//! The decisions of the delivery contract, apart from the bus and the clock: whether a delivery may run with others, who is set
//! aside, what is done in which order with an answer, what a publish that failed asks for. A stage's life carries them out on
//! NATS; the simulation in the tests carries them out on a broker that loses, repeats and reorders, with a crash at every point.

use causeway_bus::{PublishError, Stored};

use crate::stage_life::Verdict;

/// How an input is handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Its first delivery: in a batch with others.
    Batch,
    /// It came again, and may be why: alone, with a mark.
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

/// Runs of an input that came again of which nobody saw the end: its replica was killed meanwhile, by the input or by chance.
pub(crate) const MAX_MARKS: u32 = 2;

/// The marks of an input with one more run begun; `None` when there may be no more: it is set aside without being run.
pub(crate) fn begin(marks: u32) -> Option<u32> {
    (marks < MAX_MARKS).then_some(marks + 1)
}
