//! What each key opens, for a person.

use std::collections::BTreeSet;

use causeway_pipelines::Pipeline;
use serde_json::{Value, json};

use crate::rights::{AGENT, Identity, Right, identities};
use crate::terminal::table;

/// What one key opens.
#[derive(Default)]
struct Opens {
    /// Streams that it takes from, by its own durables.
    takes: BTreeSet<String>,
    /// Streams that it may read whole, tables among them.
    reads: BTreeSet<String>,
    /// What it may store, and ask of the agent.
    stores: BTreeSet<String>,
}

impl Opens {
    fn of(identity: &Identity) -> Self {
        if identity.name == AGENT {
            let all = || BTreeSet::from(["everything of the pipeline".to_owned()]);
            return Self { takes: all(), reads: all(), stores: all() };
        }
        let mut opens = Self::default();
        for right in &identity.rights {
            match right {
                Right::AskMany(subject) => match subject.split('.').collect::<Vec<_>>()[..] {
                    ["$JS", "API", "CONSUMER", "MSG", "NEXT", stream, _] => drop(opens.takes.insert(stream.into())),
                    ["$JS", "API", "DIRECT", "GET", stream] => drop(opens.reads.insert(stream.into())),
                    _ => {}
                },
                // What is asked of the server opens nothing by itself, but a single key of a table.
                Right::Ask(subject) => match subject.strip_prefix("$JS.API.DIRECT.GET.") {
                    Some(of) if !of.ends_with(".>") => drop(opens.reads.insert(of.into())),
                    None if !subject.starts_with("$JS.") => drop(opens.stores.insert(subject.clone())),
                    _ => {}
                },
                Right::Hear(subject) => drop(opens.reads.insert(subject.clone())),
            }
        }
        opens
    }
}

/// Of everybody at a site, as lines of a table.
pub(super) fn shown(pipeline: &Pipeline, readers: &[String]) -> String {
    let rows = identities(pipeline, readers).into_iter().map(|identity| {
        let Opens { takes, reads, stores } = Opens::of(&identity);
        let list = |of: BTreeSet<String>| of.into_iter().collect::<Vec<_>>().join("\n");
        vec![identity.name, list(takes), list(reads), list(stores)]
    });
    table(&["KEY", "TAKES FROM", "READS", "STORES, ASKS"], &[], rows.collect())
}

/// The same as an object.
pub(super) fn told(pipeline: &Pipeline, readers: &[String]) -> Value {
    let of = |identity: &Identity| {
        let Opens { takes, reads, stores } = Opens::of(identity);
        json!({ "key": identity.name, "takes": takes, "reads": reads, "stores": stores })
    };
    json!({ "site": pipeline.here, "keys": identities(pipeline, readers).iter().map(of).collect::<Vec<_>>() })
}
