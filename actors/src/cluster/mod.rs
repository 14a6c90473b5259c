//! Members, settings and placement.
pub mod meta;
pub mod placement;
#[cfg(test)]
mod placement_tests;
pub mod settings;
pub mod steps;
pub mod units;
