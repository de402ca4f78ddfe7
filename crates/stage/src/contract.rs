use causeway_schemas::{Id, Message};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Context;

/// A stage: takes messages of one kind, gives messages of another. It sees no bus and no clock, and runs on a thread of its
/// own; each worker has an instance.
pub trait Stage: Sized + Send + 'static {
    /// The binary, crate and folder: `uses` in a pipeline file.
    const NAME: &'static str;
    /// The keys of its table in a pipeline file.
    type Options: DeserializeOwned;
    /// What it takes.
    type Input: Message;
    /// What it gives.
    type Output: Message;

    /// Loads what it needs. An error here stops the process with a message.
    fn new(options: Self::Options, ctx: &Context) -> anyhow::Result<Self>;

    /// One result for each input, in order.
    fn process(&mut self, batch: Vec<Self::Input>) -> Vec<Result<Answer<Self::Output>, Failure>>;
}

/// What an input gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer<T> {
    /// One output or more. (None at all counts as `Nothing` without a reason.)
    Messages(Vec<T>),
    /// Rightly nothing, for this reason: published as an `empty.v1`.
    Nothing {
        /// A short fixed name: `no-face`.
        reason: &'static str,
        /// The reason with its figures, for a person.
        detail: String,
    },
}

/// Why an input gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Can never be handled: set aside as a dead letter.
    #[error("{detail}")]
    Reject {
        /// A short fixed name, which dead letters are sorted by: `truncated`, `unfit`.
        reason: &'static str,
        /// The reason for a person; completes "cannot …".
        detail: String,
    },
    /// Could not be handled now: comes again.
    #[error("{0}")]
    Retry(String),
}

impl Failure {
    /// The input is not what the stage takes, whatever its kind says.
    pub fn unfit(detail: impl Into<String>) -> Self {
        Self::Reject { reason: "unfit", detail: detail.into() }
    }
}

/// A source: gives messages of its own accord. `next` blocks; it runs on a thread of its own.
pub trait Source: Sized + Send + 'static {
    /// The binary, crate and folder: `uses` in a pipeline file.
    const NAME: &'static str;
    /// The keys of its table in a pipeline file.
    type Options: DeserializeOwned;
    /// What it gives.
    type Output: Message;

    /// Opens the source. An error here stops the process with a message.
    fn new(options: Self::Options, ctx: &Context) -> anyhow::Result<Self>;

    /// The next item; `None` when the source has ended.
    fn next(&mut self) -> Option<Captured<Self::Output>>;

    /// Asked once `next` gave `None`: an error where it ended before its end, which no restart mends.
    fn end(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What it will read, for a person: `8 pictures in photos`. `causeway validate --connect` asks right after `new`.
    fn about(&self) -> Option<String> {
        None
    }
}

/// One item of a source.
#[derive(Debug, Clone)]
pub struct Captured<T> {
    /// `Id::captured(source, item)`: the same whenever the same item is captured again.
    pub id: Id,
    /// Whether another start of the source gives it again: a picture of a folder, and not one of a camera. Only such a one is looked for
    /// among the outcomes that are there already.
    pub repeats: bool,
    /// The message, or why the item can never be one: a dead letter with its original bytes.
    pub message: Result<T, Unreadable>,
}

/// An item that cannot be captured.
#[derive(Debug, Clone)]
pub struct Unreadable {
    /// What the item is called: a relative path.
    pub item: String,
    /// A short fixed name: `not-an-image`, `too-many-pixels`, `too-long`, `unreadable`.
    pub reason: &'static str,
    /// The reason for a person.
    pub detail: String,
    /// The original bytes, as many as were read.
    pub body: Vec<u8>,
}

/// A stage with state: one writer a pipeline, whose state is the sum of its changes. A change is stored in a changelog before
/// its input is acked, so that a successor, here or elsewhere, goes on from the same state: a snapshot of it, and the changes since.
///
/// Which inputs it had is not part of the state: the runtime knows them, and asks for each only once.
pub trait Fold: Sized + Send + 'static {
    /// The binary, crate and folder: `uses` in a pipeline file.
    const NAME: &'static str;
    /// The keys of its table in a pipeline file.
    type Options: DeserializeOwned;
    /// What it takes.
    type Input: Message;
    /// What it gives: one for each input.
    type Output: Message;
    /// One entry of the changelog: all that is needed to make the next state and the output.
    type Change: Serialize + DeserializeOwned + Clone + Send + 'static;

    /// The empty state.
    fn new(options: Self::Options, ctx: &Context) -> anyhow::Result<Self>;

    /// What the input `id` will change; does not change anything yet.
    fn decide(&self, id: Id, input: &Self::Input) -> Result<Self::Change, Failure>;

    /// What the input `id` changed, whose output is stored and whose change the broker lost: a change that has this output.
    fn recall(&self, id: Id, input: &Self::Input, output: &Self::Output) -> Result<Self::Change, Failure>;

    /// Makes the change. Must depend on nothing but the state and the change; called for every change in order, also when
    /// the state is restored.
    fn apply(&mut self, change: &Self::Change);

    /// The input that made a change.
    fn input_of(change: &Self::Change) -> Id;

    /// The output that belongs to a change: the same whenever it is asked.
    fn output(&self, change: &Self::Change) -> Self::Output;

    /// The state as bytes.
    fn snapshot(&self) -> Vec<u8>;

    /// Takes the state of a snapshot, the same to the last bit, in place of the empty one. An error where it does not read: the
    /// state is then made of an older one.
    fn restore(&mut self, snapshot: &[u8]) -> anyhow::Result<()>;
}

/// A live table: a key-value bucket as a stage sees it.
pub trait Table: Default + Clone + Send + Sync + 'static {
    /// A key was set. An error is logged and the entry passed over.
    fn put(&mut self, key: &str, value: &[u8], revision: u64) -> anyhow::Result<()>;
    /// A key was removed.
    fn remove(&mut self, key: &str, revision: u64);
}
