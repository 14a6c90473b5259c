//! Every code in words for the person in front of the screen. The one place for them: clients, the demo and
//! the errors of this crate show these sentences.

use crate::ConnectError;
use proto::Code;
use rustls::{AlertDescription, Error as TlsError};
use std::io::{self, ErrorKind};

/// The code as a sentence for a person, without a full stop: what happened, and what to do if something can
/// be done.
pub fn explain(code: Code) -> &'static str {
    match code {
        Code::BadFrame => "the node could not read this client; one of them needs an update",
        Code::FrameTooLarge => "that is more than the node takes at once",
        Code::TimedOut => "the node heard nothing from this client for too long",
        Code::GoingAway => "the node is shutting down",
        Code::TooManyConnections => "the node has too many connections; try again later",
        Code::NotLoggedIn => "that needs a login first",
        Code::BadCredentials => "the node does not know this device",
        Code::BadTicket => "the login ticket is no longer good",
        Code::WrongPin => "the PIN is wrong",
        Code::WrongLock => "the account has a registration lock, and this is not it",
        Code::NoPin => "the PIN has expired or was tried too often; ask for a new one",
        Code::PinNotSent => "the PIN could not be sent; try again later",
        Code::AlreadyLoggedIn => "this connection is logged in already",
        Code::Replaced => "this device is logged in elsewhere",
        Code::Unlinked => "this device was unlinked, or its account was deleted",
        Code::SetAside => {
            "this device was away for too long; fetch what is missing from another of your devices"
        }
        Code::BadRequest => "the node does not take that: something is missing or out of range",
        Code::UnknownUser => "there is no such person here",
        Code::UnknownDevice => "there is no device with that number",
        Code::Blocked => "they take no messages from you",
        Code::NotSupported => {
            "the node does not know that request; it may be older than this client"
        }
        Code::TooFast => "too many requests; try again later",
        Code::MailboxFull => "too many messages wait for them; try again later",
        Code::BodyTooLarge => "the message is too long",
        Code::TooMany => "the limit for devices, blocks or subscriptions is reached",
        Code::Unavailable => "the node cannot do that right now; try again in a moment",
        Code::StorageFull => "the node's disk is full; it takes nothing new until there is space",
        Code::Internal => "the node has a fault; try again",
        Code::Unknown(_) => "the node gave a reason that this client does not know",
    }
}

/// What a person can look at when there is no connection, in the form of a remark; `None` if the error says it.
pub fn remedy(error: &ConnectError) -> Option<&'static str> {
    let ConnectError::Io(error) = error else { return None };
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::InvalidCertificate(_)) => Some(
            "the node's certificate is not signed by the file that was named as trusted, or is for another \
             host name",
        ),
        Some(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Some("another protocol is spoken on that port; clients use listen.client, 7400")
        }
        Some(TlsError::InvalidMessage(_)) => {
            Some("no TLS is spoken on that port; clients use listen.client, 7400")
        }
        Some(_) | None if is_refused(error) => {
            Some("nobody listens there: compare the address, and see that the node runs")
        }
        Some(_) | None => None,
    }
}

fn is_refused(error: &io::Error) -> bool {
    error.kind() == ErrorKind::ConnectionRefused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DisconnectReason, Refusal, RequestError, SendError};
    use std::{collections::BTreeSet, time::Duration};

    #[test]
    fn people_read_a_sentence_for_each_code_and_never_its_name() {
        let codes = Code::ALL.iter().copied().chain([Code::Unknown(99)]);
        for code in codes {
            let text = code.name().to_owned();
            let refusal = Refusal { code, text, retry_after: Duration::ZERO };
            for shown in [
                refusal.to_string(),
                RequestError::Refused(refusal.clone()).to_string(),
                RequestError::Ended(code).to_string(),
                SendError::Refused(refusal).to_string(),
                SendError::Ended(code).to_string(),
                DisconnectReason::GoAway(code).to_string(),
                DisconnectReason::Refused(code).to_string(),
            ] {
                assert!(shown.contains(explain(code)), "{shown}");
                assert!(!shown.contains(code.name()), "{shown}");
                assert!(shown.split_whitespace().count() >= 4, "{shown} is no sentence");
            }
        }
    }

    #[test]
    fn who_has_to_wait_for_long_is_told_for_how_long() {
        let shown = |seconds| {
            let retry_after = Duration::from_secs(seconds);
            Refusal { code: Code::TooFast, text: String::new(), retry_after }.to_string()
        };
        for (seconds, told) in [
            (1, "too many requests; try again later"),
            (20, "too many requests; try again later (in 20 seconds)"),
            (601, "too many requests; try again later (in 11 minutes)"),
            (17_280, "too many requests; try again later (in 5 hours)"),
        ] {
            assert_eq!(shown(seconds), told);
        }
    }

    #[test]
    fn what_keeps_a_client_from_its_node_comes_with_what_to_look_at() {
        let unknown = rustls::CertificateError::UnknownIssuer;
        let invalid = rustls::InvalidMessage::InvalidContentType;
        for (error, words) in [
            (io::Error::other(TlsError::InvalidCertificate(unknown)), "not signed"),
            (
                io::Error::other(TlsError::AlertReceived(AlertDescription::NoApplicationProtocol)),
                "another protocol",
            ),
            (io::Error::other(TlsError::InvalidMessage(invalid)), "no TLS"),
            (ErrorKind::ConnectionRefused.into(), "nobody listens"),
        ] {
            let said = remedy(&error.into()).unwrap();
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(remedy(&ConnectError::Unexpected), None);
    }

    #[test]
    fn no_two_codes_read_the_same() {
        let sentences: BTreeSet<_> = Code::ALL.iter().map(|code| explain(*code)).collect();
        assert_eq!(sentences.len(), Code::ALL.len());
    }

    #[test]
    fn a_node_that_says_more_than_the_name_is_quoted() {
        let text = "the alias has 300 bytes".to_owned();
        let refusal = Refusal { code: Code::BadRequest, text, retry_after: Duration::ZERO };
        assert!(refusal.to_string().ends_with("(the alias has 300 bytes)"), "{refusal}");
    }
}
