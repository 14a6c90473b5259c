//! Names that people give to nodes and zones, and that terminals and logs show.
//!
//! **Invariant:** a name holds nothing that moves a cursor, rings a bell or changes the direction of
//! what stands beside it.

/// Whether a name may hold this: a letter or digit of any script, a space, or a printable sign of ASCII.
fn fits(sign: char) -> bool {
    sign == ' ' || sign.is_ascii_graphic() || (!sign.is_ascii() && sign.is_alphanumeric())
}

/// Whether a text is fit to be a name. An empty one is.
pub fn is_printable(name: &str) -> bool {
    name.chars().all(fits)
}

/// Whether a text that people gave to a device can be shown beside others: any sign, also a picture, but
/// none that moves a cursor or changes the direction of what follows.
pub fn is_shown_safely(text: &str) -> bool {
    let turns = |sign| matches!(sign, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !text.chars().any(|sign| sign.is_control() || turns(sign))
}

/// A text of somebody else as it can be shown: what no name may hold is a question mark.
pub fn printable(text: &str) -> String {
    text.chars().map(|sign| if fits(sign) { sign } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_may_have_a_picture_in_its_name_and_nothing_that_turns_others() {
        for good in ["", "Ada's phone", "\u{1f468}\u{200d}\u{1f469}", "\u{5d0}\u{5d1}"] {
            assert!(is_shown_safely(good), "{good}");
        }
        for bad in ["a\u{1b}[2J", "a\nb", "a\u{9b}", "a\u{202e}b", "a\u{2066}b", "\u{200f}"] {
            assert!(!is_shown_safely(bad), "{bad:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_no_name() {
        for good in [
            "",
            "node-1.example.org:7403",
            "Rack 7/b",
            "\u{441}\u{435}\u{440}\u{432}\u{435}\u{440}",
            "z\u{fc}rich",
        ] {
            assert!(is_printable(good), "{good}");
            assert_eq!(printable(good), good);
        }
        for bad in ["a\u{1b}[2J", "a\u{7}", "a\nb", "a\u{9b}", "a\u{202e}b", "a\u{200b}", "a\u{7f}"]
        {
            assert!(!is_printable(bad), "{bad:?}");
            assert!(is_printable(&printable(bad)) && printable(bad).contains('?'), "{bad:?}");
        }
    }
}
