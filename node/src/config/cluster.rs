//! The section of other nodes: where they are, and what proves that they belong together.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::names::{is_printable, printable};

use super::load::Problem;
use super::units::{Setting, print_line, section};
use super::validate::{Checked, host_port, within};
use super::{Address, Secret, local};
use crate::data_dir;
use crate::keys::identity::hex;

/// Shortest cookie, in characters.
pub(super) const COOKIE_CHARS_MIN: usize = 32;

/// Random bytes in a cookie that a node makes; written as twice as many hex digits.
const COOKIE_BYTES: usize = 32;

/// Longest name and zone, in bytes.
const NAME_BYTES_MAX: usize = 64;

section! {
    /// Other nodes.
    Cluster {
        /// Where other nodes connect. Port 0 takes any free port; "" for a node that stays alone.
        listen: Address = local(7403);
        /// Where other nodes reach this one, HOST:PORT. Empty: where it listens.
        advertise: String = String::new();
        /// Nodes that may be asked for the way into the cluster, each HOST:PORT; a name may stand for
        /// several. Without any the first start founds a cluster. With some a node without data joins
        /// theirs, and never founds one: so one node, the first, must start without seeds. It may
        /// have some from its second start on.
        seeds: Vec<String> = Vec::new();
        /// The secret that all nodes of the cluster share, at least 32 characters. It lets a node in,
        /// and seals tickets and PINs.
        cookie: Secret = Secret::default();
        /// File with the cookie instead. Neither: the file cookie in the data directory, made at the
        /// first start of a node that founds a cluster.
        cookie_file: String = String::new();
        /// Name of this node, for people, at most 64 bytes. Empty: the name of the host.
        name: String = String::new();
        /// How far the clocks of nodes may differ, 1s to 1m. A node that is further from the others leads
        /// nothing, and nothing expires unless a majority of the clocks agree.
        clock_difference_max: Duration = Duration::from_secs(5);
        /// What fails together with this node: a rack, a data center. Replicas are spread over zones.
        zone: String = String::new();
    }
}

/// Why there is no cookie.
#[derive(Debug, thiserror::Error)]
pub enum CookieError {
    /// The node should join, and nobody gave it the cookie.
    #[error(
        "{}: is not there, and a node with seeds needs the cookie of their cluster; copy the file from one of them, or set cluster.cookie",
        file.display()
    )]
    Missing {
        /// Where it should be.
        file: PathBuf,
    },
    /// The file holds something else.
    #[error("{}: a cookie has at least {COOKIE_CHARS_MIN} characters", file.display())]
    TooShort {
        /// The file.
        file: PathBuf,
    },
    /// The file cannot be read or made.
    #[error("{}: cannot be read or made; check its permissions", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no source of randomness.
    #[error("the operating system gives no random bytes")]
    NoChance,
}

impl Cluster {
    /// The cluster's cookie: from the settings, or from the file `cookie` in the data directory,
    /// which a node that joins nobody makes at its first start.
    ///
    /// # Errors
    /// [`CookieError`] names the file and the cure.
    pub fn open_cookie(&self, data_dir: &Path, joins: bool) -> Result<Secret, CookieError> {
        if let Some(cookie) = self.find_cookie(data_dir, joins)? {
            return Ok(cookie);
        }
        let file = data_dir.join("cookie");
        let mut bytes = [0; COOKIE_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CookieError::NoChance)?;
        let cookie = hex(&bytes);
        data_dir::write_private(&file, format!("{cookie}\n").as_bytes())
            .map_err(|source| CookieError::File { file, source })?;
        Ok(Secret::new(cookie))
    }

    /// The cookie that [`open_cookie`](Self::open_cookie) will find; `None`: it will make one. Writes
    /// nothing.
    ///
    /// # Errors
    /// [`CookieError`] names the file and the cure.
    pub fn find_cookie(&self, data_dir: &Path, joins: bool) -> Result<Option<Secret>, CookieError> {
        if !self.cookie.is_empty() {
            return Ok(Some(self.cookie.clone()));
        }
        let file = data_dir.join("cookie");
        match std::fs::read_to_string(&file) {
            Ok(text) if text.trim().chars().count() < COOKIE_CHARS_MIN => {
                Err(CookieError::TooShort { file })
            }
            Ok(text) => Ok(Some(Secret::new(text.trim().to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound && joins => {
                Err(CookieError::Missing { file })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CookieError::File { file, source }),
        }
    }

    /// Where other nodes reach this one, which listens at `bound`.
    pub fn advertised(&self, bound: SocketAddr) -> String {
        if self.advertise.is_empty() { bound.to_string() } else { self.advertise.clone() }
    }

    /// This node's name: as set, or the host's.
    pub fn node_name(&self) -> String {
        if self.name.is_empty() {
            printable(&rustix::system::uname().nodename().to_string_lossy())
        } else {
            self.name.clone()
        }
    }

    pub(super) fn check(&self) -> Checked {
        let problem = |key, problem| Err(Problem { key, problem });
        match self.listen.0 {
            None if !self.seeds.is_empty() => {
                let why = "\"\", but there are cluster.seeds; a node of a cluster must listen";
                return problem("cluster.listen", why.to_owned());
            }
            Some(address) if address.ip().is_unspecified() && self.advertise.is_empty() => {
                let why = format!("\"\", and nobody can connect to {address}; write HOST:PORT");
                return problem("cluster.advertise", why);
            }
            Some(_) | None => {}
        }
        if !self.advertise.is_empty() {
            host_port("cluster.advertise", &self.advertise)?;
        }
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        within("cluster.clock_difference_max", &self.clock_difference_max, &second, &minute)?;
        self.seeds.iter().try_for_each(|seed| host_port("cluster.seeds", seed))?;
        let chars = self.cookie.reveal().chars().count();
        if chars > 0 && chars < COOKIE_CHARS_MIN {
            let why = format!("{chars} characters; write at least {COOKIE_CHARS_MIN} random ones");
            return problem("cluster.cookie", why);
        }
        for (key, name) in [("cluster.name", &self.name), ("cluster.zone", &self.zone)] {
            if name.len() > NAME_BYTES_MAX || !is_printable(name) {
                let why = format!(
                    "{name:?}: write at most {NAME_BYTES_MAX} bytes of letters, digits and ASCII signs"
                );
                return problem(key, why);
            }
        }
        Ok(())
    }
}

/// Whether a text is HOST:PORT.
pub(crate) fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let fits = !host.is_empty() && !host.contains(char::is_whitespace);
        fits && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_cookie_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = Cluster::default();
        let first = config.open_cookie(folder.path(), false).unwrap();
        assert_eq!(first.reveal().len(), 64);
        assert!(config.open_cookie(folder.path(), true).unwrap() == first, "it stays the same");
        let metadata = std::fs::metadata(folder.path().join("cookie")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        let other = tempfile::tempdir().unwrap();
        assert!(config.open_cookie(other.path(), false).unwrap() != first);
        let own = Cluster { cookie: Secret::new("x".repeat(32)), ..Cluster::default() };
        assert_eq!(own.open_cookie(folder.path(), false).unwrap().reveal(), "x".repeat(32));
    }

    #[test]
    fn a_node_that_joins_makes_no_cookie_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let error = Cluster::default().open_cookie(folder.path(), true).unwrap_err().to_string();
        assert!(error.contains("cookie") && error.contains("copy"), "{error}");
        std::fs::write(folder.path().join("cookie"), "short").unwrap();
        let error = Cluster::default().open_cookie(folder.path(), true).unwrap_err().to_string();
        assert!(error.contains("at least 32"), "{error}");
    }

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for good in ["a:1", "10.0.0.1:7403", "[::1]:7403", "node-0.natter.svc:7403"] {
            assert!(is_host_port(good), "{good}");
        }
        for bad in ["", "a", "a:", ":1", "a:0", "a:99999", "a b:1"] {
            assert!(!is_host_port(bad), "{bad}");
        }
        let bound = SocketAddr::from(([127, 0, 0, 1], 9));
        assert_eq!(Cluster::default().advertised(bound), "127.0.0.1:9");
        assert!(!Cluster::default().node_name().is_empty());
    }
}
