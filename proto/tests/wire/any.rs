//! Strategies that make any frame at all, for the properties.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use proto::wire::{
    Accepted, Account, Ack, Block, CaughtUp, ClientFrame, DeleteAccount, Deliver, Device,
    DeviceNotice, Done, Found, GetAccount, GoAway, LinkDevice, LinkRequested, Linked, LoggedIn,
    Login, Logout, Lookup, MarkRead, Message, PinSent, Ping, Pong, Presence, Privacy, ReadCopy,
    Receipt, Refused, RegisterProve, RegisterStart, Registered, RequestLink, Resume, Send,
    SentCopy, ServerFrame, SetContact, SetPresence, SetPrivacy, SetRegistrationLock, Signal,
    Signaled, Subscribe, UnlinkDevice, Welcome, client_frame::Kind as Ask, deliver::Content,
    lookup::Who, send::To, server_frame::Kind as Say,
};

fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..80).prop_map(Bytes::from)
}

fn text() -> impl Strategy<Value = String> {
    ".{0,20}"
}

fn device() -> impl Strategy<Value = Device> {
    (any::<u32>(), bytes(), text(), any::<u64>(), any::<bool>()).prop_map(
        |(device, key, name, linked_at_ms, set_aside)| Device {
            device,
            key,
            name,
            linked_at_ms,
            set_aside,
        },
    )
}

fn privacy() -> impl Strategy<Value = Privacy> {
    [0..5i32, 0..5, 0..5].prop_map(|[last_seen, online, read_receipts]| Privacy {
        last_seen,
        online,
        read_receipts,
    })
}

fn send() -> impl Strategy<Value = Send> {
    let to = prop_oneof![any::<u64>().prop_map(To::User), text().prop_map(To::Alias)];
    (proptest::option::of(to), bytes(), any::<u32>()).prop_map(|(to, body, ttl_s)| Send {
        to,
        body,
        ttl_s,
    })
}

fn ask_account() -> impl Strategy<Value = Ask> {
    let who = prop_oneof![any::<u64>().prop_map(Who::User), text().prop_map(Who::Alias)];
    prop_oneof![
        (bytes(), text()).prop_map(|(device_key, device_name)| Ask::LinkDevice(LinkDevice {
            device_key,
            device_name
        })),
        any::<u32>().prop_map(|device| Ask::UnlinkDevice(UnlinkDevice { device })),
        Just(Ask::DeleteAccount(DeleteAccount {})),
        proptest::option::of(who).prop_map(|who| Ask::Lookup(Lookup { who })),
        any::<(u64, bool)>().prop_map(|(user, unblock)| Ask::Block(Block { user, unblock })),
        any::<(u64, bool)>()
            .prop_map(|(user, remove)| Ask::SetContact(SetContact { user, remove })),
        proptest::option::of(privacy()).prop_map(|privacy| Ask::SetPrivacy(SetPrivacy { privacy })),
        any::<(u64, bool)>()
            .prop_map(|(user, unsubscribe)| Ask::Subscribe(Subscribe { user, unsubscribe })),
        any::<bool>().prop_map(|away| Ask::SetPresence(SetPresence { away })),
        Just(Ask::GetAccount(GetAccount {})),
        (text(), text()).prop_map(|(lock, current)| {
            Ask::SetRegistrationLock(SetRegistrationLock { lock, current })
        }),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        send().prop_map(Ask::Send),
        any::<u64>().prop_map(|seq| Ask::Ack(Ack { seq })),
        (any::<u64>(), any::<u32>(), bytes()).prop_map(|(to, kind, body)| Ask::Signal(Signal {
            to,
            kind,
            body
        })),
        (any::<u64>(), any::<u32>(), vec(any::<u64>(), 0..9)).prop_map(
            |(from, from_device, send_ids)| Ask::MarkRead(MarkRead { from, from_device, send_ids })
        ),
        Just(Ask::Ping(Ping {})),
        Just(Ask::Pong(Pong {})),
        (any::<u64>(), any::<u32>(), bytes(), any::<u64>(), any::<bool>()).prop_map(
            |(user, device, signature, acknowledged, away)| Ask::Login(Login {
                user,
                device,
                signature,
                acknowledged,
                away
            })
        ),
        (bytes(), any::<(u64, bool)>()).prop_map(|(ticket, (acknowledged, away))| Ask::Resume(
            Resume { ticket, acknowledged, away }
        )),
        text().prop_map(|alias| Ask::RegisterStart(RegisterStart { alias })),
        (text(), text(), bytes(), bytes(), text(), bytes(), text()).prop_map(
            |(alias, pin, device_key, signature, device_name, token, lock)| {
                Ask::RegisterProve(Box::new(RegisterProve {
                    alias,
                    pin,
                    device_key,
                    signature,
                    device_name,
                    away: false,
                    token,
                    lock,
                }))
            }
        ),
        (text(), bytes(), bytes(), text(), any::<bool>()).prop_map(
            |(alias, device_key, signature, device_name, away)| {
                let link = RequestLink { alias, device_key, signature, device_name, away };
                Ask::RequestLink(link.into())
            }
        ),
        Just(Ask::Logout(Logout {})),
        ask_account(),
    ]
}

/// Any client frame.
pub(crate) fn client_frame() -> impl Strategy<Value = ClientFrame> {
    (any::<u64>(), proptest::option::of(ask())).prop_map(|(id, kind)| ClientFrame { id, kind })
}

fn content() -> impl Strategy<Value = Content> {
    let ids = || vec(any::<u64>(), 0..9);
    prop_oneof![
        (any::<u64>(), any::<u32>(), any::<u64>(), bytes()).prop_map(
            |(from, from_device, send_id, body)| Content::Message(Message {
                from,
                from_device,
                send_id,
                body
            })
        ),
        (any::<i32>(), any::<u64>(), any::<u32>(), ids()).prop_map(
            |(kind, user, device, send_ids)| Content::Receipt(Receipt {
                kind,
                user,
                device,
                send_ids
            })
        ),
        (any::<u64>(), any::<u32>(), any::<u64>(), bytes()).prop_map(
            |(to, from_device, send_id, body)| Content::SentCopy(SentCopy {
                to,
                from_device,
                send_id,
                body
            })
        ),
        (any::<u64>(), any::<u32>(), ids()).prop_map(|(from, from_device, send_ids)| {
            Content::ReadCopy(ReadCopy { from, from_device, send_ids })
        }),
        any::<(i32, u32)>().prop_map(|(kind, device)| {
            Content::DeviceNotice(DeviceNotice { kind, device, by_device: device })
        }),
    ]
}

fn say_opening() -> impl Strategy<Value = Say> {
    prop_oneof![
        (bytes(), any::<u64>(), any::<[u32; 3]>(), text()).prop_map(
            |(nonce, server_time_ms, [frame_bytes_max, unanswered_max, heartbeat_s], server)| {
                Say::Welcome(Welcome {
                    nonce,
                    server_time_ms,
                    frame_bytes_max,
                    unanswered_max,
                    heartbeat_s,
                    server,
                })
            }
        ),
        (any::<u32>(), any::<u32>(), bytes()).prop_map(|(expires_s, digits, token)| {
            Say::PinSent(PinSent { expires_s, digits, token })
        }),
        (any::<u64>(), any::<u32>(), bytes(), any::<u64>()).prop_map(
            |(user, device, ticket, acknowledged)| {
                Say::Registered(Registered { user, device, ticket, acknowledged })
            }
        ),
        (bytes(), any::<u64>(), any::<u64>(), any::<u32>(), any::<bool>()).prop_map(
            |(ticket, acknowledged, user, device, resync)| Say::LoggedIn(LoggedIn {
                ticket,
                acknowledged,
                user,
                device,
                resync
            })
        ),
        any::<(u64, u32)>().prop_map(|(user, device)| Say::Linked(Linked { user, device })),
        (bytes(), text()).prop_map(|(device_key, device_name)| {
            Say::LinkRequested(LinkRequested { device_key, device_name })
        }),
        (any::<u64>(), vec(device(), 0..4))
            .prop_map(|(user, devices)| Say::Found(Found { user, devices })),
        (
            any::<u64>(),
            vec(text(), 0..3),
            vec(device(), 0..3),
            vec(any::<u64>(), 0..9),
            proptest::option::of(privacy()),
            any::<bool>(),
        )
            .prop_map(|(user, aliases, devices, blocked, privacy, registration_lock)| {
                Say::Account(Account {
                    contacts: blocked.clone(),
                    user,
                    aliases,
                    devices,
                    blocked,
                    privacy,
                    registration_lock,
                })
            }),
    ]
}

fn say() -> impl Strategy<Value = Say> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(at_ms, user)| Say::Accepted(Accepted { at_ms, user })),
        (any::<u64>(), any::<Option<u64>>(), any::<u64>(), proptest::option::of(content()))
            .prop_map(|(seq, after, at_ms, content)| Say::Deliver(Deliver {
                seq,
                after,
                at_ms,
                content
            })),
        (any::<u64>(), any::<[u32; 2]>(), bytes()).prop_map(|(from, [from_device, kind], body)| {
            Say::Signaled(Signaled { from, from_device, kind, body })
        }),
        any::<u64>().prop_map(|seq| Say::CaughtUp(CaughtUp { seq })),
        Just(Say::Ping(Ping {})),
        Just(Say::Pong(Pong {})),
        Just(Say::Done(Done {})),
        (any::<[u32; 2]>(), text()).prop_map(|([code, retry_after_ms], text)| {
            Say::Refused(Refused { code, text, retry_after_ms })
        }),
        any::<(u64, bool, u64)>().prop_map(|(user, online, last_seen_ms)| {
            Say::Presence(Presence { user, online, last_seen_ms })
        }),
        (any::<[u32; 2]>(), vec(text(), 0..3), text()).prop_map(
            |([code, after_ms], addresses, text)| {
                Say::GoAway(GoAway { code, after_ms, addresses, text })
            }
        ),
        say_opening(),
    ]
}

/// Any server frame.
pub(crate) fn server_frame() -> impl Strategy<Value = ServerFrame> {
    (any::<u64>(), proptest::option::of(say())).prop_map(|(id, kind)| ServerFrame { id, kind })
}
