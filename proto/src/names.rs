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

/// A text of somebody else as it can be shown: what no name may hold is a question mark.
pub fn printable(text: &str) -> String {
    text.chars().map(|sign| if fits(sign) { sign } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

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
