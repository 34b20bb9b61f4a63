//! Integers of more than 64 bits, which MessagePack has not and Python has: they travel as an extension type of ours.
//!
//! Serde's formats are closed, so this stands between `rmp-serde` and the types of the program, in either direction: it passes
//! everything on but integers of 128 bits. Around a serializer or a deserializer, [`Wide`] puts itself around all
//! that these give away, and so is met again wherever a value is within another.

mod read;
mod write;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What knows of wide integers, around what does not.
pub(super) struct Wide<T>(pub(super) T);

/// What rmp-serde takes for an extension type: the type, and bytes.
pub(super) const EXT_STRUCT: &str = rmp_serde::MSGPACK_EXT_STRUCT_NAME;

/// Bytes as such.
pub(super) struct Raw<'a>(pub(super) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&[u8]>::deserialize(deserializer).map(Raw)
    }
}
