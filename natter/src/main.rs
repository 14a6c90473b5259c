//! The `natter` binary: the allocator, and nothing else.

use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    natter::main_with(Vec::new())
}
