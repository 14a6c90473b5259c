//! TLS for clients: which certificate, which versions, and as little memory as rustls allows.
//!
//! Opened once at start; [`Certificates::reload`] is called every few seconds beside the listeners.
//!
//! # Invariants
//! 1. TLS 1.3 only. No session is kept: our own tickets resume sessions.
//! 2. A certificate file that is replaced by a broken one changes nothing but a warning.
//! 3. A private key that we make is readable by its owner alone.

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use humantime::Rfc3339Timestamp as Timestamp;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use tracing::info;
use yasna::tags::TAG_UTCTIME;
use yasna::{ASN1Result, BERReader, BERReaderSeq, Tag};

use crate::authority::{Authority, Issued};
use crate::config;
use crate::data_dir;

/// ALPN of the client port.
pub const ALPN_CLIENT: &[u8] = b"natter/1";

/// ALPN of the WebSocket port, which begins with HTTP.
pub const ALPN_WEBSOCKET: &[u8] = b"http/1.1";

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is missing or may not be read.
    #[error("{key} {}: cannot be read; check the path and its permissions", file.display())]
    Unreadable {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no certificate, or no private key.
    #[error("{key} {}: holds no {wanted} in PEM form", file.display())]
    NotPem {
        /// The setting that names it.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What was looked for.
        wanted: &'static str,
    },
    /// Certificate and key are not a pair, or of an unknown kind.
    #[error(
        "tls.certificate {} and tls.key {} do not fit; the first certificate of the chain must be the key's",
        certificate.display(), key.display()
    )]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// It has ended.
    #[error("tls.certificate {}: ended {until}; clients refuse it, renew it", file.display())]
    Ended {
        /// The file.
        file: PathBuf,
        /// When.
        until: Timestamp,
    },
    /// The development certificate cannot be made.
    #[error(
        "tls.names {names:?}: no certificate can be made for them; write host names or IP addresses"
    )]
    Names {
        /// The names.
        names: Vec<String>,
        /// Why.
        source: rcgen::Error,
    },
    /// The development certificate cannot be stored.
    #[error("{}: cannot be written; check that the data directory is writable", file.display())]
    NotWritten {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// rustls takes none of our parameters.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// The certificate in use, and where it comes from.
#[derive(Debug)]
pub struct Certificates {
    files: Files,
    resolver: Arc<Resolver>,
    seen: Mutex<Stamp>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    is_development: bool,
}

/// When and how long the files were.
type Stamp = [Option<(SystemTime, u64)>; 2];

/// What is served.
#[derive(Debug)]
struct Chain {
    key: Arc<CertifiedKey>,
    term: Option<Term>,
}

/// When a certificate holds, in seconds of Unix time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Term {
    /// The first second.
    pub from_s: u64,
    /// The last one.
    pub until_s: u64,
}

impl Term {
    /// The last second, as people write it.
    pub fn until(self) -> Timestamp {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.until_s))
    }

    /// Of the first certificate, the node's own. `None` if it cannot be read. Those behind it may have
    /// ended: clients that know another way to a root do not mind.
    fn of(chain: &[CertificateDer<'_>]) -> Option<Self> {
        yasna::parse_der(chain.first()?, read_term).ok()
    }
}

/// The validity of a certificate (RFC 5280, section 4.1): version (which may be missing), serial number, algorithm,
/// issuer, validity, and more that is of no use here.
fn read_term(certificate: BERReader<'_, '_>) -> ASN1Result<Term> {
    let to_be_signed = |fields: &mut BERReaderSeq<'_, '_>| {
        fields.read_optional(|version| version.read_tagged(Tag::context(0), skip))?;
        for _serial_algorithm_issuer in 0..3 {
            skip(fields.next())?;
        }
        let term = fields.next().read_sequence(|validity| {
            let from_s = read_seconds(validity.next())?;
            Ok(Term { from_s, until_s: read_seconds(validity.next())? })
        })?;
        while fields.read_optional(skip)?.is_some() {}
        Ok(term)
    };
    certificate.read_sequence(|parts| {
        let term = parts.next().read_sequence(to_be_signed)?;
        while parts.read_optional(skip)?.is_some() {}
        Ok(term)
    })
}

fn skip(element: BERReader<'_, '_>) -> ASN1Result<()> {
    element.read_der().map(drop)
}

/// A time of one of the two forms of RFC 5280. Times before 1970 are 0.
fn read_seconds(time: BERReader<'_, '_>) -> ASN1Result<u64> {
    let seconds = if time.lookahead_tag()? == TAG_UTCTIME {
        time.read_utctime()?.datetime().unix_timestamp()
    } else {
        time.read_generalized_time()?.datetime().unix_timestamp()
    };
    Ok(u64::try_from(seconds).unwrap_or(0))
}

#[derive(Debug)]
struct Resolver(RwLock<Chain>);

impl Resolver {
    fn read(&self) -> RwLockReadGuard<'_, Chain> {
        self.0.read()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.read().key))
    }
}

/// Makes aws-lc-rs the cryptography of the process, also for libraries that ask rustls for its
/// default. Does nothing the second time.
pub fn install_provider() {
    // `Err` says that one is installed already.
    let _already = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Certificates {
    /// Reads the certificate of the settings. If they name none, reads the development certificate in
    /// `data_dir/tls`, or makes it: the authority of the `cookie` signs it.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn open(config: &config::Tls, data_dir: &Path, cookie: &str) -> Result<Self, TlsError> {
        let files = Files::of(config, data_dir);
        if files.are_to_be_made() {
            files.make(&config.names, cookie)?;
        }
        let seen = Mutex::new(files.stamp());
        let resolver = Arc::new(Resolver(RwLock::new(files.read()?)));
        Ok(Self { files, resolver, seen })
    }

    /// Whether [`open`](Self::open) will find what it needs, and, if `now_s`, Unix time, is given, whether
    /// clients will take it then. Writes nothing.
    ///
    /// # Errors
    /// [`TlsError`] names the file and what is wrong with it.
    pub fn check(
        config: &config::Tls,
        data_dir: &Path,
        now_s: Option<u64>,
    ) -> Result<(), TlsError> {
        let files = Files::of(config, data_dir);
        if files.are_to_be_made() {
            // Only the names can be wrong; the cookie is not needed to see that.
            return development("", &config.names).map(drop);
        }
        match files.read()?.term {
            Some(term) if now_s.is_some_and(|now_s| term.until_s < now_s) => {
                Err(TlsError::Ended { file: files.certificate, until: term.until() })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// When the certificate that is served holds, if that can be read.
    pub fn term(&self) -> Option<Term> {
        self.resolver.read().term
    }

    /// The certificate's file.
    pub fn file(&self) -> &Path {
        &self.files.certificate
    }

    /// Whether this is the development certificate.
    pub fn is_development(&self) -> bool {
        self.files.is_development
    }

    /// TLS for connections that speak `alpn`.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub fn acceptor(&self, alpn: &[u8]) -> Result<TlsAcceptor, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = self.resolver.clone();
        let mut config = rustls::ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![alpn.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(TlsAcceptor::from(Arc::new(config)))
    }

    /// Reads the files again if they changed; whether they did. New connections get the new
    /// certificate.
    ///
    /// # Errors
    /// [`TlsError`] if the new files cannot be used: the old certificate stays. Said once for each
    /// change.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let stamp = self.files.stamp();
        {
            let mut seen = self.seen.lock();
            if *seen == stamp {
                return Ok(false);
            }
            *seen = stamp;
        }
        let read = self.files.read()?;
        *self.resolver.0.write() = read;
        Ok(true)
    }
}

impl Files {
    /// Those of the settings, or those of the development certificate.
    fn of(config: &config::Tls, data_dir: &Path) -> Self {
        if config.certificate.is_empty() {
            let folder = data_dir.join("tls");
            return Self {
                certificate: folder.join("cert.pem"),
                key: folder.join("key.pem"),
                is_development: true,
            };
        }
        Self {
            certificate: PathBuf::from(&config.certificate),
            key: PathBuf::from(&config.key),
            is_development: false,
        }
    }

    fn are_to_be_made(&self) -> bool {
        self.is_development
            && ![&self.certificate, &self.key, &self.authority()].iter().all(|file| file.exists())
    }

    /// What clients must trust to trust the development certificate of this node, and of all nodes with its
    /// cookie.
    fn authority(&self) -> PathBuf {
        self.certificate.with_file_name("ca.pem")
    }

    /// Makes the development certificate.
    fn make(&self, names: &[String], cookie: &str) -> Result<(), TlsError> {
        let (authority, issued) = development(cookie, names)?;
        let not_written = |file: &Path| {
            let file = file.to_owned();
            move |source| TlsError::NotWritten { file, source }
        };
        let folder = self.key.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(not_written(folder))?;
        data_dir::write_private(&self.key, issued.key.as_bytes())
            .map_err(not_written(&self.key))?;
        for (file, content) in [
            (&self.certificate, issued.chain.as_str()),
            (&self.authority(), authority.certificate()),
        ] {
            fs::write(file, content).map_err(not_written(file))?;
        }
        info!(file = %self.authority().display(), "development certificate made; clients trust this file");
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        [&self.certificate, &self.key].map(|file| {
            let metadata = fs::metadata(file).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }

    fn read(&self) -> Result<Chain, TlsError> {
        let (key, file, wanted) = ("tls.certificate", &self.certificate, "certificate");
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(file)
            .and_then(Iterator::collect)
            .map_err(|error| pem_error(error, key, file, wanted))?;
        if chain.is_empty() {
            return Err(TlsError::NotPem { key, file: file.clone(), wanted });
        }
        let private = PrivateKeyDer::from_pem_file(&self.key)
            .map_err(|error| pem_error(error, "tls.key", &self.key, "private key"))?;
        let term = Term::of(&chain);
        let key = CertifiedKey::from_der(chain, private, &provider()).map_err(|source| {
            let (certificate, key) = (self.certificate.clone(), self.key.clone());
            TlsError::Mismatch { certificate, key, source }
        })?;
        Ok(Chain { key: Arc::new(key), term })
    }
}

fn pem_error(error: pem::Error, key: &'static str, file: &Path, wanted: &'static str) -> TlsError {
    let file = file.to_owned();
    if let pem::Error::Io(source) = error {
        return TlsError::Unreadable { key, file, source };
    }
    TlsError::NotPem { key, file, wanted }
}

fn development(cookie: &str, names: &[String]) -> Result<(Authority, Issued), TlsError> {
    let issue = || {
        let authority = Authority::of(cookie)?;
        let issued = authority.issue(names)?;
        Ok((authority, issued))
    };
    issue().map_err(|source| TlsError::Names { names: names.to_vec(), source })
}
