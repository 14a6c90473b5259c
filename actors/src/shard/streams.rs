//! What a shard owes the mailboxes of other shards: receipts, copies, freed aliases. A pure core.
//!
//! Between any two shards runs a numbered stream of notices. The owing shard keeps each until the
//! other has confirmed it; the taking shard remembers the last number it took. So every notice is
//! taken exactly once, whatever is lost or repeated between them.
//!
//! # Invariants
//! 1. `owed` holds the numbers `settled + 1 ..= sent`, in order.
//! 2. A notice is taken only if its number follows the last one taken. One that comes before its
//!    time is refused, and must be offered again: whoever confirms it would lose those before it.

use prost::Message;
use proto::stored::{self, notice::What};
use proto::{ShardId, UserId, ids::SHARDS};
use std::cmp::Ordering;
use std::collections::VecDeque;
use storage::Row;

/// Notices offered to another shard at once, which bounds the record that they make in its log.
const OFFER_MAX: usize = 512;

/// Notices, and their bytes, that one shard may owe another when it takes more sends from there: each send
/// is told of later. With 16 shards that wait for 15 others in vain a GiB, where half of them do 256 MiB. A
/// shard that has a leader is owed a few dozen.
const OWED_MAX: usize = 10_000;
const OWED_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of bodies in one offer, or one notice if that is longer.
const OFFER_BYTES: usize = 512 * 1024;

/// All streams of one shard.
#[derive(Debug)]
pub struct Streams {
    streams: Vec<Stream>,
}

/// What a notice is to the shard that takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The next one.
    Now,
    /// A repeated one.
    Before,
    /// One of those before it is missing.
    TooEarly,
}

#[derive(Debug, Default)]
struct Stream {
    sent: u64,
    settled: u64,
    received: u64,
    owed: VecDeque<stored::Notice>,
    owed_bytes: usize,
    /// Notices with numbers in `stored_from ..= stored_to` are rows of table `notices`.
    stored_from: u64,
    stored_to: u64,
    dirty: bool,
}

impl Default for Streams {
    fn default() -> Self {
        Self { streams: (0..SHARDS).map(|_| Stream::default()).collect() }
    }
}

impl Streams {
    /// Owes `what` to a user's mailbox in shard `to`.
    pub fn owe(&mut self, to: ShardId, user: UserId, what: What) {
        let stream = self.stream(to);
        stream.sent += 1;
        stream.dirty = true;
        let number = stream.sent;
        stream.push(stored::Notice { number, user: user.0, what: Some(what) });
    }

    /// Shard `to` has confirmed everything up to `number`.
    pub fn settle(&mut self, to: ShardId, number: u64) {
        let stream = self.stream(to);
        if number > stream.settled && number <= stream.sent {
            stream.settled = number;
            stream.dirty = true;
            while let Some(notice) = stream.owed.pop_front_if(|notice| notice.number <= number) {
                stream.owed_bytes = stream.owed_bytes.saturating_sub(notice.encoded_len());
            }
        }
    }

    /// Whether shard `to` is owed so much that nothing should be done that adds to it. What was accepted
    /// before may still add a receipt for each message: so no more is owed than this and what is held.
    pub fn is_full(&self, to: ShardId) -> bool {
        let stream = &self.streams[usize::from(to.0)];
        stream.owed.len() >= OWED_MAX || stream.owed_bytes >= OWED_BYTES_MAX
    }

    /// What `number` from shard `from` is; the next one counts as taken.
    pub fn take(&mut self, from: ShardId, number: u64) -> Taken {
        let stream = self.stream(from);
        match number.cmp(&(stream.received + 1)) {
            Ordering::Less => Taken::Before,
            Ordering::Greater => Taken::TooEarly,
            Ordering::Equal => {
                stream.received = number;
                stream.dirty = true;
                Taken::Now
            }
        }
    }

    /// The oldest notices owed to `to` above `after`.
    pub fn offer(&self, to: ShardId, after: u64) -> Vec<stored::Notice> {
        let owed = &self.streams[usize::from(to.0)].owed;
        let start = owed.partition_point(|notice| notice.number <= after);
        let mut bytes = 0;
        let fits = owed.range(start..).take(OFFER_MAX).take_while(|notice| {
            let first = bytes == 0;
            bytes += notice.encoded_len();
            first || bytes <= OFFER_BYTES
        });
        fits.cloned().collect()
    }

    /// Whether anything is owed to anyone above what `offered` says was offered already.
    pub fn has_news(&self, to: ShardId, offered: u64) -> bool {
        let stream = &self.streams[usize::from(to.0)];
        stream.sent > stream.settled.max(offered)
    }

    /// Rows that bring the tables up to date.
    pub fn spill(&mut self, rows: &mut Vec<Row>) {
        for (to, stream) in (0..).map(ShardId).zip(&mut self.streams) {
            if !std::mem::take(&mut stream.dirty) {
                continue;
            }
            let gone = stream.stored_from..=stream.stored_to.min(stream.settled);
            rows.extend(gone.map(|number| Row::Notice { to, number, notice: None }));
            let new = stream.owed.iter().filter(|notice| notice.number > stream.stored_to);
            rows.extend(new.map(|notice| Row::Notice {
                to,
                number: notice.number,
                notice: Some(notice.clone()),
            }));
            stream.stored_from = stream.settled + 1;
            stream.stored_to = stream.sent;
            let Stream { sent, settled, received, .. } = *stream;
            rows.push(Row::Stream(to, stored::Stream { sent, settled, received }));
        }
    }

    /// Puts back what table `streams` holds.
    pub fn load_stream(&mut self, to: ShardId, row: &stored::Stream) {
        let stream = self.stream(to);
        stream.sent = row.sent;
        stream.settled = row.settled;
        stream.received = row.received;
        stream.stored_from = row.settled + 1;
        stream.stored_to = row.sent;
    }

    /// Puts back what table `notices` holds; rows come in the order of their numbers.
    pub fn load_notice(&mut self, to: ShardId, notice: stored::Notice) {
        self.stream(to).push(notice);
    }

    /// Feeds a digest with the numbers that all replicas share.
    pub fn digest(&self, sum: &mut dyn FnMut(u64)) {
        for stream in &self.streams {
            [stream.sent, stream.settled, stream.received].into_iter().for_each(&mut *sum);
            stream.owed.iter().for_each(|notice| sum(notice.number));
        }
    }

    fn stream(&mut self, shard: ShardId) -> &mut Stream {
        &mut self.streams[usize::from(shard.0)]
    }
}

impl Stream {
    fn push(&mut self, notice: stored::Notice) {
        self.owed_bytes += notice.encoded_len();
        self.owed.push_back(notice);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::wildcard_enum_match_arm, reason = "a story looks at what it is about")]
    use super::*;

    fn freed(alias: &str) -> What {
        What::FreeAlias(stored::AliasClaim { alias: alias.to_owned(), claim: 1 })
    }

    #[test]
    fn a_notice_is_taken_exactly_once_whatever_is_repeated() {
        let (mut owing, mut taking) = (Streams::default(), Streams::default());
        let (here, there) = (ShardId(1), ShardId(2));
        for _ in 0..3 {
            owing.owe(there, UserId(7), freed("ada"));
        }
        let first = owing.offer(there, 0);
        let taken = |streams: &mut Streams, notices: &[stored::Notice]| {
            let now = |notice: &&stored::Notice| streams.take(here, notice.number) == Taken::Now;
            notices.iter().filter(now).count()
        };
        assert_eq!(taking.take(here, 2), Taken::TooEarly);
        assert_eq!(taken(&mut taking, &first[..2]), 2);
        assert_eq!(taken(&mut taking, &first), 1, "the repeated two are not taken again");
        owing.settle(there, 3);
        assert!(owing.offer(there, 0).is_empty());
    }

    #[test]
    fn a_stream_is_full_by_number_or_by_bytes_and_has_room_again_once_it_is_settled() {
        let (mut streams, to) = (Streams::default(), ShardId(3));
        let long = "a".repeat(64 * 1024);
        for (alias, full_at) in [("ada", OWED_MAX), (long.as_str(), OWED_BYTES_MAX / long.len())] {
            let begun = streams.streams[3].sent;
            let mut owed = 0;
            while !streams.is_full(to) {
                streams.owe(to, UserId(7), freed(alias));
                owed += 1;
            }
            assert!(owed <= full_at, "{owed} for {full_at}");
            assert!(!streams.is_full(ShardId(4)), "another shard");
            streams.settle(to, begun + owed as u64);
            assert_eq!((streams.is_full(to), streams.streams[3].owed_bytes), (false, 0));
        }
    }

    #[test]
    fn rows_bring_back_what_is_owed() {
        let mut streams = Streams::default();
        let to = ShardId(3);
        for _ in 0..4 {
            streams.owe(to, UserId(7), freed("ada"));
        }
        let mut rows = Vec::new();
        streams.spill(&mut rows);
        streams.settle(to, 2);
        streams.owe(to, UserId(8), freed("bob"));
        streams.spill(&mut rows);

        let mut table = std::collections::BTreeMap::new();
        let mut back = Streams::default();
        for row in rows {
            match row {
                Row::Notice { number, notice: Some(notice), .. } => {
                    table.insert(number, notice);
                }
                Row::Notice { number, notice: None, .. } => {
                    table.remove(&number);
                }
                Row::Stream(to, row) => back.load_stream(to, &row),
                _ => panic!("a row of another table"),
            }
        }
        for notice in table.into_values() {
            back.load_notice(to, notice);
        }
        assert_eq!(back.offer(to, 0), streams.offer(to, 0));
        assert_eq!(back.offer(to, 0).len(), 3);
        assert_eq!(back.streams[3].owed_bytes, streams.streams[3].owed_bytes);
    }
}
