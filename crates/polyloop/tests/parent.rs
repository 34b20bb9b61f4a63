//! Workers do not outlive their parent, however it ends and whatever they are doing.

#[path = "rig/engine/mod.rs"]
#[expect(dead_code, reason = "the rig serves other test programs too")]
mod rig;

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rig::work::Work;
use rig::worker::{ROLE, TIE, serve, tie_to_parent, wait};
use rig::{Rig, Role, SHAPE, myself, process_handle, process_state, send_signal};
use rustix::process::{Signal, pidfd_send_signal};

/// What a parent says once its workers do what they shall.
const WORKERS: &str = "workers:";
const WATCHDOG: Duration = Duration::from_secs(10);
/// How often it is looked whether a worker has come to what it shall do.
const LOOK: Duration = Duration::from_millis(5);
const TIES: [&str; 3] = ["lifeline", "starter", "both"];

#[test]
fn worker_process() {
    match std::env::var(ROLE).as_deref() {
        Ok("serve") => serve(),
        Ok("late") => {
            send_signal(std::process::id(), Signal::STOP);
            tie_to_parent();
            // One that went on to its socket would notice there.
            loop {
                std::thread::park();
            }
        }
        // On a thread of its own, which lasts: the kernel watches the thread that starts a process.
        Ok(role) => parent(role.to_owned()),
        Err(_) => return,
    }
    std::process::exit(0);
}

#[test]
fn idle_workers_end_with_their_parent() {
    workers_end_with_their_parent("idle");
}

#[test]
fn workers_that_spin_in_native_code_end_with_their_parent() {
    workers_end_with_their_parent("spinning");
}

#[test]
fn stopped_workers_end_with_their_parent() {
    workers_end_with_their_parent("stopped");
}

#[test]
fn workers_whose_parent_ends_before_they_are_tied_to_it_end_too() {
    workers_end_with_their_parent("unborn");
}

/// Kills a process whose workers do `what`, and waits for their end.
fn workers_end_with_their_parent(what: &str) {
    for tie in TIES {
        let mut parent = myself(what).env(TIE, tie).stdout(Stdio::piped()).spawn().expect("it started before");
        let lines = BufReader::new(parent.stdout.take().expect("asked for above")).lines();
        let mut said = lines.map_while(Result::ok).filter_map(|line| Some(line.split_once(WORKERS)?.1.to_owned()));
        let said = said.next().expect("the parent says who its workers are");
        let pids: Vec<u32> = said.split_whitespace().map(|pid| pid.parse().expect("a process's number")).collect();
        assert_eq!(pids.len(), 2);
        let handles: Vec<_> = pids.iter().map(|pid| process_handle(*pid)).collect();
        parent.kill().expect("it waits");
        let killed = Instant::now();
        parent.wait().expect("it was killed");
        if what == "unborn" {
            pids.iter().for_each(|pid| send_signal(*pid, Signal::CONT));
        }
        let until = killed + WATCHDOG;
        let is_gone = |handle: &OwnedFd| wait(handle, Some(until.saturating_duration_since(Instant::now())));
        let (_, left): (Vec<_>, Vec<_>) = handles.iter().partition(|handle| is_gone(handle));
        // Whoever is left would spin for ever.
        left.iter().for_each(|handle| pidfd_send_signal(handle, Signal::KILL).expect("it runs"));
        assert_eq!(left.len(), 0, "{what}, tied by {tie}: workers outlive their parent");
        println!("{what}, tied by {tie}: gone after {:?}", killed.elapsed());
    }
}

/// A process with two workers that do `what`; says who they are and waits to be killed.
fn parent(what: String) {
    let role = if what == "unborn" { Role::named("late") } else { Role::HEALTHY };
    let body = move || {
        let mut rig = Rig::new(&what, SHAPE, move |_| role.clone());
        let pids = rig.pids();
        let all_stopped = |pids: &[u32]| while !pids.iter().all(|pid| process_state(*pid) == Some('T')) {};
        if what == "unborn" {
            all_stopped(&pids);
        } else {
            rig.wait_all_ready();
        }
        if what == "spinning" {
            rig.submit_many(2, Work::Spin);
            while rig.starts().len() < 2 {
                rig.turn(LOOK);
            }
        }
        if what == "stopped" {
            pids.iter().for_each(|pid| send_signal(*pid, Signal::STOP));
            all_stopped(&pids);
        }
        println!("{WORKERS} {} {}", pids[0], pids[1]);
        loop {
            rig.turn(WATCHDOG);
        }
    };
    let _ = std::thread::spawn(body).join();
}
