//! The fuzz target: `tests/src/fuzz.rs` under libFuzzer.
#![no_main]

#[path = "../../src/fuzz.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::frames(data));
