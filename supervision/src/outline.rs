//! A supervision tree as data: names and roles, for documents and for operators.

use std::fmt;

use crate::child_spec::ChildSpec;
use crate::strategy::Strategy;

/// The role of a node in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A process with an inbox.
    Process,
    /// A long-running task.
    Task,
    /// A supervisor of the children below it.
    Supervisor(Strategy),
    /// A dynamic supervisor.
    Dynamic,
}

/// A node of the tree with its children. `Display` prints one indented line for each node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// The child's name.
    pub name: &'static str,
    /// Its role.
    pub role: Role,
    /// Its children in the order of their start.
    pub children: Vec<Outline>,
}

impl Outline {
    /// The outline of a supervisor of `children`, running or not.
    pub fn of(name: &'static str, strategy: Strategy, children: &[ChildSpec]) -> Self {
        let children = children.iter().map(|child| child.outline.clone()).collect();
        Self { name, role: Role::Supervisor(strategy), children }
    }

    pub(crate) fn leaf(name: &'static str, role: Role) -> Self {
        Self { name, role, children: Vec::new() }
    }

    fn print(&self, out: &mut fmt::Formatter<'_>, depth: usize) -> fmt::Result {
        let role = match self.role {
            Role::Process => "",
            Role::Task => " (task)",
            Role::Dynamic => " (dynamic)",
            Role::Supervisor(Strategy::OneForOne) => " (one for one)",
            Role::Supervisor(Strategy::OneForAll) => " (one for all)",
            Role::Supervisor(Strategy::RestForOne) => " (rest for one)",
        };
        writeln!(out, "{:indent$}{}{role}", "", self.name, indent = depth * 4)?;
        self.children.iter().try_for_each(|child| child.print(out, depth + 1))
    }
}

impl fmt::Display for Outline {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.print(out, 0)
    }
}
