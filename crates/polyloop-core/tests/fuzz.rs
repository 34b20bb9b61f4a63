//! A moment of what `make fuzz` does for minutes.

#[path = "../../../fuzz/src/dice.rs"]
mod dice;
#[path = "../../../fuzz/src/frames.rs"]
#[expect(unreachable_pub, reason = "public in the fuzz targets' own crate")]
mod frames;

#[test]
fn arbitrary_bytes_are_a_frame_that_can_be_written_again_or_an_error() {
    dice::inputs(1, 20_000).for_each(|bytes| frames::read(&bytes));
}
