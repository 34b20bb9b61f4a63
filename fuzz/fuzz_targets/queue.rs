#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| polyloop_fuzz::queue::run(bytes));
