//! What `natter admin` prints: tables for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use serde_json::Value;

use super::control::Status;
use super::{Request, control::GroupStatus};

/// How replies to a request are printed: outcomes on standard output, progress on standard error.
#[derive(Debug)]
pub(super) struct Printed<'a> {
    pub(super) request: &'a Request,
    pub(super) json: bool,
}

impl Printed<'_> {
    pub(super) fn progress(&self, left: &[String]) -> io::Result<()> {
        let line = if self.json {
            serde_json::json!({ "left": left }).to_string()
        } else {
            format!("... {}", left.join(", "))
        };
        writeln!(io::stderr(), "{line}")
    }

    pub(super) fn done(&self, value: &Value) -> io::Result<()> {
        let text = if self.json { format!("{value}\n") } else { self.text(value) };
        io::stdout().write_all(text.as_bytes())
    }

    /// For people.
    pub(super) fn text(&self, value: &Value) -> String {
        let mut text = self.outcome(value);
        if let Some(warning) = value.get("warning").and_then(Value::as_str) {
            line(&mut text, format_args!("warning: {warning}"));
        }
        text
    }

    fn outcome(&self, value: &Value) -> String {
        let at = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let only_begun = value.get("waited").is_some_and(|waited| *waited == Value::Bool(false));
        let node = format!("{} {}", at("node"), at("name"));
        let node = node.trim_end();
        match self.request {
            Request::Status => match serde_json::from_value(value.clone()) {
                Ok(status) => table(&status),
                Err(_) => format!("{value:#}\n"),
            },
            Request::Join { .. } => format!("{}\n", at("next")),
            Request::Drain { undo: true, .. } => format!("{node} may lead again\n"),
            Request::Leave { .. }
            | Request::Drain { .. }
            | Request::Rebalance { .. }
            | Request::Remove { .. }
                if only_begun =>
            {
                "begun; `natter admin cluster status` shows how far it is\n".to_owned()
            }
            Request::Leave { .. } => format!("{node} has left the cluster; stop it for good\n"),
            Request::Drain { .. } => {
                format!("{node} leads nothing; undo it with `drain {} --undo`\n", at("node"))
            }
            Request::Rebalance { .. } => "everything is where it should be\n".to_owned(),
            Request::Remove { .. } => format!("{node} is no member any longer\n"),
            Request::Set { value, .. } if value.is_empty() => {
                format!("{} is each node's own again\n", at("set"))
            }
            Request::Set { .. } => format!("{} is set for all nodes\n", at("set")),
            Request::Get { .. } => {
                let mut out = String::new();
                for (key, value) in value.as_object().into_iter().flatten() {
                    line(&mut out, format_args!("{key} = {}", value.as_str().unwrap_or_default()));
                }
                out
            }
        }
    }
}

/// A status as tables.
fn table(status: &Status) -> String {
    let mut out = String::new();
    let count = status.members.len();
    let s = if count == 1 { "" } else { "s" };
    line(&mut out, format_args!("cluster {}, {count} node{s}", status.cluster));
    match status.place.as_str() {
        "member" => {}
        "removed" => line(
            &mut out,
            format_args!("THIS NODE WAS REMOVED; to join again it needs an empty data directory"),
        ),
        place => line(&mut out, format_args!("this node is {place}")),
    }
    let mut rows = vec![
        ["", "node", "name", "state", "up", "zone", "address", "leads", "votes", "listens"]
            .map(str::to_owned),
    ];
    for member in &status.members {
        let count = |of: fn(&GroupStatus, &String) -> bool| {
            status.groups.iter().filter(|group| of(group, &member.node)).count().to_string()
        };
        let here = if member.node == status.node { "*" } else { "" };
        rows.push([
            here.to_owned(),
            member.node.clone(),
            member.name.clone(),
            member.state.clone(),
            if member.up { "yes" } else { "NO" }.to_owned(),
            member.zone.clone(),
            member.address.clone(),
            count(|group, node| group.leader.as_ref() == Some(node)),
            count(|group, node| group.voters.contains(node)),
            count(|group, node| group.learners.contains(node)),
        ]);
    }
    aligned(&mut out, &rows);
    let silent = status.groups.iter().filter(|group| group.leader.is_none());
    let silent: Vec<_> = silent.map(|group| name(group.group)).collect();
    if silent.is_empty() {
        line(&mut out, format_args!("groups: all {} have a leader", status.groups.len()));
    } else {
        line(&mut out, format_args!("groups: NO LEADER for {}", silent.join(", ")));
    }
    let sessions = &status.sessions;
    line(&mut out, format_args!("sessions: {}, {} online", sessions.rows, sessions.online));
    for (key, value) in &status.settings {
        line(&mut out, format_args!("{key} = {value}"));
    }
    out
}

fn name(group: u16) -> String {
    if group == proto::ShardId::META.0 { "meta".to_owned() } else { group.to_string() }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a `String` cannot fail.
    let _always_ok = writeln!(out, "{text}");
}

fn aligned<const N: usize>(out: &mut String, rows: &[[String; N]]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..N).map(|column| width(column).unwrap_or_default()).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).filter(|(_, width)| **width > 0);
        let cells: Vec<_> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
        line(out, format_args!("{}", cells.join("  ").trim_end()));
    }
}
