//! The queue monitor samples every inbox of this OS process once a second.
//!
//! Each inbox registers itself when it is created. A registration takes 16 bytes, and an ended
//! inbox's block of about 150 bytes stays until the next sweep. A [`QueueMonitor`] samples all inboxes and
//! keeps the history from which it computes rates.
//!
//! # Invariants
//! 1. Totals never decrease: when a queue ends, its counts are added to those of its kind.
//! 2. Registrations of ended queues are removed at each sample and before the registry grows.

use parking_lot::Mutex;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::queue::QueueLimits;

/// The longest span of [`Rates`], in seconds.
const HISTORY_S: u64 = 100;
/// Samples closer together than this stay out of the history, which keeps it under 400 entries.
const HISTORY_STEP: Duration = Duration::from_millis(250);
/// Number of locks over which registrations are spread.
const SHARDS: usize = 16;
/// Number of longest queues in a report.
const LONGEST: usize = 10;

type Shard = Mutex<Vec<Weak<dyn Gauge>>>;

static REGISTRY: [Shard; SHARDS] = [const { Mutex::new(Vec::new()) }; SHARDS];
static NEXT_SHARD: AtomicUsize = AtomicUsize::new(0);
/// Counts of ended queues, by kind.
static RETIRED: Mutex<BTreeMap<&'static str, Counts>> = Mutex::new(BTreeMap::new());

/// A queue whose length is sampled.
pub(crate) trait Gauge: Send + Sync {
    fn read(&self) -> Reading;
    /// The process of this queue fails before its next item.
    fn kill(&self);
}

/// One sample of one queue.
pub(crate) struct Reading {
    pub(crate) kind: &'static str,
    pub(crate) id: u64,
    pub(crate) entered: u64,
    pub(crate) left: u64,
    pub(crate) limits: QueueLimits,
}

pub(crate) fn register(gauge: Weak<dyn Gauge>) {
    let mut shard = REGISTRY[NEXT_SHARD.fetch_add(1, Relaxed) % SHARDS].lock();
    if shard.len() == shard.capacity() {
        sweep(&mut shard);
    }
    shard.push(gauge);
}

pub(crate) fn retire(kind: &'static str, entered: u64, left: u64) {
    let mut retired = RETIRED.lock();
    let counts = retired.entry(kind).or_default();
    counts.enqueued += entered;
    counts.dequeued += left;
    counts.dropped += entered.saturating_sub(left);
}

/// Lets the process whose queue has this kind and number fail before its next item, as if it had panicked. For
/// tests: no part of natter calls it. Says whether there is such a queue.
pub fn kill(kind: &str, id: u64) -> bool {
    let queues = REGISTRY.iter().flat_map(|shard| shard.lock().clone());
    let queues = queues.filter_map(|queue| queue.upgrade());
    let mut named = queues.filter(|queue| {
        let reading = queue.read();
        (reading.kind, reading.id) == (kind, id)
    });
    let found = named.next();
    found.inspect(|queue| queue.kill()).is_some()
}

fn sweep(shard: &mut Vec<Weak<dyn Gauge>>) {
    shard.retain(|gauge| gauge.strong_count() > 0);
    if shard.len() < shard.capacity() / 4 {
        shard.shrink_to(shard.len() * 2);
    }
}

/// Counts since the start of this OS process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Items put in.
    pub enqueued: u64,
    /// Items handed to processes.
    pub dequeued: u64,
    /// Items that were still waiting when their queue ended.
    pub dropped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.enqueued += other.enqueued;
        self.dequeued += other.dequeued;
        self.dropped += other.dropped;
    }

    fn at_least(&mut self, other: Self) {
        self.enqueued = self.enqueued.max(other.enqueued);
        self.dequeued = self.dequeued.max(other.dequeued);
        self.dropped = self.dropped.max(other.dropped);
    }
}

/// Items per second over the last 1, 10 and 100 s, or over the part of them that was sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Over 1 s.
    pub over_1_s: f64,
    /// Over 10 s.
    pub over_10_s: f64,
    /// Over 100 s.
    pub over_100_s: f64,
}

/// One of the longest queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LongQueue {
    /// Items that wait.
    pub len: usize,
    /// Its kind.
    pub kind: &'static str,
    /// Its number within its kind.
    pub id: u64,
}

/// The queues of one kind, or all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueSummary {
    /// Queues that exist.
    pub queues: usize,
    /// Number of queues that are not empty.
    pub not_empty: usize,
    /// Number of queues at or over their `high` limit.
    pub high: usize,
    /// Number of queues at or over their capacity.
    pub critical: usize,
    /// Items that wait in all of them.
    pub len: usize,
    /// Items that wait in the longest of them.
    pub longest: usize,
    /// Totals since the start.
    pub counts: Counts,
    /// Rate of items put in.
    pub enqueued_per_s: Rates,
    /// Rate of items taken out.
    pub dequeued_per_s: Rates,
}

impl QueueSummary {
    fn note(&mut self, reading: &Reading, len: usize) {
        self.queues += 1;
        self.not_empty += usize::from(len > 0);
        self.high += usize::from(len >= reading.limits.high);
        self.critical += usize::from(len >= reading.limits.critical);
        self.len += len;
        self.longest = self.longest.max(len);
        self.counts.enqueued += reading.entered;
        self.counts.dequeued += reading.left;
    }

    fn merge(&mut self, other: &Self) {
        self.queues += other.queues;
        self.not_empty += other.not_empty;
        self.high += other.high;
        self.critical += other.critical;
        self.len += other.len;
        self.longest = self.longest.max(other.longest);
        self.counts.add(other.counts);
    }
}

/// The result of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct QueueReport {
    /// All queues together.
    pub total: QueueSummary,
    /// The ten longest that are not empty, longest first.
    pub ten_longest: Vec<LongQueue>,
    /// By kind, ended kinds included.
    pub kinds: BTreeMap<&'static str, QueueSummary>,
}

/// Samples all inboxes of this OS process and keeps the history for rates. One per process is enough.
#[derive(Debug, Default)]
pub struct QueueMonitor {
    history: VecDeque<(Instant, BTreeMap<&'static str, Counts>)>,
    totals: BTreeMap<&'static str, Counts>,
}

impl QueueMonitor {
    /// A monitor without history.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads all queues at `now`, which must not go back. Takes some 0.1 µs a queue.
    pub fn sample(&mut self, now: Instant) -> QueueReport {
        let mut report = QueueReport::default();
        // Ended queues first: a queue that ends in between is missed once, never counted twice.
        for (&kind, &counts) in &*RETIRED.lock() {
            report.kinds.entry(kind).or_default().counts = counts;
        }
        for shard in &REGISTRY {
            // Upgraded under the lock, read and dropped outside: the last drop may run any code.
            let living: Vec<_> = {
                let mut shard = shard.lock();
                sweep(&mut shard);
                shard.iter().filter_map(Weak::upgrade).collect()
            };
            for gauge in living {
                note(&mut report, &gauge.read());
            }
        }
        for (&kind, summary) in &mut report.kinds {
            let known = self.totals.entry(kind).or_default();
            known.at_least(summary.counts);
            let counts = *known;
            summary.counts = counts;
            summary.enqueued_per_s = self.rates(kind, now, counts, |counts| counts.enqueued);
            summary.dequeued_per_s = self.rates(kind, now, counts, |counts| counts.dequeued);
        }
        for summary in report.kinds.values() {
            report.total.merge(summary);
            sum(&mut report.total.enqueued_per_s, summary.enqueued_per_s);
            sum(&mut report.total.dequeued_per_s, summary.dequeued_per_s);
        }
        self.remember(now);
        report
    }

    fn rates(
        &self,
        kind: &'static str,
        now: Instant,
        counts: Counts,
        of: fn(&Counts) -> u64,
    ) -> Rates {
        let over = |span_s: u64| {
            let span = Duration::from_secs(span_s);
            let old_enough = |at: Instant| now.saturating_duration_since(at) >= span;
            let past = self.history.iter().rev().find(|(at, _)| old_enough(*at));
            let Some((at, past)) = past.or(self.history.front()) else { return 0.0 };
            let before = past.get(kind).map_or(0, of);
            per_second(of(&counts).saturating_sub(before), now.saturating_duration_since(*at))
        };
        Rates { over_1_s: over(1), over_10_s: over(10), over_100_s: over(HISTORY_S) }
    }

    fn remember(&mut self, now: Instant) {
        let last = self.history.back().map(|(at, _)| now.saturating_duration_since(*at));
        if last.is_some_and(|since| since < HISTORY_STEP) {
            return;
        }
        self.history.push_back((now, self.totals.clone()));
        // Keeps one sample older than the longest span.
        let span = Duration::from_secs(HISTORY_S);
        while self.history.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= span)
        {
            self.history.pop_front();
        }
    }
}

fn note(report: &mut QueueReport, reading: &Reading) {
    let len = usize::try_from(reading.entered - reading.left).unwrap_or(usize::MAX);
    report.kinds.entry(reading.kind).or_default().note(reading, len);
    if len == 0 {
        return;
    }
    let long = LongQueue { len, kind: reading.kind, id: reading.id };
    let place = report.ten_longest.partition_point(|other| *other > long);
    if place < LONGEST {
        report.ten_longest.insert(place, long);
        report.ten_longest.truncate(LONGEST);
    }
}

#[allow(clippy::cast_precision_loss, reason = "a rate needs no more than 52 bits")]
fn per_second(items: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { items as f64 / elapsed.as_secs_f64() }
}

fn sum(total: &mut Rates, part: Rates) {
    total.over_1_s += part.over_1_s;
    total.over_10_s += part.over_10_s;
    total.over_100_s += part.over_100_s;
}
