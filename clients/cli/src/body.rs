//! The body of a chat message: text, and who says they wrote it. `CHAT.md` describes the format.

use natter_sdk::{Alias, Bytes};

/// Begins the line that names the sender.
const NAME_MARK: char = '\u{1}';

/// What a body holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The alias its sender claims; to be looked up before it is believed.
    pub claims: Option<Alias>,
    /// Safe to print: no control characters but line feeds.
    pub text: String,
}

/// The body of `text` by `me`.
pub fn encode(me: &Alias, text: &str) -> Bytes {
    format!("{NAME_MARK}{me}\n{text}").into()
}

/// What a body says, also one of another client.
pub fn decode(body: &[u8]) -> Body {
    let Ok(text) = std::str::from_utf8(body) else {
        return Body { claims: None, text: format!("[{} bytes that are no text]", body.len()) };
    };
    let named = text.strip_prefix(NAME_MARK).and_then(|rest| rest.split_once('\n'));
    match named.and_then(|(name, rest)| Some((Alias::parse(name).ok()?, rest))) {
        Some((alias, rest)) => Body { claims: Some(alias), text: printable(rest) },
        None => Body { claims: None, text: printable(text) },
    }
}

/// Without what could move the cursor, change colors or reorder the line of a terminal.
pub(crate) fn printable(text: &str) -> String {
    let reorders = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let text = text.replace("\r\n", "\n").replace('\t', "    ");
    text.chars().filter(|c| *c == '\n' || !(c.is_control() || reorders(*c))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_comes_back_with_its_sender() {
        let ada = Alias::parse("ada").unwrap();
        let body = decode(&encode(&ada, "hello\nyou"));
        assert_eq!(body, Body { claims: Some(ada), text: "hello\nyou".into() });
    }

    #[test]
    fn other_clients_text_is_text_and_what_is_no_text_is_named() {
        assert_eq!(decode(b"hi"), Body { claims: None, text: "hi".into() });
        assert_eq!(decode(b"\x01no alias!\nhi").text, "no alias!\nhi");
        assert_eq!(decode(&[0xff, 0xfe]).text, "[2 bytes that are no text]");
    }

    #[test]
    fn a_message_cannot_command_the_terminal() {
        assert_eq!(decode("\u{1b}[2Jgone\u{7}\u{202e}".as_bytes()).text, "[2Jgone");
    }
}
