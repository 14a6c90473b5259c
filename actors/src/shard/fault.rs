//! Faults that can be built into the cores, to see whether a simulation finds them.

/// A fault. Nothing but tests builds one in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Notices that another shard has not taken are confirmed.
    DroppedNotice,
    /// A page is read from the tables as they were before the checkpoint that is being written.
    StalePage,
    /// Later sends do not wait for the retry of a refused one.
    OvertakenRetry,
    /// A leader that is replaced applies its batch under way, though it was not committed.
    EarlierTermBatch,
    /// A window takes more than its device may have in flight.
    WindowOverrun,
}
