//! Sleep epochs and published load: who sleeps, who must be rung, who has room.
//!
//! ```text
//! sleeper:  epoch odd; fence; look at every queue again ......... sleep on the doorbell
//! ringer:   publish work; fence; epoch odd and not yet rung for it? .... ring the doorbell
//! ```
//! Only the sleeper writes its epoch, and a ringer remembers for itself the last epoch it rang. So no party can
//! consume another's ring, and one that stops or dies half-way silences nobody else. The two fences are all the
//! ordering there is: an epoch publishes nothing.

use crate::sync::{AtomicU64, Ordering, fence};
use crate::words::Words;

/// The sleeping side: the single writer of one epoch.
pub struct Sleeper {
    epoch: Words,
}

impl Sleeper {
    /// Takes over an epoch word, awake: also after a predecessor that died asleep or awake.
    pub fn new(epoch: Words) -> Self {
        let sleeper = Self { epoch };
        let now = sleeper.word().load(Ordering::Relaxed);
        // Two steps on where it stood even, so that rings meant for a predecessor never count for this one.
        let awake = (now | 1).wrapping_add(1);
        sleeper.word().store(awake, Ordering::Relaxed);
        sleeper
    }

    /// Announces sleep. The caller looks at every queue once more afterwards, and calls [`Self::wake`] if it finds
    /// anything; only then may it wait.
    pub fn announce(&self) {
        let now = self.word().load(Ordering::Relaxed);
        self.word().store(now | 1, Ordering::Relaxed);
        // Pairs with the fence in `Ringer::must_ring`: either the ringer sees this epoch, or we see its work.
        fence(Ordering::SeqCst);
    }

    /// Ends sleep, whatever its cause was. Does nothing when awake.
    pub fn wake(&self) {
        let now = self.word().load(Ordering::Relaxed);
        self.word().store(now.wrapping_add(1) & !1, Ordering::Relaxed);
    }

    /// Ends sleep, and moves on also when awake: whoever watches sees a loop that turns.
    pub fn turn(&self) {
        let now = self.word().load(Ordering::Relaxed);
        self.word().store((now | 1).wrapping_add(1), Ordering::Relaxed);
    }

    fn word(&self) -> &AtomicU64 {
        &self.epoch[0]
    }
}

/// The ringing side: one per sleeper and ringing process.
pub struct Ringer {
    epoch: Words,
    rung: u64,
}

impl Ringer {
    /// A ringer that has rung nobody yet.
    pub fn new(epoch: Words) -> Self {
        Self { epoch, rung: 0 }
    }

    /// After publishing: whether the sleeper must be rung now. Says yes once per sleep.
    pub fn must_ring(&mut self) -> bool {
        // Pairs with the fence in `Sleeper::announce`.
        fence(Ordering::SeqCst);
        self.must_ring_fenced()
    }

    /// As [`Self::must_ring`], for a caller who has passed a sequentially consistent fence since it published, as
    /// [`BoardReader::take`](crate::BoardReader::take) does.
    pub fn must_ring_fenced(&mut self) -> bool {
        let now = self.epoch[0].load(Ordering::Relaxed);
        let must = now & 1 == 1 && now != self.rung;
        if must {
            self.rung = now;
        }
        must
    }

    /// Whether the sleeper sleeps and this ringer has not rung it for this sleep. A hint: it is not ordered after
    /// what was published, so it is no substitute for [`Self::must_ring`].
    pub fn can_ring(&self) -> bool {
        let now = self.epoch[0].load(Ordering::Relaxed);
        now & 1 == 1 && now != self.rung
    }

    /// Whether the sleeper was asleep just now.
    pub fn is_asleep(&self) -> bool {
        self.epoch[0].load(Ordering::Relaxed) & 1 == 1
    }
}

/// What a worker says of its load: how many items of which queue it runs, and how many more it would take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Items started and not finished; more than 16 million are told as that many.
    pub in_flight: u32,
    /// Items it would start now; likewise.
    pub room: u32,
    /// The queue it serves.
    pub queue: u16,
}

impl Status {
    const COUNT_MAX: u64 = (1 << 24) - 1;

    /// Reads what a worker last published. A hint: it may have changed since.
    pub fn read(word: &Words) -> Self {
        Self::unpack(word[0].load(Ordering::Relaxed))
    }

    fn pack(self) -> u64 {
        let [in_flight, room] = [self.in_flight, self.room].map(|count| u64::from(count).min(Self::COUNT_MAX));
        in_flight << 40 | room << 16 | u64::from(self.queue)
    }

    fn unpack(word: u64) -> Self {
        let [in_flight, room] = [word >> 40, word >> 16].map(|count| (count & Self::COUNT_MAX) as u32);
        Self { in_flight, room, queue: word as u16 }
    }
}

/// Another worker as a worker sees it.
pub struct Peer {
    epoch: Words,
    status: Words,
}

impl Peer {
    /// The peer with this epoch and this status word.
    pub fn new(epoch: Words, status: Words) -> Self {
        Self { epoch, status }
    }

    /// What it last published of its load.
    pub fn status(&self) -> Status {
        Status::read(&self.status)
    }

    /// Changes whenever the peer falls asleep, wakes, takes a turn, or tells of another load.
    pub fn state(&self) -> u64 {
        let [epoch, status] = [&self.epoch, &self.status].map(|word| word[0].load(Ordering::Relaxed));
        epoch.rotate_left(32) ^ status
    }
}

/// A worker's own status word.
pub struct StatusWriter {
    word: Words,
    last: Status,
}

impl StatusWriter {
    /// Takes over the word with an empty status.
    pub fn new(word: Words) -> Self {
        word[0].store(0, Ordering::Relaxed);
        Self { word, last: Status::default() }
    }

    /// Publishes `status` if it is news.
    pub fn publish(&mut self, status: Status) {
        if status != self.last {
            self.word[0].store(status.pack(), Ordering::Relaxed);
            self.last = status;
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_status_comes_back_as_it_went_in_up_to_the_largest_count() {
        let word = Words::heap(1);
        let mut writer = StatusWriter::new(word.clone());
        let status = Status { in_flight: 3, room: 125, queue: u16::MAX };
        writer.publish(status);
        assert_eq!(Status::read(&word), status);
        writer.publish(Status { in_flight: u32::MAX, room: u32::MAX, queue: 1 });
        assert_eq!(Status::read(&word), Status { in_flight: (1 << 24) - 1, room: (1 << 24) - 1, queue: 1 });
    }

    #[test]
    fn a_sleeper_is_rung_once_per_sleep_by_each_ringer() {
        let word = Words::heap(1);
        let sleeper = Sleeper::new(word.clone());
        let (mut one, mut two) = (Ringer::new(word.clone()), Ringer::new(word));
        assert!(!one.must_ring(), "awake");
        sleeper.announce();
        assert!(one.must_ring() && !one.must_ring());
        assert!(two.must_ring(), "another's ring does not silence this one");
        sleeper.wake();
        sleeper.announce();
        assert!(one.must_ring());
    }

    #[test]
    fn a_successor_in_the_seat_is_not_taken_for_its_predecessor() {
        let word = Words::heap(1);
        let mut ringer = Ringer::new(word.clone());
        Sleeper::new(word.clone()).announce();
        assert!(ringer.must_ring());
        let successor = Sleeper::new(word);
        assert!(!ringer.is_asleep());
        successor.announce();
        assert!(ringer.must_ring());
    }

    #[test]
    fn every_turn_is_seen_and_ends_sleep() {
        let word = Words::heap(1);
        let (sleeper, ringer) = (Sleeper::new(word.clone()), Ringer::new(word.clone()));
        let states: Vec<_> = (0..3)
            .map(|_| {
                sleeper.turn();
                assert!(!ringer.is_asleep());
                word[0].load(Ordering::Relaxed)
            })
            .collect();
        assert!(states.windows(2).all(|pair| pair[0] != pair[1]));
        sleeper.announce();
        sleeper.turn();
        assert!(!ringer.is_asleep());
    }

    #[test]
    fn waking_twice_is_waking_once() {
        let word = Words::heap(1);
        let sleeper = Sleeper::new(word.clone());
        sleeper.announce();
        sleeper.wake();
        let awake = word[0].load(Ordering::Relaxed);
        sleeper.wake();
        assert_eq!(word[0].load(Ordering::Relaxed), awake);
    }
}
