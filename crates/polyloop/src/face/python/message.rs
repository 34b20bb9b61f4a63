//! Messages to and from Python workers: the only file that knows how values become MessagePack. The format of a message
//! is in [`crate::message`].

use std::borrow::Cow;
use std::io::Write;
use std::ops::Range;
use std::sync::Arc;

use polyloop_core::{Luggage, Payload};
use rmp::Marker;
use rmp::decode::{Bytes, RmpRead, read_marker};
use rmp::encode;
use rmp_serde::{Deserializer, Serializer};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wide::Wide;
use crate::blocks::Memory;
use crate::face::buffer::{Dialect, Inbox, Outbox, with_inbox, with_outbox};
use crate::face::error::{Error, RemoteError};
use crate::face::manager::Manager;
use crate::message::{EXT_APART, EXT_VIEW, LARGE_BYTES, Span};

/// Documents up to this many bytes are copied out of their buffer, which is used again.
const BUFFER_MAX: usize = 4096;
/// What the heads of an array and a map take at most.
const HEADS_BYTES: usize = 10;

/// What a function is to be called with.
#[derive(Default)]
pub(super) struct Arguments {
    positional: Vec<u8>,
    positional_count: u32,
    named: Vec<u8>,
    named_count: u32,
    outbox: Outbox,
}

impl Arguments {
    /// One more by position.
    pub(super) fn push<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Error> {
        self.positional_count += 1;
        write(value, &mut self.positional, &mut self.outbox)
    }

    /// One more by name.
    pub(super) fn name<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), Error> {
        self.named_count += 1;
        write(name, &mut self.named, &mut self.outbox)?;
        write(value, &mut self.named, &mut self.outbox)
    }

    pub(super) fn into_message(self) -> Result<Message, Error> {
        let mut document = Vec::with_capacity(self.positional.len() + self.named.len() + HEADS_BYTES);
        encode::write_array_len(&mut document, self.positional_count).map_err(|error| unwritten::<Self>(&error))?;
        document.extend(self.positional);
        encode::write_map_len(&mut document, self.named_count).map_err(|error| unwritten::<Self>(&error))?;
        document.extend(self.named);
        Ok(Message { document, outbox: self.outbox })
    }
}

/// A message that is being written.
pub(super) struct Message {
    document: Vec<u8>,
    outbox: Outbox,
}

impl Message {
    /// One argument, by way of a buffer that is used again.
    pub(super) fn of_argument<T: Serialize>(value: &T, buffer: &mut Vec<u8>) -> Result<Self, Error> {
        let mut message = Self::within(buffer);
        encode::write_array_len(&mut message.document, 1).map_err(|error| unwritten::<T>(&error))?;
        write(value, &mut message.document, &mut message.outbox)?;
        message.without_names::<T>()
    }

    /// An array of arguments, likewise.
    pub(super) fn of_arguments<T: Serialize>(values: &T, buffer: &mut Vec<u8>) -> Result<Self, Error> {
        let mut message = Self::within(buffer);
        write(values, &mut message.document, &mut message.outbox)?;
        match message.document.first().map(|byte| Marker::from_u8(*byte)) {
            Some(Marker::FixArray(_) | Marker::Array16 | Marker::Array32) => message.without_names::<T>(),
            _ => Err(unwritten::<T>(&"it is no tuple of arguments")),
        }
    }

    fn within(buffer: &mut Vec<u8>) -> Self {
        let mut document = std::mem::take(buffer);
        document.clear();
        Self { document, outbox: Outbox::default() }
    }

    fn without_names<T>(mut self) -> Result<Self, Error> {
        encode::write_map_len(&mut self.document, 0).map_err(|error| unwritten::<T>(&error))?;
        Ok(self)
    }

    /// As it travels: what is large in a block, where there is one.
    pub(super) fn into_payload(mut self, manager: &Manager, buffer: &mut Vec<u8>) -> Result<Payload, Error> {
        if !self.outbox.is_empty() || self.document.len() >= LARGE_BYTES {
            let take = |len| manager.with_driver(|driver| driver.take_block(len));
            if let Some((lease, span)) = self.outbox.store(&self.document, take) {
                let payload = match span {
                    Some(span) => Payload::from_slice(&span.to_message()),
                    None => Payload::from_slice(&self.document),
                };
                return Ok(payload.with(Some(Luggage::new(lease))));
            }
            if !self.outbox.is_empty() {
                self.document = self.whole()?;
            }
        }
        if self.document.len() > BUFFER_MAX {
            return Ok(Payload::from_vec(self.document));
        }
        *buffer = self.document;
        Ok(Payload::from_slice(buffer))
    }

    /// The document with its large parts where they belong.
    fn whole(&self) -> Result<Vec<u8>, Error> {
        let mut parts = self.outbox.parts();
        filled_in(&self.document, |_, out| {
            let (_, buffer) = parts.next().ok_or_else(|| unwritten::<()>(&"a part is missing"))?;
            let len = len32(buffer.len()).ok_or_else(|| unwritten::<()>(&"more than 4 GiB in one value"))?;
            encode::write_ext_meta(out, len, EXT_VIEW).map_err(|error| unwritten::<()>(&error))?;
            out.extend_from_slice(buffer);
            Ok(())
        })
    }
}

/// Appends a value to a document, and what of it is large to `outbox`.
fn write<T: Serialize + ?Sized>(value: &T, document: &mut Vec<u8>, outbox: &mut Outbox) -> Result<(), Error> {
    let mut serializer = Serializer::new(document).with_struct_map().with_human_readable();
    with_outbox(Dialect::MessagePack, outbox, || value.serialize(Wide(&mut serializer)))
        .map_err(|error| unwritten::<T>(&error))
}

/// Reads what a worker has returned.
pub(super) fn read<R: DeserializeOwned>(payload: &Payload) -> Result<R, Error> {
    let Some(memory) = payload.luggage().and_then(|luggage| luggage.get::<Arc<Memory>>()) else {
        return read_document(payload);
    };
    // The document is read from memory of this process's own: nobody changes it between a look and the next.
    let document = match Span::of_message(payload) {
        Some(span) => Cow::Owned(copy::<R>(memory, span)?),
        None => Cow::Borrowed(&payload[..]),
    };
    let parts = spans(&document).len();
    if parts == 0 {
        return read_document(&document);
    }
    let mut inbox = Inbox { memory: Arc::clone(memory), taken: 0 };
    let read = with_inbox(Dialect::MessagePack, &mut inbox, || read_document(&document));
    if read.is_ok() && inbox.taken == parts {
        return read;
    }
    // Not all of them were for a `Buffer`. Whatever else takes bytes finds them in their place.
    let mut end = 0;
    let whole = filled_in(&document, |span, out| {
        // One after the other, as they are written: no more is copied than came.
        if span.start < end {
            return Err(unread::<R>(&"its large parts stand in each other's place"));
        }
        let bytes = copy::<R>(memory, span)?;
        end = span.start + span.len;
        let len = len32(bytes.len()).ok_or_else(|| unread::<R>(&"more than 4 GiB in one value"))?;
        encode::write_bin_len(out, len).map_err(|error| unread::<R>(&error))?;
        out.extend_from_slice(&bytes);
        Ok(())
    })?;
    read_document(&whole)
}

fn read_document<R: DeserializeOwned>(document: &[u8]) -> Result<R, Error> {
    let mut deserializer = Deserializer::from_read_ref(document).with_human_readable();
    R::deserialize(Wide(&mut deserializer)).map_err(|error| unread::<R>(&error))
}

fn copy<R>(memory: &Arc<Memory>, span: Span) -> Result<Vec<u8>, Error> {
    let range = span.range().ok_or_else(|| unread::<R>(&"its large parts are nowhere"))?;
    memory.copy(range).map_err(|error| unread::<R>(&error))
}

/// A document with something else in place of each part that stands elsewhere.
fn filled_in(document: &[u8], mut fill: impl FnMut(Span, &mut Vec<u8>) -> Result<(), Error>) -> Result<Vec<u8>, Error> {
    let (mut out, mut at) = (Vec::new(), 0);
    for (range, span) in spans(document) {
        out.extend_from_slice(&document[at..range.start]);
        fill(span, &mut out)?;
        at = range.end;
    }
    out.extend_from_slice(&document[at..]);
    Ok(out)
}

/// Where a document speaks of parts that stand elsewhere; up to where it makes no sense.
fn spans(document: &[u8]) -> Vec<(Range<usize>, Span)> {
    let (mut found, mut rest) = (Vec::new(), Bytes::new(document));
    let at = |rest: &Bytes<'_>| document.len() - rest.remaining_slice().len();
    loop {
        let start = at(&rest);
        let Some(content) = skip(&mut rest) else { return found };
        if let Some((&kind, bytes)) = content.split_first()
            && kind.cast_signed() == EXT_APART
            && Marker::from_u8(document[start]) == Marker::FixExt16
            && let Some(span) = Span::from_bytes(bytes)
        {
            found.push((start..at(&rest), span));
        }
    }
}

/// Goes past a value, or to the first within it. Gives what it holds besides its length: of an extension, type and
/// content.
fn skip<'a>(rest: &mut Bytes<'a>) -> Option<&'a [u8]> {
    let len = match read_marker(rest).ok()? {
        Marker::U8 | Marker::I8 => 1,
        Marker::U16 | Marker::I16 => 2,
        Marker::U32 | Marker::I32 | Marker::F32 => 4,
        Marker::U64 | Marker::I64 | Marker::F64 => 8,
        Marker::FixExt1 => 2,
        Marker::FixExt2 => 3,
        Marker::FixExt4 => 5,
        Marker::FixExt8 => 9,
        Marker::FixExt16 => 17,
        Marker::FixStr(len) => usize::from(len),
        Marker::Str8 | Marker::Bin8 => usize::from(rest.read_data_u8().ok()?),
        Marker::Str16 | Marker::Bin16 => usize::from(rest.read_data_u16().ok()?),
        Marker::Str32 | Marker::Bin32 => rest.read_data_u32().ok()? as usize,
        Marker::Ext8 => usize::from(rest.read_data_u8().ok()?) + 1,
        Marker::Ext16 => usize::from(rest.read_data_u16().ok()?) + 1,
        Marker::Ext32 => rest.read_data_u32().ok()? as usize + 1,
        // The items are values that follow.
        Marker::Array16 | Marker::Map16 => rest.read_data_u16().map(|_| 0).ok()?,
        Marker::Array32 | Marker::Map32 => rest.read_data_u32().map(|_| 0).ok()?,
        _ => 0,
    };
    let (content, after) = rest.remaining_slice().split_at_checked(len)?;
    *rest = Bytes::new(after);
    Some(content)
}

fn len32(len: usize) -> Option<u32> {
    u32::try_from(len).ok()
}

fn unwritten<T: ?Sized>(error: &dyn std::fmt::Display) -> Error {
    Error::Unsendable(RemoteError::unsendable::<T>("written", error))
}

fn unread<T>(error: &dyn std::fmt::Display) -> Error {
    Error::Remote(RemoteError::unsendable::<T>("read", error))
}

/// Orders to a worker, as a document.
pub(super) fn write_orders(orders: &impl Serialize, out: &mut impl Write) -> Result<(), Error> {
    rmp_serde::encode::write_named(out, orders).map_err(|error| unwritten::<()>(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::Buffer;
    use proptest::prelude::*;

    const BYTES: &[u8] = b"0123456789";

    /// What a worker might say of these bytes.
    fn message(document: &[u8]) -> Payload {
        let memory = Arc::new(Memory::heap(BYTES));
        Payload::from_slice(document).with(Some(Luggage::new(memory)))
    }

    /// An array of parts of the memory that travels along.
    fn parts(spans: &[(u64, u64)]) -> Vec<u8> {
        let mut document = Vec::new();
        encode::write_array_len(&mut document, spans.len() as u32).unwrap();
        for (start, len) in spans {
            encode::write_ext_meta(&mut document, 16, EXT_APART).unwrap();
            document.extend(Span { start: *start, len: *len }.to_bytes());
        }
        document
    }

    #[test]
    fn large_parts_are_found_in_place_or_copied_to_theirs() {
        let message = message(&parts(&[(0, 3), (5, 2)]));
        let in_place: (Buffer, Buffer) = read(&message).unwrap();
        assert_eq!((&*in_place.0, &*in_place.1), (&b"012"[..], &b"56"[..]));
        assert_eq!(read::<(Vec<u8>, Buffer)>(&message).unwrap().0, b"012");
        assert_eq!(read::<Vec<Vec<u8>>>(&message).unwrap(), [b"012".to_vec(), b"56".to_vec()]);
    }

    #[test]
    fn a_document_may_stand_in_the_memory_itself() {
        let far = message(&Span { start: 1, len: 1 }.to_message());
        assert_eq!(read::<u8>(&far).unwrap(), b'1');
        for span in [Span { start: 10, len: 1 }, Span { start: 0, len: 11 }, Span { start: u64::MAX, len: u64::MAX }] {
            assert!(matches!(read::<u8>(&message(&span.to_message())), Err(Error::Remote(_))));
        }
    }

    #[test]
    fn parts_that_are_not_there_or_twice_are_an_error() {
        for spans in [&[(0, 11)][..], &[(11, 0)], &[(u64::MAX, 1)], &[(0, 9), (8, 2)], &[(5, 1), (0, 1)]] {
            assert!(matches!(read::<Vec<Vec<u8>>>(&message(&parts(spans))), Err(Error::Remote(_))), "{spans:?}");
        }
        assert!(matches!(read::<Vec<Buffer>>(&message(&parts(&[(9, 2)]))), Err(Error::Remote(_))));
        // Without memory there is nothing to speak of.
        assert!(matches!(read::<Vec<Buffer>>(&Payload::from_slice(&parts(&[(0, 1)]))), Err(Error::Remote(_))));
    }

    #[test]
    fn a_buffer_is_bytes_to_any_other_format() {
        let buffer = Buffer::from(vec![7; LARGE_BYTES]);
        let bytes = postcard::to_stdvec(&buffer).unwrap();
        assert_eq!(postcard::from_bytes::<Buffer>(&bytes).unwrap(), buffer);
        let bytes = rmp_serde::to_vec(&buffer).unwrap();
        assert_eq!(rmp_serde::from_slice::<Buffer>(&bytes).unwrap(), buffer);
    }

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code, reason = "only read into")]
    enum Anything {
        Nothing,
        Some(Box<Anything>),
        Buffers(Vec<Buffer>),
        Named { texts: std::collections::BTreeMap<String, Option<f64>>, bytes: Vec<u8> },
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let message = message(&bytes);
            let _ = read::<Anything>(&message);
            let _ = read::<(Buffer, Vec<u8>)>(&message);
            let _ = read::<serde::de::IgnoredAny>(&message);
        }
    }
}
