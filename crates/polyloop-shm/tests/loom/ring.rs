//! Models of the ring. Its reader is the manager, as with outcomes.

use super::*;

#[test]
fn records_arrive_whole_and_in_order_over_a_wrap() {
    both_ways(|first| {
        // The first record's header stands in the last word and its payload in the first.
        let (mut writer, mut reader) = ring_at(RING - 1);
        let ((mut seen, mut reader), ()) = first.race(
            move || {
                let seen: Vec<_> = (0..3).filter_map(|_| pop(&mut reader)).collect();
                (seen, reader)
            },
            move || assert!(push(&mut writer, 1) && push(&mut writer, 2)),
        );
        seen.extend(pop_all(&mut reader));
        assert_eq!(seen, [1, 2]);
    });
}

#[test]
fn a_record_is_copied_out_before_its_room_is_used_again() {
    both_ways(|first| {
        let (mut writer, mut reader) = ring_at(RING - 1);
        assert!((1..=4).all(|number| push(&mut writer, number)), "full");
        let copied = Witness::new();
        let worker = {
            let copied = copied.clone();
            move || {
                let pushed = push(&mut writer, 5);
                if pushed {
                    copied.check();
                }
                pushed
            }
        };
        let ((mut seen, mut reader), pushed) = first.race(
            move || {
                copied.mark();
                (pop_all(&mut reader), reader)
            },
            worker,
        );
        seen.extend(pop_all(&mut reader));
        let all = if pushed { 1..=5 } else { 1..=4 };
        assert!(seen.into_iter().eq(all));
    });
}

#[test]
fn a_writer_that_found_no_room_is_told_of_room() {
    both_ways(|first| {
        let (mut writer, mut reader) = ring_at(0);
        assert!((1..=4).all(|number| push(&mut writer, number)), "full");
        let (told, pushed) = first.race(
            move || {
                assert_eq!(pop(&mut reader), Some(1));
                reader.writer_waits()
            },
            move || push(&mut writer, 5),
        );
        assert!(pushed || told, "it sleeps on a full ring that has room");
    });
}

#[test]
fn a_full_ring_flows_on() {
    both_ways(|first| {
        let (mut writer, mut reader) = ring_at(0);
        assert!((1..=4).all(|number| push(&mut writer, number)), "full");
        let room = Bell::new();
        let worker = {
            let room = room.clone();
            move || {
                for number in 5..=6 {
                    while !push(&mut writer, number) {
                        room.wait();
                    }
                }
            }
        };
        let (mut reader, ()) = first.race(
            move || {
                for number in 1..=3 {
                    assert_eq!(pop(&mut reader), Some(number));
                    if reader.writer_waits() {
                        room.ring();
                    }
                }
                reader
            },
            worker,
        );
        assert_eq!(pop_all(&mut reader), [4, 5, 6]);
    });
}
