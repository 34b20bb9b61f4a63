//! Workers that are killed at a step: nothing but what they had started goes with them.

use polyloop::{DriverConfig, Outcome, Stage};
use rustix::process::Signal;

use crate::dice::{Dice, rounds};
use crate::rig::work::Work;
use crate::rig::{Rig, Role, SHAPE, mapped_blocks, open_fds, process_state, send_signal};
use crate::steps::{CONCURRENCY_MAX, Held, Row, Step, alone, play};

/// Bursts after which a step counts as not reached.
const BURSTS_MAX: u32 = 60;
/// Bursts given to the pool after the death, to see that no queue is stuck.
const AFTERMATH: u32 = 3;

#[test]
fn a_worker_killed_at_any_step_takes_with_it_only_what_it_had_started() {
    play("killed, beside a healthy worker", 2, rounds(), |step, _, dice| round(step, 2, dice));
}

#[test]
fn a_worker_killed_at_any_step_is_replaced_where_it_was_the_only_one() {
    play("killed, alone", 1, rounds().div_ceil(4), |step, _, dice| round(step, 1, dice));
}

/// Deaths in the life of one pool: more than there are slots on a board.
const DEATHS: usize = 70;

#[test]
fn a_pool_whose_workers_all_die_at_the_same_step_runs_out_of_nothing() {
    let _alone = alone();
    for step in ["claimed", "leased", "taken", "publish", "published"] {
        let mut rig = Rig::new(step, SHAPE, move |_| Role { inject: Some(format!("{step}:3:9")), ..Role::HEALTHY });
        rig.wait_all_ready();
        let fds = open_fds();
        while rig.news.exits.len() < DEATHS {
            for _ in 0..4 {
                rig.submit(Work::Echo, 0, u32::MAX);
            }
            rig.flush();
            rig.wait_all_done("tasks have ended although every worker dies");
        }
        rig.wait_all_ready();
        // One that was running whenever three of them died is a suspect of its own.
        let lost = rig.lost();
        let poison = |token: &u64| matches!(rig.outcome(*token), Some(Outcome::Lost(loss)) if loss.poison);
        assert!(lost.iter().all(poison), "{step}: {lost:?}");
        assert_eq!(open_fds(), fds, "{step}");
        println!("{step}: {} deaths, {} tasks", rig.news.exits.len(), rig.submitted());
    }
}

#[test]
fn the_blocks_of_workers_that_die_are_taken_back() {
    let _alone = alone();
    for step in ["borrowed", "pass", "passed", "lent"] {
        let mut rig = Rig::new(step, SHAPE, move |_| Role { inject: Some(format!("{step}:3:9")), ..Role::HEALTHY });
        rig.wait_all_ready();
        let fds = open_fds();
        while rig.news.exits.len() < 10 {
            for _ in 0..4 {
                rig.submit(Work::Mirror(200_000), 0, u32::MAX);
            }
            rig.flush();
            rig.wait_all_done("tasks have ended although every worker dies");
        }
        rig.wait_all_ready();
        rig.wait("memory that nobody uses is given back", |_| mapped_blocks() == 0);
        assert_eq!(open_fds(), fds, "{step}");
        rig.close();
    }
}

#[test]
fn a_task_whose_workers_all_die_is_run_as_often_as_its_retries_allow() {
    let _alone = alone();
    for retries in 0..3 {
        // The first word that a worker publishes is that it is ready.
        let role = Role { inject: Some("publish:2:9".to_owned()), ..Role::HEALTHY };
        let mut rig = Rig::new("retries", SHAPE, move |_| role.clone());
        let token = rig.submit(Work::Echo, 0, retries);
        rig.flush();
        rig.wait_all_done("the last retry is used up");
        let Some(Outcome::Lost(loss)) = rig.outcome(token) else { panic!("{:?}", rig.outcome(token)) };
        assert_eq!((loss.attempt, rig.starts()[&token].len()), (retries + 1, retries as usize + 1));
    }
}

/// Outcomes in the rings at once: more than one drain reads, and not more than the rings take.
const LAST_WORDS: usize = 30_000;
const SPEAKERS: u16 = 4;

#[test]
fn outcomes_published_before_a_death_count_however_many_there_are() {
    let _alone = alone();
    let mut rig = Rig::healthy("last words", DriverConfig { processes: SPEAKERS, ..SHAPE });
    rig.wait_all_ready();
    rig.run_unread(LAST_WORDS);
    let speakers = rig.pids();
    speakers.iter().for_each(|pid| send_signal(*pid, Signal::KILL));
    while speakers.iter().any(|pid| process_state(*pid) != Some('Z')) {
        std::thread::yield_now();
    }
    rig.wait_all_done("all outcomes are read");
    let lost = rig.lost().len();
    println!("{} outcomes of {SPEAKERS} dead workers, {lost} unpublished", LAST_WORDS - lost);
    assert!(lost <= usize::from(SPEAKERS), "each may have been about to publish one, not {lost}");
}

fn round(step: Step, processes: u16, dice: &mut Dice) -> Row {
    let (nth, retries) = (step.nth(dice), dice.below(2) as u32);
    let label = format!("SIGKILL at {step:?} #{nth}, {processes} workers, {retries} retries, seed {}", dice.seed);
    let mut rig = Rig::new(&label, step.load.shape(processes), step.roles(nth, Signal::KILL.as_raw()));
    let victim = rig.pids()[0];
    let is_dead = |rig: &Rig| !rig.is_alive(victim);
    rig.wait("workers are ready", |rig| {
        is_dead(rig) || rig.driver.workers().all(|worker| worker.stage == Stage::Ready)
    });
    for _ in 0..BURSTS_MAX {
        step.load.submit(&mut rig, dice, retries);
        rig.wait_all_done("a burst has ended");
        if is_dead(&rig) {
            break;
        }
    }
    rig.wait_all_ready();
    for _ in 0..AFTERMATH {
        step.load.submit(&mut rig, dice, retries);
    }
    rig.wait_all_done("the aftermath has ended");
    let hit = rig.was_killed(victim);
    check_ends(&label, &rig, hit.then(|| step.held(nth)), retries);
    check_starts(&label, &rig, victim);
    let (lost, (_, rerun, _)) = (rig.lost().len(), rig.news.deaths());
    let row = Row { rounds: 1, hit: u32::from(hit), rerun, lost, delivered: rig.submitted() - lost, ..Row::default() };
    rig.close();
    row
}

/// Checks how many tasks went with the victim, or ran again. `held` is what it had, or nothing where it was not hit.
fn check_ends(label: &str, rig: &Rig, held: Option<Held>, retries: u32) {
    let (lost, (_, rerun, reported_lost)) = (rig.lost(), rig.news.deaths());
    let ended = lost.len() + rerun;
    match held {
        None | Some(Held::Nothing | Held::Claimed) => assert_eq!(ended, 0, "{label}: it had started nothing: {lost:?}"),
        Some(Held::Started) => assert_eq!(ended, 1, "{label}: it had started one item: {lost:?}"),
        Some(Held::Unknown) => assert!(ended <= CONCURRENCY_MAX, "{label}: it can't have had so many: {lost:?}"),
    }
    assert_eq!(lost.len(), reported_lost, "{label}: what is told of the death");
    assert!(retries == 0 || lost.is_empty(), "{label}: a retry was left: {lost:?}");
    assert!(retries == 1 || rerun == 0, "{label}: no retry was left");
}

/// Checks who started each task: one process, or one more after the victim, where that is reported.
fn check_starts(label: &str, rig: &Rig, victim: u32) {
    let starts = rig.starts();
    let mut again = 0;
    for token in 0..rig.submitted() as u64 {
        let outcome = rig.outcome(token);
        match (starts.get(&token).map_or(&[][..], Vec::as_slice), outcome) {
            ([_], Some(Outcome::Value(_))) => (),
            ([first, _], Some(Outcome::Value(_))) if *first == victim => again += 1,
            ([], Some(Outcome::Lost(_))) => (),
            ([one], Some(Outcome::Lost(loss))) if *one == victim && loss.pid == Some(victim) => (),
            (starts, outcome) => panic!("{label}: task {token} was started by {starts:?} and ended as {outcome:?}"),
        }
    }
    let (_, rerun, _) = rig.news.deaths();
    assert!(again <= rerun, "{label}: {again} tasks ran twice, {rerun} are reported");
}
