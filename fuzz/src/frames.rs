//! Frames and values from arbitrary bytes: what is read can be written, and says the same again.

use polyloop_core::{ControlFrame, Large, ResultFrame, Value, ValueReader, ValueWriter, split_large};

/// The first byte is the kind, the rest the payload.
pub fn read(bytes: &[u8]) {
    let Some((&kind, payload)) = bytes.split_first() else { return };
    let mut out = Vec::new();
    if let Ok(frame) = ResultFrame::parse(kind.into(), payload) {
        let kind = frame.write(&mut out);
        assert_eq!(ResultFrame::parse(kind, &out), Ok(frame));
    }
    if let Ok(frame) = ControlFrame::parse(kind.into(), payload) {
        let kind = frame.write(&mut out);
        assert_eq!(ControlFrame::parse(kind, &out), Ok(frame));
    }
    if let Some(Large { function, arguments, apart }) = split_large(payload) {
        assert!(function.len() + arguments.len() + apart.len() <= payload.len());
    }
    values(payload);
}

fn values(bytes: &[u8]) {
    let (mut reader, mut out) = (ValueReader::new(bytes), Vec::new());
    let mut read = Vec::new();
    // Each value takes a byte or more, so this ends.
    while let Ok(value) = reader.read() {
        read.push(value);
    }
    assert!(read.len() <= bytes.len());
    let mut writer = ValueWriter::new(&mut out);
    read.iter().for_each(|value| writer.write(*value));
    let mut again = ValueReader::new(&out);
    for value in read {
        // A sequence is refused where fewer bytes follow than it has values; here they may have been cut off.
        let Ok(same) = again.read() else {
            assert!(matches!(value, Value::Tuple(1..) | Value::List(1..) | Value::Buffers(1..)));
            return;
        };
        let same_float = matches!((same, value), (Value::Float(a), Value::Float(b)) if a.to_bits() == b.to_bits());
        assert!(same == value || same_float);
    }
}
