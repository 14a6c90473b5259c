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

/// The code by which a new device shows its key.
pub(crate) fn link_code(key: &[u8]) -> String {
    let digits = key.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
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
    let digits: Option<Vec<u32>> = code.chars().map(|c| c.to_digit(16)).collect();
    let key: Option<Vec<u8>> = digits.filter(|digits| digits.len() == 64).map(|digits| {
        digits.chunks(2).filter_map(|pair| u8::try_from(pair[0] * 16 + pair[1]).ok()).collect()
    });
    let key = key.ok_or("/link CODE NAME: the code has 64 digits; natter chat --link shows it")?;
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
    fn a_wrong_line_is_answered_with_the_right_one() {
        for line in
            ["/nope", "/to !", "/link abc", "/unlink x", "/privacy x nobody", "/delete-account"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
