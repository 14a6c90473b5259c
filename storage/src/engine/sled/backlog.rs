//! Rows of the sessions table that may not be on disk yet. Pure.
//!
//! # Invariant
//! A row is kept until a flush that began after its write has succeeded.

use crate::engine::Visit;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included};

/// A row; `None` removes it.
pub(super) type Row = (Vec<u8>, Option<Vec<u8>>);

/// Rows by key.
pub(super) type Rows = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Unflushed rows. At most one flush runs at a time.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// Written after the running flush began.
    newer: Rows,
    /// Written before the running flush began.
    older: Rows,
}

impl Backlog {
    pub(super) fn keep(&mut self, rows: Vec<Row>) {
        self.newer.extend(rows);
    }

    /// Begins a flush; returns false if there is nothing to flush.
    pub(super) fn begin_flush(&mut self) -> bool {
        self.older.append(&mut self.newer);
        !self.older.is_empty()
    }

    pub(super) fn end_flush(&mut self) {
        self.older.clear();
    }

    /// The kept row of a key, if any.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        self.newer.get(key).or_else(|| self.older.get(key))
    }

    /// All kept rows from `from` up to, not including, `to`.
    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> Rows {
        if from > to {
            return Rows::new();
        }
        let of = |rows: &Rows| -> Vec<Row> {
            let range = rows.range::<[u8], _>((Included(from), Excluded(to)));
            range.map(|(key, value)| (key.clone(), value.clone())).collect()
        };
        of(&self.older).into_iter().chain(of(&self.newer)).collect()
    }

    /// The rows of the running flush.
    pub(super) fn to_flush(&self) -> Vec<Row> {
        self.older.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

/// Visits the rows of the disk in order, overridden by kept rows, until `visit` returns `Break`.
pub(super) fn visit_over<K: AsRef<[u8]>, E>(
    disk: impl Iterator<Item = Result<(K, K), E>>,
    kept: Rows,
    visit: &mut Visit<'_>,
) -> Result<(), E> {
    let mut kept = kept.into_iter().peekable();
    for row in disk {
        let (key, value) = row?;
        let key = key.as_ref();
        while let Some((kept_key, kept_value)) = kept.next_if(|(kept, _)| kept.as_slice() < key) {
            if let Some(value) = kept_value
                && visit(&kept_key, &value).is_break()
            {
                return Ok(());
            }
        }
        let over = kept.next_if(|(kept, _)| kept == key).map(|(_, value)| value);
        let value = over.as_ref().map_or(Some(value.as_ref()), Option::as_deref);
        if let Some(value) = value
            && visit(key, value).is_break()
        {
            return Ok(());
        }
    }
    for (key, value) in kept {
        if let Some(value) = value
            && visit(&key, &value).is_break()
        {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ops::ControlFlow;

    fn row(key: u8, value: Option<u8>) -> Row {
        (vec![key], value.map(|value| vec![value]))
    }

    #[test]
    fn a_row_is_kept_until_a_flush_that_began_after_it_has_ended_well() {
        let mut backlog = Backlog::default();
        assert!(!backlog.begin_flush());
        backlog.keep(vec![row(1, Some(1)), row(2, Some(1))]);
        assert!(backlog.begin_flush());
        backlog.keep(vec![row(2, Some(2))]);
        backlog.end_flush();
        assert_eq!(backlog.get(&[1]), None);
        assert_eq!(backlog.get(&[2]), Some(&Some(vec![2])));
        assert!(backlog.begin_flush(), "and ends badly");
        backlog.keep(vec![row(3, None)]);
        assert!(backlog.begin_flush());
        assert_eq!(backlog.to_flush(), [row(2, Some(2)), row(3, None)]);
        backlog.end_flush();
        assert!(!backlog.begin_flush());
    }

    proptest! {
        #[test]
        fn rows_of_the_disk_with_those_kept_over_them_are_those_written(
            disk in proptest::collection::btree_map(0..20u8, 0..9u8, 0..12),
            older in proptest::collection::vec((0..20u8, proptest::option::of(0..9u8)), 0..12),
            newer in proptest::collection::vec((0..20u8, proptest::option::of(0..9u8)), 0..12),
            (from, to, limit) in (0..20u8, 0..20u8, 0..20usize),
        ) {
            let (mut backlog, mut all) = (Backlog::default(), disk.clone());
            for (key, value) in older.iter().chain(&newer) {
                match value {
                    Some(value) => all.insert(*key, *value),
                    None => all.remove(key),
                };
            }
            let rows = |of: &[(u8, Option<u8>)]| -> Vec<Row> {
                of.iter().map(|(key, value)| row(*key, *value)).collect()
            };
            backlog.keep(rows(&older));
            backlog.begin_flush();
            backlog.keep(rows(&newer));
            let to = to.max(from);
            let on_disk = disk.range(from..to);
            let on_disk = on_disk.map(|(key, value)| Ok::<_, ()>((vec![*key], vec![*value])));
            let (mut seen, kept) = (Vec::new(), backlog.range(&[from], &[to]));
            visit_over(on_disk, kept, &mut |key, value| {
                seen.push((key[0], value[0]));
                if seen.len() == limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }).unwrap();
            let most = if limit == 0 { usize::MAX } else { limit };
            let expected: Vec<_> =
                all.range(from..to).map(|(key, value)| (*key, *value)).take(most).collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
