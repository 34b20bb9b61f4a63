//! The examples run, and find what they say.

#[path = "../examples/crashes.rs"]
mod crashes;
#[path = "../examples/million.rs"]
mod million;

polyloop::init_before_main!();

#[test]
fn work_is_isolated_from_a_native_call_that_crashes() {
    crashes::main().unwrap();
}

#[test]
fn a_million_items_are_mapped() {
    million::main().unwrap();
}
