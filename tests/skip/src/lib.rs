//! A test that needs what this machine lacks (root, a tool, holes in files) says so and ends. Where nothing may be
//! left out, as in `.ci/run`, the variable `NATTER_NO_SKIP=1` makes that a failure.

use std::fmt::Display;

/// Set to 1 where each test has to run.
const FORBIDS: &str = "NATTER_NO_SKIP";

/// Says that the test which calls it is left out, and why. The test returns after it.
///
/// # Panics
/// If `NATTER_NO_SKIP` is 1.
#[allow(clippy::print_stdout, reason = "a test reports on its standard output")]
pub fn skipped(reason: impl Display) {
    assert!(
        std::env::var_os(FORBIDS).is_none_or(|value| value != "1"),
        "skipped although {FORBIDS}=1 forbids it: {reason:#}"
    );
    println!("skipped: {reason:#}");
}
