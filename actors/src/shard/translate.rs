//! Questions, answers and outcomes as nodes tell them to each other.

use super::account::AccountView;
use super::mailbox::Entry;
use super::privacy::Privacy;
use super::reads::{Attached, Page};
use super::{Answered, Ask, Outcome};
use proto::cluster::{self, answer, ask};
use proto::{Alias, Code, DeviceId, Seq, UserId};
use std::sync::Arc;

/// An outcome for another node.
pub(super) fn outcome_to_wire(outcome: &Outcome) -> cluster::Outcome {
    use cluster::outcome::Kind;
    let kind = match outcome {
        Outcome::Done => Kind::Done(true),
        Outcome::Accepted { at_ms } => Kind::AcceptedAtMs(*at_ms),
        Outcome::Pin { grant, send } => {
            Kind::Pin(cluster::outcome::Pin { grant: Some(grant.clone()), send: *send })
        }
        Outcome::Proven { owner, new } => {
            Kind::Proven(cluster::outcome::Proven { owner: *owner, new: Some(*new) })
        }
        Outcome::NotTheirs => Kind::NotTheirs(true),
        Outcome::Admitted(device) => Kind::Admitted(device.0),
        Outcome::Refused(code) => Kind::Refused(code.number()),
        Outcome::Wait { code, after_ms } => {
            let (code, after_ms) = (code.number(), *after_ms);
            Kind::Wait(cluster::outcome::Wait { code, after_ms })
        }
        Outcome::Elsewhere => Kind::Elsewhere(true),
    };
    cluster::Outcome { kind: Some(kind) }
}

/// An outcome from another node. One that is not understood was not proposed.
pub(super) fn outcome_from_wire(outcome: &cluster::Outcome) -> Outcome {
    use cluster::outcome::Kind;
    match outcome.kind.clone() {
        Some(Kind::Done(_)) => Outcome::Done,
        Some(Kind::AcceptedAtMs(at_ms)) => Outcome::Accepted { at_ms },
        Some(Kind::Pin(pin)) => {
            Outcome::Pin { grant: pin.grant.unwrap_or_default(), send: pin.send }
        }
        Some(Kind::Proven(proven)) => {
            Outcome::Proven { owner: proven.owner, new: proven.new.unwrap_or_default() }
        }
        Some(Kind::NotTheirs(_)) => Outcome::NotTheirs,
        Some(Kind::Admitted(device)) => Outcome::Admitted(DeviceId(device)),
        Some(Kind::Refused(code)) => Outcome::Refused(Code::from_number(code)),
        Some(Kind::Wait(wait)) => {
            Outcome::Wait { code: Code::from_number(wait.code), after_ms: wait.after_ms }
        }
        Some(Kind::Elsewhere(_)) | None => Outcome::Elsewhere,
    }
}

/// A question for another node.
pub(super) fn question_to_wire(shard: u32, ask: &Ask) -> cluster::Ask {
    let kind = match ask {
        Ask::Account(user) => ask::Kind::Account(user.0),
        Ask::Owner(alias) => ask::Kind::Owner(alias.as_str().to_owned()),
        Ask::Attach(user, device) => {
            ask::Kind::Attach(ask::Attach { user: user.0, device: device.0 })
        }
        Ask::Page { user, after, limit, bytes_max } => ask::Kind::Page(ask::Page {
            user: user.0,
            after: after.0,
            limit: u32::try_from(*limit).unwrap_or(u32::MAX),
            bytes_max: u32::try_from(*bytes_max).unwrap_or(u32::MAX),
        }),
    };
    cluster::Ask { shard, kind: Some(kind) }
}

/// A question of another node; `None` if it is not understood.
pub(super) fn question_from_wire(kind: ask::Kind) -> Option<Ask> {
    Some(match kind {
        ask::Kind::Account(user) => Ask::Account(UserId(user)),
        ask::Kind::Owner(alias) => Ask::Owner(Alias::parse(&alias).ok()?),
        ask::Kind::Attach(attach) => Ask::Attach(UserId(attach.user), DeviceId(attach.device)),
        ask::Kind::Page(page) => Ask::Page {
            user: UserId(page.user),
            after: Seq(page.after),
            limit: page.limit as usize,
            bytes_max: page.bytes_max as usize,
        },
    })
}

/// What another node has said to a question; `None` if that is no answer to it.
pub(super) fn answer_from_wire(ask: &Ask, answer: cluster::Answer) -> Option<Answered> {
    use answer::Kind;
    Some(match (ask, answer.kind?) {
        (Ask::Account(_), Kind::Account(account)) => Answered::Account(account_from_wire(&account)),
        (Ask::Account(_), Kind::Nothing(_)) => Answered::Account(None),
        (Ask::Owner(_), Kind::Owner(owner)) => {
            Answered::Owner((owner != 0).then_some(UserId(owner)))
        }
        (Ask::Attach(..), Kind::Nothing(_)) => Answered::Attached(None),
        (Ask::Attach(..), Kind::Attached(attached)) => Answered::Attached(Some(Attached {
            account: attached.account.as_ref().and_then(account_from_wire)?,
            acknowledged: Seq(attached.acknowledged),
            start: Seq(attached.start),
            set_aside: attached.set_aside,
            last: Seq(attached.last),
        })),
        (Ask::Page { .. }, Kind::Page(page)) => {
            let entry = |entry: cluster::Entry| {
                let envelope = Arc::new(entry.envelope?);
                Some(Entry { seq: Seq(entry.seq), envelope })
            };
            Answered::Page(Page {
                entries: page.entries.into_iter().filter_map(entry).collect(),
                up_to: Seq(page.up_to),
                last: Seq(page.last),
                released: Seq(page.released),
                failed: page.failed,
            })
        }
        (Ask::Account(_) | Ask::Owner(_) | Ask::Attach(..) | Ask::Page { .. }, _) => return None,
    })
}

/// An answer for another node.
pub(super) fn answer_to_wire(answered: Answered) -> cluster::Answer {
    use answer::Kind;
    let kind = match answered {
        Answered::Account(Some(account)) => Kind::Account(account_to_wire(&account)),
        Answered::Account(None) | Answered::Attached(None) => Kind::Nothing(true),
        Answered::Owner(owner) => Kind::Owner(owner.map_or(0, |owner| owner.0)),
        Answered::Attached(Some(attached)) => Kind::Attached(answer::Attached {
            account: Some(account_to_wire(&attached.account)),
            acknowledged: attached.acknowledged.0,
            start: attached.start.0,
            set_aside: attached.set_aside,
            last: attached.last.0,
        }),
        Answered::Page(page) => {
            let entry = |entry: Entry| cluster::Entry {
                seq: entry.seq.0,
                envelope: Some(Arc::unwrap_or_clone(entry.envelope)),
            };
            Kind::Page(answer::Page {
                entries: page.entries.into_iter().map(entry).collect(),
                up_to: page.up_to.0,
                last: page.last.0,
                released: page.released.0,
                failed: page.failed,
            })
        }
    };
    cluster::Answer { kind: Some(kind) }
}

/// An account for another node.
pub fn account_to_wire(account: &AccountView) -> cluster::Account {
    let device = |(id, device): (&DeviceId, &proto::stored::Device)| cluster::account::Device {
        id: id.0,
        device: Some(device.clone()),
    };
    cluster::Account {
        user: account.user.0,
        aliases: account.aliases.iter().map(|alias| alias.as_str().to_owned()).collect(),
        devices: account.devices.iter().map(device).collect(),
        blocked: account.blocked.iter().map(|user| user.0).collect(),
        privacy: Some(account.privacy.to_stored()),
        contacts: account.contacts.iter().map(|user| user.0).collect(),
        unlinked: account.unlinked.clone(),
        registration_lock: account.has_lock,
    }
}

/// An account from another node; `None` if it names nobody.
pub(crate) fn account_from_wire(account: &cluster::Account) -> Option<Arc<AccountView>> {
    let device =
        |device: &cluster::account::Device| Some((DeviceId(device.id), device.device.clone()?));
    (account.user != 0).then(|| {
        Arc::new(AccountView {
            user: UserId(account.user),
            aliases: account.aliases.iter().filter_map(|alias| Alias::parse(alias).ok()).collect(),
            devices: Arc::new(account.devices.iter().filter_map(device).collect()),
            blocked: account.blocked.iter().map(|user| UserId(*user)).collect(),
            contacts: Arc::new(account.contacts.iter().map(|user| UserId(*user)).collect()),
            privacy: Privacy::from_stored(account.privacy),
            unlinked: account.unlinked.clone(),
            has_lock: account.registration_lock,
        })
    })
}
