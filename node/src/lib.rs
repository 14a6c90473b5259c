//! The natter process: settings, listeners, TLS, HTTP and the ways PINs go out.
//!
//! **Invariant:** this crate turns bytes into messages and back. What they mean is decided in
//! `actors`.

pub mod admin;
mod authority;
pub mod boot;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod data_dir;
mod doors;
mod files;
pub mod keys;
mod links;
pub mod listener;
mod manifest;
mod member;
pub mod observe;
mod parts;
pub mod pins;
mod reload;
pub mod serve;
pub mod tls;
mod upkeep;
