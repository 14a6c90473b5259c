//! The program under test: `natter` with hooks that only tests have. Started by `tests::node`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tests::under_test::run()
}
