//! The `natter` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    node::serve::main_with(Vec::new())
}
