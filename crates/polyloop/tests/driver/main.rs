//! How a driver behaves towards its host and towards workers that are not as they should be.

#[path = "../rig/engine/mod.rs"]
#[expect(dead_code, reason = "the rig serves other test programs too")]
mod rig;

#[path = "../../../../fuzz/src/grip.rs"]
#[expect(dead_code, unreachable_pub, reason = "shared with the fuzz targets' own crate")]
mod grip;

mod ends;
mod fakes;
mod flow;
mod starts;

/// What a worker process runs instead of tests.
#[test]
fn worker_process() {
    if let Ok(role) = std::env::var(rig::worker::ROLE) {
        fakes::play(&role);
        std::process::exit(0);
    }
}
