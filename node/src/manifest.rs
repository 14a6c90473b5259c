//! What a data directory says of itself: that it was in use, by which node of which cluster. A start
//! compares that with what is there, and refuses a directory that lacks a part.
//!
//! ```text
//! DATA/in-use      {"node":"00f1..","cluster":7}; written when all parts are there
//! ```
//!
//! A first start makes the parts in one order: `node.key`, `cookie`, `store`, `incarnation`, `in-use`. So what
//! a crash in the middle leaves lacks only the last ones, and the next start makes them.
//!
//! **Invariant:** [`check`] writes nothing, and nothing is written before it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use proto::{NodeId, ShardId};
use serde::{Deserialize, Serialize};
use storage::{Recovered, Storage};

use crate::data_dir::write_private;

/// The file.
const FILE: &str = "in-use";

/// What the whole store needs.
const STORE_CURE: &str = "bring the whole data directory back from a backup; if other nodes have all that it held, \
     start this node with an empty data directory and cluster.seeds, and remove the old one with \
     `natter admin cluster remove`";

/// Why a data directory that was in use is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartMissing {
    /// A part is gone, or empty.
    #[error("{}: is missing, but this data directory was in use; nothing was changed. {cure}", path.display())]
    Gone {
        /// The part.
        path: PathBuf,
        /// What to do.
        cure: &'static str,
    },
    /// The key is another node's.
    #[error(
        "{}: is the key of node {key}, but this data directory belongs to node {owner}; nothing was \
         changed. Bring the right key back from a backup",
        path.display()
    )]
    AnotherKey {
        /// The key's file.
        path: PathBuf,
        /// Whose key it is.
        key: NodeId,
        /// Whose directory it is.
        owner: NodeId,
    },
    /// The store has nothing of the cluster that the directory belongs to.
    #[error("{}: holds nothing, but this data directory belongs to cluster {cluster}. {STORE_CURE}", path.display())]
    Empty {
        /// The store.
        path: PathBuf,
        /// The cluster.
        cluster: u64,
    },
    /// What the directory says of itself cannot be read.
    #[error("{}: cannot be read; bring it back from a backup, or delete it if all else is there", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Who used a data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The node.
    node: NodeId,
    /// The number of its cluster; 0: it belonged to none yet.
    cluster: u64,
}

impl Manifest {
    /// That of a data directory; `None`: it has none.
    fn read(dir: &Path) -> Result<Option<Self>, PartMissing> {
        let path = dir.join(FILE);
        let unreadable = |source| PartMissing::Unreadable { path: dir.join(FILE), source };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| unreadable(e.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(unreadable(source)),
        }
    }
}

/// Notes that `node` uses the directory, as a member of `cluster` (0: of none yet). Keeps a cluster that
/// is noted already if that is 0.
///
/// # Errors
/// Those of the file system.
pub(crate) fn note(dir: &Path, node: NodeId, cluster: u64) -> io::Result<()> {
    let noted = Manifest::read(dir).ok().flatten();
    let cluster =
        if cluster == 0 { noted.as_ref().map_or(0, |noted| noted.cluster) } else { cluster };
    let now = Manifest { node, cluster };
    if noted.as_ref() == Some(&now) {
        return Ok(());
    }
    write_private(&dir.join(FILE), &serde_json::to_vec(&now)?)
}

/// Forgets who uses the directory: its store is given up.
///
/// # Errors
/// Those of the file system.
pub(crate) fn forget(dir: &Path) -> io::Result<()> {
    match fs::remove_file(dir.join(FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Checks that a directory that was in use has all its parts. `has_cookie`: the settings bring the
/// cookie.
///
/// # Errors
/// [`PartMissing`] names the part and the cure.
pub(crate) fn check(dir: &Path, has_cookie: bool) -> Result<(), PartMissing> {
    let noted = Manifest::read(dir)?;
    let in_use = noted.is_some();
    let is_file = |part: &str| dir.join(part).is_file();
    let is_filled =
        |part: &str| fs::read_dir(dir.join(part)).is_ok_and(|mut entries| entries.next().is_some());
    let has_store = is_file("store/version") || is_filled("store/log");
    let gone = |part: &str, cure| Err(PartMissing::Gone { path: dir.join(part), cure });
    if !in_use && !has_store {
        return Ok(());
    }
    if !is_file("node.key") {
        return gone(
            "node.key",
            "Bring it back from a backup: with another key this is another node, \
             which cannot use what is stored here. If other nodes have all that it held, start it with \
             an empty data directory and cluster.seeds instead, and remove the old one with \
             `natter admin cluster remove`",
        );
    }
    if !has_cookie && !is_file("cookie") {
        return gone(
            "cookie",
            "Bring it back from a backup or copy it from another node of the cluster",
        );
    }
    for part in ["store/version", "store/votes"] {
        if !is_file(part) {
            return gone(part, STORE_CURE);
        }
    }
    if !is_filled("store/tables") {
        return gone("store/tables", STORE_CURE);
    }
    // A crash in the first start may leave the others to be made.
    if !in_use {
        return Ok(());
    }
    // A start that found no space for the log belongs to no cluster yet.
    if noted.is_some_and(|noted| noted.cluster != 0) && !is_filled("store/log") {
        return gone("store/log", STORE_CURE);
    }
    if !dir.join("store/sessions").is_dir() {
        return gone(
            "store/sessions",
            "Bring the whole data directory back from a backup, or make an empty \
             folder of this name: then only the times are lost at which people were last seen",
        );
    }
    if !is_file("incarnation") {
        return gone(
            "incarnation",
            "Bring it back from a backup, or write the time now into it, in \
             milliseconds since 1970 (`date +%s%3N`)",
        );
    }
    Ok(())
}

/// Checks that the directory is that of the node whose key is in it.
///
/// # Errors
/// [`PartMissing::AnotherKey`].
pub(crate) fn check_owner(dir: &Path, me: NodeId) -> Result<(), PartMissing> {
    match Manifest::read(dir)?.map(|noted| noted.node) {
        Some(owner) if owner != me => {
            Err(PartMissing::AnotherKey { path: dir.join("node.key"), key: me, owner })
        }
        Some(_) | None => Ok(()),
    }
}

/// Checks that the store of a member is not an empty one. Blocking.
///
/// # Errors
/// [`PartMissing::Empty`], [`PartMissing::Unreadable`].
pub(crate) fn check_store(
    dir: &Path,
    storage: &Storage,
    recovered: &Recovered,
) -> Result<(), PartMissing> {
    let cluster = Manifest::read(dir)?.map_or(0, |noted| noted.cluster);
    // What was taken from it in order leaves a note of where its log ended.
    let knows = |group| {
        let applied = storage.applied(group).is_ok_and(|applied| applied.is_some());
        applied || storage.wiped(group).is_ok_and(|wiped| wiped.is_some())
    };
    let mut groups = (0..=ShardId::META.0).map(ShardId);
    if cluster == 0 || !recovered.records.is_empty() || groups.any(knows) {
        return Ok(());
    }
    Err(PartMissing::Empty { path: dir.join("store"), cluster })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: NodeId = NodeId(7);

    fn used() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        for (file, content) in [
            ("node.key", "k"),
            ("cookie", "c"),
            ("store/version", "2"),
            ("store/votes", ""),
            ("store/tables/1", ""),
            ("store/log/1", ""),
            ("store/sessions/db", ""),
            ("incarnation", "1"),
        ] {
            let path = dir.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        note(dir, ME, 5).unwrap();
        folder
    }

    fn lose(path: &Path) {
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    #[test]
    fn each_part_that_is_missing_is_refused_by_name_with_a_cure() {
        for part in [
            "node.key",
            "cookie",
            "store",
            "store/version",
            "store/votes",
            "store/tables",
            "store/tables/1",
            "store/log",
            "store/sessions",
            "incarnation",
        ] {
            let folder = used();
            check(folder.path(), false).unwrap();
            lose(&folder.path().join(part));
            let said = check(folder.path(), false).unwrap_err().to_string();
            let named = part.trim_end_matches("/1");
            for word in [named, "missing", "nothing was changed", "backup"] {
                assert!(said.contains(word), "{part}: {said:?} lacks {word:?}");
            }
        }
        let folder = used();
        lose(&folder.path().join("cookie"));
        check(folder.path(), true).unwrap();
    }

    #[test]
    fn a_store_without_its_nodes_key_is_refused_also_if_nothing_says_who_used_it() {
        let folder = used();
        lose(&folder.path().join(FILE));
        check(folder.path(), false).unwrap();
        lose(&folder.path().join("node.key"));
        assert!(check(folder.path(), false).unwrap_err().to_string().contains("node.key"));
    }

    #[test]
    fn what_a_crash_in_the_first_start_leaves_is_taken() {
        let folder = used();
        let dir = folder.path();
        for part in [FILE, "incarnation", "store/log", "store", "cookie", "node.key"] {
            lose(&dir.join(part));
            check(dir, false).unwrap();
        }
        check(&dir.join("nowhere"), false).unwrap();
        let no_space = used();
        lose(&no_space.path().join(FILE));
        note(no_space.path(), ME, 0).unwrap();
        lose(&no_space.path().join("store/log"));
        check(no_space.path(), false).unwrap();
    }

    #[test]
    fn another_nodes_key_is_refused_and_a_cluster_once_noted_stays() {
        let folder = used();
        check_owner(folder.path(), ME).unwrap();
        let said = check_owner(folder.path(), NodeId(8)).unwrap_err().to_string();
        assert!(said.contains("0000000000000008") && said.contains("0000000000000007"), "{said}");
        note(folder.path(), ME, 5).unwrap();
        note(folder.path(), ME, 0).unwrap();
        assert_eq!(Manifest::read(folder.path()).unwrap().unwrap().cluster, 5);
        forget(folder.path()).unwrap();
        forget(folder.path()).unwrap();
        check_owner(folder.path(), NodeId(8)).unwrap();
    }

    #[test]
    fn a_member_whose_store_is_new_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let options = storage::StorageOptions { segment_bytes: 64 * 1024, free_bytes_min: 0 };
        let (storage, recovered) = Storage::open(&dir.join("store"), options).unwrap();
        check_store(dir, &storage, &recovered).unwrap();
        note(dir, ME, 5).unwrap();
        let said = check_store(dir, &storage, &recovered).unwrap_err().to_string();
        assert!(said.contains("cluster 5") && said.contains("backup"), "{said}");
        storage.close();
    }
}
