//! What a node and its cluster are known by: the node's key in the data directory and the cluster's
//! cookie, and what is sealed and digested under them.
//!
//! Opened once at start, then only read.
//!
//! # Invariants
//! 1. A secret is made once, is readable by its owner alone, and is never shown.
//! 2. Each purpose has a key of its own, so that what is made for one proves nothing for another.
//! 3. A ticket that was not sealed by this cluster, or that is too old, opens to nothing.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use proto::{Alias, DeviceId, UserId};

use crate::data_dir;

/// How long a ticket can be used, in milliseconds: 30 days. After it a device logs in with its key.
pub const TICKET_MS_MAX: u64 = 30 * 24 * 3600 * 1000;

/// How far ahead another node's clock may be, in milliseconds.
const SKEW_MS_MAX: u64 = 5 * 60 * 1000;

const KEY_BYTES: usize = 32;

/// First byte of a ticket; authenticated. Another one is another layout.
const TICKET_VERSION: u8 = 1;

/// User, device, number, time of issue.
const TICKET_BYTES: usize = 8 + 4 + 8 + 8;

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file is there and cannot be read.
    #[error("{}: cannot be read; check its permissions", file.display())]
    Unreadable {
        /// The key's file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is there and holds something else.
    #[error(
        "{}: {bytes} bytes instead of {KEY_BYTES}; bring it back from a backup (a new key is a new node, and voids every ticket)",
        file.display()
    )]
    WrongLength {
        /// The key's file.
        file: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// The first start could not store it.
    #[error("{}: cannot be written; check that the data directory is writable", file.display())]
    NotWritten {
        /// The key's file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cryptography library failed, as it does without a source of randomness.
    #[error("the cryptography library does not work on this machine")]
    Cryptography,
}

/// A right to resume, as the node reads it. On the wire it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// Whose.
    pub user: UserId,
    /// On which device.
    pub device: DeviceId,
    /// Which of the device's tickets; only the latest counts.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub issued_ms: u64,
}

/// The secrets of this node and its cluster.
pub struct Identity {
    node_key: [u8; KEY_BYTES],
    pins: hmac::Key,
    locks: hmac::Key,
    places: hmac::Key,
    tickets: LessSafeKey,
    pin_tokens: LessSafeKey,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(***)")
    }
}

impl Identity {
    /// Reads `node.key` of the data directory, or makes it. All nodes with one `cookie` open each
    /// other's tickets.
    ///
    /// # Errors
    /// [`IdentityError`] names the file and the cure.
    pub fn open(data_dir: &Path, cookie: &str) -> Result<Self, IdentityError> {
        let node_key = open_key(data_dir.join("node.key"))?;
        let cluster_key = derive(cookie.as_bytes(), b"natter/1 cluster key");
        let cluster_key = cluster_key.as_ref();
        let broken = |_| IdentityError::Cryptography;
        let sealing = |purpose| {
            let key = UnboundKey::new(&AES_256_GCM_SIV, derive(cluster_key, purpose).as_ref());
            key.map(LessSafeKey::new).map_err(broken)
        };
        let digesting =
            |purpose| hmac::Key::new(hmac::HMAC_SHA256, derive(cluster_key, purpose).as_ref());
        Ok(Self {
            node_key,
            pins: digesting(b"natter/1 pins"),
            locks: digesting(b"natter/1 registration locks"),
            places: digesting(b"natter/1 places"),
            tickets: sealing(b"natter/1 tickets")?,
            pin_tokens: sealing(b"natter/1 PIN tokens")?,
        })
    }

    /// The node's own key.
    pub fn node_key(&self) -> &[u8; KEY_BYTES] {
        &self.node_key
    }

    /// What is stored instead of a PIN. Without the cluster's key a PIN cannot be guessed from it.
    pub fn pin_digest(&self, alias: &Alias, pin: &str) -> [u8; KEY_BYTES] {
        let mut context = hmac::Context::with_key(&self.pins);
        context.update(&(alias.as_str().len() as u64).to_be_bytes());
        context.update(alias.as_str().as_bytes());
        context.update(pin.as_bytes());
        array(context.sign().as_ref())
    }

    /// What is stored instead of a registration lock.
    pub fn lock_digest(&self, user: UserId, lock: &str) -> [u8; KEY_BYTES] {
        let mut context = hmac::Context::with_key(&self.locks);
        context.update(&user.0.to_be_bytes());
        context.update(lock.as_bytes());
        array(context.sign().as_ref())
    }

    /// What is stored instead of an address that tries a user's registration lock. Higher than any number of
    /// a device.
    pub fn place_digest(&self, user: UserId, address: IpAddr) -> u64 {
        let mut context = hmac::Context::with_key(&self.places);
        context.update(&user.0.to_be_bytes());
        context.update(address.to_string().as_bytes());
        let digest = context.sign();
        let number = digest.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        number | 1 << 63
    }

    /// Seals `content` for someone who asked for a PIN for `alias`: a nonce, then what is sealed.
    ///
    /// # Errors
    /// [`IdentityError::Cryptography`].
    pub fn seal_pin_token(&self, alias: &Alias, content: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| IdentityError::Cryptography)?;
        let (mut sealed, mut content) = (nonce.to_vec(), content.to_vec());
        let (nonce, alias) = (Nonce::assume_unique_for_key(nonce), Aad::from(alias.as_str()));
        self.pin_tokens
            .seal_in_place_append_tag(nonce, alias, &mut content)
            .map_err(|_| IdentityError::Cryptography)?;
        sealed.append(&mut content);
        Ok(sealed)
    }

    /// Opens what [`Self::seal_pin_token`] sealed, or `None` if it was not sealed here for `alias`.
    pub fn open_pin_token(&self, alias: &Alias, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, content) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut content = content.to_vec();
        let alias = Aad::from(alias.as_str());
        self.pin_tokens.open_in_place(nonce, alias, &mut content).ok().map(|open| open.to_vec())
    }

    /// Seals a ticket for its device.
    ///
    /// # Errors
    /// [`IdentityError::Cryptography`].
    pub fn seal_ticket(&self, ticket: Ticket) -> Result<Vec<u8>, IdentityError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| IdentityError::Cryptography)?;
        let mut sealed = Vec::with_capacity(1 + NONCE_LEN + TICKET_BYTES + 16);
        sealed.push(TICKET_VERSION);
        sealed.extend_from_slice(&nonce);
        let mut content = Vec::with_capacity(TICKET_BYTES + 16);
        content.extend_from_slice(&ticket.user.0.to_be_bytes());
        content.extend_from_slice(&ticket.device.0.to_be_bytes());
        content.extend_from_slice(&ticket.number.to_be_bytes());
        content.extend_from_slice(&ticket.issued_ms.to_be_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.tickets
            .seal_in_place_append_tag(nonce, Aad::from([TICKET_VERSION]), &mut content)
            .map_err(|_| IdentityError::Cryptography)?;
        sealed.append(&mut content);
        Ok(sealed)
    }

    /// Opens a ticket, or `None` if it was not sealed here or is older than [`TICKET_MS_MAX`].
    pub fn open_ticket(&self, sealed: &[u8], now_ms: u64) -> Option<Ticket> {
        let (version, sealed) = sealed.split_first()?;
        let (nonce, content) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut content = content.to_vec();
        let content =
            self.tickets.open_in_place(nonce, Aad::from([*version]), &mut content).ok()?;
        if *version != TICKET_VERSION || content.len() != TICKET_BYTES {
            return None;
        }
        let (user, rest) = content.split_first_chunk()?;
        let (device, rest) = rest.split_first_chunk()?;
        let (number, rest) = rest.split_first_chunk()?;
        let (issued_ms, _) = rest.split_first_chunk()?;
        let issued_ms = u64::from_be_bytes(*issued_ms);
        let is_fresh = now_ms.saturating_sub(issued_ms) <= TICKET_MS_MAX
            && issued_ms.saturating_sub(now_ms) <= SKEW_MS_MAX;
        is_fresh.then_some(Ticket {
            user: UserId(u64::from_be_bytes(*user)),
            device: DeviceId(u32::from_be_bytes(*device)),
            number: u64::from_be_bytes(*number),
            issued_ms,
        })
    }
}

/// Small letters, two for each byte.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from(b"0123456789abcdef"[usize::from(nibble)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn derive(key: &[u8], purpose: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), purpose)
}

fn array(bytes: &[u8]) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out.copy_from_slice(bytes);
    out
}

fn open_key(file: PathBuf) -> Result<[u8; KEY_BYTES], IdentityError> {
    match std::fs::read(&file) {
        Ok(key) => key
            .try_into()
            .map_err(|key: Vec<u8>| IdentityError::WrongLength { file, bytes: key.len() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut key = [0; KEY_BYTES];
            rand::fill(&mut key).map_err(|_| IdentityError::Cryptography)?;
            data_dir::write_private(&file, &key)
                .map_err(|source| IdentityError::NotWritten { file, source })?;
            Ok(key)
        }
        Err(source) => Err(IdentityError::Unreadable { file, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const TICKET: Ticket =
        Ticket { user: UserId(7), device: DeviceId(2), number: 9, issued_ms: 1_000_000_000_000 };

    fn fresh() -> (tempfile::TempDir, Identity) {
        let folder = tempfile::tempdir().unwrap();
        let identity = Identity::open(folder.path(), &folder.path().to_string_lossy()).unwrap();
        (folder, identity)
    }

    #[test]
    fn an_identity_is_made_once_and_only_its_owner_reads_it() {
        let (folder, first) = fresh();
        let again = Identity::open(folder.path(), "another").unwrap();
        assert_eq!(first.node_key(), again.node_key());
        assert_ne!(first.node_key(), fresh().1.node_key());
        let metadata = std::fs::metadata(folder.path().join("node.key")).unwrap();
        assert_eq!((metadata.permissions().mode() & 0o777, metadata.len()), (0o600, 32));
    }

    #[test]
    fn a_key_of_the_wrong_length_is_named() {
        let (folder, _) = fresh();
        std::fs::write(folder.path().join("node.key"), "short").unwrap();
        let error = Identity::open(folder.path(), "cookie").unwrap_err().to_string();
        assert!(error.contains("node.key") && error.contains("5 bytes"), "{error}");
    }

    #[test]
    fn a_ticket_opens_for_thirty_days_and_only_here() {
        let (folder, identity) = fresh();
        let sealed = identity.seal_ticket(TICKET).unwrap();
        let end_ms = TICKET.issued_ms + TICKET_MS_MAX;
        let again = Identity::open(folder.path(), &folder.path().to_string_lossy()).unwrap();
        assert_eq!(again.open_ticket(&sealed, end_ms), Some(TICKET));
        assert_eq!(identity.open_ticket(&sealed, end_ms + 1), None, "too old");
        assert_eq!(identity.open_ticket(&sealed, TICKET.issued_ms - SKEW_MS_MAX - 1), None);
        assert_eq!(fresh().1.open_ticket(&sealed, TICKET.issued_ms), None, "another cluster");
    }

    #[test]
    fn a_changed_ticket_opens_to_nothing() {
        let (_folder, identity) = fresh();
        let sealed = identity.seal_ticket(TICKET).unwrap();
        for place in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[place] ^= 1;
            assert_eq!(identity.open_ticket(&forged, TICKET.issued_ms), None, "byte {place}");
            assert_eq!(identity.open_ticket(&sealed[..place], TICKET.issued_ms), None);
        }
        assert_ne!(sealed, identity.seal_ticket(TICKET).unwrap(), "a nonce for each");
    }

    #[test]
    fn a_pin_token_opens_for_its_alias_and_only_here() {
        let (_folder, identity) = fresh();
        let (ada, bob) = (Alias::parse("ada").unwrap(), Alias::parse("bob").unwrap());
        let sealed = identity.seal_pin_token(&ada, b"content").unwrap();
        assert_eq!(identity.open_pin_token(&ada, &sealed).unwrap(), b"content");
        assert_eq!(identity.open_pin_token(&bob, &sealed), None);
        assert_eq!(fresh().1.open_pin_token(&ada, &sealed), None, "another cluster");
        for place in 0..sealed.len() {
            let mut forged = sealed.clone();
            forged[place] ^= 1;
            assert_eq!(identity.open_pin_token(&ada, &forged), None, "byte {place}");
            assert_eq!(identity.open_pin_token(&ada, &sealed[..place]), None);
        }
    }

    #[test]
    fn a_lock_digest_is_of_user_and_lock_and_is_no_pin_digest() {
        let (_folder, identity) = fresh();
        let digest = identity.lock_digest(UserId(7), "1234");
        assert_eq!(digest, identity.lock_digest(UserId(7), "1234"));
        assert_ne!(digest, identity.lock_digest(UserId(8), "1234"));
        assert_ne!(digest, identity.lock_digest(UserId(7), "1235"));
        assert_ne!(digest, fresh().1.lock_digest(UserId(7), "1234"));
    }

    #[test]
    fn a_pin_digest_is_of_alias_and_pin_and_cluster() {
        let (_folder, identity) = fresh();
        let alias = |text| Alias::parse(text).unwrap();
        let digest = identity.pin_digest(&alias("ada"), "123456");
        assert_eq!(digest, identity.pin_digest(&alias("ada"), "123456"));
        assert_ne!(digest, identity.pin_digest(&alias("ada"), "123457"));
        assert_ne!(digest, identity.pin_digest(&alias("ada1"), "23456"));
        assert_ne!(digest, fresh().1.pin_digest(&alias("ada"), "123456"));
    }
}
