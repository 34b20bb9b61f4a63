//! A reference to a function, as it travels with a task.

/// Which function a worker is to run, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    /// The name of its entry.
    pub(crate) entry: u64,
    /// On a thread of its own, where it is a plain function.
    pub(crate) in_thread: bool,
}

impl Reference {
    pub(crate) fn to_bytes(self) -> [u8; 9] {
        let mut bytes = [u8::from(self.in_thread); 9];
        bytes[..8].copy_from_slice(&self.entry.to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (entry, rest) = bytes.split_first_chunk::<8>()?;
        let &[in_thread] = rest else { return None };
        Some(Self { entry: u64::from_le_bytes(*entry), in_thread: in_thread != 0 })
    }
}
