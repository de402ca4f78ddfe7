//! The oracle: what it calls in order is, since whoever breaks the delivery contract behind a stage's back is found by it.
//!
//! Every scenario runs twice: as it is, which has to be in order, and with the one sabotage that it would hide.

use harness::{HeldBack, Sabotage, Scenario, is_found};

fn assert_in_order(faults: &[String]) {
    assert!(faults.is_empty(), "{faults:#?}");
}

fn assert_found(faults: &[String], sort: &str) {
    assert!(is_found(faults, sort), "nothing is {sort}: {faults:#?}");
}

#[tokio::test]
async fn an_ack_before_the_outputs_are_stored_is_found() {
    let scenario = Scenario::new().await;
    assert_in_order(&scenario.killed(HeldBack::Outputs, Sabotage::None).await);
    assert_found(&scenario.killed(HeldBack::Outputs, Sabotage::EarlyAck).await, "missing: ");
}

#[tokio::test]
async fn ids_that_are_drawn_are_found() {
    let scenario = Scenario::new().await;
    assert_in_order(&scenario.killed(HeldBack::Acks, Sabotage::None).await);
    assert_found(&scenario.killed(HeldBack::Acks, Sabotage::DrawnIds).await, "doubled: ");
}

#[tokio::test]
async fn a_second_writer_of_a_fold_is_found() {
    let scenario = Scenario::new().await;
    assert_in_order(&scenario.woken(Sabotage::None).await);
    assert_found(&scenario.woken(Sabotage::NoFence).await, "doubled: ");
}

#[tokio::test]
async fn outcomes_that_are_not_put_if_absent_are_found() {
    let scenario = Scenario::new().await;
    assert_in_order(&scenario.again(Sabotage::None).await);
    assert_found(&scenario.again(Sabotage::NotIfAbsent).await, "doubled: ");
}

#[tokio::test]
async fn a_link_that_drops_the_oldest_is_found() {
    let scenario = Scenario::new().await;
    assert_in_order(&scenario.late(false).await);
    assert_found(&scenario.late(true).await, "missing: ");
}
