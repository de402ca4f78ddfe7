//! The JSON Schema of pipeline files: current, agreeing with what `validate` says, and of use in an editor.

use std::path::{Path, PathBuf};

use causeway_pipelines::{Pipeline, USES, json_schema, tests_json_schema};
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).into()
}

fn validator(schema: &Value) -> jsonschema::Validator {
    jsonschema::draft7::new(schema).expect("it is a schema")
}

/// A TOML text as a validator sees it.
fn value(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).expect("it is TOML")).expect("it is JSON")
}

fn refusals(schema: &jsonschema::Validator, text: &str) -> Vec<String> {
    schema.iter_errors(&value(text)).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// What `Pipeline::load` says of a text.
fn loads(text: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    Pipeline::load(&path).is_ok()
}

/// Whether `Pipeline::load` finds a number out of its bounds.
fn is_out_of_bounds(text: &str, key: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.toml");
    std::fs::write(&path, text).unwrap();
    let error = Pipeline::load(&path).err();
    let faults = error.iter().flat_map(causeway_pipelines::PipelineError::faults);
    faults.into_iter().any(|fault| fault.key.as_deref() == Some(key) && fault.message.contains("must be "))
}

#[test]
fn the_schemas_in_the_repository_are_those_of_the_types() {
    for (file, schema) in [("pipeline.schema.json", json_schema()), ("pipeline-tests.schema.json", tests_json_schema())]
    {
        let path = folder().join("../schemas").join(file);
        let there = std::fs::read_to_string(&path).unwrap_or_default();
        let same = there == format!("{schema:#}\n");
        assert!(same, "schemas/{file} is not what the types say any more: run ./dev schema, and look at what changed");
    }
}

#[test]
fn every_pipeline_of_this_folder_names_the_schema_and_fits_it() {
    let cases = [
        ("", "../schemas/pipeline.schema.json", json_schema()),
        ("tests", "../../schemas/pipeline-tests.schema.json", tests_json_schema()),
    ];
    for (below, place, schema) in cases {
        let schema = validator(&schema);
        let mut seen = 0;
        for file in std::fs::read_dir(folder().join(below)).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|end| end != "toml") || path.ends_with("Cargo.toml") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().next(), Some(&*format!("#:schema {place}")), "{}", path.display());
            assert_eq!(refusals(&schema, &text), Vec::<String>::new(), "{}", path.display());
            seen += 1;
        }
        assert!(seen > 0, "{below}");
    }
}

/// A pipeline whose `[stage.NAME]` has these keys, whatever it uses; the rest is right.
fn with_stage(uses: &str, keys: &str) -> String {
    let mut text = String::from("pipeline = \"p\"\n");
    for known in USES {
        let from = USES.iter().find(|giver| Some(giver.gives) == known.takes);
        let own = if known.name == uses { keys } else { "" };
        text.extend(["[stage.", known.name, "]\n", own, "\n"]);
        if let Some(from) = from.filter(|_| !own.contains("from =")) {
            text.extend(["from = \"", from.name, "\"\n"]);
        }
        if needs_model(known.name) && !own.contains("model =") {
            text += "model = \"m\"\n";
        }
    }
    text
}

fn needs_model(uses: &str) -> bool {
    json_schema()["definitions"][uses]["required"].as_array().is_some_and(|all| all.contains(&json!("model")))
}

/// Every key of every stage that is a number, a dotted one where it stands in a table.
fn numbers_of(uses: &str) -> Vec<(String, Value)> {
    fn below(prefix: &str, schema: &Value, found: &mut Vec<(String, Value)>) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let kind = &property["type"];
            if kind == "number" || kind == "integer" {
                found.push((format!("{prefix}{key}"), property.clone()));
            } else if kind == "object" {
                below(&format!("{prefix}{key}."), property, found);
            }
        }
    }
    let mut found = Vec::new();
    below("", &json_schema()["definitions"][uses], &mut found);
    found
}

/// Whoever adds a key with a bound to `check` and not to the schema, or the other way, meets this.
#[test]
fn the_schema_and_validate_agree_about_every_number() {
    let schema = validator(&json_schema());
    let mut seen = 0;
    for uses in USES {
        for (key, property) in numbers_of(uses.name) {
            let least = property["minimum"].as_f64().or(property["exclusiveMinimum"].as_f64());
            let most = property["maximum"].as_f64().or(property["exclusiveMaximum"].as_f64());
            let step = property["multipleOf"].as_f64().unwrap_or(1.0);
            let tries =
                [least.unwrap_or(-1e6) - step, least.unwrap_or(-1e6), most.unwrap_or(1e6), most.unwrap_or(1e6) + step];
            for number in tries.into_iter().chain([0.0, -1.0, 1e12]) {
                let text = with_stage(uses.name, &format!("{key} = {number:?}\n"));
                let whole = with_stage(uses.name, &format!("{key} = {}\n", number as i64));
                let text = if property["type"] == "integer" { whole } else { text };
                let fits = refusals(&schema, &text);
                assert_eq!(
                    fits.is_empty(),
                    !is_out_of_bounds(&text, &key),
                    "[stage.{}] {key} = {number}: `validate` and the schema do not agree. Bounds that `check` of its options \
                     has stand beside the field too: #[schemars(range(…))]. {fits:?}",
                    uses.name
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn a_fault_that_a_schema_can_express_is_refused() {
    let schema = validator(&json_schema());
    let good = "pipeline = \"p\"\n[stage.capture]\n[stage.preprocess]\nfrom = \"capture\"\nmodel = \"m\"\n";
    assert_eq!(refusals(&schema, good), Vec::<String>::new());
    let cases = [
        ("pipeline = \"p\"", "name = \"p\"", "\"pipeline\" is a required property"),
        ("pipeline = \"p\"", "pipeline = \"my_p\"", "/pipeline"),
        ("pipeline = \"p\"", "pipeline = 7", "/pipeline"),
        ("pipeline = \"p\"", "pipeline = \"p\"\nnames = 1", "names"),
        ("pipeline = \"p\"", "pipeline = \"p\"\n[keep]\ncaptured = { age = \"7 dys\" }", "/keep/captured/age"),
        ("pipeline = \"p\"", "pipeline = \"p\"\n[keep]\ncaptured = { bytes = \"8 MoB\" }", "/keep/captured/bytes"),
        ("pipeline = \"p\"", "pipeline = \"p\"\n[keep]\ncapture = { age = \"7d\" }", "capture"),
        ("pipeline = \"p\"", "pipeline = \"p\"\n[site.edge]\nhub = 1", "/site/edge"),
        ("pipeline = \"p\"", "pipeline = \"p\"\n[site.edge]\nhubs = true", "/site/edge"),
        ("pipeline = \"p\"", "pipeline = \"p\"\n[site.edge]\nfirst = \"never\"", "/site/edge"),
        ("[stage.capture]", "[stage.relay-x]\nuses = \"capture\"", "relay-x"),
        ("[stage.capture]", "[stage.capture]\nmodel = \"m\"", "model"),
        ("[stage.capture]", "[stage.capture]\nfrom = \"preprocess\"", "from"),
        ("[stage.capture]", "[stage.capture]\nworkers = 2", "/stage/capture/workers"),
        ("[stage.capture]", "[stage.capture]\nrate = \"fast\"", "/stage/capture/rate"),
        ("[stage.capture]", "[stage.capture]\nmax_bytes = \"lots\"", "/stage/capture/max_bytes"),
        ("[stage.capture]", "[stage.capture]\nemits = \"empty\"", "/stage/capture/emits"),
        ("[stage.capture]", "[stage.capture]\nemits = \"a.b\"", "/stage/capture/emits"),
        ("[stage.capture]", "[stage.capture]\nbatch = { maxi = 1 }", "/stage/capture/batch"),
        ("[stage.capture]", "[stage.door]", "\"uses\" is a required property"),
        ("[stage.capture]", "[stage.door]\nuses = \"captur\"", "/stage/door/uses"),
        ("[stage.capture]", "[stage.door]\nuses = \"capture\"\nmodel = \"m\"", "model"),
        ("[stage.capture]", "[stage.cap]\nuses = \"capture\"\nmodel = \"m\"", "model"),
        ("[stage.capture]", "[stage.captures]\nuses = \"capture\"\nrates = 1", "rates"),
        ("[stage.capture]", "[stage.capture]\nuses = \"extract\"\nrate = 1.0", "rate"),
        ("[stage.capture]", "[stage.Door]\nuses = \"capture\"", "Door"),
        ("[stage.capture]", "[stage.dead]\nuses = \"capture\"", "dead"),
        ("[stage.capture]", "[stage.a_log]\nuses = \"capture\"", "a_log"),
        ("from = \"capture\"", "", "\"from\" is a required property"),
        ("from = \"capture\"", "from = 3", "/stage/preprocess/from"),
        ("model = \"m\"", "", "\"model\" is a required property"),
        ("model = \"m\"", "model = \"../m\"", "/stage/preprocess/model"),
        ("model = \"m\"", "model = \"m\"\ngate = { min_scor = 1 }", "/stage/preprocess/gate"),
        ("model = \"m\"", "model = \"m\"\n[[test]]\nname = \"t\"", "required property"),
        (
            "model = \"m\"",
            "model = \"m\"\n[[test]]\nname = \"t\"\nstage = \"s\"\ninput = \"i\"\nexpect = { cont = 1 }",
            "cont",
        ),
        (
            "model = \"m\"",
            "model = \"m\"\n[[test]]\nname = \"t\"\nstage = \"s\"\ninput = \"i\"\nexpect = [{ cont = 1 }]",
            "cont",
        ),
    ];
    for (from, to, word) in cases {
        let text = good.replacen(from, to, 1);
        let found = refusals(&schema, &text);
        assert!(found.iter().any(|error| error.contains(word)), "{to}: {found:?}");
        assert!(!loads(&text) || to.contains("[[test]]"), "`validate` takes {to}");
    }
    // A stage of a known name that uses another has the other's keys.
    for other in [
        "[stage.capture]\nuses = \"capture\"",
        "[stage.camera]\nuses = \"capture\"\nrate = 2",
        "[stage.captur]\nuses = \"capture\"",
    ] {
        let text = good.replacen("[stage.capture]", other, 1);
        assert_eq!(refusals(&schema, &text), Vec::<String>::new(), "{other}");
    }
}

#[test]
fn sizes_and_ages_are_read_as_the_schema_says() {
    let schema = validator(&json_schema());
    for age in ["7d", "36h", "1h 30m", "2 weeks", "7 dys", "", "d", "7", "5min", "1y"] {
        let text = with_stage("", "").replacen('\n', &format!("\nkeep = {{ captured = {{ age = \"{age}\" }} }}\n"), 1);
        assert_eq!(refusals(&schema, &text).is_empty(), loads(&text), "{age}");
    }
    for size in ["256MiB", "1.5 GiB", "10mb", "2g", "9000000B", "8 MoB", "MiB", "", "-1", "5000000"] {
        let text = with_stage("extract", &format!("link_bytes = \"{size}\""));
        assert_eq!(refusals(&schema, &text).is_empty(), loads(&text), "{size}");
    }
}

#[test]
fn every_key_says_what_it_is() {
    fn look(place: &str, schema: &Value) {
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let place = format!("{place}/{key}");
            assert!(property["description"].as_str().is_some_and(|text| text.len() > 8), "{place} is not described");
            look(&place, property);
        }
    }
    let schema = json_schema();
    for (name, definition) in schema["definitions"].as_object().unwrap() {
        look(name, definition);
    }
    assert_eq!(schema["definitions"]["classify"]["properties"]["threshold"]["default"], json!(0.4));
}

/// The schemas that a language server finds for a key: by `properties`, `patternProperties`, `items` and the alternatives, never
/// by `if` (taplo 0.9's way).
fn shown<'a>(root: &'a Value, schema: &'a Value, path: &[&str], found: &mut Vec<&'a Value>) {
    if let Some(refer) = schema["$ref"].as_str() {
        let definition = root.pointer(refer.trim_start_matches('#')).expect("what is referred to is there");
        return shown(root, definition, path, found);
    }
    for alternatives in ["oneOf", "anyOf", "allOf"] {
        for one in schema[alternatives].as_array().into_iter().flatten() {
            shown(root, one, path, found);
        }
    }
    let Some((key, rest)) = path.split_first() else {
        return found.push(schema);
    };
    shown_below(root, schema, key, rest, found);
}

fn shown_below<'a>(root: &'a Value, schema: &'a Value, key: &str, rest: &[&str], found: &mut Vec<&'a Value>) {
    for below in [&schema["items"], &schema["properties"][key], &schema["additionalProperties"]] {
        if below.is_object() {
            shown(root, below, rest, found);
        }
    }
    for (pattern, below) in schema["patternProperties"].as_object().into_iter().flatten() {
        // As a validator reads it: no look-ahead, so that every reader's regular expressions do.
        assert!(!pattern.contains("(?!"), "{pattern}");
        if validator(&json!({ "pattern": pattern })).is_valid(&json!(key)) {
            shown(root, below, rest, found);
        }
    }
}

/// The keys that are offered in a table.
fn offered(path: &[&str]) -> std::collections::BTreeSet<String> {
    let root = json_schema();
    let mut found = Vec::new();
    shown(&root, &root, path, &mut found);
    found
        .iter()
        .flat_map(|schema| schema["properties"].as_object().into_iter().flatten())
        .map(|(key, _)| key.clone())
        .collect()
}

#[test]
fn an_editor_offers_the_keys_of_a_stage_and_explains_them() {
    let capture = offered(&["stage", "capture"]);
    for key in ["uses", "site", "workers", "batch", "input", "rate", "max_pixels"] {
        assert!(capture.contains(key), "{key} is not offered: {capture:?}");
    }
    for key in ["model", "from", "threshold", "gate"] {
        assert!(!capture.contains(key), "{key} is no key of capture");
    }
    assert!(offered(&["stage", "preprocess", "gate"]).contains("min_score"));
    // Which stage another name uses is not known before it is written: every stage's keys are offered.
    let who = offered(&["stage", "who"]);
    assert!(who.contains("threshold") && who.contains("gate") && who.contains("uses"), "{who:?}");
    assert!(offered(&["stage"]).contains("cluster") && offered(&[]).contains("keep"));
    assert!(offered(&["test", "0", "expect"]).contains("label"));

    let root = json_schema();
    let mut found = Vec::new();
    shown(&root, &root, &["stage", "classify", "threshold"], &mut found);
    let texts: Vec<&str> = found.iter().filter_map(|schema| schema["description"].as_str()).collect();
    assert!(matches!(texts[..], [only] if only.starts_with("Unknown below this cosine")), "{texts:?}");
}
