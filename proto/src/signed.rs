//! The bytes that a device signs with its Ed25519 key.
//!
//! Each begins with a context of its own, so that a signature made for one purpose proves nothing
//! for another.

use crate::{Alias, DeviceId, UserId};

/// Bytes of an Ed25519 public key.
pub const KEY_BYTES: usize = 32;

/// The y coordinates of all points of small order, without the sign bit, little endian. For such a key
/// there are signatures that fit many messages.
const SMALL_ORDER: [[u8; KEY_BYTES]; 5] = [
    ends(0, 0, 0),
    ends(1, 0, 0),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    ends(0xec, 0xff, 0x7f),
];

/// The field's prime, little endian. A y from here on is another spelling of a smaller one.
const PRIME: [u8; KEY_BYTES] = ends(0xed, 0xff, 0x7f);

/// A number of which only the two ends differ from the rest.
const fn ends(first: u8, rest: u8, last: u8) -> [u8; KEY_BYTES] {
    let mut bytes = [rest; KEY_BYTES];
    bytes[0] = first;
    bytes[KEY_BYTES - 1] = last;
    bytes
}

/// Whether bytes can be a device's public key: the one spelling of a point, and not of small order.
pub fn is_device_key(key: &[u8]) -> bool {
    let Ok(mut y) = <[u8; KEY_BYTES]>::try_from(key) else { return false };
    y[KEY_BYTES - 1] &= 0x7f;
    let is_canonical = y.iter().rev().lt(PRIME.iter().rev());
    is_canonical && !SMALL_ORDER.contains(&y)
}

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

/// Context of a request to be linked.
pub const LINK_CONTEXT: &[u8] = b"natter/1 link\0";

/// What `RequestLink.signature` signs: context, nonce, alias in its stored spelling.
pub fn link(nonce: &[u8], alias: &Alias) -> Vec<u8> {
    [LINK_CONTEXT, nonce, alias.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_small_order_are_no_device_keys() {
        for mut key in SMALL_ORDER {
            assert!(!is_device_key(&key), "{key:?}");
            key[KEY_BYTES - 1] |= 0x80;
            assert!(!is_device_key(&key), "with the sign bit: {key:?}");
        }
        for first in 0xed..=0xff {
            assert!(!is_device_key(&ends(first, 0xff, 0x7f)), "y is not below the prime");
        }
        assert!(is_device_key(&[9; KEY_BYTES]));
        assert!(!is_device_key(&[9; KEY_BYTES - 1]) && !is_device_key(&[9; KEY_BYTES + 1]));
    }
}
