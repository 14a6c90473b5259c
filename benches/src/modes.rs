//! What each mode does, from the first connection to its result.

use std::io::Write;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::args::{Command, Mode, PairsArgs};
use crate::clock::{Clock, SECOND_NS};
use crate::entry::{Arrival, Person, Way, strangers};
use crate::listen::Listen;
use crate::net::Net;
use crate::offline::{Offline, Plan, SENDERS};
use crate::pairs::{Pairs, Watched};
use crate::process::{Spent, Usage, allow_connections, resident_kib};
use crate::server::{Server, quiet};
use crate::upset;

/// A run: a server, and connections to it.
pub(crate) struct Run<'a, 's> {
    command: &'a Command,
    server: &'a mut Server<'s>,
    clock: Clock,
    net: Net,
    unanswered_max: usize,
}

impl<'a, 's> Run<'a, 's> {
    pub(crate) fn new(
        command: &'a Command,
        server: &'a mut Server<'s>,
        clock: Clock,
    ) -> Result<Self> {
        let net = Net::new(server.targets(spare(&command.mode))?, clock)?;
        Ok(Self { command, server, clock, net, unanswered_max: 0 })
    }

    /// Does what the command says.
    pub(crate) fn measure(&mut self) -> Result<Value> {
        match self.command.mode {
            Mode::Idle { users } => self.idle(users),
            Mode::Pairs(plan) => self.pairs(plan),
            Mode::Offline { users, each } => self.offline(users, each),
            Mode::Login { users } => self.arrive(users, Way::Login),
            Mode::Resume { users } => self.arrive(users, Way::Resume),
        }
    }

    fn idle(&mut self, users: usize) -> Result<Value> {
        some(users, "users")?;
        allow_connections(users)?;
        let empty_kib = resident_kib(&self.server.pids())?;
        let mut people = strangers(users)?;
        let registering = self.enter(Way::Register, 0, &mut people)?;
        self.leave()?;
        let restarted = self.server.restart()?;
        if restarted {
            self.net.retarget(self.server.targets(0)?);
            quiet(&self.server.pids(), self.clock)?;
        }
        let before_kib = resident_kib(&self.server.pids())?;
        let spent = self.enter(Way::Login, 0, &mut people)?;
        progress("waiting until the memory of the server has settled");
        self.net.run(&mut Listen::new(self.server.pids()))?;
        let after_kib = resident_kib(&self.server.pids())?;
        let each = |from_kib: u64| (after_kib as f64 - from_kib as f64) / users as f64;
        Ok(json!({
            "connections": users,
            "server_kib_per_conn": each(before_kib),
            "server_kib_per_user": each(empty_kib),
            "server_rss_empty_kib": empty_kib,
            "server_rss_before_kib": before_kib,
            "server_rss_after_kib": after_kib,
            "server_restarted_before": restarted,
            "registrations_per_s": users as f64 / registering.seconds,
            "logins_per_s": users as f64 / spent.seconds,
            "server_cpu_ms_per_login": spent.server_cpu_s * 1000.0 / users as f64,
            "client_cpu_ms_per_login": spent.client_cpu_s * 1000.0 / users as f64,
        }))
    }

    fn arrive(&mut self, users: usize, way: Way) -> Result<Value> {
        some(users, "users")?;
        allow_connections(users)?;
        let mut people = strangers(users)?;
        let registering = self.enter(Way::Register, 0, &mut people)?;
        self.leave()?;
        let spent = self.enter(way, 0, &mut people)?;
        Ok(json!({
            "logins": users,
            "seconds": spent.seconds,
            "logins_per_s": users as f64 / spent.seconds,
            "server_cpu_ms_per_login": spent.server_cpu_s * 1000.0 / users as f64,
            "client_cpu_ms_per_login": spent.client_cpu_s * 1000.0 / users as f64,
            "registrations_per_s": users as f64 / registering.seconds,
        }))
    }

    fn pairs(&mut self, mut plan: PairsArgs) -> Result<Value> {
        some(plan.pairs, "pairs")?;
        if plan.kills > 0 || plan.join {
            plan.seconds = upset::seconds_of(plan.kills, plan.join);
        }
        allow_connections(2 * plan.pairs)?;
        let mut people = strangers(2 * plan.pairs)?;
        self.enter(Way::Register, 0, &mut people)?;
        if plan.window == 0 || plan.window > self.unanswered_max {
            bail!("--window {}: 1 to {}, says the node", plan.window, self.unanswered_max);
        }
        quiet(&self.server.pids(), self.clock)?;
        progress(&format!(
            "sending for {} s, of which {} count",
            plan.seconds + plan.warm_up,
            plan.seconds
        ));
        let body = self.command.common.body;
        let patience_ns = self.command.common.patience * SECOND_NS;
        let watched = Watched { server: self.server, clock: self.clock };
        let mut pairs = Pairs::new(plan, (body, patience_ns), &people, watched)?;
        self.net.run(&mut pairs)?;
        pairs.result()
    }

    fn offline(&mut self, users: usize, each: usize) -> Result<Value> {
        some(users.min(each), "users and messages")?;
        let senders = SENDERS.min(users);
        let mut recipients = strangers(users)?;
        allow_connections(users + senders)?;
        self.enter(Way::Register, 0, &mut recipients)?;
        self.leave()?;
        let mut people = strangers(senders)?;
        self.enter(Way::Register, users, &mut people)?;
        quiet(&self.server.pids(), self.clock)?;
        progress(&format!("storing {each} messages for each of {users} users, then fetching them"));
        let plan = Plan {
            each: each as u64,
            senders,
            window: self.unanswered_max,
            body: self.command.common.body,
            patience_ns: self.command.common.patience * SECOND_NS,
        };
        let mut offline = Offline::new(&recipients, plan);
        let before = Usage::now(&self.server.pids(), self.clock)?;
        self.net.run(&mut offline)?;
        let spent = before.until(Usage::now(&self.server.pids(), self.clock)?);
        let mut result = offline.result();
        let thousands = (users * each) as f64 / 1000.0;
        result["server_cpu_s_per_1000"] = json!(spent.server_cpu_s / thousands);
        result["client_cpu_s_per_1000"] = json!(spent.client_cpu_s / thousands);
        Ok(result)
    }

    /// Brings people in and says what it took.
    fn enter(&mut self, way: Way, first_slot: usize, people: &mut [Person]) -> Result<Spent> {
        progress(&format!("{way:?}: {} users", people.len()));
        let before = Usage::now(&self.server.pids(), self.clock)?;
        let parallel = self.command.common.parallel.max(1);
        let pins = self.server.pins.clone();
        let mut arrival = Arrival::new(way, first_slot, people, &pins, parallel);
        self.net.run(&mut arrival)?;
        self.unanswered_max = arrival.unanswered_max();
        Ok(before.until(Usage::now(&self.server.pids(), self.clock)?))
    }

    /// Closes all connections and waits until the server has taken notice.
    fn leave(&mut self) -> Result<()> {
        self.net.close_all();
        quiet(&self.server.pids(), self.clock)
    }
}

/// Nodes to which nobody connects.
fn spare(mode: &Mode) -> usize {
    match mode {
        Mode::Pairs(plan) => usize::from(plan.kills > 0),
        Mode::Idle { .. } | Mode::Offline { .. } | Mode::Login { .. } | Mode::Resume { .. } => 0,
    }
}

fn some(count: usize, what: &str) -> Result<()> {
    if count == 0 {
        bail!("at least one of {what}");
    }
    Ok(())
}

/// Says what is going on, on standard error.
pub(crate) fn progress(text: &str) {
    // Nobody listening is no reason to stop a measurement.
    let _shown = writeln!(std::io::stderr(), "natter-load: {text}");
}
