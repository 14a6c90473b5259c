//! Who is shown what of a user. A pure core.

use proto::{Code, UserId, stored, wire};
use std::collections::BTreeSet;

/// Who is shown something; whom one blocks is shown nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Everybody.
    Everybody,
    /// The user's contacts.
    Contacts,
    /// Nobody.
    Nobody,
}

impl Audience {
    /// Whether `other` belongs to it, for a user with these contacts.
    pub fn admits(self, other: UserId, contacts: &BTreeSet<UserId>) -> bool {
        match self {
            Self::Everybody => true,
            Self::Contacts => contacts.contains(&other),
            Self::Nobody => false,
        }
    }

    fn number(self) -> i32 {
        match self {
            Self::Everybody => wire::Audience::Everybody,
            Self::Contacts => wire::Audience::Contacts,
            Self::Nobody => wire::Audience::Nobody,
        }
        .into()
    }

    fn from_number(number: i32, default: Self) -> Result<Self, Code> {
        match wire::Audience::try_from(number) {
            Ok(wire::Audience::Unspecified) => Ok(default),
            Ok(wire::Audience::Everybody) => Ok(Self::Everybody),
            Ok(wire::Audience::Contacts) => Ok(Self::Contacts),
            Ok(wire::Audience::Nobody) => Ok(Self::Nobody),
            Err(_) => Err(Code::BadRequest),
        }
    }
}

/// Who is shown what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privacy {
    /// When the user was last there.
    pub last_seen: Audience,
    /// Whether the user is there.
    pub online: Audience,
    /// That the user has read something.
    pub read_receipts: Audience,
}

impl Default for Privacy {
    /// A stranger who knows a phone number learns nothing of its owner's day; a sender is told.
    fn default() -> Self {
        use Audience::{Contacts, Everybody};
        Self { last_seen: Contacts, online: Contacts, read_receipts: Everybody }
    }
}

impl Privacy {
    /// As a client sets it.
    ///
    /// # Errors
    /// [`Code::BadRequest`] for an audience that is not known.
    pub fn from_wire(privacy: wire::Privacy) -> Result<Self, Code> {
        let wire::Privacy { last_seen, online, read_receipts } = privacy;
        let default = Self::default();
        Ok(Self {
            last_seen: Audience::from_number(last_seen, default.last_seen)?,
            online: Audience::from_number(online, default.online)?,
            read_receipts: Audience::from_number(read_receipts, default.read_receipts)?,
        })
    }

    /// As a client is shown it.
    pub fn to_wire(self) -> wire::Privacy {
        wire::Privacy {
            last_seen: self.last_seen.number(),
            online: self.online.number(),
            read_receipts: self.read_receipts.number(),
        }
    }

    /// As it is stored, logged and told to other nodes.
    pub fn to_stored(self) -> stored::Privacy {
        stored::Privacy {
            last_seen: self.last_seen.number().cast_unsigned(),
            online: self.online.number().cast_unsigned(),
            read_receipts: self.read_receipts.number().cast_unsigned(),
        }
    }

    /// As it was stored. The defaults if it was not, or is not understood.
    pub fn from_stored(privacy: Option<stored::Privacy>) -> Self {
        let stored::Privacy { last_seen, online, read_receipts } = privacy.unwrap_or_default();
        let wire = wire::Privacy {
            last_seen: last_seen.cast_signed(),
            online: online.cast_signed(),
            read_receipts: read_receipts.cast_signed(),
        };
        Self::from_wire(wire).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_shown_to_its_audience_alone() {
        let (friend, stranger) = (UserId(1), UserId(2));
        let contacts = BTreeSet::from([friend]);
        let admitted =
            |audience: Audience| [friend, stranger].map(|user| audience.admits(user, &contacts));
        assert_eq!(admitted(Audience::Everybody), [true, true]);
        assert_eq!(admitted(Audience::Contacts), [true, false]);
        assert_eq!(admitted(Audience::Nobody), [false, false]);
    }

    #[test]
    fn what_is_set_is_kept_and_what_is_left_out_is_the_default() {
        let default = Privacy::from_wire(wire::Privacy::default()).unwrap();
        assert_eq!(default, Privacy::default());
        let wish = Privacy { online: Audience::Nobody, last_seen: Audience::Everybody, ..default };
        assert_eq!(Privacy::from_wire(wish.to_wire()), Ok(wish));
        assert_eq!(Privacy::from_stored(Some(wish.to_stored())), wish);
        assert_eq!(Privacy::from_stored(None), default);
        let unknown = wire::Privacy { online: 9, ..wish.to_wire() };
        assert_eq!(Privacy::from_wire(unknown), Err(Code::BadRequest));
    }
}
