//! Known values, one or more for every frame, whose bytes are frozen in `proto/golden/`.
//!
//! **Invariant:** an entry is added, never edited; its name is its file.

use proto::wire::{
    Accepted, Account, Ack, Audience, Block, CaughtUp, ClientFrame, DeleteAccount, Deliver, Device,
    DeviceNotice, Done, Found, GetAccount, GoAway, LinkDevice, LinkRequested, Linked, LoggedIn,
    Login, Logout, Lookup, MarkRead, Message, PinSent, Ping, Pong, Presence, Privacy, ReadCopy,
    Receipt, Refused, RegisterProve, RegisterStart, Registered, RequestLink, Resume, Send,
    SentCopy, ServerFrame, SetContact, SetPresence, SetPrivacy, SetRegistrationLock, Signal,
    Signaled, Subscribe, UnlinkDevice, Welcome, client_frame::Kind as Ask, deliver::Content,
    lookup::Who, receipt, send::To, server_frame::Kind as Say,
};

pub(crate) const ADA: u64 = 4_503_599_627_370_497;
pub(crate) const BOB: u64 = 300;
const AT_MS: u64 = 1_795_000_000_000;

/// `count` bytes that count up from `first`.
pub(crate) fn counting(first: u8, count: u8) -> bytes::Bytes {
    (first..first + count).collect::<Vec<u8>>().into()
}

/// Every known client frame with the name of its file.
pub(crate) fn client() -> Vec<(&'static str, ClientFrame)> {
    let frame = |id, kind| ClientFrame { id, kind: Some(kind) };
    opening()
        .into_iter()
        .chain(messages())
        .chain(account())
        .map(|(name, id, kind)| (name, frame(id, kind)))
        .collect()
}

type Named<K> = (&'static str, u64, K);

fn resume(away: bool) -> Ask {
    Ask::Resume(Resume { ticket: counting(0x80, 48), acknowledged: 17, away })
}

fn opening() -> Vec<Named<Ask>> {
    vec![
        (
            "client-request_link",
            1,
            Ask::RequestLink(Box::new(RequestLink {
                alias: "ada".into(),
                device_key: counting(0x10, 32),
                signature: counting(0x40, 64),
                device_name: "tablet".into(),
                away: true,
            })),
        ),
        ("client-register_start", 1, Ask::RegisterStart(RegisterStart { alias: "ada".into() })),
        (
            "client-register_prove",
            2,
            Ask::RegisterProve(Box::new(RegisterProve {
                alias: "+4915112345678".into(),
                pin: "012345".into(),
                device_key: counting(0x10, 32),
                signature: counting(0x40, 64),
                device_name: "Ada's phone".into(),
                away: false,
                token: counting(0xa0, 85),
                lock: "1234".into(),
            })),
        ),
        (
            "client-login",
            1,
            Ask::Login(Login {
                user: ADA,
                device: 2,
                signature: counting(0x40, 64),
                acknowledged: 17,
                away: false,
            }),
        ),
        ("client-resume", 1, resume(false)),
        ("client-resume-away", 1, resume(true)),
        ("client-logout", 9, Ask::Logout(Logout {})),
        ("client-ping", 0, Ask::Ping(Ping {})),
        ("client-pong", 0, Ask::Pong(Pong {})),
    ]
}

fn messages() -> Vec<Named<Ask>> {
    vec![
        (
            "client-send",
            1000,
            Ask::Send(Send { to: Some(To::User(BOB)), body: "hello".into(), ttl_s: 3600 }),
        ),
        (
            "client-send-to_alias",
            1001,
            Ask::Send(Send {
                to: Some(To::Alias("bob".into())),
                body: "hello".into(),
                ..Send::default()
            }),
        ),
        ("client-ack", 0, Ask::Ack(Ack { seq: 18 })),
        ("client-signal", 0, Ask::Signal(Signal { to: BOB, kind: 1, body: bytes::Bytes::new() })),
        (
            "client-mark_read",
            1003,
            Ask::MarkRead(MarkRead { from: BOB, from_device: 1, send_ids: vec![5, 6, 300] }),
        ),
    ]
}

fn account() -> Vec<Named<Ask>> {
    let privacy = Privacy {
        last_seen: Audience::Nobody.into(),
        online: Audience::Everybody.into(),
        read_receipts: Audience::Contacts.into(),
    };
    vec![
        (
            "client-link_device",
            3,
            Ask::LinkDevice(LinkDevice {
                device_key: counting(0x10, 32),
                device_name: "tablet".into(),
            }),
        ),
        ("client-unlink_device", 4, Ask::UnlinkDevice(UnlinkDevice { device: 2 })),
        ("client-delete_account", 5, Ask::DeleteAccount(DeleteAccount {})),
        ("client-lookup", 6, Ask::Lookup(Lookup { who: Some(Who::User(BOB)) })),
        (
            "client-lookup-alias",
            7,
            Ask::Lookup(Lookup { who: Some(Who::Alias("bob@example.org".into())) }),
        ),
        ("client-block", 8, Ask::Block(Block { user: BOB, unblock: false })),
        ("client-block-unblock", 9, Ask::Block(Block { user: BOB, unblock: true })),
        ("client-set_contact", 15, Ask::SetContact(SetContact { user: BOB, remove: false })),
        ("client-set_contact-remove", 16, Ask::SetContact(SetContact { user: BOB, remove: true })),
        ("client-set_privacy", 10, Ask::SetPrivacy(SetPrivacy { privacy: Some(privacy) })),
        ("client-subscribe", 11, Ask::Subscribe(Subscribe { user: BOB, unsubscribe: false })),
        (
            "client-subscribe-unsubscribe",
            12,
            Ask::Subscribe(Subscribe { user: BOB, unsubscribe: true }),
        ),
        ("client-set_presence", 13, Ask::SetPresence(SetPresence { away: true })),
        ("client-get_account", 14, Ask::GetAccount(GetAccount {})),
        (
            "client-set_registration_lock",
            15,
            Ask::SetRegistrationLock(SetRegistrationLock {
                lock: "5678".into(),
                current: "1234".into(),
            }),
        ),
    ]
}

/// Every known server frame with the name of its file.
pub(crate) fn server() -> Vec<(&'static str, ServerFrame)> {
    let frame = |id, kind| ServerFrame { id, kind: Some(kind) };
    greetings()
        .into_iter()
        .chain(deliveries())
        .chain(answers())
        .map(|(name, id, kind)| (name, frame(id, kind)))
        .collect()
}

fn greetings() -> Vec<Named<Say>> {
    vec![
        (
            "server-link_requested",
            0,
            Say::LinkRequested(LinkRequested {
                device_key: counting(0x10, 32),
                device_name: "tablet".into(),
            }),
        ),
        (
            "server-welcome",
            0,
            Say::Welcome(Welcome {
                nonce: counting(0x20, 32),
                server_time_ms: AT_MS,
                frame_bytes_max: 262_144,
                unanswered_max: 64,
                heartbeat_s: 60,
                server: "natter 0.1.0".into(),
            }),
        ),
        (
            "server-pin_sent",
            1,
            Say::PinSent(PinSent { expires_s: 600, digits: 6, token: counting(0xa0, 85) }),
        ),
        (
            "server-registered",
            2,
            Say::Registered(Registered {
                user: ADA,
                device: 1,
                ticket: counting(0x80, 48),
                acknowledged: 16,
            }),
        ),
        (
            "server-logged_in",
            1,
            Say::LoggedIn(LoggedIn {
                ticket: counting(0x80, 48),
                acknowledged: 17,
                user: ADA,
                device: 2,
                resync: false,
            }),
        ),
        ("server-ping", 0, Say::Ping(Ping {})),
        ("server-pong", 0, Say::Pong(Pong {})),
        (
            "server-go_away",
            0,
            Say::GoAway(GoAway {
                code: 13,
                after_ms: 1500,
                addresses: vec!["a.example.org:7400".into(), "b.example.org:7400".into()],
                text: "the node ends".into(),
            }),
        ),
    ]
}

fn deliveries() -> Vec<Named<Say>> {
    let deliver = |seq, after, content| {
        Say::Deliver(Deliver { seq, after, at_ms: AT_MS, content: Some(content) })
    };
    let receipt = |kind: receipt::Kind| {
        Content::Receipt(Receipt { kind: kind as i32, user: BOB, device: 2, send_ids: vec![1000] })
    };
    let linked = DeviceNotice { kind: 3, device: 3, by_device: 1 };
    vec![
        (
            "server-deliver",
            0,
            deliver(
                18,
                None,
                Content::Message(Message {
                    from: BOB,
                    from_device: 1,
                    send_id: 1000,
                    body: "hello".into(),
                }),
            ),
        ),
        ("server-deliver-delivered", 0, deliver(19, None, receipt(receipt::Kind::Delivered))),
        ("server-deliver-read", 0, deliver(20, None, receipt(receipt::Kind::Read))),
        ("server-deliver-expired", 0, deliver(22, Some(20), receipt(receipt::Kind::Expired))),
        (
            "server-deliver-undeliverable",
            0,
            deliver(23, None, receipt(receipt::Kind::Undeliverable)),
        ),
        (
            "server-deliver-sent_copy",
            0,
            deliver(
                30,
                Some(0),
                Content::SentCopy(SentCopy {
                    to: BOB,
                    from_device: 3,
                    send_id: 77,
                    body: "hello".into(),
                }),
            ),
        ),
        (
            "server-deliver-read_copy",
            0,
            deliver(
                31,
                None,
                Content::ReadCopy(ReadCopy { from: BOB, from_device: 1, send_ids: vec![5, 6] }),
            ),
        ),
        ("server-deliver-device_notice", 0, deliver(32, None, Content::DeviceNotice(linked))),
        ("server-caught_up", 0, Say::CaughtUp(CaughtUp { seq: 31 })),
        (
            "server-signaled",
            0,
            Say::Signaled(Signaled { from: BOB, from_device: 1, kind: 1, body: "x".into() }),
        ),
        (
            "server-presence",
            0,
            Say::Presence(Presence { user: BOB, online: false, last_seen_ms: AT_MS }),
        ),
    ]
}

fn answers() -> Vec<Named<Say>> {
    let device = |device, name: &str| Device {
        device,
        key: counting(0x10, 32),
        name: name.into(),
        linked_at_ms: AT_MS,
        set_aside: false,
    };
    let account = Account {
        user: ADA,
        aliases: vec!["+4915112345678".into(), "ada".into()],
        devices: vec![device(1, "phone"), device(2, "tablet")],
        blocked: vec![BOB, 301],
        privacy: Some(Privacy { online: Audience::Nobody.into(), ..Privacy::default() }),
        contacts: vec![BOB],
        registration_lock: true,
    };
    vec![
        ("server-accepted", 1000, Say::Accepted(Accepted { at_ms: AT_MS, user: 0 })),
        ("server-accepted-alias", 1001, Say::Accepted(Accepted { at_ms: AT_MS, user: BOB })),
        (
            "server-refused",
            1002,
            Say::Refused(Refused { code: 41, text: "mailbox full".into(), retry_after_ms: 30_000 }),
        ),
        ("server-done", 8, Say::Done(Done {})),
        ("server-linked", 3, Say::Linked(Linked { user: ADA, device: 2 })),
        ("server-found", 6, Say::Found(Found { user: BOB, devices: vec![device(1, "")] })),
        ("server-account", 14, Say::Account(account)),
    ]
}
