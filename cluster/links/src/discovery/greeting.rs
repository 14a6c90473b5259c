//! What a hello must say, and what is taken from it.
//!
//! Pure. Driven by `switchboard.rs`.
//!
//! **Invariant:** a node is who its key says, whatever it calls itself.

use std::net::{IpAddr, SocketAddr};

use proto::NodeId;
use proto::cluster::Hello;
use proto::names::printable;

use crate::door::{PeerId, PeerInfo};

/// Longest text that is taken from a hello, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// Why a peer is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// Its key is another node's.
    #[error("it says it is node {claimed} and is not")]
    AnotherNode { claimed: NodeId },
    /// It says another incarnation than its session.
    #[error("it says another incarnation than before")]
    AnotherIncarnation,
    /// No version of the schema is spoken by both.
    #[error("it speaks cluster schema {least} to {newest}; upgrade the older of the two nodes")]
    Schema { least: u32, newest: u32 },
}

/// The name under which `ractor_cluster` knows one start of a node.
pub(crate) fn session_name(id: PeerId) -> String {
    format!("{}.{:016x}", id.node, id.incarnation)
}

/// The other way; whatever stands before an `@` is left out.
pub(crate) fn parse_session_name(name: &str) -> Option<PeerId> {
    let name = name.rsplit('@').next()?;
    let (node, incarnation) = name.split_once('.')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(PeerId { node: NodeId(number(node)?), incarnation: number(incarnation)? })
}

/// The schema that both speak, if `theirs` is the hello of `expected`.
pub(crate) fn agree(
    (least, newest): (u32, u32),
    expected: PeerId,
    theirs: &Hello,
) -> Result<u32, Refusal> {
    if theirs.node != expected.node.0 {
        return Err(Refusal::AnotherNode { claimed: NodeId(theirs.node) });
    }
    if theirs.incarnation != expected.incarnation {
        return Err(Refusal::AnotherIncarnation);
    }
    let both = newest.min(theirs.schema);
    if both < least || both < theirs.schema_min {
        return Err(Refusal::Schema { least: theirs.schema_min, newest: theirs.schema });
    }
    Ok(both)
}

/// What is told of a peer that was heard from `source`.
pub(crate) fn info(id: PeerId, schema: u32, source: IpAddr, hello: Hello) -> PeerInfo {
    PeerInfo {
        id,
        name: short(hello.name),
        address: reachable(short(hello.address), source),
        client_address: reachable(short(hello.client_address), source),
        websocket_address: reachable(short(hello.websocket_address), source),
        zone: short(hello.zone),
        version: short(hello.version),
        schema,
    }
}

fn short(mut text: String) -> String {
    let mut end = TEXT_BYTES_MAX.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    printable(&text)
}

/// A node that listens on all its addresses is reached where we heard from it.
fn reachable(address: String, source: IpAddr) -> String {
    match address.parse::<SocketAddr>() {
        Ok(parsed) if parsed.ip().is_unspecified() => {
            SocketAddr::new(source.to_canonical(), parsed.port()).to_string()
        }
        Ok(_) | Err(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADA: PeerId = PeerId { node: NodeId(0xada), incarnation: 3 };

    fn hello(schema_min: u32, schema: u32) -> Hello {
        Hello { node: 0xada, incarnation: 3, schema, schema_min, ..Hello::default() }
    }

    #[test]
    fn both_speak_the_older_of_their_schemas() {
        assert_eq!(agree((1, 3), ADA, &hello(1, 2)), Ok(2));
        assert_eq!(agree((1, 2), ADA, &hello(2, 9)), Ok(2));
        assert_eq!(agree((2, 3), ADA, &hello(1, 1)), Err(Refusal::Schema { least: 1, newest: 1 }));
        assert_eq!(agree((1, 1), ADA, &hello(2, 3)), Err(Refusal::Schema { least: 2, newest: 3 }));
    }

    #[test]
    fn a_hello_of_someone_else_is_refused() {
        let bob = PeerId { node: NodeId(0xb0b), ..ADA };
        let claimed = Refusal::AnotherNode { claimed: NodeId(0xada) };
        assert_eq!(agree((1, 1), bob, &hello(1, 1)), Err(claimed));
        let later = PeerId { incarnation: 4, ..ADA };
        assert_eq!(agree((1, 1), later, &hello(1, 1)), Err(Refusal::AnotherIncarnation));
    }

    #[test]
    fn session_names_say_node_and_incarnation() {
        let name = session_name(ADA);
        assert_eq!(parse_session_name(&format!("natter@{name}")), Some(ADA));
        for strange in ["", "x", "natter@1", "1.x", "natter@.", "@@.."] {
            assert_eq!(parse_session_name(strange), None, "{strange}");
        }
    }

    #[test]
    fn an_unspecified_address_is_the_one_we_heard_from() {
        let heard = IpAddr::from([10, 0, 0, 7]);
        let of = |address: &str| {
            let hello = Hello { address: address.to_owned(), ..hello(1, 1) };
            info(ADA, 1, heard, hello).address
        };
        assert_eq!(of("0.0.0.0:7403"), "10.0.0.7:7403");
        assert_eq!(of("[::]:7403"), "10.0.0.7:7403");
        assert_eq!(of("ada.example:7403"), "ada.example:7403");
        assert_eq!(of(&"é".repeat(1000)).len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn what_a_peer_says_of_itself_can_be_shown_in_a_terminal() {
        let evil = "a\u{1b}]0;b\u{7}".to_owned();
        let (name, zone) = (evil.clone(), evil.clone());
        let (version, address) = (evil.clone(), evil);
        let hello = Hello { name, zone, version, address, ..hello(1, 1) };
        let info = info(ADA, 1, IpAddr::from([10, 0, 0, 7]), hello);
        for shown in [info.name, info.zone, info.version, info.address] {
            assert_eq!(shown, "a?]0;b?");
        }
    }
}
