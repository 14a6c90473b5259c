//! What an operator sees of a node: log, metrics, alerts, pages.

pub mod http;
pub(crate) mod notices;
pub(crate) mod output;
pub(crate) mod process;
pub mod telemetry;
