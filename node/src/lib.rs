//! The natter process: settings, listeners, TLS, HTTP and the ways PINs go out.
//!
//! **Invariant:** this crate turns bytes into messages and back. What they mean is decided in
//! `actors`.

pub mod admin;
mod authority;
pub mod boot;
pub mod cli;
pub mod client_limits;
pub mod clock;
pub mod config;
pub mod connection;
pub mod data_dir;
mod doors;
mod files;
pub mod http;
pub mod identity;
mod links;
pub mod listener;
mod manifest;
mod member;
mod notices;
mod output;
mod parts;
pub mod pins;
mod process;
pub mod registration;
mod reload;
mod request_rates;
pub mod secrets;
pub mod serve;
pub mod telemetry;
pub mod tls;
mod upkeep;
