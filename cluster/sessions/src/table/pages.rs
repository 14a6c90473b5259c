//! ◇ What other nodes ask of the table: sums of the parts of its buckets, and the rows of those that
//! differ, a page at a time.

use super::{Table, wire_bytes, wire_row};
use crate::digest::PartSums;
use crate::row::{self, BUCKETS, Key, PARTS};
use proto::cluster;
use proto::stored::Session;
use std::ops::ControlFlow;
use storage::StorageError;

/// Rows that one page looks at, at most, but for the end of a bucket.
const PAGE_ROWS_MAX: usize = 16_384;

impl Table {
    /// The sums of the parts of a bucket, and its number of rows.
    pub(crate) fn part_sums(&self, bucket: usize) -> Result<(PartSums, usize), StorageError> {
        let (mut sums, mut seen) = (PartSums::default(), 0);
        if self.digest.is_empty(bucket) {
            return Ok((sums, seen));
        }
        self.rows.visit(row::bucket_begin(bucket), &mut |key, row| {
            if row::bucket_of(key) != bucket {
                return ControlFlow::Break(());
            }
            sums.add(key, &row);
            seen += 1;
            ControlFlow::Continue(())
        })?;
        Ok((sums, seen))
    }

    /// Rows of the buckets that another node asks for, of the parts whose sums differ from its own.
    pub(crate) fn page(
        &self,
        asked: &cluster::SessionsFetch,
        bytes_max: usize,
    ) -> Result<cluster::SessionRows, StorageError> {
        let mut page = Page { bytes_max, ..Page::default() };
        let first = row::key_from(&asked.from).unwrap_or(row::bucket_begin(0));
        let mut seen = 0;
        for (n, bucket) in asked.buckets.iter().enumerate() {
            let bucket = usize::try_from(*bucket).unwrap_or(BUCKETS);
            if bucket >= BUCKETS || bucket < row::bucket_of(first) {
                continue;
            }
            if seen >= PAGE_ROWS_MAX {
                page.more = Some(row::bucket_begin(bucket));
                break;
            }
            let (sums, rows) = self.part_sums(bucket)?;
            seen += rows;
            let theirs = asked.sums.get(n * PARTS..(n + 1) * PARTS);
            let theirs = theirs.and_then(|sums| sums.try_into().ok()).map(PartSums);
            if let Some(parts) = sums.differing(&theirs.unwrap_or_default()) {
                let from = first.max(row::bucket_begin(bucket));
                self.rows.visit(from, &mut |key, row| page.take(bucket, parts, key, row))?;
            }
            if page.more.is_some() {
                break;
            }
        }
        let more = page.more.map(row::key_bytes).unwrap_or_default();
        Ok(cluster::SessionRows { rows: page.rows, more: more.into() })
    }
}

#[derive(Default)]
struct Page {
    rows: Vec<cluster::SessionRow>,
    bytes: usize,
    bytes_max: usize,
    more: Option<Key>,
}

impl Page {
    fn take(&mut self, bucket: usize, parts: u64, key: Key, row: Session) -> ControlFlow<()> {
        if row::bucket_of(key) != bucket {
            return ControlFlow::Break(());
        }
        if parts >> row::part_of(key) & 1 == 0 {
            return ControlFlow::Continue(());
        }
        if self.bytes >= self.bytes_max {
            self.more = Some(key);
            return ControlFlow::Break(());
        }
        let row = wire_row(key, row);
        self.bytes += wire_bytes(&row);
        self.rows.push(row);
        ControlFlow::Continue(())
    }
}
