//! Large buffers, and where they stand.

use polyloop::Buffer;

/// Bytes of a buffer that is large.
pub(crate) const LARGE: usize = 1 << 20;

/// Whether these bytes stand in memory that was received, by what the kernel says of this process.
pub(crate) fn is_in_place(buffer: &Buffer) -> bool {
    let address = buffer.as_ptr() as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.lines().filter(|line| line.contains("memfd:polyloop")).any(|line| {
        let (start, end) = line.split_whitespace().next().and_then(|range| range.split_once('-')).unwrap_or_default();
        let at = |text| usize::from_str_radix(text, 16).unwrap_or_default();
        (at(start)..at(end)).contains(&address)
    })
}

pub(crate) fn ramp(len: usize) -> Buffer {
    (0..len).map(|n| n as u8).collect::<Vec<u8>>().into()
}
