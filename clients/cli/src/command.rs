//! What a person types: text to send, or a command.

use natter_sdk::{Alias, Audience, LOCK_BYTES_MAX, LOCK_BYTES_MIN, LinkCode};

/// One line of input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Say(String),
    To(Alias),
    Who,
    Block,
    Unblock,
    Devices,
    /// Links the device that shows this code, under this name or its own.
    Link {
        code: LinkCode,
        name: Option<String>,
    },
    Unlink(u32),
    LogOut,
    Privacy(Option<Setting>),
    ShowLock,
    /// Sets the registration lock, or removes it if `lock` is empty.
    SetLock {
        lock: String,
        current: String,
    },
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
    "/link CODE   add a device",
    "/unlink NUMBER    remove a device",
    "/privacy    what others see of you",
    "/lock, /unlock    registration lock",
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
        "lock" => set_lock(rest),
        "unlock" if is_one_word(rest) => {
            Ok(Command::SetLock { lock: String::new(), current: rest.to_owned() })
        }
        "unlock" => Err("/unlock OLD takes your registration lock away".to_owned()),
        "delete-account" => alias(rest)
            .map(Command::DeleteAccount)
            .map_err(|_| "/delete-account ALIAS: your own alias confirms it".to_owned()),
        "help" => Ok(Command::Help),
        "quit" | "q" => Ok(Command::Quit),
        other => Err(format!("no command /{other}; /help shows them all")),
    }
}

fn alias(text: &str) -> Result<Alias, String> {
    Alias::parse(text).map_err(|error| error.to_string())
}

fn link(rest: &str) -> Result<Command, String> {
    let (code, name) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let code = code.parse().map_err(|error| {
        format!("/link CODE: {error}; natter chat --link on the new device shows it")
    })?;
    let name = Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    Ok(Command::Link { code, name })
}

fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(char::is_whitespace)
}

fn set_lock(rest: &str) -> Result<Command, String> {
    if rest.is_empty() {
        return Ok(Command::ShowLock);
    }
    let (lock, current) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let (lock, current) = (lock.to_owned(), current.trim().to_owned());
    if current.contains(char::is_whitespace) {
        return Err("/lock NEW, or /lock NEW OLD: a registration lock is one word".to_owned());
    }
    if !(LOCK_BYTES_MIN..=LOCK_BYTES_MAX).contains(&lock.len()) {
        let (least, most) = (LOCK_BYTES_MIN, LOCK_BYTES_MAX);
        return Err(format!("a registration lock has {least} to {most} letters or digits"));
    }
    Ok(Command::SetLock { lock, current })
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
        let code: LinkCode = "k7fm2-9pqx4".parse().unwrap();
        assert_eq!(parse("/link K7FM29PQX4"), Ok(Command::Link { code, name: None }));
        let name = Some("my phone".to_owned());
        assert_eq!(parse("/link k7fm2-9pqx4  my phone"), Ok(Command::Link { code, name }));
        let lock = |lock: &str, current: &str| {
            let (lock, current) = (lock.to_owned(), current.to_owned());
            Ok(Command::SetLock { lock, current })
        };
        assert_eq!(parse("/lock"), Ok(Command::ShowLock));
        assert_eq!(parse("/lock s3cret"), lock("s3cret", ""));
        assert_eq!(parse("/lock s3cret  before "), lock("s3cret", "before"));
        assert_eq!(parse("/unlock s3cret"), lock("", "s3cret"));
    }

    #[test]
    fn a_wrong_line_is_answered_with_the_right_one() {
        for line in [
            "/nope",
            "/to !",
            "/link",
            "/link abc",
            "/unlink x",
            "/privacy x nobody",
            "/lock abc",
            "/lock some words more",
            "/unlock",
            "/unlock two words",
            "/delete-account",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
