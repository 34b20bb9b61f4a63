//! How a Python task is run beside what it runs: goes with the reference of its function, so that the engine has no
//! part in it and items that are run alike share it.
//!
//! ```text
//!  b"o" flags (1 byte) length of the name (4 bytes, little endian) name | the function's own reference
//! ```

use std::sync::Arc;

const WITH_MANNER: u8 = b'o';
const IN_THREAD: u8 = 1;
const NAMED: u8 = 2;
const STREAM: u8 = 4;

/// How a task is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner<'a> {
    /// What it is called.
    pub name: Option<&'a str>,
    /// A plain function runs on a thread of its own.
    pub in_thread: bool,
    /// What it returns is iterated over there, and given value by value.
    pub is_stream: bool,
}

impl<'a> Manner<'a> {
    /// The reference of a function that is run so.
    pub fn put_on(self, reference: Arc<[u8]>) -> Arc<[u8]> {
        if self == Self::default() {
            return reference;
        }
        let name = self.name.unwrap_or_default();
        let flag = |holds, flag| if holds { flag } else { 0 };
        let mut bytes = Vec::with_capacity(6 + name.len() + reference.len());
        let flags = [(self.in_thread, IN_THREAD), (self.name.is_some(), NAMED), (self.is_stream, STREAM)];
        bytes.extend([WITH_MANNER, flags.into_iter().fold(0, |all, (holds, one)| all | flag(holds, one))]);
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(&*reference);
        bytes.into()
    }

    /// A reference in its parts: how the function is run, and its own. Bytes that make no sense are the latter's.
    pub fn split(reference: &'a [u8]) -> (Self, &'a [u8]) {
        match reference.split_first() {
            Some((&WITH_MANNER, rest)) => parse(rest).unwrap_or((Self::default(), reference)),
            _ => (Self::default(), reference),
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(Manner<'_>, &[u8])> {
    let (&flags, rest) = bytes.split_first()?;
    let (len, rest) = rest.split_first_chunk()?;
    let (name, reference) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    let name = if flags & NAMED != 0 { Some(std::str::from_utf8(name).ok()?) } else { None };
    Some((Manner { name, in_thread: flags & IN_THREAD != 0, is_stream: flags & STREAM != 0 }, reference))
}

/// A function that travels by name, and so means the same in every call.
pub fn travels_by_name(reference: &[u8]) -> bool {
    Manner::split(reference).1.first() == Some(&b'n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_comes_apart_as_it_was_put_together() {
        let plain: Arc<[u8]> = Arc::from(*b"napp:fetch");
        assert!(Arc::ptr_eq(&plain, &Manner::default().put_on(Arc::clone(&plain))));
        for name in [None, Some(""), Some("größer")] {
            for (in_thread, is_stream) in [(false, false), (true, false), (false, true), (true, true)] {
                let manner = Manner { name, in_thread, is_stream };
                let whole = manner.put_on(Arc::clone(&plain));
                assert_eq!(Manner::split(&whole), (manner, &*plain));
                assert!(travels_by_name(&whole));
            }
        }
    }

    #[test]
    fn what_is_cut_short_is_nobodys_reference() {
        let whole = Manner { name: Some("name"), in_thread: true, is_stream: true }.put_on(Arc::from(*b"n"));
        for len in 0..whole.len() - 1 {
            assert_eq!(Manner::split(&whole[..len]), (Manner::default(), &whole[..len]));
        }
    }
}
