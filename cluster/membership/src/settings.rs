//! Settings that belong to the cluster: each node begins with those of its `node.toml`, and what an
//! operator has set for all goes before. Pure.
//!
//! # Invariants
//! 1. A key has the name, the units and the range that it has in `node.toml`.
//! 2. What another version of the program has set and this one does not understand is left aside.

use super::units::{ByteSize, format_duration, parse_duration};
use proto::stored;
use std::time::Duration;

/// What holds for the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterSettings {
    /// `limits.mailbox_messages`: entries one mailbox may hold.
    pub mailbox_messages: u64,
    /// `limits.mailbox_bytes`: bytes one mailbox may hold.
    pub mailbox_bytes: u64,
    /// `limits.contact_share`: hundredths of a mailbox that one contact of its owner may fill.
    pub contact_share: u32,
    /// `limits.stranger_share`: hundredths that one stranger may fill.
    pub stranger_share: u32,
    /// `limits.strangers_share`: hundredths that all strangers together may fill.
    pub strangers_share: u32,
    /// `limits.stored_bytes_per_second`: of one sender through one node, in the long run; 0: no limit.
    pub stored_bytes_per_second: u64,
    /// `limits.stored_bytes_per_second_per_address`: the same for one address.
    pub stored_bytes_per_second_per_address: u64,
    /// `limits.device_idle_max`: a device is set aside when something has waited for it this long, in
    /// seconds.
    pub device_idle_max_s: u32,
    /// `limits.message_ttl_max`: longest time to live of a message, in seconds.
    pub message_ttl_max_s: u32,
    /// `registration.pin_digits`: digits of a PIN.
    pub pin_digits: u32,
    /// `registration.pin_ttl`: how long a PIN is good, in seconds.
    pub pin_ttl_s: u32,
    /// `registration.attempts`: wrong PINs before a new one must be asked for.
    pub pin_attempts: u32,
    /// `registration.requests_per_alias_per_hour`: PINs that are sent to one alias.
    pub pin_requests_per_hour: u32,
    /// `registration.pins_per_hour`: PINs that are sent to all aliases.
    pub pins_per_hour: u32,
    /// `registration.wrong_pins_per_alias_per_day`: before only long PINs count.
    pub wrong_pins_per_alias_per_day: u32,
    /// `registration.wrong_pins_per_hour`: of all aliases, before only long PINs count.
    pub wrong_pins_per_hour: u32,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            mailbox_messages: proto::limits::MAILBOX_MESSAGES,
            mailbox_bytes: proto::limits::MAILBOX_BYTES,
            contact_share: proto::limits::CONTACT_SHARE,
            stranger_share: proto::limits::STRANGER_SHARE,
            strangers_share: proto::limits::STRANGERS_SHARE,
            stored_bytes_per_second: 256 << 10,
            stored_bytes_per_second_per_address: 4 << 20,
            device_idle_max_s: proto::limits::DEVICE_IDLE_S_MAX,
            message_ttl_max_s: proto::limits::TTL_S_MAX,
            pin_digits: 6,
            pin_ttl_s: 600,
            pin_attempts: 5,
            pin_requests_per_hour: 5,
            pins_per_hour: 8_000,
            wrong_pins_per_alias_per_day: 20,
            wrong_pins_per_hour: 3_200,
        }
    }
}

/// Why a setting is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// There is no such key, or it belongs to a node and not to the cluster.
    #[error("{key} is no setting of the cluster; they are {}", keys().collect::<Vec<_>>().join(", "))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// The value cannot be read.
    #[error("{key}: {value:?} is no {what}")]
    Unreadable {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What it should be, with an example.
        what: &'static str,
    },
    /// The value is too small or too large.
    #[error("{key}: {value} is out of range; write {low} to {high}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The smallest.
        low: String,
        /// The largest.
        high: String,
    },
}

impl SettingError {
    /// The key that it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::UnknownKey { key } => key,
            Self::Unreadable { key, .. } | Self::OutOfRange { key, .. } => key,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Count,
    Bytes,
    Seconds,
}

struct Field {
    key: &'static str,
    kind: Kind,
    range: (u64, u64),
    get: fn(&ClusterSettings) -> u64,
    set: fn(&mut ClusterSettings, u64),
}

fn small(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

const U32_MAX: u64 = u32::MAX as u64;

static FIELDS: [Field; 16] = [
    Field {
        key: "limits.mailbox_messages",
        kind: Kind::Count,
        range: (1, u64::MAX),
        get: |settings| settings.mailbox_messages,
        set: |settings, number| settings.mailbox_messages = number,
    },
    Field {
        key: "limits.mailbox_bytes",
        kind: Kind::Bytes,
        range: (proto::limits::FRAME_BYTES_MAX as u64, 1 << 40),
        get: |settings| settings.mailbox_bytes,
        set: |settings, number| settings.mailbox_bytes = number,
    },
    Field {
        key: "limits.contact_share",
        kind: Kind::Count,
        range: (1, 100),
        get: |settings| settings.contact_share.into(),
        set: |settings, number| settings.contact_share = small(number),
    },
    Field {
        key: "limits.stranger_share",
        kind: Kind::Count,
        range: (1, 100),
        get: |settings| settings.stranger_share.into(),
        set: |settings, number| settings.stranger_share = small(number),
    },
    Field {
        key: "limits.strangers_share",
        kind: Kind::Count,
        range: (1, 100),
        get: |settings| settings.strangers_share.into(),
        set: |settings, number| settings.strangers_share = small(number),
    },
    Field {
        key: "limits.stored_bytes_per_second",
        kind: Kind::Bytes,
        range: (0, 1 << 40),
        get: |settings| settings.stored_bytes_per_second,
        set: |settings, number| settings.stored_bytes_per_second = number,
    },
    Field {
        key: "limits.stored_bytes_per_second_per_address",
        kind: Kind::Bytes,
        range: (0, 1 << 40),
        get: |settings| settings.stored_bytes_per_second_per_address,
        set: |settings, number| settings.stored_bytes_per_second_per_address = number,
    },
    Field {
        key: "limits.device_idle_max",
        kind: Kind::Seconds,
        range: (1, 365 * 24 * 3600),
        get: |settings| settings.device_idle_max_s.into(),
        set: |settings, number| settings.device_idle_max_s = small(number),
    },
    Field {
        key: "limits.message_ttl_max",
        kind: Kind::Seconds,
        range: (60, proto::limits::TTL_S_MAX as u64),
        get: |settings| settings.message_ttl_max_s.into(),
        set: |settings, number| settings.message_ttl_max_s = small(number),
    },
    Field {
        key: "registration.pin_digits",
        kind: Kind::Count,
        range: (5, 8),
        get: |settings| settings.pin_digits.into(),
        set: |settings, number| settings.pin_digits = small(number),
    },
    Field {
        key: "registration.pin_ttl",
        kind: Kind::Seconds,
        range: (1, 3600),
        get: |settings| settings.pin_ttl_s.into(),
        set: |settings, number| settings.pin_ttl_s = small(number),
    },
    Field {
        key: "registration.attempts",
        kind: Kind::Count,
        range: (1, 10),
        get: |settings| settings.pin_attempts.into(),
        set: |settings, number| settings.pin_attempts = small(number),
    },
    Field {
        key: "registration.requests_per_alias_per_hour",
        kind: Kind::Count,
        range: (1, U32_MAX),
        get: |settings| settings.pin_requests_per_hour.into(),
        set: |settings, number| settings.pin_requests_per_hour = small(number),
    },
    Field {
        key: "registration.pins_per_hour",
        kind: Kind::Count,
        range: (16, 1_000_000_000),
        get: |settings| settings.pins_per_hour.into(),
        set: |settings, number| settings.pins_per_hour = small(number),
    },
    Field {
        key: "registration.wrong_pins_per_alias_per_day",
        kind: Kind::Count,
        range: (1, 1_000),
        get: |settings| settings.wrong_pins_per_alias_per_day.into(),
        set: |settings, number| settings.wrong_pins_per_alias_per_day = small(number),
    },
    Field {
        key: "registration.wrong_pins_per_hour",
        kind: Kind::Count,
        range: (16, 10_000_000),
        get: |settings| settings.wrong_pins_per_hour.into(),
        set: |settings, number| settings.wrong_pins_per_hour = small(number),
    },
];

impl Field {
    fn text(&self, number: u64) -> String {
        match self.kind {
            Kind::Count => number.to_string(),
            Kind::Bytes => ByteSize(number).to_string(),
            Kind::Seconds => format_duration(Duration::from_secs(number)),
        }
    }

    fn parse(&self, value: &str) -> Result<u64, SettingError> {
        let unreadable =
            |what| SettingError::Unreadable { key: self.key, value: value.into(), what };
        let text = value.trim().trim_matches('"');
        let number = match self.kind {
            Kind::Count => text.parse().map_err(|_| unreadable("number")),
            Kind::Bytes => text
                .parse()
                .map(|ByteSize(bytes)| bytes)
                .map_err(|_| unreadable("size; write for example \"64MiB\" or \"512KiB\"")),
            Kind::Seconds => parse_duration(text)
                .map(|duration| duration.as_secs())
                .ok_or_else(|| unreadable("duration; write for example \"90s\" or \"5m\"")),
        }?;
        self.within(number)?;
        Ok(number)
    }

    fn within(&self, number: u64) -> Result<(), SettingError> {
        let (low, high) = self.range;
        if (low..=high).contains(&number) {
            return Ok(());
        }
        let (value, low, high) = (self.text(number), self.text(low), self.text(high));
        Err(SettingError::OutOfRange { key: self.key, value, low, high })
    }
}

/// The keys that belong to the cluster.
pub fn keys() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().map(|field| field.key)
}

/// Checks a value and brings it into the one spelling that is stored.
///
/// # Errors
/// [`SettingError`]: no such key, not to be read, or out of range.
pub(super) fn normalized(key: &str, value: &str) -> Result<String, SettingError> {
    let field = FIELDS.iter().find(|field| field.key == key);
    let field = field.ok_or_else(|| SettingError::UnknownKey { key: key.into() })?;
    Ok(field.text(field.parse(value)?))
}

impl ClusterSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`SettingError::OutOfRange`] for the first that is wrong.
    pub fn check(&self) -> Result<(), SettingError> {
        FIELDS.iter().try_for_each(|field| field.within((field.get)(self)))
    }

    /// These, and before them what was set for the whole cluster.
    #[must_use]
    pub fn overridden(mut self, meta: &stored::Meta) -> Self {
        for setting in &meta.settings {
            let field = FIELDS.iter().find(|field| field.key == setting.key);
            if let Some(field) = field
                && let Ok(number) = field.parse(&setting.value)
            {
                (field.set)(&mut self, number);
            }
        }
        self
    }

    /// All keys with their values as they are written in `node.toml`, without quotes.
    pub fn texts(&self) -> Vec<(&'static str, String)> {
        FIELDS.iter().map(|field| (field.key, field.text((field.get)(self)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(settings: &[(&str, &str)]) -> stored::Meta {
        let setting = |(key, value): &(&str, &str)| stored::Setting {
            key: (*key).to_owned(),
            value: (*value).to_owned(),
        };
        stored::Meta { settings: settings.iter().map(setting).collect(), ..Default::default() }
    }

    #[test]
    fn what_the_cluster_has_set_goes_before_the_nodes_own() {
        let own = ClusterSettings { pin_digits: 8, ..ClusterSettings::default() };
        let all = meta(&[("limits.mailbox_bytes", "1MiB"), ("registration.pin_ttl", "90s")]);
        let settings = own.overridden(&all);
        assert_eq!(
            settings,
            ClusterSettings { mailbox_bytes: 1 << 20, pin_ttl_s: 90, pin_digits: 8, ..own }
        );
        assert_eq!(own.overridden(&stored::Meta::default()), own);
    }

    #[test]
    fn what_another_version_has_set_is_left_aside() {
        let own = ClusterSettings::default();
        let strange = meta(&[("limits.moons", "3"), ("registration.pin_digits", "nine")]);
        assert_eq!(own.overridden(&strange), own);
    }

    #[test]
    fn a_setting_is_refused_with_key_value_and_cure() {
        for (key, value, parts) in [
            ("limits.connections", "5", ["limits.connections", "no setting", "pin_digits"]),
            ("registration.pin_digits", "9", ["registration.pin_digits", "9", "5 to 8"]),
            ("registration.pin_digits", "six", ["registration.pin_digits", "six", "number"]),
            ("limits.mailbox_bytes", "1MB", ["limits.mailbox_bytes", "1MB", "64MiB"]),
            ("registration.pin_ttl", "2h", ["registration.pin_ttl", "2h", "1s to 1h"]),
            ("limits.message_ttl_max", "31days", ["limits.message_ttl_max", "1month", "30days"]),
        ] {
            let error = normalized(key, value).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.key(), key);
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }

    #[test]
    fn every_setting_is_written_as_it_is_read() {
        let settings = ClusterSettings::default();
        settings.check().unwrap();
        let mut all = stored::Meta::default();
        for (key, value) in settings.texts() {
            assert_eq!(normalized(key, &format!("\"{value}\"")).as_ref(), Ok(&value));
            all.settings.push(stored::Setting { key: key.into(), value });
        }
        let empty = ClusterSettings {
            mailbox_messages: 0,
            mailbox_bytes: 0,
            contact_share: 0,
            stranger_share: 0,
            strangers_share: 0,
            stored_bytes_per_second: 9,
            stored_bytes_per_second_per_address: 9,
            device_idle_max_s: 0,
            message_ttl_max_s: 0,
            pin_digits: 0,
            pin_ttl_s: 0,
            pin_attempts: 0,
            pin_requests_per_hour: 0,
            pins_per_hour: 0,
            wrong_pins_per_alias_per_day: 0,
            wrong_pins_per_hour: 0,
        };
        assert_eq!(empty.overridden(&all), settings);
        assert!(empty.check().is_err());
    }
}
