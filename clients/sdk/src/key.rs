//! A device's key and who it belongs to.

use crate::error::KeyError;
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair},
};
use proto::{Alias, DeviceId, UserId, signed};
use std::{fmt, sync::Arc};

/// The Ed25519 key of one device. It never leaves the device; cheap to clone.
#[derive(Clone)]
pub struct DeviceKey {
    pair: Arc<Ed25519KeyPair>,
    pkcs8: Arc<[u8]>,
}

impl DeviceKey {
    /// A new key.
    ///
    /// # Errors
    /// [`KeyError::Generate`] if the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let document =
            Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::Generate)?;
        Self::from_pkcs8(document.as_ref())
    }

    /// The key that [`DeviceKey::pkcs8`] saved.
    ///
    /// # Errors
    /// [`KeyError::Parse`] if the bytes are no such key.
    pub fn from_pkcs8(bytes: &[u8]) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(bytes).map_err(|_| KeyError::Parse)?;
        Ok(Self { pair: Arc::new(pair), pkcs8: bytes.into() })
    }

    /// The private key, to be saved where only its owner can read it.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key, 32 bytes.
    pub fn public(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    pub(crate) fn sign_login(&self, nonce: &[u8], user: UserId, device: DeviceId) -> Vec<u8> {
        self.pair.sign(&signed::login(nonce, user, device)).as_ref().to_vec()
    }

    pub(crate) fn sign_link(&self, nonce: &[u8], alias: &Alias) -> Vec<u8> {
        self.pair.sign(&signed::link(nonce, alias)).as_ref().to_vec()
    }

    pub(crate) fn sign_register(&self, nonce: &[u8], alias: &Alias) -> Vec<u8> {
        self.pair.sign(&signed::register(nonce, alias)).as_ref().to_vec()
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeviceKey(private)")
    }
}

/// Who logs in: a user's device and the key that proves it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// The device, one of the user's.
    pub device: DeviceId,
    /// The key the node knows this device by.
    pub key: DeviceKey,
}
