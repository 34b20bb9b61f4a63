//! A few thousand seeds with every run of the tests, and a proof for each promise that a breach of it is noticed.

use polyloop_sim::{Figures, Sabotage, run, sweep};

fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[test]
fn every_promise_holds_for_a_few_thousand_seeds() {
    let Figures { failures, .. } = sweep(0, 3_000, jobs(), None);
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn each_way_to_break_the_protocol_is_noticed() {
    for sabotage in Sabotage::ALL {
        let Figures { failed, .. } = sweep(0, 1_500, jobs(), Some(sabotage));
        assert!(failed > 0, "{sabotage:?} went unnoticed");
    }
}

#[test]
fn a_seed_fails_in_the_same_way_again() {
    let Figures { failures, .. } = sweep(0, 300, jobs(), Some(Sabotage::RefillUntold));
    for failure in &failures {
        assert_eq!(run(failure.seed, Some(Sabotage::RefillUntold), false), Err(failure.clone()));
    }
    assert!(!failures.is_empty());
}
