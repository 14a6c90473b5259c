//! Conversations on disk: one file of JSON lines for each, appended to, bounded.
//!
//! A file is rewritten when it is read with more than twice the lines that are kept, so it stays
//! within a small multiple of them.

use crate::model::{Conversation, LINES_MAX, Line, Tick};
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

/// Records in a file beyond which it is rewritten.
const RECORDS_MAX: usize = 3 * LINES_MAX;

/// One line of a file.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Record {
    Line(Line),
    Ticked { device: u32, send_ids: Vec<u64>, tick: Tick },
    Read { device: u32, send_ids: Vec<u64>, read: bool },
}

/// The directory of all conversations.
#[derive(Debug)]
pub(crate) struct History {
    dir: PathBuf,
    open: BTreeMap<u64, Written>,
}

#[derive(Debug)]
struct Written {
    file: File,
    records: usize,
    unsynced: bool,
}

impl History {
    pub(crate) fn open(dir: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { dir, open: BTreeMap::new() })
    }

    /// All conversations, the one with the newest message first.
    pub(crate) fn load(&mut self) -> anyhow::Result<Vec<Conversation>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).context("reading the history")? {
            let path = entry?.path();
            let user = path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
            if let Some(user) = user.filter(|_| path.extension().is_some_and(|e| e == "jsonl")) {
                all.push(self.read(user, &path)?);
            }
        }
        all.sort_by_key(|c| std::cmp::Reverse(c.lines.back().map_or(0, |line| line.at_ms)));
        Ok(all)
    }

    /// Appends to the conversation with `user`. It is safe after [`History::sync`].
    pub(crate) fn append(&mut self, user: u64, record: &Record) -> anyhow::Result<()> {
        let path = self.path(user);
        let mut write = || -> io::Result<()> {
            let written = match self.open.entry(user) {
                Entry::Occupied(open) => open.into_mut(),
                Entry::Vacant(closed) => {
                    let file = open_private(OpenOptions::new().create(true).append(true), &path)?;
                    closed.insert(Written { file, records: 0, unsynced: false })
                }
            };
            let mut line = serde_json::to_vec(record)?;
            line.push(b'\n');
            written.file.write_all(&line)?;
            written.records += 1;
            written.unsynced = true;
            Ok(())
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        if self.open.get(&user).is_some_and(|written| written.records > RECORDS_MAX) {
            self.read(user, &path)?;
        }
        Ok(())
    }

    /// What was appended is on disk afterwards.
    pub(crate) fn sync(&mut self) -> anyhow::Result<()> {
        for written in self.open.values_mut().filter(|written| written.unsynced) {
            written.file.sync_data().context("writing the history")?;
            written.unsynced = false;
        }
        Ok(())
    }

    fn path(&self, user: u64) -> PathBuf {
        self.dir.join(format!("{user}.jsonl"))
    }

    fn read(&mut self, user: u64, path: &Path) -> anyhow::Result<Conversation> {
        let reader = File::open(path).with_context(|| format!("reading {}", path.display()))?;
        let mut conversation = Conversation::new(user);
        let mut records = 0;
        let mut damaged = false;
        for line in BufReader::new(reader).split(b'\n') {
            let line = line.with_context(|| format!("reading {}", path.display()))?;
            records += 1;
            // A line that was cut off by a crash: it was not acknowledged and comes again.
            let Ok(record) = serde_json::from_slice(&line) else {
                damaged = true;
                continue;
            };
            match record {
                Record::Line(line) => {
                    conversation.add(line);
                }
                Record::Ticked { device, send_ids, tick } => {
                    conversation.ticked(device, &send_ids, &tick);
                }
                Record::Read { device, send_ids, read } => {
                    conversation.set_read(device, &send_ids, read);
                }
            }
        }
        if damaged || records > 2 * LINES_MAX {
            self.rewrite(path, &conversation)
                .with_context(|| format!("writing {}", path.display()))?;
            records = conversation.lines.len();
        }
        let file = open_private(OpenOptions::new().append(true), path)?;
        self.open.insert(user, Written { file, records, unsynced: false });
        Ok(conversation)
    }

    fn rewrite(&self, path: &Path, conversation: &Conversation) -> io::Result<()> {
        let new = self.dir.join("rewrite.new");
        let mut file =
            open_private(OpenOptions::new().create(true).truncate(true).write(true), &new)?;
        let mut bytes = Vec::new();
        for line in &conversation.lines {
            serde_json::to_writer(&mut bytes, &Record::Line(line.clone()))?;
            bytes.push(b'\n');
        }
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    }
}

fn open_private(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Side;

    fn line(send_id: u64) -> Record {
        let side = Side::Mine { device: 1, send_id, tick: Tick::Waiting };
        Record::Line(Line { at_ms: send_id, text: format!("{send_id}"), side })
    }

    #[test]
    fn a_conversation_comes_back_with_its_ticks_even_after_a_torn_write() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path().into()).unwrap();
        history.append(5, &line(1)).unwrap();
        let ticked = Record::Ticked { device: 1, send_ids: vec![1], tick: Tick::Delivered };
        history.append(5, &ticked).unwrap();
        history.append(6, &line(2)).unwrap();
        history.sync().unwrap();
        let mut torn = OpenOptions::new().append(true).open(dir.path().join("5.jsonl")).unwrap();
        torn.write_all(b"{\"line\":{\"at").unwrap();

        for _ in 0..2 {
            let mut history = History::open(dir.path().into()).unwrap();
            let all = history.load().unwrap();
            assert_eq!(all.iter().map(|c| c.user).collect::<Vec<_>>(), [6, 5]);
            let tick = &all[1].lines[0].side;
            assert!(matches!(tick, Side::Mine { tick: Tick::Delivered, .. }));
            history.append(5, &line(1)).unwrap();
        }
    }

    #[test]
    fn a_file_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let mut history = History::open(dir.path().into()).unwrap();
        for send_id in 0..4 * LINES_MAX as u64 {
            history.append(5, &line(send_id)).unwrap();
        }
        let text = fs::read_to_string(dir.path().join("5.jsonl")).unwrap();
        assert!(text.lines().count() <= RECORDS_MAX + 1);
        assert_eq!(history.load().unwrap()[0].lines.len(), LINES_MAX);
    }
}
