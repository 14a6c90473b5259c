//! The entries of the group in the node's log, as openraft stores and reads them.

pub(crate) mod held;
pub(crate) mod journal;
pub(crate) mod recovered;
