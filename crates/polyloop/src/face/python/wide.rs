//! Integers of more than 64 bits, which MessagePack has not and Python has: they travel as an extension type of ours.
//!
//! Serde's formats are closed, so this stands between `rmp-serde` and the types of the program, in either direction: it passes
//! everything on but integers of 128 bits. Around a serializer or a deserializer, [`Wide`] puts itself around all
//! that these give away, and so is met again wherever a value is within another.

mod read;
mod write;

/// What knows of wide integers, around what does not.
pub(super) struct Wide<T>(pub(super) T);
