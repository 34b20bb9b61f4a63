//! The codec for simple values: the few types that most small tasks carry, in a byte or nine each.
//!
//! A value is a tag and its content; a sequence is a tag, a count and that many values. Everything else is bytes
//! that the host's own codec wrote, under [`Value::Other`]. What is large is not here: the value says how many of the
//! bytes that travel apart it takes, one value's after the other's.

use thiserror::Error;

const NONE: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const TEXT: u8 = 5;
const BYTES: u8 = 6;
const TUPLE: u8 = 7;
const LIST: u8 = 8;
const OTHER: u8 = 9;
const APART: u8 = 10;
const BUFFERS: u8 = 11;

/// What bytes that travel apart are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Apart {
    /// Bytes.
    Bytes,
    /// Bytes that may be changed.
    ByteArray,
    /// A view of bytes.
    View,
    /// A view of bytes that may be changed.
    WritableView,
    /// What the host's codec wrote.
    Other,
}

impl Apart {
    const ALL: [Self; 5] = [Self::Bytes, Self::ByteArray, Self::View, Self::WritableView, Self::Other];
}

/// What travels apart is laid out so, in bytes: a cache line.
const APART_ALIGN: usize = 64;

/// Where bytes that travel apart end, in a layout that has reached `at`: from the next multiple of the alignment. `None`
/// where that can't be.
pub fn lay_apart(at: usize, len: usize) -> Option<std::ops::Range<usize>> {
    let start = at.checked_next_multiple_of(APART_ALIGN)?;
    Some(start..start.checked_add(len)?)
}

/// One step of a written value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    /// Nothing.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer of at most 64 bits.
    Int(i64),
    /// A double.
    Float(f64),
    /// Text.
    Text(&'a str),
    /// Bytes.
    Bytes(&'a [u8]),
    /// A tuple; so many values follow.
    Tuple(u32),
    /// A list; so many values follow.
    List(u32),
    /// What the host's codec wrote.
    Other(&'a [u8]),
    /// What the next so many of the bytes that travel apart are.
    Apart(Apart, u64),
    /// What the host's codec wrote, and before it, apart, so many views that belong to it.
    Buffers(u32),
}

/// Bytes that are not a value.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ValueError {
    /// They end within a value.
    #[error("a value ends too early")]
    Truncated,
    /// They begin with an unknown tag.
    #[error("a value of unknown type {0}")]
    Tag(u8),
    /// Text that is not UTF-8.
    #[error("text that is not UTF-8")]
    Text,
}

/// Writes values one after the other.
#[derive(Debug)]
pub struct ValueWriter<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> ValueWriter<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self { out }
    }

    /// Writes one step. After a sequence's head its values follow.
    pub fn write(&mut self, value: Value<'_>) {
        match value {
            Value::None => self.out.push(NONE),
            Value::Bool(false) => self.out.push(FALSE),
            Value::Bool(true) => self.out.push(TRUE),
            Value::Int(int) => self.word(INT, int.cast_unsigned()),
            Value::Float(float) => self.word(FLOAT, float.to_bits()),
            Value::Text(text) => self.counted(TEXT, text.as_bytes()),
            Value::Bytes(bytes) => self.counted(BYTES, bytes),
            Value::Tuple(len) => self.count(TUPLE, len),
            Value::List(len) => self.count(LIST, len),
            Value::Other(bytes) => self.counted(OTHER, bytes),
            Value::Apart(kind, len) => {
                self.out.push(APART);
                self.word(kind as u8, len);
            }
            Value::Buffers(count) => self.count(BUFFERS, count),
        }
    }

    /// Bytes written so far, to go back to with [`Self::rewind`].
    pub fn mark(&self) -> usize {
        self.out.len()
    }

    /// Forgets what was written since `mark`.
    pub fn rewind(&mut self, mark: usize) {
        self.out.truncate(mark);
    }

    /// Tag and content at once, as room for both is then looked for once.
    fn word(&mut self, tag: u8, content: u64) {
        let mut bytes = [tag; 9];
        bytes[1..].copy_from_slice(&content.to_le_bytes());
        self.out.extend_from_slice(&bytes);
    }

    fn count(&mut self, tag: u8, count: u32) {
        let mut bytes = [tag; 5];
        bytes[1..].copy_from_slice(&count.to_le_bytes());
        self.out.extend_from_slice(&bytes);
    }

    fn counted(&mut self, tag: u8, content: &[u8]) {
        self.word(tag, content.len() as u64);
        self.out.extend_from_slice(content);
    }
}

/// Reads values one after the other.
#[derive(Clone, Debug)]
pub struct ValueReader<'a> {
    rest: &'a [u8],
}

impl<'a> ValueReader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next step.
    ///
    /// # Errors
    /// [`ValueError`] when the bytes are no value.
    // In place at its few callers, where most steps are known: a value that is handed on is copied in other pieces than it
    // was written in, and waits for that.
    #[inline(always)]
    pub fn read(&mut self) -> Result<Value<'a>, ValueError> {
        let [tag] = self.array()?;
        Ok(match tag {
            NONE => Value::None,
            FALSE => Value::Bool(false),
            TRUE => Value::Bool(true),
            INT => Value::Int(i64::from_le_bytes(self.array()?)),
            FLOAT => Value::Float(f64::from_le_bytes(self.array()?)),
            TEXT => Value::Text(std::str::from_utf8(self.counted()?).map_err(|_| ValueError::Text)?),
            BYTES => Value::Bytes(self.counted()?),
            TUPLE => Value::Tuple(self.count()?),
            LIST => Value::List(self.count()?),
            OTHER => Value::Other(self.counted()?),
            APART => {
                let [kind] = self.array()?;
                let kind = Apart::ALL.get(usize::from(kind)).ok_or(ValueError::Tag(kind))?;
                Value::Apart(*kind, u64::from_le_bytes(self.array()?))
            }
            BUFFERS => Value::Buffers(self.count()?),
            _ => return Err(ValueError::Tag(tag)),
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ValueError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(ValueError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn counted(&mut self) -> Result<&'a [u8], ValueError> {
        let len = usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| ValueError::Truncated)?;
        let (content, rest) = self.rest.split_at_checked(len).ok_or(ValueError::Truncated)?;
        self.rest = rest;
        Ok(content)
    }

    /// A sequence's length, which can't exceed the bytes left: each value takes one at least.
    fn count(&mut self) -> Result<u32, ValueError> {
        let len = u32::from_le_bytes(self.array()?);
        if len as usize > self.rest.len() { Err(ValueError::Truncated) } else { Ok(len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_come_back_as_they_went_in() {
        let values = [
            Value::Tuple(9),
            Value::None,
            Value::Bool(true),
            Value::Bool(false),
            Value::Int(i64::MIN),
            Value::Float(-0.5),
            Value::Text("größer"),
            Value::Bytes(b"\0\xff"),
            Value::List(1),
            Value::Buffers(2),
            Value::Apart(Apart::WritableView, 1 << 40),
            Value::Apart(Apart::Other, 3),
            Value::Other(b"pickle"),
        ];
        let mut bytes = Vec::new();
        let mut writer = ValueWriter::new(&mut bytes);
        values.iter().for_each(|value| writer.write(*value));
        let mut reader = ValueReader::new(&bytes);
        for value in values {
            assert_eq!(reader.read(), Ok(value));
        }
        assert_eq!(reader.read(), Err(ValueError::Truncated));
    }

    #[test]
    fn what_travels_apart_is_aligned_and_within_what_can_be_addressed() {
        assert_eq!(lay_apart(0, 5), Some(0..5));
        assert_eq!(lay_apart(5, 0), Some(64..64));
        assert_eq!(lay_apart(64, 1), Some(64..65));
        assert_eq!((lay_apart(usize::MAX, 1), lay_apart(64, usize::MAX)), (None, None));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut reader = ValueReader::new(&bytes);
            while reader.read().is_ok() {}
        }
    }
}
