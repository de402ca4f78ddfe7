//! A disk that is full: the first stage waits and says so, the server goes on when there is room again, and nothing is lost. One that
//! is slow: nothing is lost either, whoever is killed meanwhile.

use causeway_pipelines::Pipeline;
use causeway_stand_in::script::{BYTES, CAMERA, ITEMS};
use harness::{
    Running, SlowDisk, StandIns, Tmpfs, Tools, drained, eventually, kill, may_skip, stand_in_pipeline, verdict,
};

#[tokio::test]
async fn a_full_disk_is_told_and_costs_nothing() {
    const MESSAGES: u64 = 900;
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    // The store alone: what the stages say can be written.
    let Some(disk) = Tmpfs::mount(&home.path().join("edge"), 700) else {
        may_skip("a full disk needs a file system of its own: run as root");
        return;
    };
    let file = home.path().join("faces.toml");
    let small = |stage: &str| match stage {
        "pipeline" => "[keep]\ncaptured = { bytes = \"64MiB\" }\noutcomes = { bytes = \"32MiB\" }".into(),
        "capture" => "rate = 60".into(),
        _ => "link_bytes = \"16MiB\"".into(),
    };
    std::fs::write(&file, stand_in_pipeline(small)).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let script = [(ITEMS, MESSAGES.to_string()), (BYTES, "2000".into()), (CAMERA, "1".into())];
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", file.to_str().expect("a path")], &script);
    let bus = up.bus("faces").await;
    eventually("some outcomes", async || bus.stream_state("faces_classify").await.ok()??.messages.checked_sub(100))
        .await;

    disk.fill();
    let log = home.path().join("logs/capture.log");
    eventually("the first stage to say so", async || {
        let log = std::fs::read_to_string(&log).ok()?;
        log.contains("faces.frame is not stored: the broker does not answer, or cannot write").then_some(())
    })
    .await;
    disk.empty();

    drained(&bus, &pipeline, MESSAGES as usize).await;
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len() as u64, MESSAGES);
    let said = up.stop().await.ok().stderr;
    assert!(said.contains("nats-server cannot write: no space left on device"), "{said}");
    assert!(said.contains("there is room to write again"), "{said}");
}

#[tokio::test]
async fn a_slow_disk_costs_nothing() {
    const MESSAGES: u64 = 600;
    let stand_ins = StandIns::link(&Tools::find());
    let home = tempfile::tempdir().expect("a folder");
    // A third of what 60 messages a second write.
    let Some(_disk) = SlowDisk::mount(&home.path().join("fast"), &home.path().join("edge"), 250) else {
        may_skip("a slow disk needs a file system of its own: run as root");
        return;
    };
    let file = home.path().join("faces.toml");
    let small = |stage: &str| match stage {
        "pipeline" => "[keep]\nchanges = \"64KiB\"",
        "capture" => "rate = 60",
        _ => "link_bytes = \"1MiB\"",
    };
    std::fs::write(&file, stand_in_pipeline(|stage| small(stage).into())).expect("it is written");
    let pipeline = Pipeline::load(&file).unwrap_or_else(|error| panic!("{error}"));
    let script = [(ITEMS, MESSAGES.to_string()), (BYTES, "2000".into()), (CAMERA, "1".into())];
    let up = Running::start_in(stand_ins.tools(), home.path(), &["up", file.to_str().expect("a path")], &script);
    let bus = up.bus("faces").await;
    for (stage, outcomes) in [("extract", 50), ("cluster", 100)] {
        eventually("some outcomes", async || {
            bus.stream_state("faces_cluster").await.ok()??.messages.checked_sub(outcomes)
        })
        .await;
        kill(up.stage_pid(stage, None).await);
    }
    let server = u32::try_from(up.about().await["server"]["pid"].as_u64().expect("a server")).expect("a pid");
    kill(server);

    drained(&bus, &pipeline, MESSAGES as usize).await;
    let verdict = verdict(&bus, &pipeline).await;
    verdict.assert_exactly_once();
    assert_eq!(verdict.captured.len() as u64, MESSAGES);
    up.stop().await.ok();
}
