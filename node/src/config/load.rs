//! Reads settings from file and environment, and says precisely what is wrong with them.
//!
//! **Invariant:** every error names where the value came from, its key, the value (never a secret)
//! and the cure.

use std::path::{Path, PathBuf};

use figment::error::Kind;
use figment::providers::{Env, Format as _, Toml};
use figment::{Figment, Source};

use super::cluster::COOKIE_CHARS_MIN;
use super::units::{Setting as _, found, in_words};
use super::validate::SECRET_BYTES_MIN;
use super::{Log, LogFormat, NodeConfig, Secret};

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that was named cannot be read.
    #[error("{key} {}: cannot be read; check the path and its permissions", file.display())]
    Unreadable {
        /// `--config`, or the setting that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that should hold a secret is not there.
    #[error("{key} {}: is not there; {cure}", file.display())]
    NoSecretFile {
        /// The setting that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// Where it comes from.
        cure: &'static str,
    },
    /// A file that should hold a secret holds none, or one that is easily guessed.
    #[error("{key} {}: {problem}", file.display())]
    PoorSecret {
        /// The setting that names the file.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// How long the secret is, and the cure.
        problem: String,
    },
    /// The file is no TOML.
    #[error("{origin}: not TOML: {problem}")]
    Syntax {
        /// The file.
        origin: String,
        /// Line, column, and what is wrong there.
        problem: String,
    },
    /// A key that does not exist.
    #[error("{origin}: {key} is no setting; {cure}")]
    UnknownKey {
        /// The file or environment variable.
        origin: String,
        /// The whole key.
        key: String,
        /// Which keys there are.
        cure: String,
    },
    /// A value of the wrong type, form or range.
    #[error("{origin}: {key}: {problem}")]
    Value {
        /// The file or environment variable, or that it is the default.
        origin: String,
        /// The whole key.
        key: String,
        /// The value, what is wrong, and the cure.
        problem: String,
    },
}

/// What is wrong with one key, before it is known where its value came from.
pub(super) struct Problem {
    pub(super) key: &'static str,
    pub(super) problem: String,
}

impl NodeConfig {
    /// Reads the settings: defaults, then `file`, then the environment, then `data_dir`; and
    /// validates them.
    ///
    /// # Errors
    /// [`ConfigError`]: what is wrong, where, and what to do.
    pub fn load(file: Option<&Path>, data_dir: Option<&Path>) -> Result<Self, ConfigError> {
        if let Some(file) = file {
            let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Unreadable {
                key: "--config",
                file: file.to_owned(),
                source,
            })?;
            drop(text);
        }
        let figment = sources(file);
        let mut config: Self = figment.extract().map_err(|error| explain(&error))?;
        if let Some(data_dir) = data_dir {
            config.node.data_dir = data_dir.to_string_lossy().into_owned();
        }
        config.read_secret_files()?;
        config.check().map_err(|Problem { key, problem }| ConfigError::Value {
            origin: origin_of(&figment, key),
            key: key.to_owned(),
            problem,
        })?;
        Ok(config)
    }

    /// `log.format` alone, though other settings may be wrong; the default if it is wrong itself.
    pub fn log_format(file: Option<&Path>) -> LogFormat {
        let format = sources(file).find_value("log.format").ok();
        format.and_then(|value| LogFormat::read(&value).ok()).unwrap_or(Log::default().format)
    }

    /// Checks what types alone do not: ranges, and settings that need each other.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for the first that is wrong.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check().map_err(|Problem { key, problem }| ConfigError::Value {
            origin: "settings".to_owned(),
            key: key.to_owned(),
            problem,
        })
    }

    fn read_secret_files(&mut self) -> Result<(), ConfigError> {
        let webhook = &mut self.registration.webhook;
        let file = SecretFile {
            key: "registration.webhook.secret_file",
            chars_min: SECRET_BYTES_MIN,
            trim: without_line_end,
            cure: "write the secret into it, or correct the path",
        };
        file.read(&webhook.secret_file, &mut webhook.secret)?;
        let smtp = &mut self.registration.smtp;
        let key = "registration.smtp.password_file";
        let file = SecretFile {
            key,
            chars_min: 1,
            trim: without_line_end,
            cure: "write the password into it, or correct the path",
        };
        file.read(&smtp.password_file, &mut smtp.password)?;
        let cluster = &mut self.cluster;
        let key = "cluster.cookie_file";
        let file = SecretFile {
            key,
            chars_min: COOKIE_CHARS_MIN,
            trim: str::trim,
            cure: "the first node of a cluster makes its cookie, DATA_DIR/cookie, at its first start: start \
                   that node first, then this one, or copy the file from it",
        };
        file.read(&cluster.cookie_file, &mut cluster.cookie)
    }
}

/// `file`, and over it the environment.
fn sources(file: Option<&Path>) -> Figment {
    let file = file.map_or_else(Figment::new, |file| Figment::from(Toml::file_exact(file)));
    // Only names with `__`: service managers set variables such as NATTER_PORT.
    file.merge(Env::prefixed("NATTER_").filter(|name| name.as_str().contains("__")).split("__"))
}

/// A setting that names a file with a secret, and what is asked of that.
struct SecretFile {
    key: &'static str,
    chars_min: usize,
    /// What of the file's text is the secret.
    trim: fn(&str) -> &str,
    /// The cure if it is not there.
    cure: &'static str,
}

impl SecretFile {
    /// Reads `file` if one is named.
    fn read(self, file: &str, into: &mut Secret) -> Result<(), ConfigError> {
        if file.is_empty() {
            return Ok(());
        }
        let (key, file) = (self.key, PathBuf::from(file));
        let text = match std::fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ConfigError::NoSecretFile { key, file, cure: self.cure });
            }
            Err(source) => return Err(ConfigError::Unreadable { key, file, source }),
        };
        let secret = (self.trim)(&text);
        let (chars, chars_min) = (secret.chars().count(), self.chars_min);
        if chars < chars_min {
            let problem = if chars == 0 {
                "holds nothing; write the secret there, or leave the setting out".to_owned()
            } else {
                format!("holds {chars} characters; write at least {chars_min} random ones")
            };
            return Err(ConfigError::PoorSecret { key, file, problem });
        }
        *into = Secret::new(secret.to_owned());
        Ok(())
    }
}

fn without_line_end(text: &str) -> &str {
    text.trim_end_matches(['\r', '\n'])
}

fn origin_of(figment: &Figment, key: &str) -> String {
    let metadata = figment.find_metadata(key);
    metadata.map_or_else(|| "default".to_owned(), |metadata| origin(metadata, key))
}

fn origin(metadata: &figment::Metadata, key: &str) -> String {
    match &metadata.source {
        Some(Source::File(file)) => file.display().to_string(),
        _ if metadata.name.contains("environment") => {
            format!("environment variable NATTER_{}", key.to_uppercase().replace('.', "__"))
        }
        _ => metadata.name.to_string(),
    }
}

#[allow(clippy::wildcard_enum_match_arm, reason = "another library's enum")]
fn explain(error: &figment::Error) -> ConfigError {
    let key = error.path.join(".");
    let metadata = error.metadata.as_ref();
    let origin_at = |key: &str| {
        metadata.map_or_else(|| "settings".to_owned(), |metadata| origin(metadata, key))
    };
    match &error.kind {
        Kind::UnknownField(field, known) => {
            let key = if key.ends_with(field.as_str()) {
                key
            } else if key.is_empty() {
                field.clone()
            } else {
                format!("{key}.{field}")
            };
            let cure = format!("the settings here are {}", known.join(", "));
            ConfigError::UnknownKey { origin: origin_at(&key), key, cure }
        }
        kind if key.is_empty() => {
            ConfigError::Syntax { origin: origin_at(""), problem: kind.to_string() }
        }
        // The value itself may be a secret that was written as a list.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) if is_secret(&key) => {
            let problem = format!("wrong type; write {}", in_words(expected));
            ConfigError::Value { origin: origin_at(&key), key, problem }
        }
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            let found = found(actual);
            let problem = format!("{found} is not what belongs here; write {}", in_words(expected));
            ConfigError::Value { origin: origin_at(&key), key, problem }
        }
        kind => ConfigError::Value { origin: origin_at(&key), key, problem: kind.to_string() },
    }
}

fn is_secret(key: &str) -> bool {
    ["secret", "password", "cookie"].iter().any(|word| key.ends_with(word))
}

/// Loads while no other test changes the environment.
#[cfg(test)]
#[allow(clippy::result_large_err, reason = "the error is figment's")]
pub(super) fn load_alone(
    file: Option<&Path>,
    data_dir: Option<&Path>,
) -> Result<NodeConfig, ConfigError> {
    let mut loaded = None;
    figment::Jail::expect_with(|_| {
        loaded = Some(NodeConfig::load(file, data_dir));
        Ok(())
    });
    loaded.unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn load(toml: &str) -> (PathBuf, Result<NodeConfig, ConfigError>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.toml");
        std::fs::write(&file, toml).unwrap();
        let loaded = load_alone(Some(&file), None);
        (file, loaded)
    }

    #[test]
    fn no_settings_at_all_are_valid() {
        assert_eq!(load_alone(None, None).unwrap(), NodeConfig::default());
    }

    #[test]
    fn a_file_changes_what_it_names_and_nothing_else() {
        let (_, config) = load("[limits]\nheartbeat = \"90s\"\nmailbox_bytes = \"1GiB\"\n");
        let mut expected = NodeConfig::default();
        expected.limits.heartbeat = Duration::from_secs(90);
        expected.limits.mailbox_bytes = super::super::ByteSize(1 << 30);
        assert_eq!(config.unwrap(), expected);
    }

    #[test]
    fn the_data_directory_of_the_command_line_wins() {
        let config = load_alone(None, Some(Path::new("/elsewhere"))).unwrap();
        assert_eq!(config.node.data_dir, "/elsewhere");
    }

    #[test]
    fn an_error_names_file_key_value_and_cure() {
        for (toml, parts) in [
            ("[limits]\nheartbeat = \"soon\"", ["limits.heartbeat", "soon", "90s"]),
            ("[limits]\nheartbeat = \"2h\"", ["limits.heartbeat", "2h", "1h"]),
            (
                "[limits]\nconnections = \"many\"",
                ["limits.connections", "\"many\"", "a whole number"],
            ),
            ("[limits]\nconnections = -1", ["limits.connections", "-1", "a whole number"]),
            ("[limits]\nconnections = 99999999999", ["limits.connections", "99999999999", "whole"]),
            ("[limits]\nconnections = 1.5", ["limits.connections", "1.5", "a whole number"]),
            ("[cluster]\nseeds = \"a:1\"", ["cluster.seeds", "\"a:1\"", "a list"]),
            ("limits = 5", ["limits", "5", "a section"]),
            ("[limits]\nmailbox_bytes = \"1MB\"", ["limits.mailbox_bytes", "1MB", "64MiB"]),
            ("[limits]\nconections = 5", ["limits.conections", "is no setting", "connections,"]),
            ("[node]\nworker_threads = 2000", ["node.worker_threads", "2000", "1024"]),
            ("[limit]\nconnections = 5", ["limit", "is no setting", "limits"]),
            ("[listen]\nclient = \"localhost:1\"", ["listen.client", "localhost:1", "IP:PORT"]),
            ("[listen]\nadvertise = \"ada\"", ["listen.advertise", "ada", "HOST:PORT"]),
            (
                "[listen]\nadvertise_websocket = \"ada\"",
                ["listen.advertise_websocket", "ada", "HOST:PORT"],
            ),
            ("[registration]\npin_digits = 4", ["registration.pin_digits", "4", "5"]),
            ("[registration]\nsender = \"sms\"", ["registration.sender", "sms", "webhook"]),
            ("[registration]\nsender = \"webhook\"", ["registration.webhook.url", "\"\"", "http"]),
            ("[registration]\nsender = \"smtp\"", ["registration.smtp.host", "\"\"", "mail"]),
            ("[limits]\nmessage_ttl_max = \"1s\"", ["limits.message_ttl_max", "1s", "1m"]),
            ("[cluster]\nlisten = \"0.0.0.0:7403\"", ["cluster.advertise", "0.0.0.0", "HOST:PORT"]),
            ("[cluster]\nadvertise = \"ada\"", ["cluster.advertise", "ada", "HOST:PORT"]),
            ("[cluster]\nseeds = [\"a:b\"]", ["cluster.seeds", "a:b", "HOST:PORT"]),
            ("[cluster]\nlisten = \"\"\nseeds = [\"a:1\"]", ["cluster.listen", "\"\"", "seeds"]),
            ("[cluster]\ncookie = \"abc\"", ["cluster.cookie", "3 characters", "32"]),
            ("[cluster]\nzone = \"a\\nb\"", ["cluster.zone", "a\\nb", "64"]),
            ("[tls]\nkey = \"k.pem\"", ["tls.certificate", "\"\"", "tls.key"]),
            ("[log]\nfilter = \"a=b=c\"", ["log.filter", "a=b=c", "info"]),
            ("[log]\nfilter = \"inof\"", ["log.filter", "inof", "info"]),
            ("[log]\nfilter = \"warn,actors=inof\"", ["log.filter", "inof", "info"]),
            ("[listen]\nproxy_from = [\"ten\"]", ["listen.proxy_from", "ten", "10.0.0.0/8"]),
            (
                "[listen]\nwebsocket_origins = [\"ada.example\"]",
                ["listen.websocket_origins", "ada.example", "https://HOST"],
            ),
        ] {
            let (file, result) = load(toml);
            let message = result.unwrap_err().to_string();
            for part in parts {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
            let named = message.contains(file.to_str().unwrap());
            assert!(named || message.contains("default"), "{message}");
        }
    }

    #[test]
    fn a_syntax_error_names_the_line() {
        let (file, result) = load("[limits]\nheartbeat = \n");
        let message = result.unwrap_err().to_string();
        assert!(
            message.contains(file.to_str().unwrap()) && message.contains("line 2"),
            "{message}"
        );
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load_alone(Some(Path::new("/nowhere/node.toml")), None).unwrap_err();
        assert!(error.to_string().contains("/nowhere/node.toml"), "{error}");
    }

    #[test]
    fn a_secret_is_read_from_its_file_and_shown_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, "correct horse battery\n").unwrap();
        let toml = format!("[registration.webhook]\nsecret_file = {file:?}\n");
        let config = load(&toml).1.unwrap();
        assert_eq!(config.registration.webhook.secret.reveal(), "correct horse battery");
        assert!(!format!("{config:?}").contains("horse"));
    }

    #[test]
    fn a_cookie_file_is_read_as_the_cookie_of_the_data_directory_is() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cookie");
        std::fs::write(&file, format!(" \t{}\r\n \n", "\u{e9}".repeat(32))).unwrap();
        let config = load(&format!("[cluster]\ncookie_file = {file:?}\n")).1.unwrap();
        let own = config.cluster.open_cookie(Path::new("/nowhere"), true).unwrap();
        let there = super::super::Cluster::default().open_cookie(folder.path(), true).unwrap();
        assert_eq!(own.reveal(), "\u{e9}".repeat(32));
        assert!(own == there);
    }

    #[test]
    fn a_secret_file_that_is_not_there_is_named_with_where_it_comes_from() {
        for (section, key, cure) in [
            ("cluster", "cookie_file", "start that node first"),
            ("registration.webhook", "secret_file", "write the secret into it"),
            ("registration.smtp", "password_file", "write the password into it"),
        ] {
            let (_, result) = load(&format!("[{section}]\n{key} = \"/nowhere/secret\"\n"));
            let message = result.unwrap_err().to_string();
            for part in [&format!("{section}.{key}"), "/nowhere/secret", "is not there", cure] {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
        }
    }

    #[test]
    fn a_secret_file_with_too_little_in_it_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        for (section, key, text, cure) in [
            ("cluster", "cookie_file", "", "holds nothing"),
            ("cluster", "cookie_file", " \n\n", "holds nothing"),
            ("cluster", "cookie_file", "short\n", "holds 5 characters; write at least 32"),
            ("cluster", "cookie_file", &"\u{e9}".repeat(31), "at least 32"),
            ("registration.webhook", "secret_file", "\n", "holds nothing"),
            ("registration.webhook", "secret_file", "fifteen letters", "at least 16"),
            ("registration.smtp", "password_file", "\r\n", "holds nothing"),
        ] {
            std::fs::write(&file, text).unwrap();
            let (_, result) = load(&format!("[{section}]\n{key} = {file:?}\n"));
            let message = result.unwrap_err().to_string();
            for part in [&format!("{section}.{key}"), file.to_str().unwrap(), cure] {
                assert!(message.contains(part), "{message:?} lacks {part:?}");
            }
            assert!(!message.contains("letters"), "{message:?} shows the secret");
        }
    }

    #[test]
    #[allow(clippy::result_large_err, reason = "the jail's closure")]
    fn the_environment_goes_before_the_file() {
        figment::Jail::expect_with(|jail| {
            jail.create_file("node.toml", "[limits]\nconnections = 5\nunauthenticated = 3\n")?;
            jail.set_env("NATTER_LIMITS__CONNECTIONS", "7");
            jail.set_env("NATTER_REGISTRATION__SMTP__PASSWORD", "1234");
            jail.set_env("NATTER_LISTEN__CLIENT", "127.0.0.1:0");
            jail.set_env("NATTER_PORT", "tcp://10.0.0.1:1");
            let config = NodeConfig::load(Some(Path::new("node.toml")), None).unwrap();
            assert_eq!((config.limits.connections, config.limits.unauthenticated), (7, 3));
            assert_eq!(config.registration.smtp.password.reveal(), "1234");
            jail.set_env("NATTER_LIMITS__CONNECTIONS", "0");
            let error = NodeConfig::load(Some(Path::new("node.toml")), None).unwrap_err();
            assert!(error.to_string().contains("NATTER_LIMITS__CONNECTIONS"), "{error}");
            Ok(())
        });
    }
}
