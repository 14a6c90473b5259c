//! Who a node is, and how it proves that.

pub(crate) mod identity;
pub(crate) mod tls;
