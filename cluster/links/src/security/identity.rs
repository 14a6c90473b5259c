//! Who a node is, and what all nodes of a cluster derive from its cookie.
//!
//! A node's key is its own and lasts; its id is a digest of it. The cookie is what the nodes of a
//! cluster share, and all that lets a node in: everyone who has it derives the same certificate
//! authority and signs a certificate for their own key with it, anew at each start.
//!
//! # Invariants
//! 1. The same seed gives the same node, the same cookie the same authority, on every machine.
//! 2. No secret is shown by `Debug`.

use std::fmt;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use aws_lc_rs::{digest, hkdf};
use proto::NodeId;

/// Salt of all that is derived from a cookie.
const SALT: &[u8] = b"natter cluster 1";

/// Why there is no identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The cryptography refused the key.
    #[error("the node's key cannot be used")]
    Key,
    /// The cookie is empty.
    #[error("the cluster's cookie is empty")]
    Cookie,
}

/// A node's key and its cluster's secret. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    node: NodeId,
    seed: [u8; 32],
    secret: hkdf::Prk,
}

impl fmt::Debug for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Identity")
            .field("node", &format_args!("{}", self.node))
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// The node whose Ed25519 key is made from the seed `node_key`, in the cluster of `cookie`. The
    /// cookie must be hard to guess (32 random characters): whoever can reach a node can try guesses
    /// against its certificate without being noticed.
    ///
    /// # Errors
    /// [`IdentityError`]: no key, or no cookie.
    pub fn new(node_key: &[u8; 32], cookie: &str) -> Result<Self, IdentityError> {
        if cookie.is_empty() {
            return Err(IdentityError::Cookie);
        }
        let key = Ed25519KeyPair::from_seed_unchecked(node_key).map_err(|_| IdentityError::Key)?;
        let secret = hkdf::Salt::new(hkdf::HKDF_SHA256, SALT).extract(cookie.as_bytes());
        Ok(Self { node: node_of(key.public_key().as_ref()), seed: *node_key, secret })
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// A key for the purpose `label`, the same on all nodes of the cluster. Different labels give
    /// keys that tell nothing of each other.
    ///
    /// # Errors
    /// [`IdentityError::Key`]: the cryptography failed; it does not for any label that was seen.
    pub fn derive(&self, label: &str) -> Result<[u8; 32], IdentityError> {
        let mut key = [0; 32];
        let info = [label.as_bytes()];
        let expanded = self.secret.expand(&info, hkdf::HKDF_SHA256);
        expanded.and_then(|okm| okm.fill(&mut key)).map_err(|_| IdentityError::Key)?;
        Ok(key)
    }

    /// The node's key in PKCS#8.
    pub(crate) fn node_key(&self) -> Result<Vec<u8>, IdentityError> {
        pkcs8(&self.seed)
    }

    /// The authority's key in PKCS#8.
    pub(crate) fn authority_key(&self) -> Result<Vec<u8>, IdentityError> {
        pkcs8(&self.derive("natter cluster authority")?)
    }

    /// The cookie that `ractor_cluster` is given.
    pub(crate) fn ractor_cookie(&self) -> Result<String, IdentityError> {
        let key = self.derive("natter cluster ractor")?;
        Ok(key.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
    }
}

fn pkcs8(seed: &[u8; 32]) -> Result<Vec<u8>, IdentityError> {
    let key = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| IdentityError::Key)?;
    Ok(key.to_pkcs8v1().map_err(|_| IdentityError::Key)?.as_ref().to_vec())
}

/// The node of a raw public key.
pub(crate) fn node_of(public_key: &[u8]) -> NodeId {
    let digest = digest::digest(&digest::SHA256, public_key);
    let id = digest.as_ref().iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte));
    NodeId(id.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_is_the_same_node_in_any_cluster() {
        let ada = Identity::new(&[7; 32], "one cookie").unwrap();
        assert_eq!(ada.node(), Identity::new(&[7; 32], "another").unwrap().node());
        assert_ne!(ada.node(), Identity::new(&[8; 32], "one cookie").unwrap().node());
    }

    #[test]
    fn nodes_of_a_cluster_derive_the_same_keys_and_others_do_not() {
        let (ada, bob) =
            (Identity::new(&[1; 32], "c").unwrap(), Identity::new(&[2; 32], "c").unwrap());
        assert_eq!(ada.derive("tickets"), bob.derive("tickets"));
        assert_ne!(ada.derive("tickets"), ada.derive("pins"));
        assert_ne!(ada.derive("tickets"), Identity::new(&[1; 32], "d").unwrap().derive("tickets"));
        assert_eq!(ada.authority_key(), bob.authority_key());
    }

    #[test]
    fn ids_and_derived_keys_stay_as_they_are() {
        // They are stored: a change would make every node a stranger to its cluster.
        let ada = Identity::new(&[7; 32], "a cookie of thirty-two characters").unwrap();
        assert_eq!(ada.node().to_string(), "fe812c12f3ab4ce6");
        assert_eq!(ada.derive("tickets").unwrap()[..4], [253, 72, 103, 111]);
    }

    #[test]
    fn no_secret_is_shown() {
        let ada = Identity::new(&[7; 32], "the cookie").unwrap();
        assert_eq!(format!("{ada:?}"), format!("Identity {{ node: {}, .. }}", ada.node()));
        assert_eq!(Identity::new(&[7; 32], "").unwrap_err(), IdentityError::Cookie);
    }
}
