//! Handlers: what an operator adds to the way of a message. Run by the sender's user actor.

use proto::{Code, DeviceId, UserId, wire};

/// What a handler says of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// Refuse it with this code.
    Drop(Code),
}

/// A handler: sees what a user sends before the recipient's shard does.
pub trait Handler: Send + Sync {
    /// Its name, for logs.
    fn name(&self) -> &'static str;
    /// A device of `user` sends.
    fn user_send(&self, user: UserId, device: DeviceId, send: &wire::Send) -> Verdict;
}
