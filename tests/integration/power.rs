//! The power is cut: what is on disk for good is there again, what is not is named, and nothing is doubled.

use harness::{Power, PowerRun, Tools, may_skip, power};

async fn cut(run: PowerRun) -> Option<Power> {
    let power = power(&Tools::find(), run).await;
    if power.is_none() {
        may_skip("a disk whose power is cut needs a file system of its own: run as root");
    }
    power
}

#[tokio::test]
async fn what_is_synced_always_survives() {
    let Some(power) = cut(PowerRun { cuts: 3, sync: "always", is_camera: true, seed: 1 }).await else { return };
    assert_eq!((power.cuts, power.lost, power.missing, power.doubled), (3, 0, 0, 0), "{power:?}");
}

#[tokio::test]
async fn a_folder_is_read_again() {
    let Some(power) = cut(PowerRun { cuts: 3, sync: "2m", is_camera: false, seed: 2 }).await else { return };
    assert_eq!((power.cuts, power.lost, power.missing, power.doubled), (3, 0, 0, 0), "{power:?}");
}

#[tokio::test]
async fn of_a_camera_goes_what_was_not_synced_and_nothing_else() {
    let Some(power) = cut(PowerRun { cuts: 3, sync: "1s", is_camera: true, seed: 3 }).await else { return };
    assert_eq!((power.unnamed, power.missing, power.doubled), (0, 0, 0), "{power:?}");
    // A fold whose changelog lost more than its outcomes did goes no further, and says so.
    let is_told = |said: &String| said.contains("cannot restore [stage.cluster]") && said.contains("faces_cluster_log");
    assert!(power.cuts == 3 && power.stopped.is_empty() || power.stopped.iter().all(is_told), "{power:?}");
}
