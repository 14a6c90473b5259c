//! A client's connection, and what it may ask.

pub mod client_limits;
pub mod connection;
pub mod reception;
pub mod registration;
pub(crate) mod request_rates;
