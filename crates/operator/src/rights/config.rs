//! The accounts of a site's server, as its configuration has them.

use std::collections::{BTreeMap, BTreeSet};

use causeway_bus::names;
use serde_json::{Map, Value, json};

use super::{AGENT, Identity, Right};

/// The accounts of a pipeline, one for each identity, with the public key that each of them signs in with. One whose key is not known is
/// left out.
///
/// JSON, which the configuration of nats-server is a superset of.
pub(crate) fn accounts(pipeline: &str, identities: &[Identity], keys: &BTreeMap<String, String>) -> Value {
    let known = || identities.iter().filter_map(|identity| Some((identity, keys.get(&identity.name)?)));
    let users = |key: &str| json!([{ "nkey": key }]);
    // The same subject may be given to many.
    let mut given: BTreeMap<Export, BTreeSet<String>> = BTreeMap::new();
    let mut accounts = Map::new();
    for (identity, key) in known().filter(|(identity, _)| identity.name != AGENT) {
        let account = account_of(pipeline, &identity.name);
        let imports: Vec<Value> = identity.rights.iter().map(|right| import(pipeline, right)).collect();
        for right in &identity.rights {
            given.entry(Export::of(right)).or_default().insert(account.clone());
        }
        accounts.insert(account, json!({ "users": users(key), "imports": imports }));
    }
    let exports: Vec<Value> = given.iter().map(|(export, to)| export.to_json(to)).collect();
    let agent = known().find(|(identity, _)| identity.name == AGENT).map(|(_, key)| users(key)).unwrap_or(json!([]));
    accounts.insert(pipeline.into(), json!({ "jetstream": "enabled", "users": agent, "exports": exports }));
    Value::Object(accounts)
}

/// The account of an identity.
fn account_of(pipeline: &str, identity: &str) -> String {
    format!("{pipeline}/{identity}")
}

/// What the pipeline's account gives to others.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Export {
    Answered { subject: String, often: bool },
    Told(String),
}

impl Export {
    fn of(right: &Right) -> Self {
        match right {
            Right::Ask(subject) => Self::Answered { subject: subject.clone(), often: false },
            Right::AskMany(subject) => Self::Answered { subject: subject.clone(), often: true },
            Right::Hear(subject) => Self::Told(names::stored(subject)),
        }
    }

    fn to_json(&self, to: &BTreeSet<String>) -> Value {
        match self {
            Self::Answered { subject, often: false } => json!({ "service": subject, "accounts": to }),
            Self::Answered { subject, often: true } => {
                json!({ "service": subject, "response_type": "Stream", "accounts": to })
            }
            Self::Told(subject) => json!({ "stream": subject, "accounts": to }),
        }
    }
}

fn import(pipeline: &str, right: &Right) -> Value {
    match right {
        Right::Ask(subject) | Right::AskMany(subject) => {
            json!({ "service": { "account": pipeline, "subject": subject } })
        }
        // It hears it where everybody else would.
        Right::Hear(subject) => {
            json!({ "stream": { "account": pipeline, "subject": names::stored(subject) }, "to": subject })
        }
    }
}
