//! What a person types: text to send, or a command.

use natter_sdk::{Alias, Audience};

/// One line of input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Say(String),
    To(Alias),
    Who,
    Block,
    Unblock,
    Devices,
    Link { key: Vec<u8>, name: String },
    Unlink(u32),
    LogOut,
    Privacy(Option<Setting>),
    DeleteAccount(Alias),
    Help,
    Quit,
}

/// One of the privacy settings, and who is shown it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    LastSeen(Audience),
    Online(Audience),
    ReadReceipts(Audience),
}

/// The commands, for `/help`: each line fits a narrow screen.
pub(crate) const HELP: &[&str] = &[
    "/to ALIAS   open a conversation",
    "/who        you, and this person",
    "/block, /unblock   this person",
    "/devices    your devices",
    "/link CODE NAME   add a device",
    "/unlink NUMBER    remove a device",
    "/privacy    what others see of you",
    "/logout     end on this device",
    "/delete-account ALIAS   for good",
    "/quit       also Ctrl-C and Ctrl-D",
    "Enter sends. Alt-Enter, Ctrl-J or \\",
    "at the end of the line: a new line.",
    "Tab: next conversation. Esc: clear.",
    "◷ waits  ✓ on disk  ✓✓ delivered",
    "✓✓ in color: read  ✗ refused",
];

/// Reads what was typed; the error is for the person who typed it. Several lines are always text: a command
/// has one.
pub(crate) fn parse(line: &str) -> Result<Command, String> {
    let command = line.strip_prefix('/').filter(|rest| !rest.starts_with('/'));
    let Some(rest) = command.filter(|rest| !rest.contains('\n')) else {
        let text = if line.starts_with("//") { &line[1..] } else { line };
        return Ok(Command::Say(text.to_owned()));
    };
    let (name, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let rest = rest.trim();
    match name {
        "to" => alias(rest).map(Command::To),
        "who" => Ok(Command::Who),
        "block" => Ok(Command::Block),
        "unblock" => Ok(Command::Unblock),
        "devices" => Ok(Command::Devices),
        "link" => link(rest),
        "unlink" => rest
            .parse()
            .map(Command::Unlink)
            .map_err(|_| "/unlink NUMBER: /devices shows the numbers".to_owned()),
        "logout" if rest.is_empty() => Ok(Command::LogOut),
        "logout" => Err("/logout has nothing behind it".to_owned()),
        "privacy" if rest.is_empty() => Ok(Command::Privacy(None)),
        "privacy" => setting(rest).map(|setting| Command::Privacy(Some(setting))),
        "delete-account" => alias(rest)
            .map(Command::DeleteAccount)
            .map_err(|_| "/delete-account ALIAS: your own alias confirms it".to_owned()),
        "help" => Ok(Command::Help),
        "quit" | "q" => Ok(Command::Quit),
        other => Err(format!("no command /{other}; /help shows them all")),
    }
}

/// Digits of a link code: 32 that no reader takes for each other.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Bytes of a device's key.
const KEY_BYTES: usize = 32;

/// The code by which a new device shows its key: the key and a check byte in digits of five bits, in groups of
/// four. A digit that is mistyped is noticed.
pub(crate) fn link_code(key: &[u8]) -> String {
    let mut code = String::new();
    let (mut bits, mut held) = (0_u32, 0_u32);
    let mut digits = Vec::new();
    for byte in key.iter().copied().chain([check(key)]) {
        bits = (bits << 8) | u32::from(byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            digits.push((bits >> held) & 31);
        }
        bits &= (1 << held) - 1;
    }
    if held > 0 {
        digits.push((bits << (5 - held)) & 31);
    }
    for (index, digit) in digits.into_iter().enumerate() {
        if index > 0 && index % 4 == 0 {
            code.push('-');
        }
        code.push(char::from(DIGITS[digit as usize]));
    }
    code
}

/// Reads [`link_code`]; capital letters, and letters that look like digits, are understood.
fn parse_link_code(code: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0_u32);
    for c in code.chars().filter(|c| *c != '-') {
        let c = match c.to_ascii_lowercase() {
            'o' => '0',
            'i' | 'l' => '1',
            c => c,
        };
        let digit = DIGITS.iter().position(|known| char::from(*known) == c)?;
        bits = (bits << 5) | u32::try_from(digit).ok()?;
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 255).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    let check_byte = bytes.pop()?;
    (bytes.len() == KEY_BYTES && check(&bytes) == check_byte && bits == 0).then_some(bytes)
}

fn check(key: &[u8]) -> u8 {
    key.iter().fold(0x5a, |check: u8, byte| check.rotate_left(3) ^ byte)
}

/// The answer a new device needs: who it now is.
pub(crate) fn join_code(user: u64, device: u32) -> String {
    format!("{user}-{device}")
}

/// Reads [`join_code`].
pub(crate) fn parse_join_code(code: &str) -> Option<(u64, u32)> {
    let (user, device) = code.trim().split_once('-')?;
    Some((user.parse().ok()?, device.parse().ok()?))
}

fn alias(text: &str) -> Result<Alias, String> {
    Alias::parse(text).map_err(|error| error.to_string())
}

fn link(rest: &str) -> Result<Command, String> {
    let (code, name) = rest.split_once(char::is_whitespace).unwrap_or((rest, "another device"));
    let key = parse_link_code(code).ok_or(
        "/link CODE NAME: this is no code, or it is mistyped; natter chat --link shows it",
    )?;
    Ok(Command::Link { key, name: name.trim().to_owned() })
}

fn setting(rest: &str) -> Result<Setting, String> {
    const USAGE: &str = "/privacy last-seen|online|read-receipts everybody|contacts|nobody";
    let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let shown = match value.trim() {
        "everybody" => Audience::Everybody,
        "contacts" => Audience::Contacts,
        "nobody" => Audience::Nobody,
        _ => return Err(USAGE.to_owned()),
    };
    match name {
        "last-seen" => Ok(Setting::LastSeen(shown)),
        "online" => Ok(Setting::Online(shown)),
        "read-receipts" => Ok(Setting::ReadReceipts(shown)),
        _ => Err(USAGE.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_said_and_commands_are_understood() {
        assert_eq!(parse("hello /you"), Ok(Command::Say("hello /you".into())));
        assert_eq!(parse("//etc"), Ok(Command::Say("/etc".into())));
        assert_eq!(parse("/to  Bob "), Ok(Command::To(Alias::parse("bob").unwrap())));
        assert_eq!(
            parse("/usr/bin\nis a folder"),
            Ok(Command::Say("/usr/bin\nis a folder".into()))
        );
        assert_eq!(parse("/logout"), Ok(Command::LogOut));
        assert_eq!(parse("/privacy"), Ok(Command::Privacy(None)));
        let hidden = Command::Privacy(Some(Setting::LastSeen(Audience::Nobody)));
        assert_eq!(parse("/privacy last-seen nobody"), Ok(hidden));
        let key = vec![0xab; 32];
        let line = format!("/link {} my phone", link_code(&key));
        assert_eq!(parse(&line), Ok(Command::Link { key, name: "my phone".into() }));
        assert_eq!(parse_join_code(&join_code(7, 2)), Some((7, 2)));
    }

    #[test]
    fn a_mistyped_link_code_links_nothing() {
        let key: Vec<u8> = (0..32).map(|byte| byte * 7).collect();
        let code = link_code(&key);
        assert_eq!(code.len(), 53 + 13, "{code}");
        assert_eq!(parse_link_code(&code.to_uppercase()), Some(key));
        for place in (0..code.len()).filter(|place| code.as_bytes()[*place] != b'-') {
            let other = if &code[place..=place] == "7" { "8" } else { "7" };
            let wrong = code[..place].to_owned() + other + &code[place + 1..];
            assert_eq!(parse_link_code(&wrong), None, "{wrong}");
        }
        assert_eq!(parse_link_code(&code[1..]), None);
    }

    #[test]
    fn a_wrong_line_is_answered_with_the_right_one() {
        for line in
            ["/nope", "/to !", "/link abc", "/unlink x", "/privacy x nobody", "/delete-account"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
