//! Bytes that travel in place where they are many.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use polyloop_core::lay_apart;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::wide::{EXT_STRUCT, Raw};
use crate::blocks::{Memory, Part};
use crate::message::{EXT_APART, EXT_VIEW, LARGE_BYTES, Span};

/// Bytes that travel between a Rust program and its Python workers without being copied more than once, on the sender's
/// side, where they are 64 KiB or more.
///
/// As an argument, alone or within a value, it arrives as a read-only `memoryview`, whatever its size:
/// `numpy.frombuffer` and the like use it in place, and `bytes(view)` copies it. As a result it takes `bytes`,
/// `bytearray`, `memoryview` and whatever else has a buffer, such as a numpy array, of which the bytes travel, not
/// shape and type. Large ones stay in the memory that the worker has put them into, each at a multiple of 64 bytes,
/// until the last clone goes. A correct worker does not touch that memory any more; native code gone astray might, as
/// long as its process lives.
///
/// Clones are the same bytes. With the feature `bytes`, it can be made of a `bytes::Bytes` and become one, without a
/// copy.
///
/// ```no_run
/// # async fn example(py: polyloop::PythonPool) -> Result<(), polyloop::Error> {
/// use polyloop::Buffer;
///
/// let image = Buffer::from(std::fs::read("image.png")?);
/// let pixels: Buffer = py.call("images:decode").arg(&image).await?;
/// assert!(pixels.len() > image.len());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Buffer(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Arc::new(bytes))
    }
}

#[cfg(feature = "bytes")]
impl From<bytes::Bytes> for Buffer {
    fn from(bytes: bytes::Bytes) -> Self {
        Self(Arc::new(bytes))
    }
}

#[cfg(feature = "bytes")]
impl From<Buffer> for bytes::Bytes {
    fn from(buffer: Buffer) -> Self {
        Self::from_owner(buffer)
    }
}

impl PartialEq for Buffer {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Buffer {}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

/// What is large of a message that is being written, and where in the memory that travels along it will stand.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) buffers: Vec<(usize, Buffer)>,
    pub(super) end: usize,
}

impl Outbox {
    /// `None` where there is more than can be addressed.
    fn put(&mut self, buffer: &Buffer) -> Option<Span> {
        let place = lay_apart(self.end, buffer.len())?;
        self.end = place.end;
        self.buffers.push((place.start, buffer.clone()));
        Some(Span { start: place.start as u64, len: buffer.len() as u64 })
    }
}

/// The memory that came with a message that is being read, and how many buffers have been found in it.
pub(super) struct Inbox {
    pub(super) memory: Arc<Memory>,
    pub(super) taken: usize,
}

thread_local! {
    /// Set while a message is written or read: serde passes nothing of the kind along.
    static OUTBOX: RefCell<Option<Outbox>> = const { RefCell::new(None) };
    static INBOX: RefCell<Option<Inbox>> = const { RefCell::new(None) };
}

/// Does something while large buffers that are written on this thread go to `outbox`.
pub(super) fn with_outbox<T>(outbox: &mut Outbox, act: impl FnOnce() -> T) -> T {
    let mut scope = Scope { slot: &OUTBOX, before: OUTBOX.replace(Some(std::mem::take(outbox))) };
    let done = act();
    *outbox = scope.leave().unwrap_or_default();
    done
}

/// Does something while large buffers that are read on this thread are found in `inbox`.
pub(super) fn with_inbox<T>(inbox: &mut Inbox, act: impl FnOnce() -> T) -> T {
    let own = Inbox { memory: Arc::clone(&inbox.memory), taken: 0 };
    let mut scope = Scope { slot: &INBOX, before: INBOX.replace(Some(own)) };
    let done = act();
    inbox.taken = scope.leave().map_or(0, |inbox| inbox.taken);
    done
}

/// Puts back what was there before, also when what is done panics.
struct Scope<T: 'static> {
    slot: &'static std::thread::LocalKey<RefCell<Option<T>>>,
    before: Option<T>,
}

impl<T> Scope<T> {
    fn leave(&mut self) -> Option<T> {
        self.slot.replace(self.before.take())
    }
}

impl<T> Drop for Scope<T> {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            self.slot.replace(Some(before));
        } else if std::thread::panicking() {
            self.slot.replace(None);
        }
    }
}

impl Serialize for Buffer {
    /// Large ones go beside the message, if this is one for a Python worker.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        enum To<'a> {
            Others,
            Message(&'a [u8]),
            Beside(Option<Span>),
        }
        let to = OUTBOX.with_borrow_mut(|outbox| match outbox {
            None => To::Others,
            Some(outbox) if self.len() >= LARGE_BYTES => To::Beside(outbox.put(self)),
            Some(_) => To::Message(self),
        });
        match to {
            To::Others => serializer.serialize_bytes(self),
            To::Message(bytes) => serializer.serialize_newtype_struct(EXT_STRUCT, &(EXT_VIEW, Raw(bytes))),
            To::Beside(Some(span)) => {
                serializer.serialize_newtype_struct(EXT_STRUCT, &(EXT_APART, Raw(&span.to_bytes())))
            }
            To::Beside(None) => Err(serde::ser::Error::custom("more bytes than can be addressed")),
        }
    }
}

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BufferVisitor)
    }
}

struct BufferVisitor;

impl<'de> Visitor<'de> for BufferVisitor {
    type Value = Buffer;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Buffer, E> {
        Ok(bytes.to_vec().into())
    }

    fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Buffer, E> {
        Ok(bytes.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut bytes: A) -> Result<Buffer, A::Error> {
        let mut all = Vec::new();
        while let Some(byte) = bytes.next_element()? {
            all.push(byte);
        }
        Ok(all.into())
    }

    /// An extension type of MessagePack.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<Buffer, D::Error> {
        let (kind, content) = <(i8, Raw<'_>)>::deserialize(extension)?;
        let place = Span::from_bytes(content.0).filter(|_| kind == EXT_APART).and_then(Span::range);
        let place = place.ok_or_else(|| D::Error::custom("no bytes"))?;
        INBOX.with_borrow_mut(|inbox| {
            let inbox = inbox.as_mut().ok_or_else(|| D::Error::custom("no memory came along"))?;
            let part = Part::new(&inbox.memory, place).map_err(D::Error::custom)?;
            inbox.taken += 1;
            Ok(Buffer(Arc::new(part)))
        })
    }
}
