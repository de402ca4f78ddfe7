use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A pipeline file as it is written: every key may be absent, none is unknown.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::zero_sized_map_values, reason = "sites and stages are read here for their faults alone")]
pub(crate) struct WrittenPipeline {
    pub(crate) pipeline: Option<String>,
    #[serde(default)]
    pub(crate) keep: WrittenKeeps,
    #[serde(default, rename = "site")]
    _site: BTreeMap<String, WrittenSite>,
    #[serde(default, rename = "stage")]
    _stage: BTreeMap<String, BTreeMap<String, IgnoredAny>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenKeeps {
    pub(crate) captured: Option<WrittenKeep>,
    pub(crate) outcomes: Option<WrittenKeep>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenKeep {
    #[serde(default, deserialize_with = "age")]
    pub(crate) age: Option<Duration>,
    pub(crate) bytes: Option<ByteSize>,
}

/// A site has no keys of its own yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenSite {}

/// The keys in `STAGE_KEYS`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenStage {
    pub(crate) uses: Option<String>,
    #[serde(default, deserialize_with = "one_or_many")]
    pub(crate) from: Option<Vec<String>>,
    pub(crate) site: Option<String>,
    pub(crate) workers: Option<usize>,
    #[serde(default)]
    pub(crate) batch: WrittenBatch,
    pub(crate) link_bytes: Option<ByteSize>,
    pub(crate) max_process_ms: Option<u64>,
    pub(crate) emits: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenBatch {
    pub(crate) max: Option<usize>,
    pub(crate) wait_ms: Option<u64>,
}

fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    struct Age;
    impl Visitor<'_> for Age {
        type Value = Duration;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a duration such as \"7d\" or \"36h\"")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text).map_err(|_| E::invalid_value(serde::de::Unexpected::Str(text), &self))
        }
    }
    deserializer.deserialize_str(Age).map(Some)
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("the name of a stage or an array of names")
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
