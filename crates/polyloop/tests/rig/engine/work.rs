//! What the test workers can do, by name, and what each call must return: shared by both sides.
//!
//! Arguments are the task's token, then padding. Every answer depends on all of them, so a mix-up is seen.

use std::time::Duration;

use polyloop::Memory;

/// A function of the test workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Answers at once.
    Echo,
    /// Blocks its worker for so many milliseconds.
    Block(u64),
    /// Runs for so many milliseconds beside others.
    Nap(u64),
    /// Answers with so many bytes.
    Big(usize),
    /// Gets so many bytes in a block, and answers with their complement in one.
    Mirror(usize),
    /// Gives so many values, then answers.
    Stream(u64),
    /// Never answers, and looks at nothing meanwhile.
    Spin,
}

impl Work {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Echo => "echo 0".to_owned(),
            Self::Block(ms) => format!("block {ms}"),
            Self::Nap(ms) => format!("nap {ms}"),
            Self::Big(len) => format!("big {len}"),
            Self::Mirror(len) => format!("mirror {len}"),
            Self::Stream(values) => format!("stream {values}"),
            Self::Spin => "spin 0".to_owned(),
        }
        .into_bytes()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (name, number) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
        let number: u64 = number.parse().ok()?;
        Some(match name {
            "echo" => Self::Echo,
            "block" => Self::Block(number),
            "nap" => Self::Nap(number),
            "big" => Self::Big(number as usize),
            "mirror" => Self::Mirror(number as usize),
            "stream" => Self::Stream(number),
            "spin" => Self::Spin,
            _ => return None,
        })
    }

    /// How long it leaves its worker free before it answers.
    pub(crate) fn nap(self) -> Option<Duration> {
        if let Self::Nap(ms) = self { Some(Duration::from_millis(ms)) } else { None }
    }

    pub(crate) fn answer(self, arguments: &[u8]) -> Vec<u8> {
        let sum = arguments
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let len = if let Self::Big(len) = self { len } else { size_of::<u64>() };
        sum.to_le_bytes().into_iter().cycle().take(len).collect()
    }
}

/// Bytes of a stream's value: a ring takes fewer of them than there is credit for.
const VALUE_BYTES: usize = 5_000;

/// A value of a stream.
pub(crate) fn value(token: u64, number: u64) -> Vec<u8> {
    [token, number].map(u64::to_le_bytes).concat().into_iter().cycle().take(VALUE_BYTES).collect()
}

/// What a task has in its block.
pub(crate) fn content(token: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|at| (at ^ at >> 8 ^ token) as u8).collect()
}

/// What is in a block that was received.
#[expect(clippy::unwrap_used, reason = "a test that fails shall say so and end")]
pub(crate) fn read(memory: &Memory, len: usize) -> Vec<u8> {
    let start = memory.part(0..len).unwrap();
    // SAFETY: the memory has that many bytes there, and nobody writes them now.
    unsafe { std::slice::from_raw_parts(start, len) }.to_vec()
}

pub(crate) fn arguments(token: u64, padding: usize) -> Vec<u8> {
    let mut bytes = token.to_le_bytes().to_vec();
    bytes.extend((0..padding).map(|at| at as u8));
    bytes
}

pub(crate) fn token_of(arguments: &[u8]) -> u64 {
    arguments.first_chunk().map_or(u64::MAX, |token| u64::from_le_bytes(*token))
}
