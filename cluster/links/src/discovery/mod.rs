//! Finding the other nodes: their addresses, who may take which place, what nodes say first.

pub(crate) mod addresses;
pub(crate) mod greeting;
pub(crate) mod places;
