//! What a device that was stolen from would try: one ticket at two nodes at once, and a ticket that
//! has opened a session before. A ticket opens once, wherever and however it is tried.

use super::{Person, STEP};
use crate::node::Target;
use crate::wire::{Phone, Wire};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use proto::wire::LoggedIn;
use rand::Rng;
use tokio::time::timeout;

impl Person {
    /// Opens a session with the ticket, at times in a way that must not work twice.
    pub(super) async fn connect_by_ticket(&mut self) -> Result<Wire> {
        if self.rng.random_range(0..8) == 0 {
            self.try_spent_ticket().await;
        }
        if self.rng.random_range(0..6) == 0 {
            return self.try_at_two_nodes().await;
        }
        let before = self.phone.ticket.clone();
        let target = self.targets.get(self.at).context("no node to go to")?;
        let (wire, resumed) = timeout(STEP, self.phone.resume(target)).await??;
        if resumed {
            self.spent = before;
        }
        Ok(wire)
    }

    async fn try_spent_ticket(&mut self) {
        let target = &self.targets[self.rng.random_range(0..self.targets.len())];
        let spent = self.spent.clone();
        if !spent.is_empty() && open(target, spent, self.phone.last).await.is_ok() {
            self.shared.facts().checker.opened_twice(self.who);
        }
    }

    async fn try_at_two_nodes(&mut self) -> Result<Wire> {
        let other = (self.at + self.rng.random_range(1..self.targets.len())) % self.targets.len();
        let (ticket, last) = (self.phone.ticket.clone(), self.phone.last);
        let (here, there) = tokio::join!(
            open(&self.targets[self.at], ticket.clone(), last),
            open(&self.targets[other], ticket.clone(), last),
        );
        if here.is_ok() && there.is_ok() {
            self.shared.facts().checker.opened_twice(self.who);
        }
        let opened = match (here, there) {
            (Ok(opened), _) => opened,
            (_, Ok(opened)) => {
                self.at = other;
                opened
            }
            // Used up, or no node answered: the key opens next time.
            (Err(error), Err(_)) => return Err(error),
        };
        self.spent = ticket;
        self.phone.keep(&opened.1);
        Ok(opened.0)
    }
}

/// A session that `ticket` opens at `target`, if it does.
async fn open(target: &Target, ticket: Bytes, last: u64) -> Result<(Wire, LoggedIn)> {
    let open = async {
        let mut wire = Wire::connect(target).await?;
        match Phone::resume_on(&mut wire, ticket, last).await? {
            Some(logged_in) => Ok((wire, logged_in)),
            None => bail!("the ticket does not open"),
        }
    };
    timeout(STEP, open).await?
}
