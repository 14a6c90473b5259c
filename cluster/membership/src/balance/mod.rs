//! Bringing replicas and leaders to where they should be, one change of a group at a time.

pub(crate) mod balancer;
pub(crate) mod orders;
pub(crate) mod retirement;
pub(crate) mod standings;
pub(crate) mod steps;
