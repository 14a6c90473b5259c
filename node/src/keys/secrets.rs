//! What actors need of cryptography, on this node's identity and the operating system's chance.

use actors::secrets::{PinToken, Secrets, Ticket};
use std::net::IpAddr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use prost::Message as _;
use proto::stored::PinGrant;
use proto::{Alias, UserId};

use crate::keys::identity::{self, Identity};

/// The node's secrets as actors see them.
#[derive(Debug)]
pub struct NodeSecrets(pub Identity);

impl Secrets for NodeSecrets {
    fn fill(&self, bytes: &mut [u8]) {
        // A machine without a source of randomness must not run a node: a guessable PIN is worse
        // than a connection that ends, which is all that this panic costs.
        let filled = aws_lc_rs::rand::fill(bytes);
        assert!(filled.is_ok(), "the operating system gives no random bytes");
    }

    fn pin_digest(&self, alias: &Alias, pin: &str) -> [u8; 32] {
        self.0.pin_digest(alias, pin)
    }

    fn lock_digest(&self, user: UserId, lock: &str) -> [u8; 32] {
        self.0.lock_digest(user, lock)
    }

    fn place_digest(&self, user: UserId, address: IpAddr) -> u64 {
        self.0.place_digest(user, address)
    }

    fn seal_pin_token(&self, alias: &Alias, token: &PinToken) -> Vec<u8> {
        let content = [&token.id[..], &token.grant.encode_to_vec()].concat();
        // A token that cannot be sealed opens nothing; its PIN is asked for again.
        self.0.seal_pin_token(alias, &content).unwrap_or_default()
    }

    fn open_pin_token(&self, alias: &Alias, sealed: &[u8]) -> Option<PinToken> {
        let content = self.0.open_pin_token(alias, sealed)?;
        let (id, grant) = content.split_first_chunk()?;
        Some(PinToken { id: *id, grant: PinGrant::decode(grant).ok()? })
    }

    fn seal_ticket(&self, ticket: Ticket, now_ms: u64) -> Vec<u8> {
        let Ticket { user, device, number } = ticket;
        let ticket = identity::Ticket { user, device, number, issued_ms: now_ms };
        // Without a ticket the client logs in with its key, which always works.
        self.0.seal_ticket(ticket).unwrap_or_default()
    }

    fn open_ticket(&self, sealed: &[u8], now_ms: u64) -> Option<Ticket> {
        let identity::Ticket { user, device, number, .. } = self.0.open_ticket(sealed, now_ms)?;
        Some(Ticket { user, device, number })
    }

    fn verify(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
    }
}
