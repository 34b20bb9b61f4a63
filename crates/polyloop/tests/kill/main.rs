//! Real worker processes, killed and stopped at every named step of their protocol.
//!
//! `POLYLOOP_KILL_ROUNDS` sets the rounds for each step (3, or the 20 of `make kill-test`), `POLYLOOP_KILL_SEED`
//! repeats a run.
//!
//! Broken on purpose, one thing at a time, with 6 rounds; what caught it:
//!
//! | broken | caught by |
//! |---|---|
//! | a dead worker's leases and its started items are both ignored | stuck after "taken" |
//! | its claimed items are not given back | stuck after "claimed" |
//! | its claimed items count as started | "it had started nothing", at "claimed" |
//! | its claimed items stay on the board (no bury) | 70 deaths in one pool: out of slots |
//! | its ring is not read once more | 24,368 of 30,000 published outcomes lost |
//! | items are never marked as taken | "it had started one item", at "taken" |
//! | a retry is not counted; one retry too many | run more often than the retries allow; "no retry was left" |
//! | a dead worker's descriptors are kept | descriptors left open |
//! | a worker does not look again after announcing sleep | stuck after a stop at "ring" |
//! | the manager does not ring another sleeper after a while | stuck beside a worker stopped at "announced" |
//! | a ring takes the sleeper's flag (swap instead of epochs) | stuck beside a worker stopped at "ring" |
//! | a stream is run again though values of it have come | "value 10 of stream 3 is another", at "given" |
//! | no ring once there is room in the result ring, or control ring | stuck on large answers; on large arguments |
//!
//! Not caught, since each is recorded twice: leases alone, or the started items on the board alone, may be ignored.
//! For the same reason a lease that is cleared before its outcome is published changes nothing.

#[path = "../rig/engine/mod.rs"]
#[expect(dead_code, reason = "the rig serves other test programs too")]
mod rig;

mod dice;
mod idle;
mod killed;
mod queue;
mod steps;
mod stopped;
mod streams;

/// What a worker process runs instead of tests.
#[test]
fn worker_process() {
    match std::env::var(rig::worker::ROLE) {
        Ok(role) if role.starts_with("queue-") => queue::victim(&role),
        Ok(_) => rig::worker::serve(),
        Err(_) => return,
    }
    std::process::exit(0);
}
