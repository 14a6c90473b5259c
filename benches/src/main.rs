//! The `natter-load` binary.
fn main() {}
