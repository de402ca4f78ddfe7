use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::schema::schema;

/// A file of tests beside a pipeline: `tests/NAME.toml` for `NAME.toml`.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenTests {
    /// Unit tests of the pipeline, which `causeway test` runs.
    #[serde(default, rename = "test")]
    #[schemars(!default, with = "Vec<WrittenTest>")]
    _test: IgnoredAny,
}

/// A unit test of the pipeline: an input, the stage that is given it, and what must come out. `causeway test` runs it with the
/// stages' own programs, without a server.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenTest {
    /// What it shows, in a few words. `causeway test FILE WORDS` runs the tests that have the words in their names.
    pub(crate) name: Option<String>,
    /// The stage whose answers are judged.
    pub(crate) stage: Option<String>,
    /// The stage that is given the input, where that is an earlier one: what it gives goes on, stage by stage, to `stage`.
    pub(crate) from: Option<String>,
    /// What goes in; paths are relative to this file. For a stage that takes frames and for a source: a picture. For others: a
    /// message as `causeway tap STAGE --json` prints it, in a JSON file or written here as a table. A list of these goes in in
    /// this order.
    #[serde(default)]
    #[schemars(!default, with = "InputSchema")]
    pub(crate) input: Option<WrittenInputs>,
    /// Whom `classify` knows: for each name a photo, a folder of photos, a list of these, or a list of vectors.
    #[serde(default)]
    #[schemars(!default, with = "BTreeMap<String, PersonSchema>")]
    pub(crate) people: BTreeMap<String, WrittenPerson>,
    /// What comes out. One table is what every answer is like, and there is one answer unless `count` says otherwise; a list of
    /// tables says it answer by answer, in order.
    #[serde(default, rename = "expect")]
    #[schemars(!default, with = "WrittenExpect")]
    _expect: IgnoredAny,
}

impl WrittenTest {
    /// The keys that a test cannot be without.
    pub(crate) const REQUIRED: [&'static str; 4] = ["name", "stage", "input", "expect"];
}

/// What an answer is like; what is not said is not looked at.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenExpect {
    /// How many answers there are. In a single table only.
    #[schemars(range(min = 1))]
    pub(crate) count: Option<usize>,
    /// Nothing was given, for this reason: `no-face`, `below-quality`.
    pub(crate) empty: Option<String>,
    /// The input was set aside as a dead letter, for this reason: `not-an-image`, `unfit`.
    pub(crate) reject: Option<String>,
    /// Of a decision: the name.
    pub(crate) label: Option<String>,
    /// Of a decision: whether it has no name.
    pub(crate) unknown: Option<bool>,
    /// Of a decision: the nearest known one, also where it was not near enough.
    pub(crate) nearest: Option<String>,
    /// Of a decision or an assignment: the likeness, a cosine; of a crop: the detector's score. A number is met within 0.01;
    /// `{ is = 0.71, within = 0.05 }`, `{ min = 0.6 }` and `{ max = 0.4 }` say otherwise.
    #[schemars(with = "Option<NearSchema>")]
    pub(crate) score: Option<Near>,
    /// Of a decision: how far the nearest is ahead of the next other one.
    #[schemars(with = "Option<NearSchema>")]
    pub(crate) margin: Option<Near>,
    /// Which part of the picture it is about: `{ x = 178, y = 63, w = 90, h = 110, within = 5 }`, px.
    pub(crate) region: Option<Region>,
    /// Of a feature: the vector.
    pub(crate) vector: Option<WrittenVector>,
    /// Of an assignment: any word for its cluster. Answers with the same word are in one cluster, those with different words in
    /// different ones.
    pub(crate) cluster: Option<String>,
}

/// A part of a picture, px of the upright picture, origin top left; what is not said is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Left edge, px.
    pub x: Option<f64>,
    /// Top edge, px.
    pub y: Option<f64>,
    /// Width, px.
    pub w: Option<f64>,
    /// Height, px.
    pub h: Option<f64>,
    /// How far each may be off, px.
    #[serde(default = "default_region_within")]
    #[schemars(range(min = 0.0))]
    pub within: f64,
}

fn default_region_within() -> f64 {
    3.0
}

/// A vector that a feature is like.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenVector {
    /// The numbers, or a JSON file with a list of them; relative to this file.
    #[schemars(with = "NumbersSchema")]
    pub(crate) like: Numbers,
    /// The least cosine between the two.
    #[serde(default = "default_cosine")]
    #[schemars(range(min = -1.0, max = 1.0))]
    pub(crate) cosine: f64,
}

fn default_cosine() -> f64 {
    0.99
}

/// A number that is about as expected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Near {
    /// The least that is right.
    pub min: f64,
    /// The most that is right.
    pub max: f64,
    /// The number that was written, and how far it may be off; none where bounds were.
    pub is: Option<(f64, f64)>,
}

/// How far a plain number may be off: a cosine of the same model on another machine.
const WITHIN: f64 = 0.01;

impl Near {
    fn around(is: f64, within: f64) -> Self {
        Self { min: is - within, max: is + within, is: Some((is, within)) }
    }
}

impl std::fmt::Display for Near {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.is {
            Some((is, within)) => write!(f, "{is} ± {within}"),
            None if self.max.is_infinite() => write!(f, "{} or more", self.min),
            None if self.min.is_infinite() => write!(f, "{} or less", self.max),
            None => write!(f, "{} to {}", self.min, self.max),
        }
    }
}

impl<'de> Deserialize<'de> for Near {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Written {
            is: Option<f64>,
            within: Option<f64>,
            min: Option<f64>,
            max: Option<f64>,
        }
        struct NumberOrTable;
        impl<'de> Visitor<'de> for NumberOrTable {
            type Value = Near;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number, or a table of `is` and `within` or of `min` and `max`")
            }

            fn visit_f64<E>(self, is: f64) -> Result<Near, E> {
                Ok(Near::around(is, WITHIN))
            }

            fn visit_i64<E>(self, is: i64) -> Result<Near, E> {
                Ok(Near::around(is as f64, WITHIN))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Near, A::Error> {
                match Written::deserialize(MapAccessDeserializer::new(map))? {
                    Written { is: Some(is), within, min: None, max: None } => {
                        Ok(Near::around(is, within.unwrap_or(WITHIN)))
                    }
                    Written { is: None, within: None, min, max } if min.or(max).is_some() => {
                        Ok(Near { min: min.unwrap_or(f64::NEG_INFINITY), max: max.unwrap_or(f64::INFINITY), is: None })
                    }
                    _ => Err(A::Error::custom("write `is` and `within`, or `min`, `max` or both")),
                }
            }
        }
        deserializer.deserialize_any(NumberOrTable)
    }
}

/// Numbers written here or in a file.
#[derive(Debug, Clone)]
pub(crate) enum Numbers {
    File(String),
    Here(Vec<f64>),
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(file) => Ok(Self::File(file)),
            value => numbers(&value).map(Self::Here).ok_or_else(|| D::Error::custom("a file or a list of numbers")),
        }
    }
}

fn numbers(value: &Value) -> Option<Vec<f64>> {
    value.as_array()?.iter().map(Value::as_f64).collect()
}

/// One input.
pub(crate) enum WrittenInput {
    Path(String),
    Message(Map<String, Value>),
}

/// What goes in, one after the other.
pub(crate) struct WrittenInputs(pub(crate) Vec<WrittenInput>);

impl<'de> Deserialize<'de> for WrittenInputs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || D::Error::custom("it must be a path, a table of a message's fields, or a list of these");
        let one = |value: Value| match value {
            Value::String(path) => Ok(WrittenInput::Path(path)),
            Value::Object(message) => Ok(WrittenInput::Message(message)),
            _ => Err(wrong()),
        };
        match Value::deserialize(deserializer)? {
            Value::Array(many) => many.into_iter().map(one).collect::<Result<_, _>>().map(Self),
            value => one(value).map(|input| Self(vec![input])),
        }
    }
}

/// Somebody of the gallery.
pub(crate) enum WrittenPerson {
    Photos(Vec<String>),
    Vectors { vectors: Vec<Vec<f64>>, space: Option<String> },
}

impl<'de> Deserialize<'de> for WrittenPerson {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = || {
            D::Error::custom(
                "it must be a photo, a folder of photos, a list of these, a list of vectors, or a table of `vectors` and `space`",
            )
        };
        let vectors = |value: &Value| value.as_array()?.iter().map(numbers).collect::<Option<Vec<_>>>();
        match Value::deserialize(deserializer)? {
            Value::String(photo) => Ok(Self::Photos(vec![photo])),
            Value::Array(many) if many.iter().all(Value::is_string) && !many.is_empty() => {
                Ok(Self::Photos(many.iter().filter_map(|photo| photo.as_str().map(Into::into)).collect()))
            }
            Value::Object(table) if table.keys().all(|key| key == "vectors" || key == "space") => {
                let space = table.get("space").map(|space| space.as_str().map(Into::into).ok_or_else(wrong));
                let vectors = table.get("vectors").and_then(vectors).ok_or_else(wrong)?;
                Ok(Self::Vectors { vectors, space: space.transpose()? })
            }
            value => Ok(Self::Vectors { vectors: vectors(&value).ok_or_else(wrong)?, space: None }),
        }
    }
}

schema!(NearSchema, {
    "type": ["number", "object"],
    "additionalProperties": false,
    "minProperties": 1,
    "properties": {
        "is": { "type": "number", "description": "The number." },
        "within": { "type": "number", "minimum": 0, "default": WITHIN, "description": "How far it may be off." },
        "min": { "type": "number", "description": "The least that is right." },
        "max": { "type": "number", "description": "The most that is right." }
    }
});
schema!(NumbersSchema, { "type": ["string", "array"], "items": { "type": "number" }, "minItems": 1 });
schema!(InputSchema, {
    "type": ["string", "object", "array"],
    "items": { "type": ["string", "object"] },
    "minItems": 1
});
schema!(PersonSchema, {
    "type": ["string", "array", "object"],
    "items": { "type": ["string", "array"], "items": { "type": "number" } },
    "minItems": 1,
    "additionalProperties": false,
    "properties": {
        "vectors": { "type": "array", "items": { "type": "array", "items": { "type": "number" } } },
        "space": { "type": "string" }
    }
});
