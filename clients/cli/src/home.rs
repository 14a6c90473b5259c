//! Where a person's files are, and the small ones among them.

use anyhow::Context;
use natter_sdk::{Alias, ClientOptions, Tls};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// One person's directory: `HOME/ALIAS`.
#[derive(Clone, Debug)]
pub(crate) struct Profile {
    dir: PathBuf,
}

/// How to reach the node; remembered after the first run.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Server {
    pub(crate) alias: String,
    pub(crate) address: String,
    /// The name in its certificate, where it is not the host of the address.
    pub(crate) certificate_name: Option<String>,
    /// `None`: plain TCP.
    pub(crate) ca: Option<PathBuf>,
}

impl Server {
    pub(crate) fn options(&self) -> anyhow::Result<ClientOptions> {
        let mut options = match &self.ca {
            Some(file) => ClientOptions::tls(&self.address, Tls::from_ca_file(file)?),
            None => ClientOptions::plain(&self.address),
        };
        options.server_name.clone_from(&self.certificate_name);
        Ok(options)
    }
}

impl Profile {
    pub(crate) fn of(home: &Path, alias: &Alias) -> Self {
        Self { dir: home.join(folder_name(alias)) }
    }

    /// The people who have used this home.
    pub(crate) fn all(home: &Path) -> anyhow::Result<Vec<Server>> {
        let entries = match fs::read_dir(home) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("reading {}", home.display())),
        };
        let dirs = entries.filter_map(|entry| Some(Self { dir: entry.ok()?.path() }));
        dirs.filter_map(|profile| profile.server().transpose()).collect()
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn history_dir(&self) -> PathBuf {
        self.dir.join("history")
    }

    pub(crate) fn server(&self) -> anyhow::Result<Option<Server>> {
        read_json(&self.dir.join("server.json"))
    }

    pub(crate) fn save_server(&self, server: &Server) -> anyhow::Result<()> {
        write_json(&self.dir.join("server.json"), server)
    }

    /// Aliases that were looked up, by user.
    pub(crate) fn names(&self) -> anyhow::Result<BTreeMap<u64, Alias>> {
        let names: BTreeMap<u64, String> =
            read_json(&self.dir.join("contacts.json"))?.unwrap_or_default();
        Ok(names.into_iter().filter_map(|(user, a)| Some((user, Alias::parse(&a).ok()?))).collect())
    }

    pub(crate) fn save_names(&self, names: &BTreeMap<u64, Alias>) -> anyhow::Result<()> {
        let names: BTreeMap<u64, &str> = names.iter().map(|(u, a)| (*u, a.as_str())).collect();
        write_json(&self.dir.join("contacts.json"), &names)
    }

    /// The token of the PIN that was asked for last.
    pub(crate) fn pin_token(&self) -> anyhow::Result<Option<Vec<u8>>> {
        read_json(&self.dir.join("pin.json"))
    }

    pub(crate) fn save_pin_token(&self, token: &[u8]) -> anyhow::Result<()> {
        write_json(&self.dir.join("pin.json"), &token)
    }

    /// Forgets who this device was: its key, its identity, and messages that were not sent. The history stays.
    pub(crate) fn forget_identity(&self) -> anyhow::Result<()> {
        ["identity", "state", "device.key"].into_iter().try_for_each(|name| {
            let file = self.dir.join(name);
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(error).with_context(|| format!("removing {}", file.display()))
                }
                Ok(()) | Err(_) => Ok(()),
            }
        })
    }

    /// Puts the history of an earlier registration aside, if there is one, and says where. Devices and messages
    /// are numbered anew, so the two must not be mixed.
    pub(crate) fn set_history_aside(&self) -> anyhow::Result<Option<PathBuf>> {
        let history = self.history_dir();
        if !history.exists() {
            return Ok(None);
        }
        let free = (1..).map(|number| self.dir.join(format!("history-{number}")));
        let Some(aside) = free.into_iter().find(|aside| !aside.exists()) else { return Ok(None) };
        fs::rename(&history, &aside).with_context(|| format!("moving {}", history.display()))?;
        Ok(Some(aside))
    }

    /// Removes everything: the account is gone.
    pub(crate) fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.dir).with_context(|| format!("removing {}", self.dir.display()))
    }
}

/// `~/.natter`, or what was asked for.
pub(crate) fn home(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    match asked {
        Some(dir) => Ok(dir.to_path_buf()),
        None => {
            Ok(std::env::home_dir().context("no home directory: give --home DIR")?.join(".natter"))
        }
    }
}

/// The alias, with what file systems do not like as `%` and hexadecimal digits.
fn folder_name(alias: &Alias) -> String {
    use std::fmt::Write;
    alias.as_str().bytes().fold(String::new(), |mut name, byte| {
        if byte.is_ascii_alphanumeric() || b"@+-_.".contains(&byte) {
            name.push(char::from(byte));
        } else {
            write!(name, "%{byte:02x}").ok();
        }
        name
    })
}

fn read_json<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged", path.display())),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
        {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
    }
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let write = || -> io::Result<()> {
        fs::write(&new, serde_json::to_vec_pretty(value)?)?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_alias_leaves_its_home() {
        let alias = Alias::parse("../../x@example.org").unwrap();
        assert_eq!(folder_name(&alias), "..%2f..%2fx@example.org");
    }

    #[test]
    fn a_home_remembers_its_people() {
        let home = tempfile::tempdir().unwrap();
        let ada = Alias::parse("ada").unwrap();
        let profile = Profile::of(home.path(), &ada);
        fs::create_dir_all(profile.dir()).unwrap();
        assert!(Profile::all(home.path()).unwrap().is_empty(), "no run was finished");
        let address = "127.0.0.1:1".into();
        let server = Server { alias: "ada".into(), address, certificate_name: None, ca: None };
        profile.save_server(&server).unwrap();
        assert_eq!(Profile::all(home.path()).unwrap()[0].alias, "ada");
        for file in ["identity", "state", "device.key"] {
            fs::write(profile.dir().join(file), "x").unwrap();
        }
        profile.forget_identity().unwrap();
        profile.forget_identity().unwrap();
        assert!(!profile.dir().join("device.key").exists());
        fs::create_dir_all(profile.history_dir()).unwrap();
        assert_eq!(profile.set_history_aside().unwrap(), Some(profile.dir().join("history-1")));
        assert_eq!(profile.set_history_aside().unwrap(), None);
        profile.save_names(&[(5, ada.clone())].into()).unwrap();
        assert_eq!(profile.names().unwrap(), [(5, ada)].into());
    }
}
