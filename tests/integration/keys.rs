//! Everybody has a key of his own, which opens what his part of the pipeline needs, and nothing else.

use std::time::Duration;

use async_nats::jetstream;
use causeway_bus::{Bus, Credentials};
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use futures::StreamExt as _;
use harness::{
    KEYED_SITES, Keyed, Matrix, Running, StandIns, Tools, causeway, debian_program, eventually, is_taken, keyed,
    matrix, stand_in_pipeline,
};

#[tokio::test]
async fn each_key_opens_what_it_is_for_and_nothing_else() {
    let Matrix { tried, allows, denials, .. } = matrix(&Tools::find()).await;
    assert!(allows.is_empty(), "{} of {tried} too many:\n{}", allows.len(), allows.join("\n"));
    assert!(denials.is_empty(), "{} of {tried} too few:\n{}", denials.len(), denials.join("\n"));
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
    let mut keyed = Keyed::new(&tools, KEYED_SITES).await;
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
    let other = Keyed::new(&tools, KEYED_SITES).await;
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
