//! A moment of what `make fuzz` does for minutes.

#![cfg(not(loom))]

#[path = "../../../fuzz/src/dice.rs"]
mod dice;
#[path = "../../../fuzz/src/memory.rs"]
#[expect(unreachable_pub, reason = "public in the fuzz targets' own crate")]
mod memory;

#[test]
fn a_ring_takes_any_words() {
    dice::inputs(1, 20_000).for_each(|bytes| memory::ring(&bytes));
}

#[test]
fn a_board_takes_any_words() {
    dice::inputs(2, 20_000).for_each(|bytes| memory::board(&bytes));
}
