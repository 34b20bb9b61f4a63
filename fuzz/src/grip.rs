//! What a worker gets hold of when it is let into a pool, in the hands of one that keeps to nothing.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;

use polyloop::TaskId;
use polyloop_shm::{Board, BoardReader, Geometry, Item, Region, RingWriter, ring_words};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

pub use polyloop::PROTOCOL;

/// Kinds of records.
pub const REPLIES: [u32; 5] = [1, 2, 3, 4, 6];
pub const PIECE: u32 = 5;
pub const SUBMIT: u32 = 8;
pub const WITHDRAW: u32 = 9;
pub const READY: u32 = 16;
pub const FAILED: u32 = 17;
pub const RETIRING: u32 = 18;
pub const FETCH: u32 = 19;
pub const LENT: u32 = 20;
pub const RETURNED: u32 = 21;
pub const FORGOTTEN: u32 = 22;
/// The kind of a message that passes a block.
pub const PASS: u64 = 2;
const LINE: usize = 8;
/// Before a slot's items: its head and its cursor, a line each.
const SLOT_HEADER: usize = 2 * LINE;

pub struct Grip {
    pool: Region,
    own: Region,
    ring: RingWriter,
    bell: OwnedFd,
    board: BoardReader,
    /// Where the first slot begins in the pool's memory.
    first_slot: usize,
    /// Where the result ring begins in its own.
    ring_start: usize,
    held: Option<TaskId>,
    socket: OwnedFd,
}

impl Grip {
    /// Hears the welcome, and says that it is ready.
    pub fn take(socket: OwnedFd) -> Self {
        let (numbers, fds) = hear_welcome(&socket);
        // However many come before it, the layout stands at the end.
        let [.., seats, _queues, slots, items, blob_words, leases, result_words, _control_words] = numbers[..] else {
            panic!("a welcome has a layout")
        };
        let [pool, own, _, bell] = <[OwnedFd; 4]>::try_from(fds).expect("a welcome has four");
        let [pool, own] = [pool, own].map(|fd| Region::attach(fd).expect("the manager seals its memory"));
        let start = (leases as usize).next_multiple_of(LINE);
        let mut ring = RingWriter::new(own.words().slice(start..start + ring_words(result_words as usize)));
        ring.push(READY, &[]).expect("it is empty");
        let geometry = Geometry { slots: slots as u32, items: items as u32, blob_words: blob_words as u32 };
        let board_start = 2 * LINE + seats as usize * LINE;
        let words = pool.words().slice(board_start..board_start + geometry.board_words());
        let board = BoardReader::new(Board::new(words, geometry), numbers[1] as u16);
        let grip = Self {
            pool,
            own,
            ring,
            bell,
            board,
            first_slot: board_start + 2 * LINE,
            ring_start: start,
            held: None,
            socket,
        };
        grip.ring();
        grip
    }

    pub fn scribble_own(&self, at: usize, value: u64) {
        write(&self.own, at, value);
    }

    pub fn scribble_ring(&self, at: usize, value: u64) {
        write(&self.own, self.ring_start + at, value);
    }

    pub fn scribble_pool(&self, at: usize, value: u64) {
        write(&self.pool, at, value);
    }

    pub fn push_bytes(&mut self, kind: u32, payload: &[u8]) {
        let _ = self.ring.push(kind, payload);
    }

    pub fn push_words(&mut self, kind: u32, words: &[u64]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let _ = self.ring.push(kind, &payload);
    }

    /// Sends a message over the worker's socket.
    pub fn send(&self, numbers: &[u64], fd: BorrowedFd<'_>) {
        send(&self.socket, numbers, fd);
    }

    /// A record about a task, cut off after so many bytes.
    pub fn push(&mut self, kind: u32, task: TaskId, bytes: &[u8], len: usize) {
        let payload = [&task.to_bits().to_le_bytes()[..], bytes].concat();
        let _ = self.ring.push(kind, &payload[..len.min(payload.len())]);
    }

    /// As a correct worker would, up to the steps that it leaves out.
    pub fn claim(&mut self, leases: bool, takes: bool) {
        let mut item = Item::default();
        let Some(claim) = self.board.claim(true) else { return };
        if self.board.read(&claim, &mut item).is_some() {
            let task = TaskId::from_bits(item.task);
            self.held = Some(task);
            if leases {
                self.lease(0, task);
            }
        }
        if takes {
            self.board.take(claim);
        }
    }

    pub fn held(&self) -> Option<TaskId> {
        self.held
    }

    pub fn held_or(&self, task: TaskId) -> TaskId {
        self.held.unwrap_or(task)
    }

    pub fn lease(&self, at: usize, task: TaskId) {
        write(&self.own, at % 2, task.to_bits());
    }

    /// Writes one of the first items' words: near those that somebody correct writes.
    pub fn mark(&self, at: usize, value: u64) {
        let [generation, owner, phase] = [value & 3, value >> 2 & 3, value >> 4 & 7];
        write(&self.pool, self.first_slot + SLOT_HEADER + at % 4, generation << 32 | owner << 16 | phase);
    }

    pub fn ring(&self) {
        rustix::io::write(&self.bell, &1u64.to_ne_bytes()).expect("an eventfd takes a ring");
    }
}

fn write(region: &Region, at: usize, value: u64) {
    let words = region.words();
    words[at % words.len()].store(value, Relaxed);
}

/// Greets the manager: with the version of the protocol, the number of a process and something to know it by.
pub fn say_hello(socket: &OwnedFd, version: u64, number: u32, handle: BorrowedFd<'_>) {
    send(socket, &[version, number.into()], handle);
}

fn send(socket: &OwnedFd, numbers: &[u64], handle: BorrowedFd<'_>) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [handle];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).expect("the manager listens");
}

/// What the manager answers: numbers, and descriptors of pool memory, own memory, own bell, manager's bell.
fn hear_welcome(socket: &OwnedFd) -> (Vec<u64>, Vec<OwnedFd>) {
    let mut bytes = [0; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)
        .expect("the manager has answered");
    let rights = |message| if let RecvAncillaryMessage::ScmRights(fds) = message { Some(fds) } else { None };
    let fds = control.drain().filter_map(rights).flatten().collect();
    let words = bytes[..received.bytes].as_chunks().0;
    (words.iter().map(|word| u64::from_le_bytes(*word)).collect(), fds)
}
