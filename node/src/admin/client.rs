//! `natter admin`: sends a request to the node of a data directory and prints the answer.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use serde_json::json;

use super::call::{Call, CallError};
use super::print::Printed;
use super::{Drain, Failure, FailureCode, Join, Remove, Reply, Request, Set, Wait};
use crate::cli::{Admin, AdminCommand, ClusterCommand, SettingsCommand};

/// Exit codes, beside 0 for done and 2 for a command line that makes no sense.
const FAILED: u8 = 1;
const NOT_RUNNING: u8 = 3;
const NOT_PERMITTED: u8 = 4;
const NO_MAJORITY: u8 = 5;
const INTERRUPTED: u8 = 130;

/// Why a request came to nothing.
#[derive(Debug)]
enum Trouble {
    NotRunning(String),
    NotPermitted(String),
    Failed(Failure),
    Broken(String),
    Interrupted,
}

impl Trouble {
    fn exit_status(&self) -> u8 {
        match self {
            Self::NotRunning(_) => NOT_RUNNING,
            Self::NotPermitted(_) => NOT_PERMITTED,
            Self::Failed(failure) => match failure.code {
                FailureCode::NoMajority => NO_MAJORITY,
                FailureCode::NotPermitted => NOT_PERMITTED,
                FailureCode::Refused
                | FailureCode::UnknownNode
                | FailureCode::UnknownSetting
                | FailureCode::UnknownRoute
                | FailureCode::MethodNotAllowed
                | FailureCode::Busy
                | FailureCode::Malformed
                | FailureCode::TooLarge
                | FailureCode::TooSlow
                | FailureCode::StillGoing
                | FailureCode::Internal => FAILED,
            },
            Self::Broken(_) => FAILED,
            Self::Interrupted => INTERRUPTED,
        }
    }

    /// As the node's own failures: a code for programs, a text for people.
    fn json(&self) -> serde_json::Value {
        let code = match self {
            Self::NotRunning(_) => json!("not_running"),
            Self::NotPermitted(_) => json!(FailureCode::NotPermitted),
            Self::Failed(failure) => json!(failure.code),
            Self::Broken(_) => json!("broken"),
            Self::Interrupted => json!("interrupted"),
        };
        json!({ "code": code, "text": self.text() })
    }

    fn text(&self) -> &str {
        match self {
            Self::NotRunning(text) | Self::NotPermitted(text) | Self::Broken(text) => text,
            Self::Failed(failure) => &failure.text,
            Self::Interrupted => "what was begun goes on; see `natter admin cluster status`",
        }
    }
}

/// Does what the command line says. Status 0 if it was done, 1 if not, 3 if no node runs, 4 if this
/// user may not ask it, 5 if no majority answers.
pub fn run(admin: &Admin) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let asked = match runtime {
        Ok(runtime) => runtime.block_on(ask(admin)),
        Err(error) => Err(Trouble::Broken(error.to_string())),
    };
    match asked {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            // If nobody reads there is nobody to tell.
            if admin.json {
                writeln!(io::stdout(), "{}", trouble.json()).ok();
            } else {
                writeln!(io::stderr(), "natter: {}", trouble.text()).ok();
            }
            ExitCode::from(trouble.exit_status())
        }
    }
}

fn request(command: &AdminCommand) -> Request {
    match command.clone() {
        AdminCommand::Cluster { command } => match command {
            ClusterCommand::Status => Request::Status,
            ClusterCommand::Join { seed } => Request::Join(Join { seed }),
            ClusterCommand::Leave { no_wait } => Request::Leave(Wait { wait: !no_wait }),
            ClusterCommand::Drain { node, undo, force, no_wait } => {
                Request::Drain(Drain { node, undo, force, wait: !no_wait })
            }
            ClusterCommand::Rebalance { no_wait } => Request::Rebalance(Wait { wait: !no_wait }),
            ClusterCommand::Remove { node, no_wait } => {
                Request::Remove(Remove { node, wait: !no_wait })
            }
        },
        AdminCommand::Settings { command } => match command {
            SettingsCommand::Set { key, value } => Request::Set { key, set: Set { value } },
            SettingsCommand::Get { key } => Request::Get { key },
        },
    }
}

async fn ask(admin: &Admin) -> Result<(), Trouble> {
    let request = request(&admin.command);
    let printed = Printed { request: &request, json: admin.json };
    tokio::select! {
        done = listen(&admin.data_dir, &printed) => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.map_err(|error| broken(&error))?;
            Err(Trouble::Interrupted)
        }
    }
}

async fn listen(data_dir: &Path, printed: &Printed<'_>) -> Result<(), Trouble> {
    let trouble = |error| trouble(data_dir, error);
    let mut call = Call::begin(data_dir, printed.request).await.map_err(trouble)?;
    loop {
        match call.next().await.map_err(trouble)? {
            Reply::Progress(left) => printed.progress(&left).map_err(|error| broken(&error))?,
            Reply::Done(value) => return printed.done(&value).map_err(|error| broken(&error)),
            Reply::Failed(failure) => return Err(Trouble::Failed(failure)),
        }
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "another library's enum")]
fn trouble(data_dir: &Path, error: CallError) -> Trouble {
    let dir = data_dir.display();
    match error {
        CallError::Unreachable(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Trouble::NotRunning(
                format!("no node runs in {dir}; name its directory with --data-dir"),
            ),
            io::ErrorKind::PermissionDenied => {
                Trouble::NotPermitted(format!("{dir}: only the user that runs the node may ask it"))
            }
            _ => Trouble::Broken(format!("{dir}: {error}")),
        },
        CallError::Failed(failure) => Trouble::Failed(failure),
        CallError::Broken(text) => Trouble::Broken(text),
    }
}

fn broken(error: &dyn std::error::Error) -> Trouble {
    Trouble::Broken(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Admin;
    use clap::Args as _;

    #[test]
    fn the_help_names_every_exit_status() {
        let help = Admin::augment_args(clap::Command::new("admin")).render_help().to_string();
        let failed = |kind| Trouble::Failed(Failure::new(kind, "")).exit_status();
        for (status, words) in [
            (0, "done"),
            (failed(FailureCode::Refused), "not done"),
            (2, "the command line"),
            (Trouble::NotRunning(String::new()).exit_status(), "no node runs"),
            (failed(FailureCode::NotPermitted), "this user may not ask"),
            (failed(FailureCode::NoMajority), "no majority"),
            (Trouble::Interrupted.exit_status(), "interrupted"),
        ] {
            assert!(
                help.contains(&format!("\n  {status:<3}  {words}")),
                "{status} {words}\n{help}"
            );
        }
    }
}
