use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::check::{BATCH_MAX, BATCH_WAIT_MS, COPIES, MAX_PROCESS_MS, SYNC, WORKERS};
use crate::pipeline::{
    DEFAULT_COPIES, DEFAULT_KEEP_CAPTURED, DEFAULT_KEEP_CHANGES, DEFAULT_KEEP_OUTCOMES, DEFAULT_SYNC, Sync, defaults,
};
use crate::schema::{ALWAYS, Age, Names, Often, Size, link_names, pipeline_names, shown_keep, shown_size};
use crate::sites::First;
use crate::tests_form::WrittenTest;

/// A pipeline file as it is written: every key may be absent, none is unknown. What is said of the keys here is what an editor
/// shows.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::zero_sized_map_values, reason = "stages and tests are read here for their faults alone")]
pub(crate) struct WrittenPipeline {
    /// The pipeline's name: the first word of every subject. Letters, digits and `-`.
    #[schemars(extend("pattern" = pipeline_names()))]
    pub(crate) pipeline: Option<String>,
    /// How long captured items and outcomes are stored. What is older, or more than the bytes, is removed.
    #[serde(default)]
    #[schemars(!default)]
    pub(crate) keep: WrittenKeeps,
    /// The places that stages run at, each with a NATS server of its own; `edge` where the file names none. Where there are several, one
    /// is the hub.
    #[serde(default)]
    #[schemars(!default, with = "BTreeMap<String, WrittenSite>")]
    pub(crate) site: BTreeMap<String, WrittenSite>,
    /// The steps of the pipeline: `[stage.NAME]` takes one kind of message and gives another.
    #[serde(default, rename = "stage")]
    #[schemars(!default, with = "BTreeMap<String, WrittenStage>")]
    _stage: BTreeMap<String, BTreeMap<String, IgnoredAny>>,
    /// Unit tests of the pipeline, which `causeway test` runs.
    #[serde(default, rename = "test")]
    #[schemars(!default, with = "Vec<WrittenTest>")]
    _test: IgnoredAny,
}

/// How long things are stored.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenKeeps {
    /// What was captured, for repair and thumbnails.
    #[schemars(extend("default" = shown_keep(DEFAULT_KEEP_CAPTURED)))]
    pub(crate) captured: Option<WrittenKeep>,
    /// Names, clusters, empties and dead letters.
    #[schemars(extend("default" = shown_keep(DEFAULT_KEEP_OUTCOMES)))]
    pub(crate) outcomes: Option<WrittenKeep>,
    /// The changes of a stage that folds, such as `cluster`: beyond this many bytes the oldest go, as far as two snapshots of the
    /// state know them. What came in that long is remembered.
    #[schemars(with = "Option<Size>", extend("default" = shown_size(DEFAULT_KEEP_CHANGES)))]
    pub(crate) changes: Option<ByteSize>,
    /// Copies of everything that is stored, each on a server of its own: 1, 3 or 5. More than 1 needs a NATS cluster.
    #[schemars(extend("enum" = COPIES, "default" = DEFAULT_COPIES))]
    pub(crate) copies: Option<u64>,
    /// How often the server that `up` starts writes what it stores to disk for good (`"10s"`), or `always`: before it says that
    /// something is stored. A power failure may lose what came since. A server of your own has its own setting, `sync_interval`.
    #[serde(default, deserialize_with = "sync")]
    #[schemars(with = "Option<Often>", extend("default" = humantime::format_duration(DEFAULT_SYNC).to_string()))]
    pub(crate) sync: Option<Sync>,
}

/// A bound on what is stored.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenKeep {
    /// What is older is removed: `"7d"`, `"36h"`.
    #[serde(default, deserialize_with = "age")]
    #[schemars(!default, with = "Age")]
    pub(crate) age: Option<Duration>,
    /// The oldest goes first beyond this many bytes: `"1GiB"`.
    #[schemars(with = "Option<Size>")]
    pub(crate) bytes: Option<ByteSize>,
}

/// A place with a NATS server of its own.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenSite {
    /// Whether the other sites dial this one; what goes from one of them to another passes through it. Where there are several sites,
    /// one says `true`.
    #[schemars(extend("default" = false))]
    pub(crate) hub: Option<bool>,
    /// Where its NATS server is: `"nats://cloud.example:4222"`. Without one `causeway up` starts a server of its own.
    pub(crate) address: Option<String>,
    /// The site's folder of keys (`causeway keys`), or a file with NATS credentials; relative to the pipeline file.
    pub(crate) credentials: Option<PathBuf>,
    /// Most bytes a second that this site sends to the hub: `"500KB"`. Without one, as many as the link takes.
    #[schemars(with = "Option<Size>")]
    pub(crate) bytes_per_s: Option<ByteSize>,
    /// What goes to the hub first when much waits, as after a link was down: what has waited longest, or what comes from now on.
    #[schemars(extend("default" = "oldest"))]
    pub(crate) first: Option<First>,
}

/// The keys of every stage: those in `STAGE_KEYS`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenStage {
    /// Which stage it is: by default the one of its name.
    pub(crate) uses: Option<String>,
    /// The stage whose messages it takes, or a list of them. A source has none.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(!default, with = "Names")]
    pub(crate) from: Option<Vec<String>>,
    /// Where it runs: a `[site.NAME]` of the file, or a list of them; by default the first. `"edge-*"` is all whose names begin so. At
    /// several, it takes at each what is made there.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(!default, with = "Names")]
    pub(crate) site: Option<Vec<String>>,
    /// Sites that `causeway move` may move it to where every stage has a key of its own (`causeway keys`): only there is it given one, and
    /// its relays the right to carry for it. `"edge-*"` is all whose names begin so.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(!default, with = "Names")]
    pub(crate) may_move_to: Option<Vec<String>>,
    /// Instances in one process, each with its thread and its model.
    #[schemars(range(min = *WORKERS.start(), max = *WORKERS.end()), extend("default" = defaults::WORKERS))]
    pub(crate) workers: Option<usize>,
    /// How many messages are handled together.
    #[serde(default)]
    #[schemars(!default)]
    pub(crate) batch: WrittenBatch,
    /// What its link may hold before it has to wait: `"256MiB"`.
    #[schemars(with = "Option<Size>", extend("default" = shown_size(defaults::LINK_BYTES)))]
    pub(crate) link_bytes: Option<ByteSize>,
    /// Time for one message, ms; one that takes longer ends the process.
    #[schemars(
        range(min = *MAX_PROCESS_MS.start(), max = *MAX_PROCESS_MS.end()),
        extend("default" = defaults::MAX_PROCESS.as_millis() as u64)
    )]
    pub(crate) max_process_ms: Option<u64>,
    /// Memory that a message which came again may take where it is tried alone, beyond what the stage has at its start:
    /// `"1GiB"`. One that takes more ends that process, twice, and is set aside.
    #[schemars(with = "Option<Size>", extend("default" = shown_size(defaults::QUARANTINE_BYTES)))]
    pub(crate) quarantine_bytes: Option<ByteSize>,
    /// The second word of its subjects: by default the kind it gives. Needed where two stages give the same kind.
    #[schemars(extend("pattern" = link_names()))]
    pub(crate) emits: Option<String>,
}

/// How many messages are handled together.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenBatch {
    /// Most messages.
    #[schemars(range(min = *BATCH_MAX.start(), max = *BATCH_MAX.end()), extend("default" = defaults::BATCH_MAX))]
    pub(crate) max: Option<usize>,
    /// How long a batch waits to fill, ms.
    #[schemars(
        range(min = *BATCH_WAIT_MS.start(), max = *BATCH_WAIT_MS.end()),
        extend("default" = defaults::BATCH_WAIT.as_millis() as u64)
    )]
    pub(crate) wait_ms: Option<u64>,
}

/// A value that is written as text.
struct Text<T> {
    expected: String,
    read: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.expected)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }
}

fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let expected = "a duration such as \"7d\" or \"36h\"".into();
    deserializer.deserialize_str(Text { expected, read: |text| humantime::parse_duration(text).ok() }).map(Some)
}

fn sync<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Sync>, D::Error> {
    let [least, most] = [*SYNC.start(), *SYNC.end()].map(humantime::format_duration);
    let expected = format!("{ALWAYS:?} or a duration of {least} to {most}, such as \"10s\"");
    let read = |text: &str| match text {
        ALWAYS => Some(Sync::Always),
        text => humantime::parse_duration(text).ok().filter(|every| SYNC.contains(every)).map(Sync::Every),
    };
    deserializer.deserialize_str(Text { expected, read }).map(Some)
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a name or an array of names")
        }

        fn visit_str<E>(self, one: &str) -> Result<Vec<String>, E> {
            Ok(vec![one.to_owned()])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut many: A) -> Result<Vec<String>, A::Error> {
            let mut names = Vec::new();
            while let Some(name) = many.next_element()? {
                names.push(name);
            }
            Ok(names)
        }
    }
    deserializer.deserialize_any(OneOrMany).map(Some)
}
