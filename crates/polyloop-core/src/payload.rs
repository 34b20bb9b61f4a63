//! What a task carries: bytes, and what travels beside them.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use smallvec::SmallVec;

/// Something of the host's that lasts as long as a payload does: memory in which its large parts are. The core only
/// keeps it.
#[derive(Clone)]
pub struct Luggage(Arc<Box<dyn Any + Send + Sync>>);

impl Luggage {
    /// Packs it.
    pub fn new(content: impl Any + Send + Sync) -> Self {
        Self(Arc::new(Box::new(content)))
    }

    /// What was packed, if it is of this type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}

impl fmt::Debug for Luggage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Luggage")
    }
}

impl PartialEq for Luggage {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Luggage {}

/// Arguments or an outcome as bytes, and what they carry beside. Most are short, and a task that allocates nothing is a
/// good deal cheaper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    bytes: SmallVec<[u8; 24]>,
    luggage: Option<Luggage>,
}

impl Payload {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of these bytes.
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self { bytes: SmallVec::from_slice(bytes), luggage: None }
    }

    /// These bytes.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        Self { bytes: SmallVec::from_vec(bytes), luggage: None }
    }

    /// The same, with something beside.
    #[must_use]
    pub fn with(self, luggage: Option<Luggage>) -> Self {
        Self { luggage, ..self }
    }

    /// What travels beside the bytes.
    pub fn luggage(&self) -> Option<&Luggage> {
        self.luggage.as_ref()
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luggage_lasts_as_long_as_its_payload() {
        let content = Arc::new(5);
        let payload = Payload::from_slice(b"x").with(Some(Luggage::new(Arc::clone(&content))));
        let copy = payload.clone();
        assert_eq!((&*payload, &payload), (&b"x"[..], &copy));
        assert_eq!(copy.luggage().and_then(|luggage| luggage.get::<Arc<i32>>()), Some(&content));
        drop(payload);
        assert_eq!(Arc::strong_count(&content), 2);
        drop(copy);
        assert_eq!(Arc::strong_count(&content), 1);
    }
}
