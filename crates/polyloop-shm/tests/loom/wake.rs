//! Models of wake-ups. The sleeper is the worker.

use super::*;

#[test]
fn a_sleeper_that_missed_the_work_is_rung() {
    both_ways(|first| {
        let (epoch, work) = (Words::heap(1), Words::heap(1));
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let published = work.clone();
        let (rung, asleep) = first.race(
            move || {
                published[0].store(1, Relaxed);
                ringer.must_ring()
            },
            move || falls_asleep(&sleeper, || work[0].load(Relaxed) == 1),
        );
        assert!(!asleep || rung);
    });
}

#[test]
fn a_ringer_that_stops_before_it_rings_silences_nobody_else() {
    both_ways(|first| {
        let (epoch, work) = (Words::heap(1), Words::heap(2));
        let sleeper = Sleeper::new(epoch.clone());
        let [one, two] = [0, 1].map(|index| {
            let (mut ringer, work) = (Ringer::new(epoch.clone()), work.clone());
            move || {
                work[index].store(1, Relaxed);
                ringer.must_ring()
            }
        });
        let bystander = thread::spawn(two);
        let look = move || work.iter().any(|word| word.load(Relaxed) == 1);
        let (one, asleep) = first.race(one, move || falls_asleep(&sleeper, look));
        let two = bystander.join().unwrap();
        assert!(!asleep || (one && two), "each must ring, not only one");
    });
}

#[test]
fn a_successor_is_rung_for_work_that_its_predecessor_was_rung_for() {
    both_ways(|first| {
        let (epoch, work) = (Words::heap(1), Words::heap(1));
        let mut ringer = Ringer::new(epoch.clone());
        Sleeper::new(epoch.clone()).announce();
        assert!(ringer.must_ring(), "and then it died asleep");
        let published = work.clone();
        let (rung, asleep) = first.race(
            move || {
                published[0].store(1, Relaxed);
                ringer.must_ring()
            },
            move || falls_asleep(&Sleeper::new(epoch), || work[0].load(Relaxed) == 1),
        );
        assert!(!asleep || rung);
    });
}

/// A sleeper that runs until it saw every piece of work, and that a timer has woken once for nothing.
fn sleep_until_all_is_seen(sleeper: &Sleeper, bell: &Bell, work: &Words, pieces: u64) {
    sleeper.announce();
    sleeper.wake();
    bell.silence();
    loop {
        sleeper.announce();
        let seen = work.iter().map(|word| word.load(Relaxed)).sum::<u64>();
        if seen < pieces {
            bell.wait();
        }
        sleeper.wake();
        if seen == pieces {
            return;
        }
    }
}

#[test]
fn a_sleeper_woken_by_a_timer_hears_the_next_ring() {
    both_ways(|first| {
        let (epoch, work, bell) = (Words::heap(1), Words::heap(1), Bell::new());
        let (sleeper, mut ringer) = (Sleeper::new(epoch.clone()), Ringer::new(epoch));
        let (published, rope) = (work.clone(), bell.clone());
        first.race(
            move || {
                for piece in 1..=2 {
                    published[0].store(piece, Relaxed);
                    if ringer.must_ring() {
                        rope.ring();
                    }
                }
            },
            move || sleep_until_all_is_seen(&sleeper, &bell, &work, 2),
        );
    });
}

#[test]
fn two_ringers_wake_a_sleeper_for_both_their_works() {
    loom::model(|| {
        let (epoch, work, bell) = (Words::heap(1), Words::heap(2), Bell::new());
        let sleeper = Sleeper::new(epoch.clone());
        for index in 0..2 {
            let mut ringer = Ringer::new(epoch.clone());
            let (work, bell) = (work.clone(), bell.clone());
            thread::spawn(move || {
                work[index].store(1, Relaxed);
                if ringer.must_ring() {
                    bell.ring();
                }
            });
        }
        sleep_until_all_is_seen(&sleeper, &bell, &work, 2);
    });
}
