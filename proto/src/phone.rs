//! Phone numbers as people paste them, in the one spelling that is stored. A pure core.
//!
//! A library for phone numbers would know more, but the stored spelling is signed, so each client must
//! get the same from the same text in any language: the rules must stay few, and fixed for ever.

use crate::AliasError;

/// Country codes whose numbers may begin with 0: Italy and Vatican, Ivory Coast, Benin, Gabon, Congo,
/// San Marino. Elsewhere a 0 there is for calls within the country.
const ZERO_BELONGS: [&str; 6] = ["39", "225", "229", "241", "242", "378"];

/// Digits of a number with its country code (E.164).
const DIGITS: std::ops::RangeInclusive<usize> = 7..=15;

/// Whether a character shows nothing and only changes how others are shown, or joins or parts them.
fn is_format(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// The stored spelling of a phone number; `None` if the text is none, but a name or nothing.
pub(crate) fn parse(text: &str) -> Option<Result<String, AliasError>> {
    let dialed = dialed(text)?;
    Some(international(&dialed).map(|digits| format!("+{digits}")))
}

/// Only what counts: `+` and digits. `None` for other text.
fn dialed(text: &str) -> Option<String> {
    let text = text.trim_start_matches(|c: char| c.is_whitespace() || is_format(c));
    let head = text.get(..4).filter(|head| head.eq_ignore_ascii_case("tel:"));
    let text = head.map_or(text, |head| &text[head.len()..]);
    let text = text.split(';').next().unwrap_or(text);
    let mut dialed = String::new();
    for c in text.chars() {
        match c {
            '+' | '\u{ff0b}' => dialed.push('+'),
            '('
            | ')'
            | '['
            | ']'
            | '-'
            | '.'
            | '/'
            | '\u{b7}'
            | '\u{2010}'..='\u{2015}'
            | '\u{2212}'
            | '\u{ff0d}' => {}
            c if c.is_whitespace() || is_format(c) => {}
            c => dialed.push(digit(c)?),
        }
    }
    dialed.contains(|c: char| c.is_ascii_digit()).then_some(dialed)
}

/// A digit, also full-width or Arabic, in ASCII.
fn digit(c: char) -> Option<char> {
    let zero = match c {
        '0'..='9' => '0',
        '\u{660}'..='\u{669}' => '\u{660}',
        '\u{6f0}'..='\u{6f9}' => '\u{6f0}',
        '\u{ff10}'..='\u{ff19}' => '\u{ff10}',
        _ => return None,
    };
    char::from_digit(u32::from(c) - u32::from(zero), 10)
}

fn international(dialed: &str) -> Result<String, AliasError> {
    let digits = dialed.strip_prefix('+').or_else(|| dialed.strip_prefix("00"));
    let digits = digits.ok_or(AliasError::Country)?;
    if digits.contains('+') {
        return Err(AliasError::Phone);
    }
    let country = country(digits).ok_or(AliasError::Phone)?;
    let (country, rest) = digits.split_at_checked(country).ok_or(AliasError::Phone)?;
    let zero_belongs = ZERO_BELONGS.contains(&country);
    let within_country = rest.strip_prefix('0').filter(|_| !zero_belongs);
    let rest = within_country.unwrap_or(rest);
    let fits = DIGITS.contains(&(country.len() + rest.len()));
    if fits && (zero_belongs || !rest.starts_with('0')) {
        Ok(format!("{country}{rest}"))
    } else {
        Err(AliasError::Phone)
    }
}

/// How many digits the country code has that a number begins with (ITU-T E.164).
fn country(digits: &str) -> Option<usize> {
    let digits = digits.as_bytes();
    Some(match (digits.first()?, digits.get(1)?) {
        (b'0', _) => return None,
        (b'1' | b'7', _) => 1,
        (b'2', b'0' | b'7')
        | (b'3', b'0'..=b'4' | b'6' | b'9')
        | (b'4', b'0' | b'1' | b'3'..=b'9')
        | (b'5', b'1'..=b'8')
        | (b'6', b'0'..=b'6')
        | (b'8', b'1' | b'2' | b'4' | b'6')
        | (b'9', b'0'..=b'5' | b'8') => 2,
        _ => 3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_taken_as_people_paste_it() {
        let stored = "+491512345678";
        for text in [
            "+49 151 2345678",
            "+49\u{a0}151\u{202f}234\u{2009}5678",
            "\u{202a}+49 151 2345678\u{202c}",
            "\u{2068}+49 (151) 234-5678\u{2069}",
            "+49 151/2345678",
            "+49 151\u{2011}2345678",
            "+49 (0)151 2345678",
            "+49 ( 0 ) 151 2345678",
            "+49 [0]151 2345678",
            "+49 0151 2345678",
            "(+49) 151 2345678",
            "0049 151 2345678",
            "00 49 (0) 151 / 234 56 78",
            "tel:+49-151-2345678",
            "\u{2068}tel:+49-151-2345678\u{2069}",
            "TEL:+49-151-2345678;ext=12",
            "\u{ff0b}\u{ff14}\u{ff19} 151 2345678",
            "+\u{664}\u{669} \u{661}\u{665}\u{661} 2345678",
        ] {
            assert_eq!(parse(text), Some(Ok(stored.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn a_zero_that_belongs_to_the_number_stays() {
        for (text, stored) in [
            ("+39 06 1234567", "+39061234567"),
            ("+39 (0)6 1234567", "+39061234567"),
            ("+225 07 12 34 56 78", "+2250712345678"),
            ("+378 0549 123456", "+3780549123456"),
            ("+1 (212) 555-0100", "+12125550100"),
            ("+7 701 234 5678", "+77012345678"),
            ("+353 (0)86 123 4567", "+353861234567"),
        ] {
            assert_eq!(parse(text), Some(Ok(stored.to_owned())), "{text:?}");
        }
    }

    #[test]
    fn a_number_that_cannot_be_is_told_why() {
        for text in
            ["+49 (0)0151 2345", "+0123456789", "+12345", "+1234567890123456", "+49+151", "+4"]
        {
            assert_eq!(parse(text), Some(Err(AliasError::Phone)), "{text:?}");
        }
        for text in ["0151 2345678", "110", "(030) 123456"] {
            assert_eq!(parse(text), Some(Err(AliasError::Country)), "{text:?}");
        }
        for text in ["ada", "", "ada7", "+12a4567890", "tel:ada"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
