//! Questions, answers and outcomes as nodes tell them to each other.

use super::account::AccountView;
use super::mailbox::Entry;
use super::privacy::Privacy;
use super::reads::{Attached, Page};
use super::{Answer, Outcome, Query, ShardItem};
use proto::cluster::{self, answer, ask};
use proto::{Alias, Code, DeviceId, Seq, UserId};
use std::sync::{Arc, Mutex, PoisonError};
use supervision::Inbox;

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
        Some(Kind::Elsewhere(_)) | None => Outcome::Elsewhere,
    }
}

/// A question for another node.
pub(super) fn question_to_wire(shard: u32, query: &Query) -> cluster::Ask {
    let kind = match query {
        Query::Account { user, .. } => ask::Kind::Account(user.0),
        Query::Owner { alias, .. } => ask::Kind::Owner(alias.as_str().to_owned()),
        Query::Attach { user, device, .. } => {
            ask::Kind::Attach(ask::Attach { user: user.0, device: device.0 })
        }
        Query::Page { user, after, limit, bytes_max, .. } => ask::Kind::Page(ask::Page {
            user: user.0,
            after: after.0,
            limit: u32::try_from(*limit).unwrap_or(u32::MAX),
            bytes_max: u32::try_from(*bytes_max).unwrap_or(u32::MAX),
        }),
    };
    cluster::Ask { shard, kind: Some(kind) }
}

/// Answers a question with what another node has said; gives the question back if that is no answer
/// to it.
pub(super) fn answer_from_wire(query: Query, answer: cluster::Answer) -> Result<(), Query> {
    use answer::Kind;
    match (query, answer.kind) {
        (Query::Account { answer, .. }, Some(Kind::Account(account))) => {
            answer(Ok(account_from_wire(&account)));
        }
        (Query::Account { answer, .. }, Some(Kind::Nothing(_))) => answer(Ok(None)),
        (Query::Owner { answer, .. }, Some(Kind::Owner(owner))) => {
            answer(Ok((owner != 0).then_some(UserId(owner))));
        }
        (Query::Attach { answer, .. }, Some(Kind::Nothing(_))) => answer(Ok(None)),
        (Query::Attach { answer, user, device }, Some(Kind::Attached(attached))) => {
            let account = attached.account.as_ref().and_then(account_from_wire);
            let Some(account) = account else {
                return Err(Query::Attach { user, device, answer });
            };
            answer(Ok(Some(Attached {
                account,
                acknowledged: Seq(attached.acknowledged),
                start: Seq(attached.start),
                set_aside: attached.set_aside,
                last: Seq(attached.last),
            })));
        }
        (Query::Page { answer, .. }, Some(Kind::Page(page))) => {
            let entry = |entry: cluster::Entry| {
                let envelope = Arc::new(entry.envelope?);
                Some(Entry { seq: Seq(entry.seq), envelope })
            };
            answer(Page {
                entries: page.entries.into_iter().filter_map(entry).collect(),
                up_to: Seq(page.up_to),
                last: Seq(page.last),
                released: Seq(page.released),
                failed: page.failed,
            });
        }
        (query, _) => return Err(query),
    }
    Ok(())
}

/// Refuses a question.
pub(super) fn refuse(query: Query, code: Code) {
    match query {
        Query::Account { answer, .. } => answer(Err(code)),
        Query::Owner { answer, .. } => answer(Err(code)),
        Query::Attach { answer, .. } => answer(Err(code)),
        Query::Page { after, answer, .. } => {
            let (entries, released) = (Vec::new(), Seq::default());
            answer(Page { entries, up_to: after, last: after, released, failed: true });
        }
    }
}

/// Puts a question of another node to the shard, and its answer into `respond`: `None` if the leader
/// is elsewhere.
pub(super) fn serve(
    inbox: &Arc<Inbox<ShardItem>>,
    ask: cluster::Ask,
    respond: Answer<Option<cluster::Answer>>,
) {
    let respond = Once(Arc::new(Mutex::new(Some(respond))));
    let (told, nothing) = (respond.clone(), respond.clone());
    let tell = move |kind: Option<answer::Kind>| {
        told.take(kind.map(|kind| cluster::Answer { kind: Some(kind) }));
    };
    let Some(query) = ask.kind.and_then(|kind| question_from_wire(kind, tell)) else {
        nothing.take(None);
        return;
    };
    inbox.force(ShardItem::Ask(query, Box::new(move |()| nothing.take(None))));
}

/// Something that is said once, by whoever comes first.
#[derive(Clone)]
struct Once(Arc<Mutex<Option<Answer<Option<cluster::Answer>>>>>);

impl Once {
    fn take(&self, answer: Option<cluster::Answer>) {
        let respond = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(respond) = respond {
            respond(answer);
        }
    }
}

fn question_from_wire(
    kind: ask::Kind,
    tell: impl FnOnce(Option<answer::Kind>) + Send + 'static,
) -> Option<Query> {
    use answer::Kind;
    Some(match kind {
        ask::Kind::Account(user) => Query::Account {
            user: UserId(user),
            answer: Box::new(move |account| {
                tell(account.ok().map(|account| match account {
                    Some(account) => Kind::Account(account_to_wire(&account)),
                    None => Kind::Nothing(true),
                }));
            }),
        },
        ask::Kind::Owner(alias) => Query::Owner {
            alias: Alias::parse(&alias).ok()?,
            answer: Box::new(move |owner| {
                tell(owner.ok().map(|owner| Kind::Owner(owner.map_or(0, |owner| owner.0))));
            }),
        },
        ask::Kind::Attach(attach) => Query::Attach {
            user: UserId(attach.user),
            device: DeviceId(attach.device),
            answer: Box::new(move |attached| {
                tell(attached.ok().map(|attached| match attached {
                    Some(attached) => Kind::Attached(answer::Attached {
                        account: Some(account_to_wire(&attached.account)),
                        acknowledged: attached.acknowledged.0,
                        start: attached.start.0,
                        set_aside: attached.set_aside,
                        last: attached.last.0,
                    }),
                    None => Kind::Nothing(true),
                }));
            }),
        },
        ask::Kind::Page(page) => Query::Page {
            user: UserId(page.user),
            after: Seq(page.after),
            limit: page.limit as usize,
            bytes_max: page.bytes_max as usize,
            answer: Box::new(move |page: Page| {
                let entry = |entry: Entry| cluster::Entry {
                    seq: entry.seq.0,
                    envelope: Some(Arc::unwrap_or_clone(entry.envelope)),
                };
                tell(Some(Kind::Page(answer::Page {
                    entries: page.entries.into_iter().map(entry).collect(),
                    up_to: page.up_to.0,
                    last: page.last.0,
                    released: page.released.0,
                    failed: page.failed,
                })));
            }),
        },
    })
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
