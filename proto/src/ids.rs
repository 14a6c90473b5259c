//! Identifiers, each a type of its own.

use crate::phone;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Number of shards. Fixed when a cluster is created; every id is placed by it.
pub const SHARDS: u16 = 16;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_id! {
    /// A person. Random, 1 to 2^53 - 1, so that JavaScript holds it in a number and nobody guesses it.
    UserId(u64)
}
number_id! {
    /// A device of a user: 1, 2, 3 and so on, never given twice.
    DeviceId(u32)
}
number_id! {
    /// Names a send; chosen by the sending device and unique for it, for ever.
    SendId(u64)
}
number_id! {
    /// A place in a mailbox; the first entry has 1.
    Seq(u64)
}
/// A shard, below [`SHARDS`], or [`ShardId::META`]. Written as its number, or `meta`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::META { f.pad("meta") } else { self.0.fmt(f) }
    }
}

/// A text is no [`ShardId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a shard is a number below {SHARDS}, or `meta`")]
pub struct NoShardId;

impl FromStr for ShardId {
    type Err = NoShardId;

    fn from_str(text: &str) -> Result<Self, NoShardId> {
        let number = text.parse().ok().filter(|number| *number < SHARDS).map(Self);
        number.or((text == "meta").then_some(Self::META)).ok_or(NoShardId)
    }
}

impl Serialize for ShardId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ShardId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A node: the first eight bytes of a digest of its public key, never 0. Written as 16 hex digits, everywhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As a string, so that a width in a format holds.
        f.pad(&format!("{:016x}", self.0))
    }
}

/// A text is no [`NodeId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a node is 16 hex digits")]
pub struct NoNodeId;

impl FromStr for NodeId {
    type Err = NoNodeId;

    fn from_str(text: &str) -> Result<Self, NoNodeId> {
        let is_id = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(text, 16).ok().filter(|_| is_id);
        number.map(Self).ok_or(NoNodeId)
    }
}

impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl UserId {
    /// The largest id.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// Makes an id of 64 random bits.
    pub fn from_random(bits: u64) -> Self {
        Self((bits >> 11).max(1))
    }

    /// The shard the user, their devices and their mailbox live in.
    pub fn shard(self) -> ShardId {
        shard_of(&self.0.to_be_bytes())
    }
}

impl ShardId {
    /// The Raft group of members, placements and settings: no shard of users.
    pub const META: Self = Self(SHARDS);

    /// The shard that a number in a record means.
    pub fn from_number(number: u32) -> Self {
        Self(u16::try_from(number).unwrap_or_default() % SHARDS)
    }
}

impl Seq {
    /// The place after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A name under which a user can be found: a phone number, an e-mail address or a user name, in
/// the one spelling that is stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alias(String);

/// Which kind of alias a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AliasKind {
    /// E.164: `+`, then 7 to 15 digits of which the first is not 0.
    Phone,
    /// `local@domain`, at most 254 bytes.
    Email,
    /// 3 to 32 of `a-z 0-9 . _ -`, beginning with a letter.
    Name,
}

/// Why a text is no alias.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AliasError {
    /// Begins with `+` but is not E.164.
    #[error("a phone number is + and 7 to 15 digits, the first of them not 0 (E.164)")]
    Phone,
    /// Digits without a country code.
    #[error("a phone number needs its country code: +49 151 ..., not 0151 ...")]
    Country,
    /// Has an `@` but is no address.
    #[error(
        "an e-mail address is local@domain, letters, digits and usual marks, at most 254 bytes"
    )]
    Email,
    /// Neither of them, and no user name.
    #[error("a user name is 3 to 32 of a-z 0-9 . _ - and begins with a letter")]
    Name,
}

impl Alias {
    /// Checks `text` and brings it into the stored spelling: lower case, without white space
    /// around it; a phone number as `+` and digits, see PROTOCOL.md.
    ///
    /// # Errors
    /// [`AliasError`] says which rule of its kind the text breaks.
    pub fn parse(text: &str) -> Result<Self, AliasError> {
        let text = text.trim();
        if text.contains('@') {
            return email(text).ok_or(AliasError::Email).map(Self);
        }
        if let Some(number) = phone::parse(text) {
            return number.map(Self);
        }
        if text.starts_with('+') {
            return Err(AliasError::Phone);
        }
        name(text).ok_or(AliasError::Name).map(Self)
    }

    /// Which kind this is.
    pub fn kind(&self) -> AliasKind {
        if self.0.contains('@') {
            AliasKind::Email
        } else if self.0.starts_with('+') {
            AliasKind::Phone
        } else {
            AliasKind::Name
        }
    }

    /// The stored spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The shard that knows whose alias this is.
    pub fn shard(&self) -> ShardId {
        shard_of(self.0.as_bytes())
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn email(text: &str) -> Option<String> {
    // Lower case first: it can be longer than what was typed, and it is what the limits are for.
    let text = text.to_lowercase();
    let (local, domain) = text.rsplit_once('@')?;
    // Of other scripts letters and digits only: nothing that is invisible or turns others around.
    let plain = |c: char, marks: &str| c.is_alphanumeric() || marks.contains(c);
    let local_fits = local.chars().all(|c| plain(c, "!#$%&'*+-/=?^_`{|}~."));
    let domain_fits = domain.chars().all(|c| plain(c, "-."));
    let labels = domain.split('.').count() >= 2 && domain.split('.').all(|label| !label.is_empty());
    let fits = text.len() <= 254 && !local.is_empty() && local.len() <= 64;
    (fits && labels && local_fits && domain_fits).then_some(text)
}

fn name(text: &str) -> Option<String> {
    // Only ASCII: a letter of another script that becomes one of these is another letter.
    let name = text.to_ascii_lowercase();
    let fits = (3..=32).contains(&name.len()) && name.as_bytes()[0].is_ascii_lowercase();
    let plain =
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
    (fits && plain).then_some(name)
}

#[allow(clippy::cast_possible_truncation, reason = "the rest of a division by a u16")]
fn shard_of(id: &[u8]) -> ShardId {
    ShardId((fnv1a(id) % u64::from(SHARDS)) as u16)
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo): the same on every machine and in every version, for ever.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_has_one_spelling() {
        for (text, stored, kind) in [
            ("+49 (151) 123-45678", "+4915112345678", AliasKind::Phone),
            (" Ada@Example.org ", "ada@example.org", AliasKind::Email),
            ("+ada@example.org", "+ada@example.org", AliasKind::Email),
            ("b\u{fc}ro@b\u{fc}cher.example", "b\u{fc}ro@b\u{fc}cher.example", AliasKind::Email),
            ("Ada.L-9", "ada.l-9", AliasKind::Name),
        ] {
            let alias = Alias::parse(text).unwrap();
            assert_eq!((alias.as_str(), alias.kind()), (stored, kind));
        }
    }

    #[test]
    fn what_is_no_alias_is_told_why() {
        for (text, why) in [
            ("+0123456789", AliasError::Phone),
            ("+12345", AliasError::Phone),
            ("+1234567890123456", AliasError::Phone),
            ("+12a4567890", AliasError::Phone),
            ("ada@", AliasError::Email),
            ("@example.org", AliasError::Email),
            ("ada@example", AliasError::Email),
            ("a b@example.org", AliasError::Email),
            ("", AliasError::Name),
            ("ab", AliasError::Name),
            ("9lives", AliasError::Name),
            ("0151 2345678", AliasError::Country),
            ("ada\u{200b}", AliasError::Name),
            ("ad\u{202e}a@example.org", AliasError::Email),
            ("ada@exam\u{200b}ple.org", AliasError::Email),
            ("ad\u{200d}a", AliasError::Name),
            ("\u{212a}ate", AliasError::Name),
            ("ada!", AliasError::Name),
        ] {
            assert_eq!(Alias::parse(text), Err(why), "{text}");
        }
    }

    #[test]
    fn users_spread_over_all_shards() {
        let mut seen = [0u32; SHARDS as usize];
        for bits in 0..16_000u64 {
            let user = UserId::from_random(bits.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            assert!(user <= UserId::MAX && user.0 > 0);
            seen[usize::from(user.shard().0)] += 1;
        }
        assert!(seen.iter().all(|n| (700..1300).contains(n)), "{seen:?}");
    }

    #[test]
    fn ids_of_nodes_and_shards_are_read_as_they_are_written_and_nothing_else_is() {
        for node in [1, 0xa1, u64::MAX].map(NodeId) {
            assert_eq!(node.to_string().parse(), Ok(node));
        }
        for text in ["", "a1", "+0000000000000a1", "00000000000000a1x", "00000000000000g1"] {
            assert_eq!(text.parse::<NodeId>(), Err(NoNodeId), "{text:?}");
        }
        for shard in (0..SHARDS).map(ShardId).chain([ShardId::META]) {
            assert_eq!(shard.to_string().parse(), Ok(shard));
        }
        for text in ["", "16", "17", "-1", "Meta"] {
            assert_eq!(text.parse::<ShardId>(), Err(NoShardId), "{text:?}");
        }
    }
}
