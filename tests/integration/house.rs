//! The house rules that no linter knows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

use harness::workspace;

/// An outside thing and the one crate that may know it.
const KNOWN_TO_ONE: &[(&str, &str)] = &[
    ("async-nats", "causeway-bus"),
    ("ort", "causeway-inference"),
    ("prost", "causeway-inference"),
    ("bincode", "causeway-schemas"),
    ("toml", "causeway-pipelines"),
    ("opentelemetry", "causeway-stage"),
    ("image", "causeway-imaging"),
    ("libjpeg-turbo-rs", "causeway-imaging"),
    ("clap_complete", "causeway-operator"),
    ("nkeys", "causeway-operator"),
    ("rcgen", "causeway-operator"),
];

/// Which crates a crate of ours may depend on: arrows point one way.
const LAYERS: &[&[&str]] = &[
    &["causeway-schemas"],
    &["causeway-pipelines", "causeway-bus", "causeway-imaging"],
    &["causeway-inference", "causeway-stage"],
    &[
        "causeway-capture",
        "causeway-preprocess",
        "causeway-extract",
        "causeway-classify",
        "causeway-cluster",
        "causeway-relay",
    ],
    &["causeway-operator"],
    &["causeway-stand-in"],
    &["causeway-tests", "causeway-fuzz"],
    &["causeway-bench"],
];

/// Who knows an outside thing beside its home: the bench measures the broker by the plain client.
const ALSO_KNOWN: &[(&str, &str)] = &[("async-nats", "causeway-bench")];

struct Package {
    manifest: PathBuf,
    /// What it is built with, not what only its tests use.
    dependencies: BTreeSet<String>,
}

fn packages() -> BTreeMap<String, Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(workspace())
        .output()
        .expect("cargo can be run");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata");
    let packages = metadata["packages"].as_array().expect("packages");
    packages
        .iter()
        .map(|package| {
            let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let built = dependencies.iter().filter(|dependency| dependency["kind"].is_null());
            let dependencies = built.map(|dependency| text(&dependency["name"])).collect();
            (text(&package["name"]), Package { manifest: text(&package["manifest_path"]).into(), dependencies })
        })
        .collect()
}

#[test]
fn each_outside_thing_is_known_to_one_crate() {
    for (name, package) in packages() {
        for (outside, home) in KNOWN_TO_ONE {
            let may = name == *home || name == "causeway-tests" || ALSO_KNOWN.contains(&(*outside, name.as_str()));
            assert!(may || !package.dependencies.contains(*outside), "{name} depends on {outside}, which is {home}'s");
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let layer = |name: &str| LAYERS.iter().position(|layer| layer.contains(&name));
    for (name, package) in packages() {
        let own = layer(&name).unwrap_or_else(|| panic!("{name} has no place in LAYERS"));
        for dependency in package.dependencies.iter().filter(|name| name.starts_with("causeway-")) {
            let theirs = layer(dependency).unwrap_or_else(|| panic!("{dependency} has no place in LAYERS"));
            assert!(theirs < own, "{name} depends on {dependency}, which is not below it");
        }
    }
}

/// Neither its source nor its manifest.
#[test]
fn no_stage_names_the_bus() {
    for (name, package) in packages() {
        let is_stage = package.manifest.starts_with(workspace().join("stages"));
        assert!(!is_stage || !package.dependencies.contains("causeway-bus"), "{name} depends on the bus");
    }
    for stage in std::fs::read_dir(workspace().join("stages")).expect("stages") {
        for file in std::fs::read_dir(stage.expect("a stage").path().join("src")).expect("its source") {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("it is text").to_lowercase();
            assert!(!text.contains("nats") && !text.contains("causeway_bus"), "{} names the bus", path.display());
        }
    }
}

#[test]
fn each_crate_says_what_it_knows_and_is_on_the_map() {
    let map = std::fs::read_to_string(workspace().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let on_map: BTreeSet<&str> = map
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.contains('-'))
        .collect();
    let packages = packages();
    for (name, package) in &packages {
        assert!(on_map.contains(name.as_str()), "{name} is not in the crate map of ARCHITECTURE.md");
        let source = package.manifest.with_file_name("src/lib.rs");
        if source.is_file() {
            let text = std::fs::read_to_string(&source).expect("it is text");
            assert!(text.starts_with("//! "), "{} does not open with what it knows", source.display());
        }
    }
    for name in on_map {
        assert!(packages.contains_key(name), "ARCHITECTURE.md has {name}, which is no crate");
    }
}

#[test]
fn every_pipeline_file_loads() {
    for file in std::fs::read_dir(workspace().join("pipelines")).expect("pipelines") {
        let path = file.expect("a file").path();
        if path.extension().is_some_and(|end| end == "toml") && !path.ends_with("Cargo.toml") {
            causeway_pipelines::Pipeline::load(&path).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
