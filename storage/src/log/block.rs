//! The unit of a flush: a checksummed block of records. Pure.
//!
//! ```text
//! block   magic 4 | crc 4 | length 4 | records 4 | number 8 | `length` bytes of records
//! record  group 2 | index 8 | length 4 | bytes
//! cut     group 2, top bit set | index 8 | length 0
//! ```
//!
//! Little-endian. The crc (crc32c) covers all that follows it and begins with the salt of the
//! segment, which no client knows: a body cannot pretend to be a block.

use bytes::Bytes;
use proto::ShardId;

const MAGIC: [u8; 4] = [0xb1, b'N', b'B', 0x1c];

/// Bytes before the first record of a block.
pub(super) const HEADER_BYTES: usize = 24;

const RECORD_HEADER_BYTES: usize = 14;

/// Set in the group of a cut.
const CUT: u16 = 0x8000;

/// A record with its group and index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) shard: ShardId,
    pub(super) index: u64,
    pub(super) content: Content,
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// The record at its index; it voids those after it.
    Entry(Bytes),
    /// A cut: it voids the records from its index on.
    Cut,
}

/// Clears `block` and leaves room for its header.
pub(super) fn begin(block: &mut Vec<u8>) {
    block.clear();
    block.resize(HEADER_BYTES, 0);
}

/// Adds a record, or a cut if `record` is `None`.
///
/// Returns `None` without adding anything if the record is too long.
pub(super) fn push(
    block: &mut Vec<u8>,
    shard: ShardId,
    index: u64,
    record: Option<&[u8]>,
) -> Option<()> {
    let group = if record.is_some() { shard.0 } else { shard.0 | CUT };
    let record = record.unwrap_or_default();
    let length = u32::try_from(record.len()).ok()?;
    u32::try_from(block.len() + RECORD_HEADER_BYTES + record.len()).ok()?;
    block.extend_from_slice(&group.to_le_bytes());
    block.extend_from_slice(&index.to_le_bytes());
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(record);
    Some(())
}

/// Writes the header of a block that holds `records` records.
pub(super) fn seal(block: &mut [u8], number: u64, records: u32, salt: u32) {
    let length = u32::try_from(block.len() - HEADER_BYTES).unwrap_or(u32::MAX);
    block[0..4].copy_from_slice(&MAGIC);
    block[8..12].copy_from_slice(&length.to_le_bytes());
    block[12..16].copy_from_slice(&records.to_le_bytes());
    block[16..24].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c_append(salt, &block[8..]);
    block[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// A block found in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) number: u64,
    records: u32,
    /// Bytes of the block with its header.
    pub(super) bytes: usize,
}

/// The block at `offset`, if it is complete and its crc is right.
pub(super) fn find(segment: &[u8], offset: usize, salt: u32) -> Option<Found> {
    let block = segment.get(offset..)?;
    let (header, rest) = block.split_first_chunk::<HEADER_BYTES>()?;
    let [m0, m1, m2, m3, c0, c1, c2, c3, l0, l1, l2, l3, r0, r1, r2, r3, number @ ..] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if [m0, m1, m2, m3] != MAGIC || rest.len() < length {
        return None;
    }
    let bytes = HEADER_BYTES + length;
    let crc = crc32c::crc32c_append(salt, &block[8..bytes]);
    let records = u32::from_le_bytes([r0, r1, r2, r3]);
    let number = u64::from_le_bytes(number);
    (crc.to_le_bytes() == [c0, c1, c2, c3]).then_some(Found { number, records, bytes })
}

/// Offset of the first complete block after `offset`.
pub(super) fn find_later(segment: &[u8], offset: usize, salt: u32) -> Option<usize> {
    let mut from = offset + 1;
    loop {
        let rest = segment.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == MAGIC[0])?;
        if find(segment, at, salt).is_some() {
            return Some(at);
        }
        from = at + 1;
    }
}

/// Decodes the records of a block. `None` if they do not fill it exactly.
pub(super) fn records(segment: &Bytes, offset: usize, found: Found) -> Option<Vec<Record>> {
    let end = offset + found.bytes;
    let mut at = offset + HEADER_BYTES;
    let mut records = Vec::with_capacity((found.records as usize).min(found.bytes));
    for _ in 0..found.records {
        let header = segment.get(at..end)?.first_chunk::<RECORD_HEADER_BYTES>()?;
        let [s0, s1, i0, i1, i2, i3, i4, i5, i6, i7, length @ ..] = *header;
        at += RECORD_HEADER_BYTES;
        let next = at.checked_add(u32::from_le_bytes(length) as usize).filter(|n| *n <= end)?;
        let group = u16::from_le_bytes([s0, s1]);
        let cut = group & CUT != 0;
        records.push(Record {
            shard: ShardId(group & !CUT),
            index: u64::from_le_bytes([i0, i1, i2, i3, i4, i5, i6, i7]),
            content: if cut { Content::Cut } else { Content::Entry(segment.slice(at..next)) },
        });
        at = next;
    }
    (at == end).then_some(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Input = (u16, u64, Option<Vec<u8>>);

    fn block_of(records: &[Input], number: u64, salt: u32) -> Vec<u8> {
        let mut block = Vec::new();
        begin(&mut block);
        for (shard, index, bytes) in records {
            push(&mut block, ShardId(*shard), *index, bytes.as_deref()).unwrap();
        }
        seal(&mut block, number, u32::try_from(records.len()).unwrap(), salt);
        block
    }

    proptest! {
        #[test]
        fn a_block_gives_back_its_records(
            input in prop::collection::vec(
                (0u16..17, any::<u64>(),
                 prop::option::of(prop::collection::vec(any::<u8>(), 0..200))), 0..20),
            number: u64,
            salt: u32,
        ) {
            let segment = Bytes::from(block_of(&input, number, salt));
            let found = find(&segment, 0, salt).unwrap();
            let output: Vec<_> = records(&segment, 0, found)
                .unwrap()
                .into_iter()
                .map(|record| match record.content {
                    Content::Entry(bytes) => (record.shard.0, record.index, Some(bytes.to_vec())),
                    Content::Cut => (record.shard.0, record.index, None),
                })
                .collect();
            prop_assert_eq!((found.number, output), (number, input));
        }

        #[test]
        fn a_changed_bit_is_noticed(bit in 0usize..8, place: prop::sample::Index, salt: u32) {
            let mut block = block_of(&[(3, 9, Some(b"hello".to_vec()))], 7, salt);
            let at = place.index(block.len());
            block[at] ^= 1 << bit;
            prop_assert_eq!(find(&block, 0, salt), None);
        }

        #[test]
        fn random_bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(find(&noise, 0, 1), None);
            prop_assert_eq!(find_later(&noise, 0, 1), None);
        }
    }

    #[test]
    fn a_body_that_looks_like_a_block_is_none() {
        let forged = block_of(&[(0, 1, Some(b"forged".to_vec()))], 8, 0);
        let real = block_of(&[(0, 1, Some(forged))], 7, 0x5a17);
        assert_eq!(find_later(&real, 0, 0x5a17), None);
    }
}
