//! Buckets that empty with each use and fill again in a time. Pure cores.

mod bucket;
mod byte_rates;

pub(super) use bucket::Bucket;
pub(super) use byte_rates::ByteRates;
