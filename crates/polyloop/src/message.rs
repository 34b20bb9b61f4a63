//! How a value travels between a Rust program and a Python worker: as MessagePack, and what of it is large beside that,
//! in memory that both can see.
//!
//! ```text
//!  a message    document                 a MessagePack value
//!               0xc1 start length        the document stands in the memory that travels along, there
//!
//!  within it    ext 0: bytes             to be looked at, not copied
//!               ext 1: start length      bytes that stand in that memory, there
//!               ext 2: 17 bytes          an integer of more than 64 bits
//! ```

/// Buffers of this many bytes and more travel apart. Below, a copy through the rings costs no more than the words that
/// are to be exchanged about a block.
pub const LARGE_BYTES: usize = 64 << 10;

/// An extension type of MessagePack: bytes that are to be looked at, not copied.
pub const EXT_VIEW: i8 = 0;
/// An extension type of MessagePack: bytes that stand elsewhere. Its content is a [`Span`].
pub const EXT_APART: i8 = 1;

/// An extension type of MessagePack: an integer of more than 64 bits. Its content is a [`WideInt`].
pub const EXT_INT: i8 = 2;

/// No document begins with this: MessagePack has no use for it.
const ELSEWHERE: u8 = 0xc1;

/// Where something stands in the memory that travels with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its first byte.
    pub start: u64,
    /// Its length in bytes.
    pub len: u64,
}

impl Span {
    /// As it travels.
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.start) << 64 | u128::from(self.len)).to_be_bytes()
    }

    /// What [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = u128::from_be_bytes(bytes.try_into().ok()?);
        Some(Self { start: (number >> 64) as u64, len: number as u64 })
    }

    /// A message whose document stands here.
    pub fn to_message(self) -> [u8; 17] {
        let mut message = [ELSEWHERE; 17];
        message[1..].copy_from_slice(&self.to_bytes());
        message
    }

    /// Where the document of this message stands, if that is elsewhere.
    pub fn of_message(message: &[u8]) -> Option<Self> {
        Self::from_bytes(message.strip_prefix(&[ELSEWHERE])?)
    }

    /// The same as a range. `None` where that can't be.
    pub fn range(self) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(self.start).ok()?;
        Some(start..start.checked_add(usize::try_from(self.len).ok()?)?)
    }
}

/// An integer of more than 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WideInt {
    /// Less than 0.
    Signed(i128),
    /// Not less.
    Unsigned(u128),
}

impl WideInt {
    /// As it travels: its two's complement of 136 bits, the highest byte first.
    pub fn to_bytes(self) -> [u8; 17] {
        let (sign, rest) = match self {
            Self::Signed(int) => (if int < 0 { u8::MAX } else { 0 }, int.to_be_bytes()),
            Self::Unsigned(int) => (0, int.to_be_bytes()),
        };
        let mut bytes = [sign; 17];
        bytes[1..].copy_from_slice(&rest);
        bytes
    }

    /// What [`Self::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&sign, rest) = bytes.split_first()?;
        let rest = rest.try_into().ok()?;
        match sign {
            0 => Some(Self::Unsigned(u128::from_be_bytes(rest))),
            u8::MAX => Some(i128::from_be_bytes(rest)).filter(|int| *int < 0).map(Self::Signed),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wide_integer_comes_back_as_it_went() {
        for int in [0, 1, 1 << 64, i128::MAX as u128, u128::MAX].map(WideInt::Unsigned) {
            assert_eq!(WideInt::from_bytes(&int.to_bytes()), Some(int));
        }
        for int in [-1, i128::from(i64::MIN) - 1, i128::MIN].map(WideInt::Signed) {
            assert_eq!(WideInt::from_bytes(&int.to_bytes()), Some(int));
        }
        assert_eq!(WideInt::from_bytes(&WideInt::Signed(7).to_bytes()), Some(WideInt::Unsigned(7)));
        let mut beyond = WideInt::Signed(-1).to_bytes();
        beyond[1] = 0;
        for garbage in [&[][..], &[0; 16], &[0; 18], &[1; 17], &beyond] {
            assert_eq!(WideInt::from_bytes(garbage), None, "{garbage:?}");
        }
    }

    #[test]
    fn a_span_comes_back_as_it_went() {
        for span in [Span { start: 0, len: 0 }, Span { start: 1 << 40, len: 7 }, Span { start: 64, len: u64::MAX }] {
            assert_eq!(Span::from_bytes(&span.to_bytes()), Some(span));
            assert_eq!(Span::of_message(&span.to_message()), Some(span));
        }
        assert_eq!(Span::of_message(b"\x93abc"), None);
        assert_eq!(Span::of_message(b"\xc1abc"), None);
        assert_eq!((Span { start: u64::MAX, len: 1 }).range(), None);
        assert_eq!((Span { start: 3, len: 4 }).range(), Some(3..7));
    }
}
