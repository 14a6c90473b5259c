//! How a PIN reaches a person: a line on standard output, an HTTP POST, or an e-mail.
//!
//! Built once from the settings and called by whoever decided that a PIN is due.
//!
//! # Invariants
//! 1. No PIN is in an error, an event or a metric.
//! 2. A send ends: each has a time limit and a bounded number of tries.

mod smtp;
mod webhook;

use metrics::counter;
use proto::Alias;
use proto::ids::AliasKind;
use tracing::{debug, warn};

use crate::config::{Registration, Sender};
use crate::observe::output;

/// Why a PIN did not go out, or cannot.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// This sender has no way to such an alias.
    #[error("registration.sender {sender} cannot reach an alias of kind {}", kind_name(*kind))]
    WrongKind {
        /// What the alias is.
        kind: AliasKind,
        /// The sender of the settings.
        sender: &'static str,
    },
    /// The gateway refused it; it would refuse it again.
    #[error("the PIN gateway answered {status}")]
    GatewayRefused {
        /// Its HTTP status.
        status: u16,
    },
    /// The gateway gave no good answer in several tries.
    #[error("the PIN gateway did not take it in {tries} tries, last: {last}")]
    GatewayUnavailable {
        /// How many.
        tries: u32,
        /// What the last one met.
        last: String,
    },
    /// The mail server refused it or was not there.
    #[error("the mail server did not take it")]
    Mail(#[source] lettre::transport::smtp::Error),
    /// The alias or the sender cannot stand in a mail.
    #[error("no mail can be written to this alias")]
    Letter,
    /// Standard output is closed, or nobody reads it.
    #[error("standard output takes nothing: it is closed, or nobody reads it")]
    Output,
    /// The sender of the settings cannot be set up.
    #[error("registration.sender {sender}: cannot be set up; check its section in the settings")]
    Setup {
        /// The sender of the settings.
        sender: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The sender of the settings.
#[derive(Debug)]
pub enum PinSender {
    /// Prints `natter-pin alias=ALIAS pin=PIN` on standard output.
    Log,
    /// Posts to an operator's gateway.
    Webhook(Box<webhook::Webhook>),
    /// Sends e-mail.
    Smtp(Box<smtp::Smtp>),
}

impl PinSender {
    /// Sets up the sender of the settings.
    ///
    /// # Errors
    /// [`PinError::Setup`].
    pub fn new(registration: &Registration) -> Result<Self, PinError> {
        match registration.sender {
            Sender::Log => {
                warn!("PINs are printed on standard output: for development only");
                Ok(Self::Log)
            }
            Sender::Webhook => webhook::Webhook::open(&registration.webhook)
                .map(|hook| Self::Webhook(Box::new(hook))),
            Sender::Smtp => {
                smtp::Smtp::open(&registration.smtp).map(|smtp| Self::Smtp(Box::new(smtp)))
            }
        }
    }

    /// Sends `pin` to `alias`. Takes up to three times the sender's time limit.
    ///
    /// # Errors
    /// [`PinError`]; except for [`PinError::WrongKind`] and [`PinError::GatewayRefused`] the person
    /// may have received it all the same.
    pub async fn send(&self, alias: &Alias, pin: &str) -> Result<(), PinError> {
        let sent = match self {
            Self::Log => print(alias, pin),
            Self::Webhook(webhook) => webhook.send(alias, pin).await,
            Self::Smtp(smtp) => smtp.send(alias, pin).await,
        };
        match &sent {
            Ok(()) => counter!("natter_pins_sent_total").increment(1),
            Err(error) => {
                counter!("natter_pins_failed_total").increment(1);
                let cause = std::error::Error::source(error).map(ToString::to_string);
                debug!(%error, cause, "PIN not sent");
            }
        }
        sent
    }
}

fn print(alias: &Alias, pin: &str) -> Result<(), PinError> {
    let out = output::stdout();
    let taken = out.write(format!("natter-pin alias={alias} pin={pin}\n").as_bytes());
    if taken && out.is_open() { Ok(()) } else { Err(PinError::Output) }
}

fn kind_name(kind: AliasKind) -> &'static str {
    match kind {
        AliasKind::Phone => "phone",
        AliasKind::Email => "email",
        AliasKind::Name => "name",
    }
}
