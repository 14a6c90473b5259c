//! Parcels in lanes, cut into pieces and put together again. Pure.

pub(crate) mod inbox;
#[cfg(test)]
mod lanes_tests;
pub(crate) mod outbox;
pub(crate) mod parcel;
