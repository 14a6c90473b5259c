//! A node that founded a cluster of its own, holds nothing and should join another: what it is told
//! while it runs, and what its next start makes of it.
//!
//! ```text
//! DATA/join             made by `natter admin cluster join`: the seed
//! DATA/store.given-up   what the node held until then, for the operator to delete
//! DATA/seeds            from then on, beside cluster.seeds
//! ```

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;

use super::socket::socket_path;
use crate::data_dir::write_private;

/// Notes that the next start joins by `seed`.
pub(super) fn prepare(data_dir: &Path, seed: &str) -> io::Result<()> {
    write_private(&data_dir.join("join"), format!("{seed}\n").as_bytes())
}

/// The seeds of a start: those of the settings, and the one that an operator told a running node to
/// join. Called before anything in the data directory is opened: if that was told since the last
/// start, the node's store is set aside.
///
/// # Errors
/// If the node of this directory still runs, or a file cannot be moved.
pub fn seeds(data_dir: &Path, configured: &[String]) -> anyhow::Result<Vec<String>> {
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
            fs::rename(&store, &aside)
                .with_context(|| format!("cannot move {}", store.display()))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_was_told_to_join_sets_its_store_aside_once() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let configured = ["a:1".to_owned()];
        assert_eq!(seeds(dir, &configured).unwrap(), ["a:1"]);
        fs::create_dir(dir.join("store")).unwrap();
        fs::write(dir.join("store/log"), "old").unwrap();
        prepare(dir, "b:2").unwrap();
        assert_eq!(seeds(dir, &configured).unwrap(), ["a:1", "b:2"]);
        assert!(dir.join("store.given-up/log").exists() && !dir.join("store").exists());
        fs::create_dir(dir.join("store")).unwrap();
        assert_eq!(seeds(dir, &[]).unwrap(), ["b:2"], "the next start joins by it too");
        assert!(dir.join("store").exists(), "and keeps what it holds");
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
