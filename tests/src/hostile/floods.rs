//! Requests by the hundred on one connection, as fast as the node takes them, and what came of them.

use crate::wire::Wire;
use anyhow::Result;
use proto::Code;
use proto::limits::UNANSWERED_MAX;
use proto::wire::{client_frame::Kind as Ask, server_frame::Kind as Say};
use std::collections::BTreeMap;

/// What the node did with a flood.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Requests that were carried out.
    pub granted: usize,
    /// Requests that were refused, by the number of the code.
    pub refused: BTreeMap<u32, usize>,
    /// The node ended the connection; with this code, if it gave one.
    pub cut_off: Option<Option<Code>>,
    /// Frames that answered nothing: deliveries, presence.
    pub others: usize,
}

impl Tally {
    /// How many were refused with `code`.
    pub fn with(&self, code: Code) -> usize {
        self.refused.get(&code.number()).copied().unwrap_or(0)
    }

    /// How many were answered in any way.
    pub fn answered(&self) -> usize {
        self.granted + self.refused.values().sum::<usize>()
    }

    /// Whether the attacker was told to stop, by one of `codes`, or was cut off.
    pub fn stopped_by(&self, codes: &[Code]) -> bool {
        self.cut_off.is_some() || codes.iter().any(|code| self.with(*code) > 0)
    }
}

/// Sends `count` requests that `make` makes, as many at a time as the protocol lets one do.
///
/// # Errors
/// If the node neither answers nor ends the connection.
pub async fn flood(
    wire: &mut Wire,
    ids: u64,
    count: usize,
    mut make: impl FnMut(u64) -> Ask,
) -> Result<Tally> {
    let mut tally = Tally::default();
    let (mut sent, mut waiting) = (0, 0);
    while tally.answered() < count && tally.cut_off.is_none() {
        while sent < count && waiting < UNANSWERED_MAX {
            let number = sent as u64;
            if wire.send(ids + number, make(number)).await.is_err() {
                break; // What was answered before still waits to be read.
            }
            (sent, waiting) = (sent + 1, waiting + 1);
        }
        let Some(frame) = wire.read().await? else {
            tally.cut_off.get_or_insert(None);
            break;
        };
        match frame.kind {
            Some(Say::GoAway(away)) => tally.cut_off = Some(Some(Code::from_number(away.code))),
            Some(Say::Refused(refused)) if frame.id != 0 => {
                *tally.refused.entry(refused.code).or_default() += 1;
                waiting -= 1;
            }
            Some(_) if frame.id != 0 => (tally.granted, waiting) = (tally.granted + 1, waiting - 1),
            Some(_) | None => tally.others += 1,
        }
    }
    Ok(tally)
}
