//! Who leads, who votes, and how a leader knows that it still leads.

pub(crate) mod confirm;
pub(crate) mod election;
pub(crate) mod members;
pub(crate) mod space;
pub(crate) mod status;
