//! Everybody has a key of his own, which opens what his part of the pipeline needs, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Client, jetstream};
use causeway_bus::{Bus, Credentials};
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use futures::StreamExt as _;
use harness::{Keyed, Running, StandIns, Tools, causeway, debian_program, eventually, stand_in_pipeline};

const SITES: &str = r#"
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
async fn is_taken(client: &Client, subject: &str) -> bool {
    match tokio::time::timeout(ANSWER, client.request(subject.to_owned(), "".into())).await {
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => false,
        Ok(Err(error)) if error.kind() != RequestErrorKind::TimedOut => panic!("{subject}: {error}"),
        _ => true,
    }
}

/// Two servers as they are deployed, with all that lies there, and a reader.
async fn keyed(tools: &Tools) -> Keyed {
    let mut keyed = Keyed::new(tools, SITES).await;
    keyed.keys(&["--site=cloud", "--reader=dashboard"]).await;
    for site in ["edge", "cloud"] {
        keyed.serve(site, "127.0.0.1").await;
        keyed.apply(site).await;
    }
    keyed
}

#[tokio::test]
async fn each_key_opens_what_it_is_for_and_nothing_else() {
    let tools = Tools::find();
    let keyed = keyed(&tools).await;
    let mut wrong = Vec::new();
    let mut tried = 0;
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
            let sends: Vec<String> = sends.iter().flat_map(|pattern| read(pattern)).collect();
            for subject in &everything {
                let (may, does) =
                    (sends.iter().any(|pattern| is_of(subject, pattern)), is_taken(&client, subject).await);
                tried += 1;
                if may != does {
                    wrong.push(format!("{key} at {site}: {} {subject}", if does { "may" } else { "may not" }));
                }
            }
            // What is heard, of all that is stored.
            let hears: Vec<String> = hears.iter().flat_map(|pattern| read(pattern)).collect();
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
            if met != expected {
                wrong.push(format!("{key} at {site} hears {met:?} and not {expected:?}"));
            }
            tried += everything.len();
        }
        answering.abort();
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 3_000, "{tried}");
}

#[tokio::test]
async fn a_stolen_key_puts_nothing_where_it_may_not_write() {
    let tools = Tools::find();
    let keyed = keyed(&tools).await;
    let agent = keyed.client("edge/agent", "edge").await;
    let js = jetstream::new(agent);
    js.publish("faces.frame.edge.capture", "a picture".into()).await.expect("it is sent").await.expect("it is stored");
    let thief = keyed.client("edge/preprocess", "edge").await;
    // What it may pull it lets the server answer elsewhere: to the next link, a table, an outcome.
    let ask = r#"{"batch":1,"expires":1000000000}"#;
    for elsewhere in [
        "faces.feature.edge.capture",
        "faces.decision.edge.capture.x",
        "$KV.faces_people.x",
        "faces.frame.edge.capture",
    ] {
        let pulls = "$JS.API.CONSUMER.MSG.NEXT.faces_capture.preprocess";
        thief.publish_with_reply(pulls, elsewhere, ask.into()).await.expect("it is sent");
    }
    let reads = r#"{"seq":1,"next_by_subj":">","batch":9}"#;
    thief
        .publish_with_reply("$JS.API.DIRECT.GET.KV_faces_placement", "faces.decision.edge.capture.y", reads.into())
        .await
        .expect("it is sent");
    thief.flush().await.expect("it is sent");
    // Nobody waits there any more, and what was asked before has been answered.
    let stored = async |stream: &str| js.get_stream(stream).await.expect("it is there").cached_info().state.messages;
    let info = "$JS.API.CONSUMER.INFO.faces_capture.preprocess";
    thief.request(info, "".into()).await.expect("an answer");
    eventually("the pulls to be answered", async || {
        let consumer = js.get_stream("faces_capture").await.ok()?.consumer_info("preprocess").await.ok()?;
        (consumer.num_waiting == 0).then_some(())
    })
    .await;
    for (stream, messages) in
        [("faces_capture", 1), ("faces_extract", 0), ("faces_classify", 0), ("KV_faces_people", 0)]
    {
        assert_eq!(stored(stream).await, messages, "{stream}");
    }
}

#[tokio::test]
async fn who_is_not_who_he_should_be_is_told_why() {
    let tools = Tools::find();
    let mut keyed = Keyed::new(&tools, SITES).await;
    let port = keyed.serve("cloud", "0.0.0.0").await;
    let (tls, plain) = (format!("tls://localhost:{port}"), format!("nats://0.0.0.0:{port}"));
    let connect = async |address: &str, file: std::path::PathBuf| {
        Bus::connect(address, &Credentials { file: Some(file) }, "faces", "test")
            .await
            .map(drop)
            .map_err(|error| error.to_string())
    };
    let own = keyed.folder("cloud").join("classify.nk");
    connect(&tls, own.clone()).await.expect("it is let in");
    // A key that the server does not know, and one of another site.
    let copy = |name: &str, from: &std::path::Path, authority: &std::path::Path| {
        let folder = keyed.dir.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::copy(from, folder.join("its.nk")).expect("a copy");
        std::fs::copy(authority, folder.join("ca.pem")).expect("a copy");
        folder.join("its.nk")
    };
    let error = connect(&tls, keyed.folder("edge").join("extract.nk")).await.expect_err("another site's key");
    assert!(error.contains("does not know this key"), "{error}");
    // Somebody else vouches for the server.
    let other = Keyed::new(&tools, SITES).await;
    let error = connect(&tls, copy("wrong-ca", &own, &other.folder("cloud").join("ca.pem")))
        .await
        .expect_err("another authority");
    assert!(error.contains("its certificate is not one that") && error.contains("vouches for"), "{error}");
    // Plain text, where the other end has a certificate and where it has none.
    let none =
        async_nats::ConnectOptions::new().connect(&plain).await.expect_err("no certificate is known").to_string();
    assert!(!none.is_empty());
    let server = causeway_bus::server::Server::start(
        "cloud",
        &keyed.dir.path().join("open"),
        causeway_bus::server::Start::default(),
    )
    .await
    .expect("a server");
    let error = connect(&format!("nats://0.0.0.0:{}", server.port()), own.clone()).await.expect_err("plain text");
    assert!(error.contains("plain text"), "{error}");
    server.stop().await;
    // A name that its certificate does not have.
    let error = connect(&tls.replace("localhost", "127.0.0.2"), own.clone()).await.expect_err("another name");
    assert!(error.contains("is not for that name"), "{error}");
    // A certificate whose time is over.
    let Some(faketime) = debian_program("faketime", "faketime") else { return };
    let (file, out) = (keyed.file(), keyed.dir.path().join("keys"));
    let mut keys = std::process::Command::new(faketime);
    keys.args(["-f", "-40d"]).arg(tools.program("causeway")).arg("keys").arg(file).arg("--out").arg(out);
    keys.args(["--site=cloud", "--rotate=server", "--days=1"]);
    let made = keys.output().expect("faketime can be run");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    keyed.stop("cloud").await;
    let port = keyed.serve("cloud", "0.0.0.0").await;
    let error = connect(&format!("tls://localhost:{port}"), own).await.expect_err("too old");
    assert!(error.contains("the time of its certificate is over"), "{error}");
}

#[tokio::test]
async fn another_key_takes_the_place_of_one_while_the_server_works() {
    let tools = Tools::find();
    let keyed = keyed(&tools).await;
    let thief = keyed.client("edge/extract", "edge").await;
    let sends = "faces.feature.edge.capture";
    assert!(is_taken(&thief, sends).await);
    let mut events = thief.subscribe(">").await.expect("a subscription");
    keyed.keys(&["--site=edge", "--rotate=extract"]).await;
    keyed.reload("edge").await;
    // What was signed in with the old one is dropped, and not let in again.
    tokio::time::timeout(Duration::from_secs(30), async {
        while thief.connection_state() == async_nats::connection::State::Connected {
            tokio::select! {
                _ = events.next() => {}
                () = tokio::task::yield_now() => {}
            }
        }
    })
    .await
    .expect("it is dropped");
    let renewed = keyed.client("edge/extract", "edge").await;
    assert!(is_taken(&renewed, sends).await);
    // Everybody else stays.
    assert!(is_taken(&keyed.client("edge/preprocess", "edge").await, "faces.crop.edge.capture").await);
    let nobody = std::process::Command::new(tools.program("causeway"))
        .args(["keys", keyed.file().to_str().expect("a path"), "--rotate=nobody", "--out"])
        .arg(keyed.dir.path().join("keys"))
        .output()
        .expect("it can be run");
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(said.contains("cannot rotate `nobody`: nobody is called so"), "{said}");
}

#[tokio::test]
async fn what_is_captured_at_two_sites_has_a_key_at_each() {
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    let file = home.path().join("faces.toml");
    let more = |stage: &str| match stage {
        "pipeline" => {
            "[site.edge]\ncredentials = \"keys/edge\"\n[site.cloud]\nhub = true\ncredentials = \"keys/cloud\""
                .to_owned()
        }
        "capture" | "preprocess" | "extract" => "site = [\"edge\", \"cloud\"]".to_owned(),
        _ => "site = \"cloud\"".to_owned(),
    };
    std::fs::write(&file, stand_in_pipeline(more)).expect("it is written");
    let (file, out) = (file.to_str().expect("a path"), format!("--out={}", home.path().join("keys").display()));
    causeway(stand_ins.tools(), &["keys", file, &out]).await.ok();
    let script = [(ITEMS, "50".to_owned()), (BYTES, "500".into()), (CAMERA, "0".into())];
    let up = |more: &[&str]| {
        Running::start_in(stand_ins.tools(), home.path(), &[&["up", file, "--until-drained"], more].concat(), &script)
    };
    let told = up(&["--json"]).finish().await.ok().json();
    assert_eq!((told["photos"].as_u64(), told["run"]["new"].as_u64()), (Some(100), Some(100)), "{told}");
    // The agent says that all of it is done.
    let again = up(&["--json"]).finish().await.ok().json();
    assert_eq!((again["photos"].as_u64(), again["run"]["new"].as_u64()), (Some(100), Some(0)), "{again}");
}
