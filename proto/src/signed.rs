//! The bytes that a device signs with its Ed25519 key.
//!
//! Each begins with a context of its own, so that a signature made for one purpose proves nothing
//! for another.

use crate::{Alias, DeviceId, UserId};

/// Context of a login.
pub const LOGIN_CONTEXT: &[u8] = b"natter/1 login\0";

/// Context of a registration.
pub const REGISTER_CONTEXT: &[u8] = b"natter/1 register\0";

/// What `Login.signature` signs: context, nonce, user (8 bytes, big endian), device (4 bytes, big
/// endian).
pub fn login(nonce: &[u8], user: UserId, device: DeviceId) -> Vec<u8> {
    [LOGIN_CONTEXT, nonce, &user.0.to_be_bytes(), &device.0.to_be_bytes()].concat()
}

/// What `RegisterProve.signature` signs: context, nonce, alias in its stored spelling.
pub fn register(nonce: &[u8], alias: &Alias) -> Vec<u8> {
    [REGISTER_CONTEXT, nonce, alias.as_str().as_bytes()].concat()
}
