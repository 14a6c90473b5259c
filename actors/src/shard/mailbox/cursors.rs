//! What each device of a user has acknowledged, and so which entries a device really has. A pure core.
//!
//! ```text
//!   seq:        released                                last
//!   phone   |------ start ============ acknowledged ......|
//!   tablet  |---------------- start ====== acknowledged ..|
//!   gone                =========                            devices that were removed
//! ```
//!
//! # Invariants
//! 1. A device is given what comes after its start and nothing before.
//! 2. An entry counts as delivered only if it lies in the part (`=`) that a device acknowledged.

use crate::shard::few::FewMap;
use proto::limits::WINDOW_MESSAGES;
use proto::stored;
use proto::{DeviceId, Seq};

/// Parts that removed devices had acknowledged and that are still needed. A part holds at least one
/// entry that another device has yet to get; beyond this the oldest is forgotten, and its entries
/// count as delivered to nobody.
const GONE_MAX: usize = 64;

/// Where a device stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// It is given what comes after this.
    pub start: Seq,
    /// It has everything up to here.
    pub acknowledged: Seq,
    /// Something has waited for it since then, Unix time in ms; or it acknowledged last then.
    since_ms: u64,
}

impl Cursor {
    /// Whether something has waited for this device for `idle_ms` without a sign of it.
    fn is_idle(&self, last: Seq, idle_ms: u64, now_ms: u64) -> bool {
        self.acknowledged < last && now_ms.saturating_sub(self.since_ms) >= idle_ms
    }

    /// Whether this device gets or has all that the other has not acknowledged, and is ahead of it.
    fn covers(&self, other: &Self) -> bool {
        self.start <= other.acknowledged && self.acknowledged > other.acknowledged
    }
}

/// The cursors of all devices that hold the mailbox.
#[derive(Clone, Debug, Default)]
pub struct Cursors {
    devices: FewMap<DeviceId, Cursor>,
    /// What removed devices had acknowledged: after the first, up to the second. In order, apart.
    gone: Vec<(Seq, Seq)>,
}

impl Cursors {
    /// Where a device stands; `None` if the mailbox does not wait for it.
    pub fn get(&self, device: DeviceId) -> Option<Cursor> {
        self.devices.get(&device).copied()
    }

    /// How many devices hold the mailbox.
    pub fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether no device holds the mailbox.
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// A device is given what comes after `start`.
    pub fn admit(&mut self, device: DeviceId, start: Seq, now_ms: u64) {
        let cursor = Cursor { start, acknowledged: start, since_ms: now_ms };
        self.devices.insert(device, cursor);
    }

    /// A device no longer holds the mailbox. What it had acknowledged stays known.
    pub fn remove(&mut self, device: DeviceId) {
        if let Some(Cursor { start, acknowledged, .. }) = self.devices.remove(&device)
            && start < acknowledged
        {
            self.gone.push((start, acknowledged));
            self.gone.sort_unstable();
            self.gone.dedup_by(|next, before| {
                let joins = next.0 <= before.1;
                if joins {
                    before.1 = before.1.max(next.1);
                }
                joins
            });
            if self.gone.len() > GONE_MAX {
                self.gone.remove(0);
            }
        }
    }

    /// The mailbox, which ended with `last`, grows.
    pub fn grows(&mut self, last: Seq, now_ms: u64) {
        for cursor in self.devices.values_mut() {
            if cursor.acknowledged >= last {
                cursor.since_ms = now_ms;
            }
        }
    }

    /// Records that `device` has everything up to `seq`; false if that is no news.
    pub fn acknowledge(&mut self, device: DeviceId, seq: Seq, now_ms: u64) -> bool {
        match self.devices.get_mut(&device) {
            Some(cursor) if cursor.acknowledged < seq => {
                (cursor.acknowledged, cursor.since_ms) = (seq, now_ms);
                true
            }
            Some(_) | None => false,
        }
    }

    /// What every device has; `None` without devices.
    pub fn everyone_has(&self) -> Option<Seq> {
        self.devices.values().map(|cursor| cursor.acknowledged).min()
    }

    /// Whether any device, of today or before, has acknowledged this entry.
    pub fn was_acknowledged(&self, seq: Seq) -> bool {
        let has = |cursor: &Cursor| cursor.start < seq && seq <= cursor.acknowledged;
        self.devices.values().any(has)
            || self.gone.iter().any(|(after, up_to)| *after < seq && seq <= *up_to)
    }

    /// Nobody will ask for entries up to `seq` any longer.
    pub fn forget(&mut self, seq: Seq) {
        if !self.gone.is_empty() {
            self.gone.retain(|(_, up_to)| *up_to > seq);
        }
    }

    /// Whether this device has been away for `idle_ms` while something waited, and another that is
    /// not away has or gets all that waits for it.
    pub fn may_set_aside(&self, device: DeviceId, last: Seq, idle_ms: u64, now_ms: u64) -> bool {
        let Some(cursor) = self.get(device) else { return false };
        let stays = |other: &Cursor| other.covers(&cursor) && !other.is_idle(last, idle_ms, now_ms);
        cursor.is_idle(last, idle_ms, now_ms) && self.devices.values().any(stays)
    }

    /// The devices that have been away for `idle_ms` and need not be waited for.
    pub fn idle(&self, last: Seq, idle_ms: u64, now_ms: u64) -> Vec<DeviceId> {
        if self.devices.len() < 2 {
            return Vec::new();
        }
        let devices = self.devices.keys().copied();
        devices.filter(|device| self.may_set_aside(*device, last, idle_ms, now_ms)).collect()
    }

    /// Of a mailbox that is full: the devices that hold at least twice as many entries as another that
    /// has or gets all of them, and more than may be on the way to a device that is there.
    pub fn laggards(&self, last: Seq) -> Vec<DeviceId> {
        if self.devices.len() < 2 {
            return Vec::new();
        }
        let waits = |cursor: &Cursor| last.0 - cursor.acknowledged.0.min(last.0);
        let lags = |cursor: &Cursor| {
            let ahead = |other: &Cursor| other.covers(cursor) && waits(other) * 2 <= waits(cursor);
            waits(cursor) > WINDOW_MESSAGES as u64 && self.devices.values().any(ahead)
        };
        self.devices.iter().filter(|(_, cursor)| lags(cursor)).map(|(device, _)| *device).collect()
    }

    /// Writes both parts of the row of table `cursors`.
    pub fn to_row(&self, row: &mut stored::Cursors) {
        row.devices = self
            .devices
            .iter()
            .map(|(device, cursor)| stored::DeviceCursor {
                device: device.0,
                acknowledged: cursor.acknowledged.0,
                start: cursor.start.0,
                since_ms: cursor.since_ms,
            })
            .collect();
        row.gone = self.gone.iter().flat_map(|(after, up_to)| [after.0, up_to.0]).collect();
    }

    /// Reads them.
    pub fn from_row(row: &stored::Cursors) -> Self {
        let cursor = |row: &stored::DeviceCursor| {
            let cursor = Cursor {
                start: Seq(row.start),
                acknowledged: Seq(row.acknowledged),
                since_ms: row.since_ms,
            };
            (DeviceId(row.device), cursor)
        };
        let gone = row.gone.chunks_exact(2).map(|part| (Seq(part[0]), Seq(part[1])));
        Self { devices: row.devices.iter().map(cursor).collect(), gone: gone.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHONE: DeviceId = DeviceId(1);
    const TABLET: DeviceId = DeviceId(2);
    const DAY_MS: u64 = 24 * 3600 * 1000;

    #[test]
    fn only_what_a_device_was_given_and_acknowledged_counts_as_delivered() {
        let mut cursors = Cursors::default();
        cursors.admit(PHONE, Seq(0), 0);
        cursors.admit(TABLET, Seq(5), 0);
        cursors.acknowledge(TABLET, Seq(7), 0);
        cursors.acknowledge(PHONE, Seq(2), 0);
        let delivered = |cursors: &Cursors| {
            (1..=9).filter(|seq| cursors.was_acknowledged(Seq(*seq))).collect::<Vec<_>>()
        };
        assert_eq!(delivered(&cursors), [1, 2, 6, 7]);
        cursors.remove(PHONE);
        assert_eq!(delivered(&cursors), [1, 2, 6, 7], "also when the device is gone");
        let mut row = stored::Cursors::default();
        cursors.to_row(&mut row);
        assert_eq!(delivered(&Cursors::from_row(&row)), [1, 2, 6, 7]);
        cursors.forget(Seq(2));
        assert_eq!(delivered(&cursors), [6, 7]);
    }

    #[test]
    fn a_device_that_stays_away_is_set_aside_if_another_has_what_waits_for_it() {
        let mut cursors = Cursors::default();
        cursors.admit(PHONE, Seq(0), 0);
        cursors.admit(TABLET, Seq(0), 0);
        let idle = |cursors: &Cursors, day| cursors.idle(Seq(3), 30 * DAY_MS, day * DAY_MS);
        cursors.grows(Seq(0), DAY_MS);
        assert!(idle(&cursors, 40).is_empty(), "nobody is here");
        cursors.acknowledge(PHONE, Seq(3), 20 * DAY_MS);
        assert!(idle(&cursors, 30).is_empty(), "29 days");
        assert_eq!(idle(&cursors, 31), [TABLET]);
        cursors.admit(PHONE, Seq(2), 20 * DAY_MS);
        cursors.acknowledge(PHONE, Seq(3), 20 * DAY_MS);
        assert!(idle(&cursors, 40).is_empty(), "the phone was never given the first two");
    }

    #[test]
    fn nothing_waits_for_a_device_that_has_everything() {
        let mut cursors = Cursors::default();
        cursors.admit(PHONE, Seq(0), 0);
        cursors.admit(TABLET, Seq(0), 0);
        cursors.acknowledge(PHONE, Seq(1), 0);
        cursors.acknowledge(TABLET, Seq(1), 0);
        cursors.grows(Seq(1), 60 * DAY_MS);
        cursors.acknowledge(PHONE, Seq(2), 60 * DAY_MS);
        assert!(cursors.idle(Seq(2), 30 * DAY_MS, 61 * DAY_MS).is_empty(), "a day");
    }

    #[test]
    fn of_a_full_mailbox_the_device_far_behind_is_the_laggard() {
        let mut cursors = Cursors::default();
        cursors.admit(PHONE, Seq(0), 0);
        cursors.admit(TABLET, Seq(0), 0);
        cursors.acknowledge(PHONE, Seq(400), 0);
        assert!(cursors.laggards(Seq(1_000)).is_empty(), "both are slow");
        cursors.acknowledge(PHONE, Seq(500), 0);
        assert_eq!(cursors.laggards(Seq(1_000)), [TABLET]);
        cursors.acknowledge(TABLET, Seq(900), 0);
        cursors.acknowledge(PHONE, Seq(1_000), 0);
        assert!(cursors.laggards(Seq(1_000)).is_empty(), "a device that is there");
        cursors.remove(PHONE);
        assert!(cursors.laggards(Seq(2_000)).is_empty(), "the last device is never set aside");
    }
}
