//! A moment of what `make fuzz` does for minutes.

#[path = "../../../fuzz/src/dice.rs"]
mod dice;
#[path = "../../../fuzz/src/grip.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the fuzz targets' own crate and the driver's tests")]
mod grip;
#[path = "../../../fuzz/src/queue.rs"]
#[expect(unreachable_pub, reason = "public in the fuzz targets' own crate")]
mod queue;
#[path = "../../../fuzz/src/rogue.rs"]
#[expect(unreachable_pub, reason = "public in the fuzz targets' own crate")]
mod rogue;

#[test]
fn a_pool_survives_a_worker_that_writes_anything() {
    dice::inputs(1, 200).for_each(|bytes| rogue::run(&bytes));
}

#[test]
fn a_queue_takes_any_words() {
    dice::inputs(2, 500).for_each(|bytes| queue::run(&bytes));
}
