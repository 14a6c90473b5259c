//! Chance, and what only the cluster's secret can make. The node implements it; actors hold no key.

use proto::stored::PinGrant;
use proto::{Alias, DeviceId, UserId};
use std::net::IpAddr;

/// What a resume ticket says, once opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose.
    pub user: UserId,
    /// For which device.
    pub device: DeviceId,
    /// Which ticket of that device; only the newest is good.
    pub number: u64,
}

/// What an asker's token says, once opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinToken {
    /// Which token; random.
    pub id: [u8; 16],
    /// The PIN that it stands for.
    pub grant: PinGrant,
}

/// Chance, and what only the cluster's secret can make.
pub trait Secrets: Send + Sync {
    /// Fills with random bytes that nobody can guess.
    fn fill(&self, bytes: &mut [u8]);
    /// A digest of a PIN that is worth nothing without the cluster's secret.
    fn pin_digest(&self, alias: &Alias, pin: &str) -> [u8; 32];
    /// A digest of a registration lock, of the same kind.
    fn lock_digest(&self, user: UserId, lock: &str) -> [u8; 32];
    /// What is stored instead of an address that tries an account's registration lock. Never the number
    /// of a device.
    fn place_digest(&self, user: UserId, address: IpAddr) -> u64;
    /// Seals the token of someone who asked for a PIN for `alias`.
    fn seal_pin_token(&self, alias: &Alias, token: &PinToken) -> Vec<u8>;
    /// Opens such a token; `None` if it is not ours or for another alias.
    fn open_pin_token(&self, alias: &Alias, sealed: &[u8]) -> Option<PinToken>;
    /// Seals a ticket.
    fn seal_ticket(&self, ticket: Ticket, now_ms: u64) -> Vec<u8>;
    /// Opens a ticket; `None` if it is not ours or too old.
    fn open_ticket(&self, sealed: &[u8], now_ms: u64) -> Option<Ticket>;
    /// Whether `signature` over `message` was made with the Ed25519 key `public_key`.
    fn verify(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool;
}
