//! The examples run, and find what they say.

#[path = "../examples/crashes.rs"]
mod crashes;
#[path = "../examples/million.rs"]
mod million;
#[path = "rig/mod.rs"]
#[expect(dead_code, reason = "it is other programs', too")]
mod rig;
#[path = "../examples/service/main.rs"]
mod service;

polyloop::init_before_main!();

#[test]
fn work_is_isolated_from_a_native_call_that_crashes() {
    crashes::main().unwrap();
}

#[test]
fn a_million_items_are_mapped() {
    million::main().unwrap();
}

#[test]
fn a_service_goes_on_answering_while_its_python_workers_are_killed() {
    rig::python::run(|| async { service::run(rig::python::interpreter().unwrap()).await.unwrap() });
}
