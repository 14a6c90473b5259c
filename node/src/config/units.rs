//! How settings are written by people: durations, byte sizes, addresses, secrets.
//!
//! **Invariant:** what [`Setting::print`] writes, [`Setting::read`] reads back to the same value.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use actors::rates::Rate;
use figment::error::Actual;
pub use membership::units::ByteSize;
use membership::units::{format_duration, parse_duration};
use serde::de::{Deserialize, Deserializer, Error as _, Visitor};

/// A value that can stand in the settings file.
pub(super) trait Setting: Sized + PartialEq {
    /// Reads it from a file or an environment variable.
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error>;

    /// Its text in a TOML file.
    fn text(&self) -> String;

    /// Appends its key, `place`, if `other` is not the same; of a section the keys that are not.
    fn differ(&self, other: &Self, place: (&str, &str), keys: &mut Vec<String>) {
        if self != other {
            keys.push(format!("{}.{}", place.0, place.1));
        }
    }

    /// Appends it, under its documentation, to a settings file. `path` is the section's name.
    fn print(&self, place: (&str, &str), docs: &[&str], out: &mut String) {
        for line in docs {
            print_line(out, format_args!("#{line}"));
        }
        print_line(out, format_args!("{} = {}", place.1, self.text()));
    }
}

/// Appends a line.
pub(super) fn print_line(out: &mut String, line: fmt::Arguments<'_>) {
    // Writing into a `String` cannot fail.
    let _always_ok = writeln!(out, "{line}");
}

macro_rules! plain_setting {
    ($($type:ty),+) => {$(
        impl Setting for $type {
            fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::deserialize(from)
            }

            fn text(&self) -> String {
                self.to_string()
            }
        }
    )+};
}

plain_setting!(u16, u32, u64);

/// A type of a value in words, for who writes settings: what the library expects in place of `found`.
pub(super) fn in_words(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number without quotes, such as 20",
        "i8" | "i16" | "i32" | "i64" => "a whole number without quotes",
        "f32" | "f64" => "a number without quotes",
        "a boolean" => "true or false, without quotes",
        "a sequence" => "a list of texts, such as [\"10.0.0.1:7403\"]",
        "a string" => "a text in quotes",
        other if other.starts_with("struct ") => {
            "a section: [its name] on a line, its settings below"
        }
        other => other,
    }
}

/// What was found in place of a value, in words.
pub(super) fn found(actual: &Actual) -> String {
    match actual {
        Actual::Bool(value) => format!("{value}"),
        Actual::Unsigned(value) => format!("the number {value}"),
        Actual::Signed(value) => format!("the number {value}"),
        Actual::Float(value) => format!("the number {value}"),
        Actual::Char(value) => format!("the text {value:?}"),
        Actual::Str(value) => format!("the text {value:?}"),
        Actual::Seq => "a list".to_owned(),
        Actual::Map => "a section".to_owned(),
        Actual::Bytes(_)
        | Actual::Unit
        | Actual::Option
        | Actual::NewtypeStruct
        | Actual::Enum
        | Actual::UnitVariant
        | Actual::NewtypeVariant
        | Actual::TupleVariant
        | Actual::StructVariant
        | Actual::Other(_) => "something else".to_owned(),
    }
}

/// A text that may have been taken for a number on its way (`NATTER_X__PASSWORD=1234`).
struct Scalar;

impl Visitor<'_> for Scalar {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text in quotes")
    }

    fn visit_str<E>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_u64<E>(self, number: u64) -> Result<String, E> {
        Ok(number.to_string())
    }

    fn visit_i64<E>(self, number: i64) -> Result<String, E> {
        Ok(number.to_string())
    }
}

impl Setting for String {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Scalar)
    }

    fn text(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for Vec<String> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::deserialize(from)
    }

    fn text(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for Duration {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(Scalar)?;
        parse_duration(&text).ok_or_else(|| {
            D::Error::custom(format!(
                "{text:?} is no duration; write for example \"90s\" or \"5m\""
            ))
        })
    }

    fn text(&self) -> String {
        format!("\"{}\"", format_duration(*self))
    }
}

impl Setting for ByteSize {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(Scalar)?;
        text.parse().map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no size; write for example \"64MiB\" or \"512KiB\""
            ))
        })
    }

    fn text(&self) -> String {
        format!("\"{self}\"")
    }
}

/// How fast requests may come; `None`, written `""`, for no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit(pub Option<Rate>);

impl Setting for RateLimit {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(Scalar)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        let rate = text.parse().map(|rate| Self(Some(rate)));
        rate.map_err(|error| D::Error::custom(format!("{text:?} is {error}, or \"\" for no limit")))
    }

    fn text(&self) -> String {
        self.0.map_or_else(|| "\"\"".to_owned(), |rate| format!("\"{rate}\""))
    }
}

/// Where a listener waits; `None`, written `""`, turns it off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub Option<SocketAddr>);

impl Setting for Address {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = from.deserialize_any(Scalar)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        text.parse().map(|address| Self(Some(address))).map_err(|_| {
            D::Error::custom(format!(
                "{text:?} is no address; write IP:PORT such as \"0.0.0.0:7400\", or \"\" for off"
            ))
        })
    }

    fn text(&self) -> String {
        self.0.map_or_else(|| "\"\"".to_owned(), |address| format!("\"{address}\""))
    }
}

/// A text that is never shown: `Debug` prints `***`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being shown.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself. Never for a log or an error.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether nothing was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "***" })
    }
}

impl Setting for Secret {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Scalar).map(Self)
    }

    fn text(&self) -> String {
        if self.0.is_empty() { "\"\"".to_owned() } else { "\"***\"".to_owned() }
    }
}

/// Makes an enum a setting that is written as one of its words.
macro_rules! choice {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[doc = $doc])+ $variant),+ }

        impl Setting for $name {
            fn read<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let word = <String as Setting>::read(from)?;
                match word.as_str() {
                    $($word => Ok(Self::$variant),)+
                    other => Err(serde::de::Error::custom(format!(
                        "{other:?} is none of the choices; write one of {}",
                        [$($word),+].join(", ")
                    ))),
                }
            }

            fn text(&self) -> String {
                match self { $(Self::$variant => format!("{:?}", $word)),+ }
            }
        }
    };
}
pub(super) use choice;

/// Declares a section once: its struct, its defaults, and its part of the printed file.
macro_rules! section {
    ($(#[doc = $about:literal])+ $name:ident { $($(#[doc = $doc:literal])+ $key:ident: $type:ty = $default:expr;)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            $($(#[doc = $doc])+ #[serde(deserialize_with = "Setting::read")] pub $key: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($key: $default,)+ }
            }
        }

        impl Setting for $name {
            fn read<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                serde::Deserialize::deserialize(from)
            }

            fn text(&self) -> String {
                let mut out = String::new();
                self.print(("", ""), &[], &mut out);
                out
            }

            fn print(&self, (section, key): (&str, &str), docs: &[&str], out: &mut String) {
                let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
                if !path.is_empty() {
                    out.push('\n');
                    for line in docs {
                        print_line(out, format_args!("#{line}"));
                    }
                    print_line(out, format_args!("[{path}]"));
                }
                $(self.$key.print((path.as_str(), stringify!($key)), &[$($doc),+], out);)+
            }

            fn differ(&self, other: &Self, (section, key): (&str, &str), keys: &mut Vec<String>) {
                let path = if section.is_empty() { key.to_owned() } else { format!("{section}.{key}") };
                $(self.$key.differ(&other.$key, (path.as_str(), stringify!($key)), keys);)+
            }
        }
    };
}
pub(super) use section;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2".into());
        assert!(!format!("{secret:?}{}", secret.text()).contains("hunter2"));
    }
}
