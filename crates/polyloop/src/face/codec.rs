//! How arguments, results and failures travel: the only file that knows the format, which is postcard's.

use polyloop_core::Payload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Error, RemoteError, TaskPanicked};

/// Arguments up to this many bytes are copied out of their buffer, which is used again.
const BUFFER_MAX: usize = 4096;

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

pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, postcard::Error> {
    postcard::from_bytes(bytes)
}

/// Writes what a task returned.
pub(crate) fn write_result<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), Failure> {
    write(value, out).map_err(|error| Failure::Unsendable(RemoteError::unsendable::<T>("written", &error)))
}

/// Writes arguments, by way of a buffer that may be used again.
pub(crate) fn write_arguments<T: Serialize>(value: &T, buffer: &mut Vec<u8>) -> Result<Payload, Error> {
    let written = write(value, buffer).map(|()| match buffer.len() {
        0..=BUFFER_MAX => Payload::from_slice(buffer),
        _ => Payload::from_vec(std::mem::take(buffer)),
    });
    written.map_err(|error| Error::Unsendable(RemoteError::unsendable::<T>("written", &error)))
}

pub(crate) fn read_result<T: DeserializeOwned>(bytes: &Payload) -> Result<T, Error> {
    read(bytes).map_err(|error| Error::Remote(RemoteError::unsendable::<T>("read", &error)))
}

fn write<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), postcard::Error> {
    out.clear();
    postcard::serialize_with_flavor(value, Buffer(out))
}

/// A buffer that stays the caller's, and takes runs of bytes as such.
struct Buffer<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Buffer<'_> {
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

    #[test]
    fn arguments_come_back_as_they_went_in() {
        let arguments = (7u64, "seven".to_owned(), vec![1.5f32; 100], Some(()));
        let bytes = write_arguments(&arguments, &mut Vec::new()).unwrap();
        assert_eq!(read::<(u64, String, Vec<f32>, Option<()>)>(&bytes).unwrap(), arguments);
    }

    #[test]
    fn bytes_that_make_no_sense_are_an_error_that_names_the_type() {
        let error = read_result::<(u64, String)>(&Payload::from_slice(&[0xff; 3])).unwrap_err();
        assert!(error.to_string().contains("(u64, alloc::string::String)"), "{error}");
        assert!(matches!(Failure::from_bytes(&[0xff; 3]), Error::Remote(_)));
    }
}
