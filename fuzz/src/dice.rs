//! Inputs without a search: random bytes, often small ones, from a seed. For the moment of fuzzing in `cargo test`.

const LONGEST: u64 = 512;

/// So many inputs.
pub(crate) fn inputs(seed: u64, count: usize) -> impl Iterator<Item = Vec<u8>> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut byte = move |_| {
        let draw = next();
        match draw % 4 {
            0 => 0,
            1 | 2 => (draw >> 8) as u8 % 32,
            _ => (draw >> 16) as u8,
        }
    };
    (0..count as u64).map(move |n| (0..n * 7 % LONGEST).map(&mut byte).collect())
}
