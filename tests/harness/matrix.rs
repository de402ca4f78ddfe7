use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, jetstream};
use futures::StreamExt as _;

use crate::{Keyed, Tools};

/// Two edges and a cloud, whose stages all have keys.
pub const KEYED_SITES: &str = r#"
pipeline = "faces"
[site.edge]
credentials = "keys/edge"
[site.other]
credentials = "keys/other"
[site.cloud]
hub = true
credentials = "keys/cloud"
[stage.capture]
site = ["edge", "other"]
[stage.preprocess]
site = ["edge", "other"]
from = "capture"
model = "yunet"
[stage.extract]
site = ["edge", "other"]
from = "preprocess"
model = "sface"
[stage.classify]
site = "cloud"
may_move_to = "edge"
from = "extract"
[stage.cluster]
site = "cloud"
from = "extract"
"#;

/// A stage between two others.
macro_rules! between {
    ($name:literal, $from:literal, $gives:literal) => {
        [
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.{KV_faces_replicas,KV_faces_placement,KV_faces_attempts,OBJ_faces_bodies}",
            concat!("$JS.API.STREAM.INFO.faces_", $from),
            "$JS.API.STREAM.MSG.GET.KV_faces_placement",
            "$JS.API.DIRECT.GET.{KV_faces_placement,OBJ_faces_bodies}",
            "$JS.API.DIRECT.GET.{KV_faces_placement,OBJ_faces_bodies}.>",
            concat!("$JS.API.DIRECT.GET.KV_faces_attempts.$KV.faces_attempts.", $name, ".*"),
            concat!("$JS.API.CONSUMER.{INFO,MSG.NEXT}.faces_", $from, ".", $name),
            concat!("$JS.ACK.faces_", $from, ".", $name, ".>"),
            concat!("$KV.{faces_replicas,faces_attempts}.", $name, ".*"),
            "$O.faces_bodies.>",
            concat!("_CAUSEWAY.faces.edge.letter.", $name),
            concat!("faces.", $gives, ".>"),
            "faces.empty.>",
            concat!("faces.{dead,receipt}.*.*.", $name, ".*"),
        ]
    };
}

/// How long an answer may take; that nobody answers is said at once.
const ANSWER: Duration = Duration::from_secs(1);
/// The same of who may do all.
const STORED: Duration = Duration::from_secs(20);

/// What each key is for, written down once more: whom, at which server, and what it may send to and hear. `{…}` are alternatives.
const MAY: &[(&str, &str, &[&str], &[&str])] = &[
    (
        "edge/capture",
        "edge",
        &[
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.{KV_faces_replicas,KV_faces_placement,KV_faces_control,OBJ_faces_bodies}",
            "$JS.API.STREAM.MSG.GET.KV_faces_placement",
            "$JS.API.DIRECT.GET.KV_faces_placement",
            "$JS.API.DIRECT.GET.KV_faces_placement.>",
            "$JS.API.DIRECT.GET.KV_faces_control.$KV.faces_control.epoch.capture=40edge",
            "$JS.API.DIRECT.GET.OBJ_faces_bodies.>",
            "$KV.faces_control.epoch.capture=40edge",
            "$KV.faces_replicas.capture.*",
            "$O.faces_bodies.>",
            "_CAUSEWAY.faces.edge.done",
            "faces.frame.edge.capture",
            "faces.empty.>",
            "faces.{dead,receipt}.*.*.capture.*",
        ],
        &["$KV.faces_placement.>"],
    ),
    ("edge/preprocess", "edge", &STAGE_PREPROCESS, &["$KV.faces_placement.>"]),
    ("edge/extract", "edge", &STAGE_EXTRACT, &["$KV.faces_placement.>"]),
    ("edge/classify", "edge", &STAGE_CLASSIFY, &["$KV.faces_placement.>", "$KV.faces_people.>"]),
    ("cloud/classify", "cloud", &STAGE_CLASSIFY, &["$KV.faces_placement.>", "$KV.faces_people.>"]),
    (
        "cloud/cluster",
        "cloud",
        &[
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.{KV_faces_replicas,KV_faces_placement,KV_faces_attempts,KV_faces_control,OBJ_faces_bodies}",
            "$JS.API.STREAM.INFO.{faces_extract,faces_cluster,faces_cluster_log,faces_cluster_state}",
            "$JS.API.STREAM.MSG.GET.{KV_faces_placement,faces_cluster,faces_cluster_log,faces_cluster_state}",
            "$JS.API.DIRECT.GET.{KV_faces_placement,OBJ_faces_bodies,faces_cluster,faces_cluster_log,faces_cluster_state}",
            "$JS.API.DIRECT.GET.{KV_faces_placement,OBJ_faces_bodies}.>",
            "$JS.API.DIRECT.GET.KV_faces_control.$KV.faces_control.unfolded.cluster",
            "$JS.API.DIRECT.GET.KV_faces_attempts.$KV.faces_attempts.cluster.*",
            "$JS.API.CONSUMER.{INFO,MSG.NEXT}.faces_extract.cluster",
            "$JS.ACK.faces_extract.cluster.>",
            "$KV.faces_control.unfolded.cluster",
            "$KV.faces_replicas.cluster.*",
            "$KV.faces_attempts.cluster.*",
            "$O.faces_bodies.>",
            "_CAUSEWAY.faces.cloud.letter.cluster",
            "faces.assignment.>",
            "faces.log.cluster",
            "faces.log.cluster.state",
            "faces.empty.>",
            "faces.{dead,receipt}.*.*.cluster.*",
        ],
        &["$KV.faces_placement.>"],
    ),
    (
        "edge/relay",
        "edge",
        &[
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.{KV_faces_replicas,KV_faces_placement,KV_faces_people,OBJ_faces_bodies}",
            "$JS.API.STREAM.INFO.{faces_extract,faces_classify,faces_empty,faces_receipt}",
            "$JS.API.STREAM.MSG.GET.{KV_faces_placement,KV_faces_people}",
            "$JS.API.STREAM.MSG.GET.{faces_extract,faces_classify,faces_empty,faces_receipt}",
            "$JS.API.DIRECT.GET.{KV_faces_placement,KV_faces_people,OBJ_faces_bodies}",
            "$JS.API.DIRECT.GET.{faces_extract,faces_classify,faces_empty,faces_receipt}",
            "$JS.API.DIRECT.GET.{KV_faces_placement,KV_faces_people,OBJ_faces_bodies}.>",
            "$JS.API.CONSUMER.{INFO,MSG.NEXT}.{faces_extract,faces_classify,faces_empty,faces_receipt}.relay-cloud",
            "$JS.ACK.{faces_extract,faces_classify,faces_empty,faces_receipt}.relay-cloud.>",
            "$KV.faces_replicas.relay.*",
            "$KV.{faces_placement,faces_people}.>",
            "$O.faces_bodies.>",
            // Classify may be moved here, with what the other site captures.
            "faces.feature.other.>",
            "faces.{decision,assignment,empty,receipt}.edge.>",
        ],
        &["$KV.faces_placement.>", "$KV.faces_people.>"],
    ),
    (
        "other/relay",
        "cloud",
        &[
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.{KV_faces_replicas,KV_faces_placement,OBJ_faces_bodies}",
            "$JS.API.STREAM.INFO.{faces_classify,faces_cluster,faces_empty,faces_receipt}",
            "$JS.API.STREAM.MSG.GET.KV_faces_placement",
            "$JS.API.DIRECT.GET.{KV_faces_placement,OBJ_faces_bodies}",
            "$JS.API.DIRECT.GET.{KV_faces_placement,OBJ_faces_bodies}.>",
            "$JS.API.CONSUMER.{INFO,MSG.NEXT}.{faces_classify,faces_cluster,faces_empty,faces_receipt}.relay-other",
            "$JS.ACK.{faces_classify,faces_cluster,faces_empty,faces_receipt}.relay-other.>",
            "$KV.faces_replicas.relay=40other.*",
            "$KV.faces_placement.site-other",
            "$O.faces_bodies.>",
            // It tells of its own captures alone.
            "faces.{feature,empty,receipt}.other.>",
        ],
        &["$KV.faces_placement.>"],
    ),
    (
        "cloud/dashboard",
        "cloud",
        &[
            "$JS.API.INFO",
            "$JS.API.STREAM.INFO.{faces_classify,faces_cluster,faces_empty}",
            "$JS.API.DIRECT.GET.{faces_classify,faces_cluster,faces_empty}",
            "$JS.API.DIRECT.GET.{faces_classify,faces_cluster,faces_empty}.>",
        ],
        &["faces.{decision,assignment,empty}.>"],
    ),
];

const STAGE_PREPROCESS: [&str; 15] = between!("preprocess", "capture", "crop");
const STAGE_EXTRACT: [&str; 15] = between!("extract", "preprocess", "feature");
const STAGE_CLASSIFY: [&str; 18] = [
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.{KV_faces_replicas,KV_faces_placement,KV_faces_attempts,KV_faces_people,OBJ_faces_bodies}",
    "$JS.API.STREAM.INFO.faces_extract",
    "$JS.API.STREAM.MSG.GET.{KV_faces_placement,KV_faces_people}",
    "$JS.API.DIRECT.GET.{KV_faces_placement,KV_faces_people,OBJ_faces_bodies}",
    "$JS.API.DIRECT.GET.{KV_faces_placement,KV_faces_people,OBJ_faces_bodies}.>",
    "$JS.API.DIRECT.GET.KV_faces_attempts.$KV.faces_attempts.classify.*",
    "$JS.API.CONSUMER.INFO.faces_extract.classify",
    "$JS.API.CONSUMER.MSG.NEXT.faces_extract.classify",
    "$JS.ACK.faces_extract.classify.>",
    "$KV.faces_replicas.classify.*",
    "$KV.faces_attempts.classify.*",
    "$O.faces_bodies.>",
    "_CAUSEWAY.faces.*.letter.classify",
    "faces.decision.>",
    "faces.empty.>",
    "faces.dead.*.*.classify.*",
    "faces.receipt.*.*.classify.*",
];

/// All ways to read a pattern with alternatives.
fn read(pattern: &str) -> Vec<String> {
    let Some((before, rest)) = pattern.split_once('{') else { return vec![pattern.into()] };
    let (inside, after) = rest.split_once('}').expect("an end");
    let rest = read(after);
    inside.split(',').flat_map(|one| rest.iter().map(move |rest| format!("{before}{one}{rest}"))).collect()
}

/// Whether a subject is one of a pattern's.
fn is_of(subject: &str, pattern: &str) -> bool {
    let (mut subject, mut pattern) = (subject.split('.'), pattern.split('.'));
    loop {
        match (subject.next(), pattern.next()) {
            (Some(_), Some(">")) | (None, None) => return true,
            (Some(_), Some("*")) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Everything that somebody might send at a server: all verbs of its interface on all that lies there, and all sorts of messages.
async fn everything(agent: &Client, site: &str) -> BTreeSet<String> {
    let mut all: BTreeSet<String> = [
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.LIST",
        "$JS.API.STREAM.CREATE.thief",
        "$JS.API.STREAM.RESTORE.thief",
        "$JS.API.ACCOUNT.PURGE.faces",
        "$SYS.REQ.SERVER.PING",
        "_CAUSEWAY.faces.edge.done",
        "_CAUSEWAY.faces.cloud.done",
    ]
    .map(Into::into)
    .into();
    let stages = ["capture", "preprocess", "extract", "classify", "cluster"];
    all.extend(stages.map(|stage| format!("_CAUSEWAY.faces.{site}.letter.{stage}")));
    let js = jetstream::new(agent.clone());
    let mut streams = js.streams();
    while let Some(stream) = streams.next().await {
        let stream = stream.expect("it is listed");
        let name = &stream.config.name;
        for verb in
            ["INFO", "UPDATE", "DELETE", "PURGE", "SNAPSHOT", "MSG.GET", "MSG.DELETE", "LEADER.STEPDOWN", "PEER.REMOVE"]
        {
            all.insert(format!("$JS.API.STREAM.{verb}.{name}"));
        }
        for verb in ["LIST", "NAMES", "CREATE"] {
            all.insert(format!("$JS.API.CONSUMER.{verb}.{name}"));
        }
        all.insert(format!("$JS.API.CONSUMER.CREATE.{name}.thief"));
        all.insert(format!("$JS.API.CONSUMER.DURABLE.CREATE.{name}.thief"));
        all.insert(format!("$JS.API.DIRECT.GET.{name}"));
        for subject in &stream.config.subjects {
            let subject = subject.replace('>', "thief");
            all.insert(format!("$JS.API.CONSUMER.CREATE.{name}.thief.{subject}"));
            all.insert(format!("$JS.API.DIRECT.GET.{name}.{subject}"));
        }
        let handle = js.get_stream(name).await.expect("it is there");
        let mut consumers = handle.consumer_names();
        while let Some(consumer) = consumers.next().await {
            let consumer = consumer.expect("it is listed");
            for verb in ["INFO", "DELETE", "MSG.NEXT", "PAUSE", "UNPIN", "LEADER.STEPDOWN"] {
                all.insert(format!("$JS.API.CONSUMER.{verb}.{name}.{consumer}"));
            }
            all.insert(format!("$JS.ACK.{name}.{consumer}.1.1.1.1.1"));
        }
    }
    for (site, source) in [("edge", "capture"), ("edge", "thief"), ("other", "capture"), ("cloud", "capture")] {
        for link in ["frame", "crop", "feature"] {
            all.insert(format!("faces.{link}.{site}.{source}"));
        }
        for link in ["decision", "assignment", "empty"] {
            all.insert(format!("faces.{link}.{site}.{source}.thief"));
        }
        for (link, stage) in ["dead", "receipt"].into_iter().flat_map(|link| stages.map(|stage| (link, stage))) {
            all.insert(format!("faces.{link}.{site}.{source}.{stage}.thief"));
        }
    }
    for table in ["people", "control", "placement", "attempts", "replicas"] {
        let keys = [
            "thief",
            "epoch.capture",
            "epoch.capture=40edge",
            "epoch.thief",
            "unfolded.cluster",
            "placement",
            "site-edge",
            "site-other",
            "site-cloud",
        ];
        let of_stages = stages.iter().chain(&["relay", "relay=40edge", "relay=40other", "thief"]);
        let keys = keys.map(ToOwned::to_owned).into_iter().chain(of_stages.map(|stage| format!("{stage}.thief")));
        for key in keys {
            all.insert(format!("$KV.faces_{table}.{key}"));
            all.insert(format!("$JS.API.DIRECT.GET.KV_faces_{table}.$KV.faces_{table}.{key}"));
        }
    }
    all.extend(
        [
            "faces.log.cluster",
            "faces.log.cluster.state",
            "faces.log.thief",
            "$O.faces_bodies.C.thief",
            "$O.faces_bodies.M.thief",
        ]
        .map(Into::into),
    );
    all
}

/// Whether somebody takes what is sent there. That nobody does is said at once.
///
/// # Panics
/// When it cannot be asked.
pub async fn is_taken(client: &Client, subject: &str) -> bool {
    match tokio::time::timeout(ANSWER, client.request(subject.to_owned(), "".into())).await {
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => false,
        Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => panic!("{subject}: {error}"),
        _ => true,
    }
}

/// The servers of edge and cloud as they are deployed, with all that lies there, and a reader.
///
/// # Panics
/// When they do not start.
pub async fn keyed(tools: &Tools) -> Keyed {
    let mut keyed = Keyed::new(tools, KEYED_SITES).await;
    keyed.keys(&["--site=cloud", "--reader=dashboard"]).await;
    for site in ["edge", "cloud"] {
        keyed.serve(site, "127.0.0.1").await;
        keyed.apply(site).await;
    }
    keyed
}

/// What was tried of the keys, and what was not as it is written down.
#[derive(Debug, Default)]
pub struct Matrix {
    /// Keys, each at a server.
    pub identities: usize,
    /// How much was tried.
    pub tried: usize,
    /// What one may and should not.
    pub allows: Vec<String>,
    /// What one may not and should.
    pub denials: Vec<String>,
}

/// Tries with every key to send everything that can be sent, and looks what it hears of all that is stored.
///
/// # Panics
/// When something cannot be tried.
pub async fn matrix(tools: &Tools) -> Matrix {
    let keyed = keyed(tools).await;
    let mut matrix = Matrix::default();
    for site in ["edge", "cloud"] {
        let agent = keyed.client(&format!("{site}/agent"), site).await;
        let everything = everything(&agent, site).await;
        // Somebody answers, as a running agent would.
        let mut asked = agent.subscribe("_CAUSEWAY.>").await.expect("it may");
        let answers = agent.clone();
        let answering = tokio::spawn(async move {
            while let Some(asked) = asked.next().await {
                if let Some(reply) = asked.reply {
                    answers.publish(reply, "".into()).await.expect("it is sent");
                }
            }
        });
        for (key, _, sends, hears) in MAY.iter().filter(|(_, at, ..)| *at == site) {
            let client = keyed.client(key, site).await;
            matrix.identities += 1;
            let sends: Vec<String> = sends.iter().flat_map(|pattern| read(pattern)).collect();
            for subject in &everything {
                let (may, does) =
                    (sends.iter().any(|pattern| is_of(subject, pattern)), is_taken(&client, subject).await);
                matrix.tried += 1;
                match (may, does) {
                    (false, true) => matrix.allows.push(format!("{key} at {site} may send to {subject}")),
                    (true, false) => matrix.denials.push(format!("{key} at {site} may not send to {subject}")),
                    _ => {}
                }
            }
            let hears: Vec<String> = hears.iter().flat_map(|pattern| read(pattern)).collect();
            let (met, expected) = heard(&agent, &client, &everything, &hears).await;
            let said = |verb: &str, subject: &String| format!("{key} at {site} {verb} {subject}");
            matrix.allows.extend(met.difference(&expected).map(|subject| said("hears", subject)));
            matrix.denials.extend(expected.difference(&met).map(|subject| said("does not hear", subject)));
            matrix.tried += everything.len();
        }
        answering.abort();
    }
    matrix
}

/// What a client hears of all that is stored, and what it should.
async fn heard(
    agent: &Client,
    client: &Client,
    everything: &BTreeSet<String>,
    hears: &[String],
) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut heard = client.subscribe(">").await.expect("a subscription in its own account");
    client.flush().await.expect("it is sent");
    let is_message = |subject: &&String| !subject.starts_with("$JS.") && !subject.starts_with("$SYS.");
    let mut expected = BTreeSet::new();
    for subject in everything.iter().filter(is_message) {
        if let Ok(Ok(_)) = tokio::time::timeout(STORED, agent.request(subject.clone(), "".into())).await
            && hears.iter().any(|pattern| is_of(subject, pattern))
        {
            expected.insert(subject.clone());
        }
    }
    agent.flush().await.expect("it is sent");
    let mut met = BTreeSet::new();
    while let Ok(Some(message)) = tokio::time::timeout(ANSWER, heard.next()).await {
        // One that it had pulled is not heard.
        if message.reply.is_none_or(|reply| !reply.starts_with("$JS.ACK.")) {
            met.insert(message.subject.to_string());
        }
    }
    (met, expected)
}
