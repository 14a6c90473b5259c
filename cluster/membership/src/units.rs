//! How people write sizes and times. Pure; used by the settings file and by the settings of a cluster.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, written `"64MiB"`, `"512KiB"` or `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const BYTE_UNITS: [(&str, u64); 4] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// As a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting =
            BYTE_UNITS.iter().find(|(_, size)| self.0 >= *size && self.0.is_multiple_of(*size));
        let (unit, size) = fitting.copied().unwrap_or(("B", 1));
        write!(f, "{}{unit}", self.0 / size)
    }
}

/// A text is no [`ByteSize`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no size; write for example \"64MiB\" or \"512KiB\"")]
pub struct NoSize;

impl FromStr for ByteSize {
    type Err = NoSize;

    fn from_str(text: &str) -> Result<Self, NoSize> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = (&text[..digits], text[digits..].trim());
        let size = match unit {
            "" => 1,
            named => BYTE_UNITS.iter().find(|(name, _)| *name == named).ok_or(NoSize)?.1,
        };
        number.parse::<u64>().map_err(|_| NoSize)?.checked_mul(size).map(Self).ok_or(NoSize)
    }
}

/// Reads a duration such as `90s`, `5m` or `30days`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    humantime::parse_duration(text).ok()
}

/// Writes a duration as [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_size_is_read_as_people_write_it() {
        for (text, bytes) in
            [("16MiB", 16 << 20), ("64 KiB", 64 << 10), ("1GiB", 1 << 30), ("7", 7), ("9B", 9)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in ["", "MiB", "1.5MiB", "-1", "1MB", "99999999999GiB"] {
            assert_eq!(text.parse::<ByteSize>(), Err(NoSize), "{text}");
        }
    }

    #[test]
    fn a_byte_size_is_printed_as_it_is_read() {
        for bytes in [0, 1, 1023, 1024, 1536, 16 << 20, (1 << 30) + 1] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(16 << 20).to_string(), "16MiB");
    }
}
