//! The JSON Schema of pipeline files, out of the types that read them: their doc comments, defaults and bounds.
//!
//! Draft 7, which every editor reads. A stage's keys depend on what it uses. `if`/`then` says so to whoever validates; language
//! servers complete from `properties` and `anyOf` alone, so each stage also stands in an `anyOf` beside `true`, which refuses
//! nothing.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::Keep;
use crate::check::{FOLD_SUFFIXES, MAX_NAME_LEN, RELAY_PREFIX, RESERVED};
use crate::form::{WrittenPipeline, WrittenStage};
use crate::options::Checked;
use crate::registry::{USES, Use};
use crate::tests_form::{WrittenExpect, WrittenTest, WrittenTests};

/// The schema of a pipeline file: `schemas/pipeline.schema.json`.
pub fn json_schema() -> Value {
    let mut generator = generator();
    let mut root = object(&WrittenPipeline::json_schema(&mut generator));
    root.insert("title".into(), "Causeway pipeline".into());
    root.insert("required".into(), json!(["pipeline", "stage"]));
    let general = object(&WrittenStage::json_schema(&mut generator));
    let mut definitions: Map<String, Value> =
        USES.iter().map(|uses| (uses.name.into(), Value::Object(stage_of(uses, &general, &mut generator)))).collect();
    definitions.insert("any".into(), any(&definitions));
    root["properties"]["stage"] = stages(&root["properties"]["stage"]);
    finish(root, definitions, &mut generator)
}

/// The schema of a file of tests beside a pipeline: `schemas/pipeline-tests.schema.json`.
pub fn tests_json_schema() -> Value {
    let mut generator = generator();
    let mut root = object(&WrittenTests::json_schema(&mut generator));
    root.insert("title".into(), "Tests of a Causeway pipeline".into());
    finish(root, Map::new(), &mut generator)
}

/// The schema of a stage's own keys.
pub(crate) fn options_schema<O: Checked + JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = O::json_schema(generator);
    // What `check` misses in an empty table has to be stated.
    let absent: BTreeSet<&str> = match O::deserialize(toml::Table::new()) {
        Ok(options) => options.check().iter().filter(|wrong| wrong.absent).map(|wrong| wrong.key).collect(),
        Err(_) => BTreeSet::new(),
    };
    for key in &absent {
        if let Some(Value::Object(property)) = schema.get_mut("properties").and_then(|all| all.get_mut(*key)) {
            property.remove("default");
        }
    }
    if !absent.is_empty() {
        schema.insert("required".into(), json!(absent));
    }
    schema
}

/// A type that stands for a value as people write it, in the place where the value is.
macro_rules! schema {
    ($(#[$doc:meta])* $visible:vis $name:ident, $schema:tt) => {
        $(#[$doc])*
        $visible struct $name;

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
pub(crate) use schema;

schema!(
    /// A size in bytes as people write it, and as the `bytesize` crate reads it.
    pub(crate) Size,
    {
        "type": ["string", "integer"],
        "minimum": 0,
        "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([bB]|[kKmMgGtTpPeE]([iI]?[bB]?))?\s*$",
        "examples": ["256MiB", "1GiB"],
    }
);
schema!(
    /// A duration as people write it.
    pub(crate) Age,
    { "type": "string", "pattern": format!("^{}$", durations()), "examples": ["7d", "36h"] }
);
schema!(
    /// A duration, or [`ALWAYS`].
    pub(crate) Often,
    { "type": "string", "pattern": format!("^({ALWAYS}|{})$", durations()), "examples": [ALWAYS, "10s"] }
);
schema!(
    /// A name or a list of names.
    pub(crate) Names,
    { "type": ["string", "array"], "items": { "type": "string" }, "minItems": 1, "uniqueItems": true }
);

/// What `keep.sync` says instead of a duration.
pub(crate) const ALWAYS: &str = "always";

/// Durations as the `humantime` crate reads them.
fn durations() -> String {
    let units = "nsec|ns|usec|us|µs|msec|ms|seconds?|secs?|s|minutes?|mins?|m|hours?|hrs?|h|days?|d|weeks?|wks?|wk|w|months?|M|years?|yrs?|y";
    format!(r"\s*([0-9]+(\.[0-9]+)?\s*({units})\s*)+")
}

/// What a pipeline may be called.
pub(crate) fn pipeline_names() -> String {
    format!("^[a-z0-9][a-z0-9-]{{0,{}}}$", MAX_NAME_LEN - 1)
}

/// What a link may be called; `RESERVED` apart.
pub(crate) fn link_names() -> String {
    format!("^[a-z0-9][a-z0-9_-]{{0,{}}}$", MAX_NAME_LEN - 1)
}

/// A size as it is written in a file.
pub(crate) fn shown_size(bytes: u64) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// A bound as it is written in a file.
pub(crate) fn shown_keep(keep: Keep) -> Value {
    let days = keep.age.as_secs() / 86400;
    json!({ "age": format!("{days}d"), "bytes": shown_size(keep.bytes) })
}

fn generator() -> SchemaGenerator {
    // An error in a key then names the key, and an editor shows what is said of it.
    SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true).into_generator()
}

fn object(schema: &Schema) -> Map<String, Value> {
    schema.as_object().cloned().unwrap_or_default()
}

/// A stage that uses this: the keys of every stage and its own, and no other.
fn stage_of(uses: &Use, general: &Map<String, Value>, generator: &mut SchemaGenerator) -> Map<String, Value> {
    let mut schema = object(&(uses.schema)(generator));
    let mut properties = general["properties"].as_object().cloned().unwrap_or_default();
    properties["uses"] = json!({ "const": uses.name, "description": properties["uses"]["description"] });
    properties["emits"]["default"] = uses.gives.into();
    properties["emits"]["not"] = json!({ "enum": RESERVED });
    let mut required: Vec<Value> = schema.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    if uses.takes.is_some() {
        required.push("from".into());
    } else {
        properties.remove("from");
    }
    if uses.folds || uses.takes.is_none() {
        properties["workers"]["maximum"] = 1.into();
    }
    // What a stage is for stands first, then what every stage has.
    if let Some(Value::Object(own)) = schema.remove("properties") {
        properties.extend(own);
    }
    schema.insert("properties".into(), properties.into());
    schema.insert("required".into(), required.into());
    schema.insert("additionalProperties".into(), false.into());
    schema.remove("title");
    schema
}

/// `stage`: a stage of a known name uses what it is called unless it says otherwise; any other says what it uses.
fn stages(written: &Value) -> Value {
    let names = USES.map(|uses| uses.name);
    let refer = |name: &str| json!({ "$ref": format!("#/definitions/{name}") });
    let uses_of = |name: &str| json!({ "properties": { "uses": { "const": name } } });
    let known: Map<String, Value> = USES
        .iter()
        .map(|uses| {
            let stage = json!({
                "type": "object",
                "if": uses_of(uses.name),
                "then": refer(uses.name),
                "else": { "$ref": "#/definitions/any" },
                "anyOf": [refer(uses.name), true],
            });
            (uses.name.to_owned(), stage)
        })
        .collect();
    let reserved: Vec<String> = RESERVED.iter().map(ToString::to_string).collect();
    let other = json!({
        "type": "object",
        "anyOf": names.iter().map(|name| refer(name)).chain([true.into()]).collect::<Vec<Value>>(),
        "if": true,
        "then": { "$ref": "#/definitions/any" },
    });
    json!({
        "description": written["description"],
        "type": "object",
        "minProperties": 1,
        "propertyNames": {
            "pattern": link_names(),
            "not": { "anyOf": [{ "enum": reserved }, { "pattern": format!("^{RELAY_PREFIX}|({})$", FOLD_SUFFIXES.join("|")) }] },
        },
        "properties": known,
        "patternProperties": { other_than(&names): other },
    })
}

/// Any stage by what it says that it uses. Refers to the definitions, so that errors name the key and not the alternatives.
fn any(definitions: &Map<String, Value>) -> Value {
    let by_uses = USES.iter().map(|uses| {
        json!({
            "if": { "required": ["uses"], "properties": { "uses": { "const": uses.name } } },
            "then": { "$ref": format!("#/definitions/{}", uses.name) },
        })
    });
    let docs = USES.iter().map(|uses| definitions[uses.name]["description"].clone());
    json!({
        "required": ["uses"],
        "properties": {
            "uses": {
                "description": "Which stage it is.",
                "enum": USES.map(|uses| uses.name),
                "x-taplo": { "docs": { "enumValues": docs.collect::<Vec<_>>() } },
            },
        },
        "allOf": by_uses.collect::<Vec<_>>(),
    })
}

/// A test: `expect` is one table or a list of them, which no type says.
fn test(generator: &mut SchemaGenerator) -> Value {
    let mut test = Value::Object(object(&WrittenTest::json_schema(generator)));
    test["required"] = json!(WrittenTest::REQUIRED);
    let refer = json!({ "$ref": "#/definitions/expect" });
    test["properties"]["expect"] = json!({
        "description": test["properties"]["expect"]["description"],
        "type": ["object", "array"],
        "minItems": 1,
        "items": refer,
        "if": { "type": "object" },
        "then": refer,
        "anyOf": [refer, true],
    });
    test
}

fn finish(mut root: Map<String, Value>, mut definitions: Map<String, Value>, generator: &mut SchemaGenerator) -> Value {
    root["properties"]["test"]["items"] = json!({ "$ref": "#/definitions/test" });
    definitions.insert("test".into(), test(generator));
    definitions.insert("expect".into(), WrittenExpect::json_schema(generator).into());
    root.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
    root.insert("definitions".into(), definitions.into());
    let mut schema = Schema::from(root);
    Plain.transform(&mut schema);
    schema.into()
}

/// Takes out what says nothing to a reader of TOML: nulls, Rust's widths of numbers, the noise of 32-bit fractions.
struct Plain;

impl Transform for Plain {
    fn transform(&mut self, schema: &mut Schema) {
        schema.remove("format");
        if schema.get("default").is_some_and(Value::is_null) {
            schema.remove("default");
        }
        if let Some(Value::Array(types)) = schema.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [only] = &types[..] {
                *schema.get_mut("type").expect("it was just there") = only.clone();
            }
        }
        if let Some(Value::Array(forms)) = schema.get_mut("anyOf") {
            forms.retain(|form| form["type"] != "null");
            if let [Value::Object(only)] = &forms[..] {
                let only = only.clone();
                schema.remove("anyOf");
                for (key, value) in only {
                    schema.ensure_object().entry(key).or_insert(value);
                }
            }
        }
        if let Some(Value::String(text)) = schema.get_mut("description") {
            // Doc comments are broken into lines where the source is.
            *text = text.split("\n\n").map(|part| part.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
        }
        for key in ["default", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"] {
            if let Some(value) = schema.get_mut(key) {
                short(value);
            }
        }
        transform_subschemas(self, schema);
    }
}

/// `0.8` for the 0.800000011920929 that an `f32` is.
fn short(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let long = number.as_f64().unwrap_or_default();
            if f64::from(long as f32).to_bits() == long.to_bits() {
                let shortest: f64 = (long as f32).to_string().parse().unwrap_or(long);
                *value = if shortest.fract() == 0.0 { json!(shortest as i64) } else { json!(shortest) };
            }
        }
        Value::Object(all) => all.values_mut().for_each(short),
        _ => {}
    }
}

/// A regular expression of every text but these words. Look-ahead would say it shorter, and not every reader knows it.
fn other_than(words: &[&str]) -> String {
    format!("^{}$", behind("", words))
}

/// What may stand behind `prefix` so that no word comes of it.
fn behind(prefix: &str, words: &[&str]) -> String {
    let rest: Vec<&str> = words.iter().filter_map(|word| word.strip_prefix(prefix)).collect();
    let next: BTreeSet<char> = rest.iter().filter_map(|rest| rest.chars().next()).collect();
    if next.is_empty() {
        return ".+".into();
    }
    let others: String = next.iter().collect();
    let mut pattern = format!("(?:[^{others}].*");
    for character in next {
        let longer = format!("{prefix}{character}");
        write!(pattern, "|{character}{}", behind(&longer, words)).expect("a string takes all");
    }
    pattern.push(')');
    // The empty text and a word of ours are nobody's; the beginning of one is another name.
    if !prefix.is_empty() && !rest.contains(&"") {
        pattern.push('?');
    }
    pattern
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;

    #[test]
    fn sizes_are_written_as_people_do() {
        assert_eq!(shown_size(256 << 20), "256MiB");
        assert_eq!(shown_size(3 << 30), "3GiB");
        assert_eq!(shown_size(1000), "1000");
        for bytes in [256 << 20, 1 << 30, 1000] {
            assert_eq!(shown_size(bytes).parse::<ByteSize>(), Ok(ByteSize(bytes)));
        }
    }
}
