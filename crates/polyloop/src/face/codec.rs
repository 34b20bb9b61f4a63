//! How arguments, results and failures travel: the only file that knows the format, which is postcard's.

use std::sync::Arc;

use polyloop_core::{Luggage, Payload};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::buffer::{Dialect, Inbox, Outbox, trailing, with_inbox, with_outbox, without_memory};
use super::error::{Error, RemoteError, TaskPanicked};
use super::manager::Manager;
use crate::blocks::{Lease, Memory};
use crate::message::{LARGE_BYTES, Span};

/// Arguments up to this many bytes are copied out of their buffer, which is used again.
const BUFFER_MAX: usize = 4096;

// What a message begins with that has memory beside it: its document follows, or stands there.
const HERE: u8 = 0;
const THERE: u8 = 1;

/// Why a task has no result of its own.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Failure {
    Panicked(TaskPanicked),
    /// The arguments could not be read there, or the result not be written.
    Unsendable(RemoteError),
}

impl Failure {
    pub(crate) fn unreadable<T>(error: &postcard::Error) -> Self {
        Self::Unsendable(RemoteError::unsendable::<T>("read", error))
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        // Strings and numbers, which can always be written.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Error {
        match postcard::from_bytes(bytes) {
            Ok(Self::Panicked(panic)) => Error::TaskPanicked(panic),
            Ok(Self::Unsendable(error)) => Error::Remote(error),
            Err(error) => Error::Remote(RemoteError::unsendable::<Self>("read", &error)),
        }
    }
}

/// Reads what has come, and the memory that came along.
pub(crate) fn read<T: DeserializeOwned>(message: &[u8], memory: Option<&Arc<Memory>>) -> Result<T, postcard::Error> {
    if let Some(memory) = memory {
        return read_beside(message, memory);
    }
    match without_memory(Dialect::Own, || postcard::from_bytes(message)) {
        (read, false) => read,
        // There was no block for them.
        (read, true) => match trailing(message) {
            Some(memory) => read_with(message, &Arc::new(memory)),
            None => read,
        },
    }
}

fn read_with<T: DeserializeOwned>(document: &[u8], memory: &Arc<Memory>) -> Result<T, postcard::Error> {
    let mut inbox = Inbox { memory: Arc::clone(memory), taken: 0 };
    with_inbox(Dialect::Own, &mut inbox, || postcard::from_bytes(document))
}

fn read_beside<T: DeserializeOwned>(message: &[u8], memory: &Arc<Memory>) -> Result<T, postcard::Error> {
    match message.split_first() {
        Some((&HERE, document)) => read_with(document, memory),
        Some((&THERE, span)) => {
            let range = Span::from_bytes(span).and_then(Span::range);
            // From memory of this process's own: nobody changes it between a look and the next.
            let document = range.and_then(|range| memory.copy(range).ok());
            read_with(&document.ok_or(postcard::Error::DeserializeUnexpectedEnd)?, memory)
        }
        _ => Err(postcard::Error::DeserializeBadEncoding),
    }
}

/// What is large of a message, in memory that is taken for it, if there is any; and the message that goes along.
pub(crate) fn beside(
    document: &[u8],
    outbox: &Outbox,
    take: impl FnOnce(usize) -> Option<Lease>,
) -> Option<(Lease, Vec<u8>)> {
    let (lease, span) = outbox.store(document, take)?;
    let message = match span {
        None => [&[HERE], document].concat(),
        Some(span) => [&[THERE], &span.to_bytes()[..]].concat(),
    };
    Some((lease, message))
}

/// Whether a message is to have memory beside it.
pub(crate) fn is_large(document: &[u8], outbox: &Outbox) -> bool {
    !outbox.is_empty() || document.len() >= LARGE_BYTES
}

/// Writes what a task returned. Its large buffers are left for whoever sends it.
pub(crate) fn write_result<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<Outbox, Failure> {
    write(value, out).map_err(|error| Failure::Unsendable(RemoteError::unsendable::<T>("written", &error)))
}

/// Writes arguments, by way of a buffer that may be used again.
pub(crate) fn write_arguments<T: Serialize>(
    manager: &Manager,
    value: &T,
    buffer: &mut Vec<u8>,
) -> Result<Payload, Error> {
    let written = write(value, buffer);
    let outbox = written.map_err(|error| Error::Unsendable(RemoteError::unsendable::<T>("written", &error)))?;
    if is_large(buffer, &outbox) {
        let take = |len| manager.with_driver(|driver| driver.take_block(len));
        if let Some((lease, message)) = beside(buffer, &outbox, take) {
            return Ok(Payload::from_vec(message).with(Some(Luggage::new(lease))));
        }
        outbox.append_to(buffer);
    }
    Ok(match buffer.len() {
        0..=BUFFER_MAX => Payload::from_slice(buffer),
        _ => Payload::from_vec(std::mem::take(buffer)),
    })
}

pub(crate) fn read_result<T: DeserializeOwned>(payload: &Payload) -> Result<T, Error> {
    let memory = payload.luggage().and_then(|luggage| luggage.get());
    read(payload, memory).map_err(|error| Error::Remote(RemoteError::unsendable::<T>("read", &error)))
}

fn write<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<Outbox, postcard::Error> {
    out.clear();
    let mut outbox = Outbox::default();
    with_outbox(Dialect::Own, &mut outbox, || postcard::serialize_with_flavor(value, Document(out)))?;
    Ok(outbox)
}

/// A document in a buffer that stays the caller's. It takes runs of bytes as such.
struct Document<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Document<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::face::Buffer;
    use proptest::prelude::*;

    fn written<T: Serialize>(value: &T) -> (Vec<u8>, Outbox) {
        let mut bytes = Vec::new();
        let outbox = write(value, &mut bytes).unwrap();
        (bytes, outbox)
    }

    #[test]
    fn arguments_come_back_as_they_went_in() {
        let arguments = (7u64, "seven".to_owned(), vec![1.5f32; 100], Some(()));
        let (bytes, outbox) = written(&arguments);
        assert!(outbox.is_empty());
        assert_eq!(read::<(u64, String, Vec<f32>, Option<()>)>(&bytes, None).unwrap(), arguments);
    }

    #[test]
    fn large_buffers_go_beside_their_message_or_behind_it() {
        let value =
            (1u8, Buffer::from(vec![2; LARGE_BYTES]), Some(Buffer::from(vec![3; 5])), Buffer::from(vec![4; 70_000]));
        let (mut bytes, outbox) = written(&value);
        assert!(bytes.len() < 30, "{}", bytes.len());
        let starts: Vec<_> = outbox.parts().map(|(start, _)| start).collect();
        assert_eq!(starts, [0, LARGE_BYTES]);
        type Value = (u8, Buffer, Option<Buffer>, Buffer);
        let memory = |len: usize| {
            let mut memory = vec![0; len];
            outbox.parts().filter(|(start, part)| start + part.len() <= len).for_each(|(start, part)| {
                memory[start..][..part.len()].copy_from_slice(part);
            });
            Arc::new(Memory::heap(&memory))
        };
        let message = [&[HERE], &bytes[..]].concat();
        assert_eq!(read::<Value>(&message, Some(&memory(LARGE_BYTES + 70_000))).unwrap(), value);
        assert!(read::<Value>(&message, Some(&memory(LARGE_BYTES + 69_999))).is_err());
        assert!(read::<Value>(&bytes, None).is_err());
        outbox.append_to(&mut bytes);
        assert_eq!(read::<Value>(&bytes, None).unwrap(), value);
        assert!(read::<Value>(&bytes[..bytes.len() - 1], None).is_err());
    }

    /// Writes another message while it is written, and reads one while it is read.
    struct Nosy(Buffer);

    impl Serialize for Nosy {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            assert!(!written(&self.0).1.is_empty());
            self.0.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Nosy {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let (mut bytes, outbox) = written(&Buffer::from(vec![9; LARGE_BYTES]));
            outbox.append_to(&mut bytes);
            assert_eq!(read::<Buffer>(&bytes, None).unwrap()[0], 9);
            Buffer::deserialize(deserializer).map(Self)
        }
    }

    #[test]
    fn messages_within_messages_do_not_mix() {
        let buffers = [5, 6].map(|byte| Buffer::from(vec![byte; LARGE_BYTES]));
        let (mut bytes, outbox) = written(&(buffers[0].clone(), Nosy(buffers[1].clone())));
        outbox.append_to(&mut bytes);
        let (first, Nosy(second)): (Buffer, Nosy) = read(&bytes, None).unwrap();
        assert_eq!([first, second], buffers);
        // Outside of messages, it is bytes like others.
        assert_eq!(postcard::to_stdvec(&buffers[0]).unwrap().len(), LARGE_BYTES + 3);
    }

    #[test]
    fn a_value_that_panics_leaves_nothing_behind() {
        struct Bomb(Buffer);
        impl Serialize for Bomb {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.0.serialize(serializer)?;
                panic!("boom")
            }
        }
        let bomb = Bomb(Buffer::from(vec![1; LARGE_BYTES]));
        let went = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| write(&bomb, &mut Vec::new()).is_ok()));
        assert!(went.is_err());
        assert!(written(&1u8).1.is_empty());
        assert_eq!(postcard::to_stdvec(&bomb.0).unwrap().len(), LARGE_BYTES + 3);
    }

    #[test]
    fn a_long_document_may_stand_in_the_memory_itself() {
        let there = |span: Span| [&[THERE], &span.to_bytes()[..]].concat();
        let memory = Arc::new(Memory::heap(&written(&(5u8, "text".to_owned())).0));
        let read = |message: &[u8]| read::<(u8, String)>(message, Some(&memory));
        assert_eq!(read(&there(Span { start: 0, len: 6 })).unwrap(), (5, "text".to_owned()));
        for (start, len) in [(1, 6), (7, 0), (0, u64::MAX), (u64::MAX, 1)] {
            assert!(read(&there(Span { start, len })).is_err());
        }
        assert!(read(&[THERE; 4]).is_err() && read(&[7; 17]).is_err() && read(&[]).is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = read::<(Buffer, String, Vec<Buffer>)>(&bytes, None);
            let _ = read::<(Buffer, Vec<Buffer>)>(&bytes, Some(&Arc::new(Memory::heap(&[0; 9]))));
        }
    }

    #[test]
    fn bytes_that_make_no_sense_are_an_error_that_names_the_type() {
        let error = read_result::<(u64, String)>(&Payload::from_slice(&[0xff; 3])).unwrap_err();
        assert!(error.to_string().contains("(u64, alloc::string::String)"), "{error}");
        assert!(matches!(Failure::from_bytes(&[0xff; 3]), Error::Remote(_)));
    }
}
