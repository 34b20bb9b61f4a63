//! Bytes that travel in place where they are many.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use polyloop_core::lay_apart;
#[cfg(feature = "python")]
use serde::de::Error as _;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::blocks::{Lease, Memory, Part};
#[cfg(feature = "python")]
use crate::message::{EXT_APART, EXT_VIEW};
use crate::message::{LARGE_BYTES, Span};

/// What rmp-serde takes for an extension type: the type, and bytes.
#[cfg(feature = "python")]
pub(crate) const EXT_STRUCT: &str = rmp_serde::MSGPACK_EXT_STRUCT_NAME;

/// Bytes that travel between a program and its workers without being copied more than once, on the sender's side, where
/// they are 64 KiB or more.
///
/// It is an argument or a result, alone or within a value. Large ones stay in the memory that the sender has put them
/// into, each at a multiple of 64 bytes, until the last clone goes. A correct sender does not touch that memory any more;
/// native code gone astray might, as long as its process lives. Those in a value of a stream are copied on the way, as
/// everything is for which the system has no memory to share.
///
/// Clones are the same bytes. With the feature `bytes`, it can be made of a `bytes::Bytes` and become one, without a
/// copy.
///
/// ```
/// # polyloop::init_before_main!();
/// # fn main() { tokio::runtime::Runtime::new().unwrap().block_on(run()).unwrap() }
/// # async fn run() -> Result<(), polyloop::Error> {
/// # let pool = polyloop::Pool::builder().processes(1).build().await?;
/// use polyloop::Buffer;
///
/// fn invert(image: Buffer) -> Buffer {
///     image.iter().map(|pixel| !pixel).collect::<Vec<u8>>().into()
/// }
/// let image = Buffer::from(vec![7; 1 << 20]);
/// let inverted = pool.apply(invert, (image.clone(),)).await?;
/// assert_eq!((inverted.len(), inverted[0]), (image.len(), !7));
/// # Ok(())
/// # }
/// ```
///
/// In a Python worker an argument is a read-only `memoryview`, whatever its size: `numpy.frombuffer` and the like use it
/// in place, and `bytes(view)` copies it. As a result it takes `bytes`, `bytearray`, `memoryview` and whatever else has a
/// buffer, such as a numpy array, of which the bytes travel, not shape and type.
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

/// Which pool's message it is that this thread writes or reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// None's: a buffer is bytes.
    Foreign,
    /// For, or of, a worker of this program.
    Own,
    /// For, or of, a Python worker.
    #[cfg(feature = "python")]
    MessagePack,
}

/// What is large of a message that is being written, and where in the memory that travels along it will stand.
#[derive(Default)]
pub(crate) struct Outbox {
    buffers: Vec<(usize, Buffer)>,
    end: usize,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// The bytes, each with where they will stand.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (usize, &[u8])> {
        self.buffers.iter().map(|(at, buffer)| (*at, &**buffer))
    }

    /// Puts them into memory that is taken for them, if there is any, and a long document of theirs behind them. Says
    /// where that stands.
    pub(crate) fn store(
        &self,
        document: &[u8],
        take: impl FnOnce(usize) -> Option<Lease>,
    ) -> Option<(Lease, Option<Span>)> {
        let is_long = document.len() >= LARGE_BYTES;
        let place = if is_long { lay_apart(self.end, document.len())? } else { 0..0 };
        let lease = take(self.end.max(place.end))?;
        lease.fill(self.parts().chain(is_long.then_some((place.start, document)))).ok()?;
        let span = Span { start: place.start as u64, len: place.len() as u64 };
        Some((lease, is_long.then_some(span)))
    }

    /// Has them travel at the end of their message instead: see [`trailing`].
    pub(crate) fn append_to(&self, message: &mut Vec<u8>) {
        if self.is_empty() {
            return;
        }
        let start = message.len();
        message.resize(start + self.end, 0);
        for (at, bytes) in self.parts() {
            message[start + at..][..bytes.len()].copy_from_slice(bytes);
        }
        message.extend((self.end as u64).to_le_bytes());
    }

    /// `None` where there is more than can be addressed.
    fn put(&mut self, buffer: &Buffer) -> Option<Span> {
        let place = lay_apart(self.end, buffer.len())?;
        self.end = place.end;
        self.buffers.push((place.start, buffer.clone()));
        Some(Span { start: place.start as u64, len: buffer.len() as u64 })
    }
}

/// The memory at the end of a message for which there was no block.
pub(crate) fn trailing(message: &[u8]) -> Option<Memory> {
    let (rest, len) = message.split_last_chunk()?;
    let start = rest.len().checked_sub(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
    Some(Memory::heap(&rest[start..]))
}

/// The memory that came with a message that is being read, and how many buffers have been found in it.
pub(crate) struct Inbox {
    pub(crate) memory: Arc<Memory>,
    pub(crate) taken: usize,
}

/// What this thread does now: serde passes nothing of the kind along.
#[derive(Clone, Copy)]
struct Now {
    dialect: Dialect,
    /// `OUTBOX` is of this message.
    has_sent: bool,
    /// `INBOX` is of this message.
    has_memory: bool,
    /// Memory was looked for and there is none.
    lacks_memory: bool,
}

impl Now {
    const fn new(dialect: Dialect) -> Self {
        Self { dialect, has_sent: false, has_memory: false, lacks_memory: false }
    }
}

thread_local! {
    static NOW: Cell<Now> = const { Cell::new(Now::new(Dialect::Foreign)) };
    static OUTBOX: RefCell<Outbox> = const { RefCell::new(Outbox { buffers: Vec::new(), end: 0 }) };
    static INBOX: RefCell<Option<Inbox>> = const { RefCell::new(None) };
}

/// Does something while large buffers that are written on this thread go to `outbox`.
#[inline]
pub(crate) fn with_outbox<T>(dialect: Dialect, outbox: &mut Outbox, act: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(dialect);
    if !outbox.is_empty() {
        OUTBOX.set(std::mem::take(outbox));
        NOW.set(Now { has_sent: true, ..NOW.get() });
    }
    let done = act();
    if NOW.get().has_sent {
        *outbox = OUTBOX.take();
    }
    done
}

/// Does something while large buffers that are read on this thread are found in `inbox`.
pub(crate) fn with_inbox<T>(dialect: Dialect, inbox: &mut Inbox, act: impl FnOnce() -> T) -> T {
    let _scope = Scope::enter(dialect);
    NOW.set(Now { has_memory: true, ..NOW.get() });
    INBOX.set(Some(Inbox { memory: Arc::clone(&inbox.memory), taken: 0 }));
    let done = act();
    inbox.taken = INBOX.take().map_or(0, |inbox| inbox.taken);
    done
}

/// Does something while a message is read to which no memory has come. Says whether some was looked for.
#[inline]
pub(crate) fn without_memory<T>(dialect: Dialect, act: impl FnOnce() -> T) -> (T, bool) {
    let _scope = Scope::enter(dialect);
    (act(), NOW.get().lacks_memory)
}

/// Puts back what was there before, also when what is done panics: a value that is written may call a pool itself.
struct Scope {
    before: Now,
    outbox: Option<Outbox>,
    inbox: Option<Inbox>,
}

impl Scope {
    #[inline]
    fn enter(dialect: Dialect) -> Self {
        let before = NOW.replace(Now::new(dialect));
        let outbox = before.has_sent.then(|| OUTBOX.take());
        Self { before, outbox, inbox: if before.has_memory { INBOX.take() } else { None } }
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        let now = NOW.replace(self.before);
        if now.has_sent || self.outbox.is_some() {
            OUTBOX.set(self.outbox.take().unwrap_or_default());
        }
        if now.has_memory || self.inbox.is_some() {
            INBOX.set(self.inbox.take());
        }
    }
}

/// Where the bytes of a buffer that is written go.
enum Way {
    /// Into the message, as this dialect has them.
    Within(Dialect),
    /// Beside it; `None` where there is no room for so many.
    Beside(Dialect, Option<Span>),
}

fn way_of(buffer: &Buffer) -> Way {
    let now = NOW.get();
    if now.dialect == Dialect::Foreign || buffer.len() < LARGE_BYTES {
        return Way::Within(now.dialect);
    }
    if !now.has_sent {
        OUTBOX.set(Outbox::default());
        NOW.set(Now { has_sent: true, ..now });
    }
    Way::Beside(now.dialect, OUTBOX.with_borrow_mut(|outbox| outbox.put(buffer)))
}

/// The part of the memory that came along.
fn part_at<E: serde::de::Error>(span: Span) -> Result<Buffer, E> {
    let place = span.range().ok_or_else(|| E::custom("bytes that are nowhere"))?;
    INBOX.with_borrow_mut(|inbox| {
        let Some(inbox) = inbox.as_mut().filter(|_| NOW.get().has_memory) else {
            NOW.set(Now { lacks_memory: true, ..NOW.get() });
            return Err(E::custom("no memory came along"));
        };
        let part = Part::new(&inbox.memory, place).map_err(E::custom)?;
        inbox.taken += 1;
        Ok(Buffer(Arc::new(part)))
    })
}

/// A buffer in a message for, or of, a worker of this program.
#[derive(Serialize, Deserialize)]
enum Own<Bytes> {
    Within(Bytes),
    Beside(u64, u64),
}

/// Bytes as such.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

#[cfg(feature = "python")]
impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Raw)
    }
}

impl Serialize for Buffer {
    /// Large ones go beside the message, if this is one of a pool.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match way_of(self) {
            Way::Within(Dialect::Foreign) => serializer.serialize_bytes(self),
            Way::Within(Dialect::Own) => Own::Within(Raw(self)).serialize(serializer),
            Way::Beside(Dialect::Own, Some(span)) => Own::<Raw<'_>>::Beside(span.start, span.len).serialize(serializer),
            #[cfg(feature = "python")]
            Way::Within(Dialect::MessagePack) => {
                serializer.serialize_newtype_struct(EXT_STRUCT, &(EXT_VIEW, Raw(self)))
            }
            #[cfg(feature = "python")]
            Way::Beside(Dialect::MessagePack, Some(span)) => {
                serializer.serialize_newtype_struct(EXT_STRUCT, &(EXT_APART, Raw(&span.to_bytes())))
            }
            Way::Beside(..) => Err(serde::ser::Error::custom("more bytes than can be addressed")),
        }
    }
}

impl<'de> Deserialize<'de> for Buffer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if NOW.get().dialect != Dialect::Own {
            return Within::deserialize(deserializer).map(|Within(buffer)| buffer);
        }
        match Own::deserialize(deserializer)? {
            Own::Within(Within(buffer)) => Ok(buffer),
            Own::Beside(start, len) => part_at(Span { start, len }),
        }
    }
}

/// A buffer that is bytes, or what the format has in their place.
struct Within(Buffer);

impl<'de> Deserialize<'de> for Within {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_byte_buf(BufferVisitor).map(Self)
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
    #[cfg(feature = "python")]
    fn visit_newtype_struct<D: Deserializer<'de>>(self, extension: D) -> Result<Buffer, D::Error> {
        let (kind, content) = <(i8, Raw<'_>)>::deserialize(extension)?;
        let span = Span::from_bytes(content.0).filter(|_| kind == EXT_APART);
        part_at(span.ok_or_else(|| D::Error::custom("no bytes"))?)
    }
}
