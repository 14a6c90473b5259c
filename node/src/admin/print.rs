//! What `natter admin` prints: tables for people, JSON for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use proto::NodeId;
use serde_json::{Value, json};

use super::GroupStatus;
use super::control::Status;
use super::{Drain, Request};

/// How replies to a request are printed: outcomes on standard output, progress on standard error.
#[derive(Debug)]
pub(super) struct Printed<'a> {
    pub(super) request: &'a Request,
    pub(super) json: bool,
}

impl Printed<'_> {
    pub(super) fn progress(&self, left: &[String]) -> io::Result<()> {
        if self.json {
            return writeln!(io::stderr(), "{}", json!({ "progress": left }));
        }
        writeln!(io::stderr(), "... {}", left.join(", "))
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
            Request::Join(_) => format!("{}\n", at("next")),
            Request::Drain(Drain { undo: true, .. }) => format!("{node} may lead again\n"),
            Request::Leave(_) | Request::Drain(_) | Request::Rebalance(_) | Request::Remove(_)
                if only_begun =>
            {
                "begun; `natter admin cluster status` shows how far it is\n".to_owned()
            }
            Request::Leave(_) => format!("{node} has left the cluster; stop it for good\n"),
            Request::Drain(_) => {
                format!("{node} leads nothing; undo it with `drain {} --undo`\n", at("node"))
            }
            Request::Rebalance(_) => "everything is where it should be\n".to_owned(),
            Request::Remove(_) => format!("{node} is no member any longer\n"),
            Request::Set { set, .. } if set.value.is_empty() => {
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
    members(&mut out, status);
    match status.clock.as_str() {
        "right" => {}
        "astray" => line(&mut out, format_args!("THIS NODE'S CLOCK IS WRONG: it leads nothing")),
        "differs" => line(&mut out, format_args!("CLOCKS DIFFER: nothing expires")),
        _ => line(&mut out, format_args!("THIS NODE'S CLOCK JUMPED: nothing expires for a while")),
    }
    let silent = status.groups.iter().filter(|group| group.status.leader.is_none());
    let silent: Vec<_> = silent.map(|group| group.group.to_string()).collect();
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

/// The members in three tables, each for a terminal of 80 columns.
fn members(out: &mut String, status: &Status) {
    let heads = ["", "node", "name", "state", "up for", "version", "clock", "free", "clients"];
    let mut rows = vec![heads.map(str::to_owned)];
    let mut places = vec![["name", "leads", "votes", "copies", "zone"].map(str::to_owned)];
    let mut addresses =
        vec![["name", "nodes reach it at", "clients reach it at"].map(str::to_owned)];
    for member in &status.members {
        let known = |known: Option<String>| known.unwrap_or_else(|| "?".to_owned());
        let here = if member.node == status.node { "*" } else { "" };
        rows.push([
            here.to_owned(),
            member.node.to_string().chars().take(ID_CHARS).collect(),
            short(&member.name, NAME_CHARS),
            member.state.clone(),
            if member.up { known(member.up_s.map(span)) } else { "NOT UP".to_owned() },
            short(&member.version, VERSION_CHARS),
            known(member.clock_ms.map(clock)),
            known(member.free_bytes.map(bytes)),
            known(member.connections.map(|count| count.to_string())),
        ]);
        let count = |of: fn(&GroupStatus, NodeId) -> bool| {
            status.groups.iter().filter(|group| of(&group.status, member.node)).count().to_string()
        };
        places.push([
            short(&member.name, NAME_CHARS),
            count(|group, node| group.leader == Some(node)),
            count(|group, node| group.voters.contains(&node)),
            count(|group, node| group.learners.contains(&node)),
            short(&member.zone, NAME_CHARS),
        ]);
        addresses.push([
            short(&member.name, NAME_CHARS),
            short(&member.address, ADDRESS_CHARS),
            short(&member.client_address, ADDRESS_CHARS),
        ]);
    }
    aligned(out, &rows);
    line(out, format_args!("* answers. clock: how far it is ahead of the time; free: on its disk"));
    line(out, format_args!(""));
    aligned(out, &places);
    let groups = status.groups.len();
    line(out, format_args!("of {groups} groups; copies have no vote"));
    line(out, format_args!(""));
    aligned(out, &addresses);
    line(out, format_args!(""));
}

/// Digits of an id that are shown: enough to name a node in a command.
const ID_CHARS: usize = 8;

/// Of a name and a zone; three columns of the first table are as wide as this in all.
const NAME_CHARS: usize = 14;

const VERSION_CHARS: usize = 8;

/// Of an address: an IPv6 address with its port has 47 at most, two of them do not fit.
const ADDRESS_CHARS: usize = 31;

/// A text that may be too long for its column. All of it is in the JSON.
fn short(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars - 1).chain(['\u{2026}']).collect()
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        172_800.. => format!("{} days", seconds / 86_400),
    }
}

fn clock(ahead_ms: i64) -> String {
    let sign = if ahead_ms < 0 { '-' } else { '+' };
    format!("{sign}{}", span(ahead_ms.unsigned_abs() / 1000))
}

fn bytes(bytes: u64) -> String {
    match bytes >> 20 {
        0..10_240 => format!("{} MiB", bytes >> 20),
        10_240.. => format!("{} GiB", bytes >> 30),
    }
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing into a `String` cannot fail.
    let text = text.to_string();
    let shown = text.chars().map(|sign| if sign.is_control() { '?' } else { sign });
    let _always_ok = writeln!(out, "{}", shown.collect::<String>().trim_end());
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
