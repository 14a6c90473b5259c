//! A node that founded a cluster of its own, holds nothing and should join another: what it is told
//! while it runs, and what its next start makes of it.
//!
//! ```text
//! DATA/join             made by `natter admin cluster join`: the seed
//! DATA/store.given-up   what the node held until then, for the operator to delete
//! DATA/seeds            from then on, beside cluster.seeds
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;
use prost::Message as _;
use proto::ids::SHARDS;
use proto::stored::{self, command::Kind, entry::Payload};
use proto::{ShardId, UserId};
use storage::{Row, Storage, StorageOptions};
use tracing::warn;

use super::socket::socket_path;
use crate::data_dir::write_private;
use crate::manifest;

/// Notes that the next start joins by `seed`.
pub(super) fn prepare(data_dir: &Path, seed: &str) -> io::Result<()> {
    write_private(&data_dir.join("join"), format!("{seed}\n").as_bytes())
}

/// The seeds of a start: those of the settings, and the one that an operator told a running node to
/// join. Called before anything in the data directory is opened: if that was told since the last
/// start, the node's store is set aside, but not if people have registered there meanwhile. Blocking.
///
/// # Errors
/// If the node of this directory still runs, its store holds accounts or cannot be read, or a file
/// cannot be moved.
pub fn seeds(
    data_dir: &Path,
    configured: &[String],
    options: StorageOptions,
) -> anyhow::Result<Vec<String>> {
    let (join, seeds) = (data_dir.join("join"), data_dir.join("seeds"));
    if join.exists() {
        anyhow::ensure!(
            UnixStream::connect(socket_path(data_dir)).is_err(),
            "{}: a node still runs here; stop it, then it joins at its next start",
            data_dir.display()
        );
        let (store, aside) = (data_dir.join("store"), data_dir.join("store.given-up"));
        // After a crash between the two moves the store is aside already.
        if store.exists() {
            anyhow::ensure!(
                !aside.exists(),
                "{}: is there from an earlier time; delete it, then start again",
                aside.display()
            );
            let held = accounts(&store, options)
                .with_context(|| format!("cannot count the accounts in {}", store.display()))?;
            anyhow::ensure!(
                held == 0,
                "{}: this node was told to give up its empty store and join a cluster, but now it \
                 holds {held} accounts; delete that file to keep them, then start again",
                join.display()
            );
            manifest::forget(data_dir)
                .with_context(|| format!("cannot change {}", data_dir.display()))?;
            fs::rename(&store, &aside)
                .with_context(|| format!("cannot move {}", store.display()))?;
            warn!(
                file = %aside.display(),
                "this node joins a cluster and has given up its empty store; what it was is in \
                 store.given-up, to be deleted once it has joined"
            );
        }
        fs::rename(&join, &seeds).with_context(|| format!("cannot move {}", join.display()))?;
    }
    let mut all = configured.to_vec();
    match fs::read_to_string(&seeds) {
        Ok(text) => all.extend(text.lines().map(str::to_owned)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", seeds.display()));
        }
    }
    Ok(all)
}

/// Whether a start joins somebody: by the settings, or because an operator told a running node to.
pub fn joins(data_dir: &Path, configured: &[String]) -> bool {
    let told = || ["join", "seeds"].iter().any(|file| data_dir.join(file).exists());
    !configured.is_empty() || told()
}

/// How many accounts a store holds, in its tables and in its log. No node may have it open.
fn accounts(store: &Path, options: StorageOptions) -> anyhow::Result<usize> {
    let (storage, recovered) = Storage::open(store, options)?;
    let mut users = BTreeSet::new();
    for shard in (0..SHARDS).map(ShardId) {
        storage.load(shard, &mut |row| {
            if let Row::Account(user, Some(_)) = row {
                users.insert(user);
            }
        })?;
    }
    storage.close();
    for part in recovered.records.into_iter().filter(|part| part.shard != ShardId::META) {
        for (_, record) in part.records {
            if let Some(Payload::Normal(batch)) = stored::Entry::decode(record)?.payload {
                replay(&mut users, stored::Batch::decode(batch)?);
            }
        }
    }
    Ok(users.len())
}

/// What a logged batch does to who has an account. What it would refuse counts too: a store with
/// nobody in it has nothing of that.
fn replay(users: &mut BTreeSet<UserId>, batch: stored::Batch) {
    for command in batch.commands {
        if let Some(Kind::ClaimAlias(claim)) = command.kind {
            claim.from.map(|from| users.remove(&UserId(from.user)));
            users.extend(claim.to.map(|to| UserId(to.user)));
        } else if let Some(Kind::DeleteAccount(delete)) = command.kind {
            users.remove(&UserId(delete.user));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> StorageOptions {
        StorageOptions { segment_bytes: 64 * 1024, free_bytes_min: 0 }
    }

    fn seeds(data_dir: &Path, configured: &[String]) -> anyhow::Result<Vec<String>> {
        super::seeds(data_dir, configured, options())
    }

    /// A store with nothing in it.
    fn make_store(data_dir: &Path) {
        Storage::open(&data_dir.join("store"), options()).unwrap().0.close();
    }

    #[test]
    fn a_node_that_was_told_to_join_sets_its_store_aside_once() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let configured = ["a:1".to_owned()];
        assert_eq!(seeds(dir, &configured).unwrap(), ["a:1"]);
        make_store(dir);
        fs::write(dir.join("store/mark"), "old").unwrap();
        prepare(dir, "b:2").unwrap();
        assert_eq!(seeds(dir, &configured).unwrap(), ["a:1", "b:2"]);
        assert!(dir.join("store.given-up/mark").exists() && !dir.join("store").exists());
        fs::create_dir(dir.join("store")).unwrap();
        assert_eq!(seeds(dir, &[]).unwrap(), ["b:2"], "the next start joins by it too");
        assert!(dir.join("store").exists(), "and keeps what it holds");
    }

    #[test]
    fn a_store_in_which_people_have_registered_meanwhile_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let (storage, _) = Storage::open(&dir.join("store"), options()).unwrap();
        let id = |index| stored::LogId { term: 1, node: 1, index };
        let applied = stored::Applied { id: Some(id(1)), ..stored::Applied::default() };
        let account = Row::Account(UserId(16), Some(stored::Account::default()));
        storage.checkpoint(ShardId(0), applied, vec![account]).unwrap();
        storage.close();
        prepare(dir, "b:2").unwrap();
        let refused = seeds(dir, &[]).unwrap_err().to_string();
        let join = dir.join("join");
        for part in [join.to_str().unwrap(), "1 accounts", "delete"] {
            assert!(refused.contains(part), "{refused:?} lacks {part:?}");
        }
        assert!(dir.join("store").exists() && !dir.join("store.given-up").exists());
        fs::remove_file(join).unwrap();
        assert!(seeds(dir, &[]).unwrap().is_empty(), "it goes on as the node that it was");
    }

    #[test]
    fn who_came_and_left_in_the_log_is_not_counted() {
        let command = |kind| stored::Command { kind: Some(kind) };
        let came = |user| {
            let to = Some(stored::AliasOwner { user, claim: 1 });
            command(Kind::ClaimAlias(stored::ClaimAlias { to, ..Default::default() }.into()))
        };
        let left = |user| {
            command(Kind::DeleteAccount(stored::DeleteAccount { user, ..Default::default() }))
        };
        let commands = vec![came(1), came(2), came(2), left(1), left(3)];
        let mut users = BTreeSet::from([UserId(3)]);
        replay(&mut users, stored::Batch { commands, ..stored::Batch::default() });
        assert_eq!(users, BTreeSet::from([UserId(2)]));
    }

    #[test]
    fn a_store_is_not_set_aside_under_a_running_node_nor_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        fs::create_dir(dir.join("store")).unwrap();
        prepare(dir, "b:2").unwrap();
        let running = std::os::unix::net::UnixListener::bind(socket_path(dir)).unwrap();
        assert!(seeds(dir, &[]).unwrap_err().to_string().contains("still runs"));
        drop(running);
        fs::create_dir(dir.join("store.given-up")).unwrap();
        assert!(seeds(dir, &[]).unwrap_err().to_string().contains("store.given-up"));
        assert!(dir.join("store").exists());
    }
}
