//! Frames that no honest client sends: each field of each request out of its range, and bytes that
//! are cut short or repeat one small field until the frame is full.

use proto::Code;
use proto::limits::{
    BODY_BYTES_MAX, DEVICE_NAME_BYTES_MAX, FRAME_BYTES_MAX, READ_IDS_MAX, TTL_S_MAX,
};
use proto::wire::{
    LinkDevice, Lookup, MarkRead, Privacy, RegisterProve, RegisterStart, Send, SetContact,
    SetPrivacy, Subscribe, UnlinkDevice, client_frame::Kind as Ask, lookup, send::To,
};

/// A request, why it is wrong, and the codes with which it may be refused.
#[derive(Clone, Debug)]
pub struct Malformed {
    /// The field and what is wrong with it.
    pub what: &'static str,
    /// The request.
    pub ask: Ask,
    /// Any of these is right.
    pub codes: &'static [Code],
}

fn wrong(what: &'static str, ask: Ask, codes: &'static [Code]) -> Malformed {
    Malformed { what, ask, codes }
}

const BAD: &[Code] = &[Code::BadRequest];
const NOBODY: &[Code] = &[Code::UnknownUser, Code::BadRequest];

/// No valid Ed25519 public key: all points of small order among them, whose signatures prove
/// nothing.
pub fn poor_keys() -> Vec<Vec<u8>> {
    let mut keys = vec![vec![], vec![7; 31], vec![7; 33], vec![0; 32], vec![0xff; 32]];
    for text in [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ] {
        keys.push(
            (0..64)
                .step_by(2)
                .filter_map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
                .collect(),
        );
    }
    keys
}

/// Aliases that are none: too long, of other scripts, with characters that hide or turn others.
pub const ODD_ALIASES: &[&str] = &[
    "",
    " ",
    "+",
    "+1",
    "+12345678901234567890",
    "a",
    "ab",
    "1abc",
    "a b c",
    "@",
    "a@",
    "@b.org",
    "a@b@c.org",
    "ada\u{202e}nimda",
    "ada\u{200b}",
    "ada\u{0}",
    "\u{1b}[31mada",
    "ada\u{7}",
    "\u{430}da",
    "ada/../bob",
    "ada\nbob",
    "user\u{202e}@example.org",
    "x@ex\u{ad}ample.org",
];

/// Every field of every request of someone who is logged in, out of its range. `other` is a user who
/// is there.
pub fn out_of_range(other: u64) -> Vec<Malformed> {
    let send = |to, body: Vec<u8>, ttl_s| Ask::Send(Send { to, body: body.into(), ttl_s });
    let to = Some(To::User(other));
    let alias = |text: &str| Some(To::Alias(text.to_owned()));
    let mark =
        |from, from_device, send_ids| Ask::MarkRead(MarkRead { from, from_device, send_ids });
    let link = |device_key: Vec<u8>, device_name: String| {
        Ask::LinkDevice(LinkDevice { device_key: device_key.into(), device_name })
    };
    let privacy = |audience| {
        let privacy = Privacy { last_seen: audience, online: audience, read_receipts: audience };
        Ask::SetPrivacy(SetPrivacy { privacy: Some(privacy) })
    };
    let key = || vec![0x55; 32];
    let mut all = vec![
        wrong("send to nobody", send(None, b"x".to_vec(), 0), BAD),
        wrong("send to user 0", send(Some(To::User(0)), b"x".to_vec(), 0), NOBODY),
        wrong("send to the last user", send(Some(To::User(u64::MAX)), b"x".to_vec(), 0), NOBODY),
        wrong("send to an odd alias", send(alias("\u{202e}bob"), b"x".to_vec(), 0), BAD),
        wrong("send to an endless alias", send(alias(&"a".repeat(100_000)), vec![], 0), BAD),
        wrong("time to live", send(to.clone(), b"x".to_vec(), TTL_S_MAX + 1), BAD),
        wrong("time to live", send(to.clone(), b"x".to_vec(), u32::MAX), BAD),
        wrong("body", send(to, vec![1; BODY_BYTES_MAX + 1], 0), &[Code::BodyTooLarge]),
        wrong("read: nobody's", mark(0, 1, vec![1]), NOBODY),
        wrong("read: no ids", mark(other, 1, vec![]), BAD),
        wrong("read: too many ids", mark(other, 1, vec![7; READ_IDS_MAX + 1]), BAD),
        wrong("look up nothing", Ask::Lookup(Lookup { who: None }), BAD),
        wrong("look up user 0", Ask::Lookup(Lookup { who: Some(lookup::Who::User(0)) }), NOBODY),
        wrong(
            "unlink device 0",
            Ask::UnlinkDevice(UnlinkDevice { device: 0 }),
            &[Code::UnknownDevice, Code::BadRequest],
        ),
        wrong(
            "unlink the last device",
            Ask::UnlinkDevice(UnlinkDevice { device: u32::MAX }),
            &[Code::UnknownDevice, Code::BadRequest],
        ),
        wrong(
            "subscribe to user 0",
            Ask::Subscribe(Subscribe { user: 0, unsubscribe: false }),
            NOBODY,
        ),
        wrong("no privacy", Ask::SetPrivacy(SetPrivacy { privacy: None }), BAD),
        wrong("contact user 0", Ask::SetContact(SetContact { user: 0, remove: false }), NOBODY),
        wrong("audience", privacy(77), BAD),
        wrong("audience", privacy(-1), BAD),
        wrong("device name", link(key(), "n".repeat(DEVICE_NAME_BYTES_MAX + 1)), BAD),
        wrong("device name", link(key(), "\u{1b}[2Jphone".into()), BAD),
    ];
    for text in ODD_ALIASES {
        let who = Some(lookup::Who::Alias((*text).to_owned()));
        all.push(wrong("look up an odd alias", Ask::Lookup(Lookup { who }), BAD));
    }
    for key in poor_keys() {
        all.push(wrong("device key", link(key, "phone".into()), BAD));
    }
    all
}

/// The same for a stranger.
pub fn out_of_range_before_login() -> Vec<Malformed> {
    let prove = |alias: &str, pin: &str, key: Vec<u8>, signature: Vec<u8>| {
        Ask::RegisterProve(Box::new(RegisterProve {
            alias: alias.into(),
            pin: pin.into(),
            device_key: key.into(),
            signature: signature.into(),
            ..RegisterProve::default()
        }))
    };
    let unproven = &[Code::BadCredentials];
    let mut all: Vec<Malformed> = ODD_ALIASES
        .iter()
        .map(|alias| {
            wrong("odd alias", Ask::RegisterStart(RegisterStart { alias: (*alias).into() }), BAD)
        })
        .collect();
    // A key that is one, and a signature that is none.
    let (key, forged) = (vec![0x55; 32], vec![7; 64]);
    all.push(wrong("no PIN", prove("ada", "", key.clone(), forged.clone()), unproven));
    all.push(wrong("long PIN", prove("ada", &"1".repeat(2000), key.clone(), forged.clone()), BAD));
    all.push(wrong("no signature", prove("ada", "123456", key.clone(), vec![]), unproven));
    all.push(wrong("forged", prove("ada", "123456", key, forged.clone()), unproven));
    for key in poor_keys() {
        all.push(wrong("device key", prove("ada", "123456", key, forged.clone()), BAD));
    }
    all
}

/// Bodies of frames that repeat one small field until the frame is as long as it may be. Decoded
/// without thought each of them takes many times its length.
pub fn swollen() -> Vec<(&'static str, Vec<u8>)> {
    let limit = FRAME_BYTES_MAX - 16;
    // `inside` is the frame's field number of the request, `small` what is repeated in it.
    let frame = |inside: u64, small: &[u8]| {
        let content = small.repeat((limit - 8) / small.len());
        let mut bytes = vec![0x08, 0x07]; // id 7
        prost::encoding::encode_varint(inside << 3 | 2, &mut bytes);
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        bytes.extend(content);
        bytes
    };
    vec![
        ("send, empty field 4", frame(2, &[0x22, 0])),
        ("send, unknown field", frame(2, &[0x78, 0])),
        ("mark read, ids one by one", frame(5, &[0x18, 1])),
        ("mark read, packed ids", {
            let ids = vec![1; limit - 32];
            let mut field = vec![0x1a];
            prost::encoding::encode_varint(ids.len() as u64, &mut field);
            field.extend(ids);
            frame(5, &field)
        }),
        ("login, signature again and again", frame(8, &[0x1a, 0])),
        ("register, alias again and again", frame(16, &[0x0a, 0])),
        ("link device, key again and again", frame(19, &[0x0a, 0])),
        ("set privacy, privacy again and again", frame(24, &[0x0a, 0])),
        ("lookup, alias again and again", frame(22, &[0x12, 0])),
        ("the kind again and again", [0x3a, 0x00].repeat(limit / 2)),
        ("unknown kinds", [0xfa, 0x7f, 0x00].repeat(limit / 3)),
        ("groups that are never closed", vec![0x7b; limit]),
    ]
}
