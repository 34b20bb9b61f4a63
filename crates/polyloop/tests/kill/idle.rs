//! Idle workers, killed at random moments: what is submitted then runs elsewhere, or on a successor.

use rustix::process::Signal;

use crate::dice::{Dice, rounds};
use crate::rig::work::Work;
use crate::rig::{Rig, SHAPE, open_fds, send_signal};
use crate::steps::{Row, Table, alone};

/// Kills for each round asked for.
const KILLS: u32 = 10;

#[test]
fn idle_workers_killed_at_random_leave_no_call_stuck() {
    let _alone = alone();
    let mut dice = Dice::new();
    let mut rows = Vec::new();
    for processes in [1, 2] {
        let before = open_fds();
        rows.push((format!("idle, {processes} workers"), kill_idle(processes, rounds() * KILLS / 2, &mut dice)));
        assert_eq!(open_fds(), before, "descriptors left open");
    }
    println!("{}", Table { title: format!("killed while idle; seed {}", dice.seed), rows });
}

fn kill_idle(processes: u16, kills: u32, dice: &mut Dice) -> Row {
    let label = format!("idle kills, {processes} workers, seed {}", dice.seed);
    let mut rig = Rig::healthy(&label, polyloop::DriverConfig { processes, ..SHAPE });
    rig.wait_all_ready();
    let fds = open_fds();
    for _ in 0..kills {
        let pids = rig.pids();
        let victim = pids[dice.below(pids.len() as u64) as usize];
        // The manager may hear of the death before the tasks come, or after.
        send_signal(victim, Signal::KILL);
        if dice.below(2) == 0 {
            rig.wait("the death is known", |rig| !rig.is_alive(victim));
        }
        for _ in 0..=dice.below(8) {
            rig.submit(Work::Echo, 10, 0);
        }
        rig.flush();
        rig.wait_all_done("all tasks have ended after an idle worker was killed");
        rig.wait("the death is known", |rig| !rig.is_alive(victim));
        rig.wait_all_ready();
        assert_eq!(open_fds(), fds, "{label}: descriptors of the dead are left open");
    }
    assert_eq!(rig.lost(), [], "{label}: nobody was running anything");
    let row = Row { rounds: kills, hit: rig.news.exits.len() as u32, delivered: rig.submitted(), ..Row::default() };
    rig.close();
    row
}
