//! PINs by e-mail.
//!
//! **Invariant:** one connection to the mail server for each PIN, with a time limit.

use std::fmt;

use lettre::message::Mailbox;
use lettre::message::header::ContentType;
use lettre::transport::smtp::authentication::Credentials;
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use proto::Alias;
use proto::ids::AliasKind;

use super::PinError;
use crate::config::{self, Encryption};
use crate::tls;

const SENDER: &str = "smtp";

/// A mail server that takes PINs.
pub struct Smtp {
    server: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl fmt::Debug for Smtp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smtp").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Smtp {
    /// Sets up the client; nothing is sent.
    ///
    /// # Errors
    /// [`PinError::Setup`].
    pub(super) fn open(config: &config::Smtp) -> Result<Self, PinError> {
        type Server = AsyncSmtpTransport<Tokio1Executor>;
        tls::install_provider();
        let server = match config.encryption {
            Encryption::StartTls => Server::starttls_relay(&config.host),
            Encryption::Tls => Server::relay(&config.host),
            Encryption::Plain => Ok(Server::builder_dangerous(&config.host)),
        };
        let mut server = server
            .map_err(|source| PinError::Setup { sender: SENDER, source: source.into() })?
            .port(config.port)
            .timeout(Some(config.timeout));
        if !config.user.is_empty() {
            let password = config.password.reveal().to_owned();
            server = server.credentials(Credentials::new(config.user.clone(), password));
        }
        let from = config.from.parse();
        let from = from.map_err(|source: lettre::address::AddressError| PinError::Setup {
            sender: SENDER,
            source: source.into(),
        })?;
        Ok(Self { server: server.build(), from })
    }

    pub(super) async fn send(&self, alias: &Alias, pin: &str) -> Result<(), PinError> {
        let kind = alias.kind();
        if kind != AliasKind::Email {
            return Err(PinError::WrongKind { kind, sender: SENDER });
        }
        // Neither error is kept: both could quote the address.
        let to = alias.as_str().parse().map_err(|_| PinError::Letter)?;
        let letter = Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject("Your natter PIN")
            .header(ContentType::TEXT_PLAIN)
            .body(format!("Your PIN is {pin}\n\nIf you did not ask for it, ignore this mail.\n"))
            .map_err(|_| PinError::Letter)?;
        self.server.send(letter).await.map(drop).map_err(PinError::Mail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;

    use supervision::TaskGroup;
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::{TcpListener, TcpStream};

    type Lines = Arc<Mutex<Vec<String>>>;

    /// A mail server for one conversation, which refuses recipients at `full.example`.
    async fn converse(stream: TcpStream, heard: Lines) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 mail.example\r\n").await?;
        let mut in_letter = false;
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 0 {
            let said = line.trim_end().to_owned();
            line.clear();
            in_letter &= said != ".";
            let answer = match said.split([' ', ':']).next().unwrap() {
                _ if in_letter => "",
                "EHLO" => "250 mail.example\r\n",
                "DATA" => "354 go on\r\n",
                "QUIT" => "221 bye\r\n",
                "RCPT" if said.contains("full.example") => "552 mailbox full\r\n",
                _ => "250 ok\r\n",
            };
            in_letter |= said == "DATA";
            heard.lock().push(said);
            stream.write_all(answer.as_bytes()).await?;
        }
        Ok(())
    }

    async fn mail_server() -> (TaskGroup, Lines, Smtp) {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let heard = Lines::default();
        let lines = heard.clone();
        let group = TaskGroup::new();
        group.spawn("mail server", async move {
            while let Ok((stream, _)) = socket.accept().await {
                converse(stream, lines.clone()).await.ok();
            }
        });
        let smtp = Smtp::open(&config::Smtp {
            host: "127.0.0.1".into(),
            port,
            encryption: Encryption::Plain,
            from: "natter <pin@natter.example>".into(),
            timeout: Duration::from_secs(5),
            ..config::Smtp::default()
        });
        (group, heard, smtp.unwrap())
    }

    #[tokio::test]
    async fn a_pin_is_mailed_to_its_address() {
        let (_group, heard, smtp) = mail_server().await;
        smtp.send(&Alias::parse("ada@example.org").unwrap(), "123456").await.unwrap();
        let heard = heard.lock().join("\n");
        for part in ["FROM:<pin@natter.example>", "TO:<ada@example.org>", "Your PIN is 123456"] {
            assert!(heard.contains(part), "{heard}");
        }
    }

    #[tokio::test]
    async fn who_has_no_mail_address_is_refused_without_a_word_to_the_server() {
        let (_group, heard, smtp) = mail_server().await;
        for alias in ["ada", "+4915112345678"] {
            let error = smtp.send(&Alias::parse(alias).unwrap(), "123456").await.unwrap_err();
            assert!(matches!(error, PinError::WrongKind { .. }), "{error}");
        }
        assert!(heard.lock().is_empty());
    }

    #[tokio::test]
    async fn a_refusal_tells_no_pin() {
        let (_group, _heard, smtp) = mail_server().await;
        let bob = Alias::parse("bob@full.example").unwrap();
        let error = smtp.send(&bob, "123456").await.unwrap_err();
        assert!(matches!(error, PinError::Mail(_)));
        assert!(!format!("{error} {error:?}").contains("123456"));
    }
}
