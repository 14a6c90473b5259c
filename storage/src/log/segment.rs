//! One file of the log: made, written, cut, unlinked.
//!
//! ```text
//! header  magic 8 | version 4 | salt 4 | number of the first block 8 | crc of these 4 | zero 4
//! ```
//!
//! Space is allocated ahead of the writes, so that a flush changes no file size and a full disk shows
//! before anything is written. Allocated space reads as zeros. Some of it is overwritten with zeros ahead
//! of use, so that most flushes change no file-system metadata at all.

use crate::space::take;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"natter L";
const VERSION: u32 = 1;

/// Bytes before the first block.
pub(super) const HEADER_BYTES: usize = 32;

/// Zeros to write after a block that went beyond the last written zero, in bytes.
const AHEAD_BYTES: usize = 256 * 1024;

/// Largest block after which zeros are written, in bytes: for larger ones they cost more than they save.
const SMALL_BLOCK_BYTES: usize = AHEAD_BYTES / 8;

/// The open segment.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    pub(super) path: PathBuf,
    pub(super) salt: u32,
    /// Offset of the next block, in bytes.
    pub(super) end: u64,
    /// Length of the file, in bytes.
    taken: u64,
    /// Bytes written, zeros included.
    written: u64,
}

impl Segment {
    /// Makes the segment whose first block will be `first`, with `space` bytes.
    pub(super) fn create(dir: &Path, first: u64, space: u64) -> io::Result<Self> {
        let path = dir.join(name(first));
        let file = File::create_new(&path)?;
        let salt = salt();
        let made = prepare(&file, salt, first, space).and_then(|()| sync_dir(dir));
        if let Err(error) = made {
            drop(file);
            fs::remove_file(&path)?;
            return Err(error);
        }
        let taken = file.metadata()?.len();
        let end = HEADER_BYTES as u64;
        Ok(Self { file, path, salt, end, taken, written: end })
    }

    /// True if `bytes` more fit into the allocated space.
    pub(super) fn has_room(&self, bytes: u64) -> bool {
        self.end + bytes <= self.taken
    }

    /// Allocates space for `bytes` more; `chunk` bytes at once if the disk has as many.
    pub(super) fn make_room(&mut self, bytes: u64, chunk: u64) -> io::Result<()> {
        let need = self.end + bytes;
        let wish = need.max(self.taken + chunk);
        let got = take(&self.file, wish).map(|()| wish);
        let got = got.or_else(|_| take(&self.file, need).map(|()| need));
        self.taken = self.file.metadata()?.len();
        got.map(|_| ())
    }

    /// Writes and flushes a block.
    pub(super) fn append(&mut self, block: &[u8]) -> Result<(), AppendError> {
        if let Err(error) = self.write(block) {
            let full = crate::error::is_full(&error);
            let cut = self.file.set_len(self.end).is_ok();
            self.taken = self.end;
            self.written = self.end;
            return Err(if full && cut { AppendError::Full } else { AppendError::Failed(error) });
        }
        self.file.sync_data().map_err(AppendError::Failed)?;
        self.end += block.len() as u64;
        self.taken = self.taken.max(self.end);
        Ok(())
    }

    fn write(&mut self, block: &[u8]) -> io::Result<()> {
        static ZEROS: [u8; AHEAD_BYTES] = [0; AHEAD_BYTES];
        self.file.write_all_at(block, self.end)?;
        let end = self.end + block.len() as u64;
        if end > self.written {
            let room = usize::try_from(self.taken.saturating_sub(end)).unwrap_or(usize::MAX);
            let ahead = if block.len() <= SMALL_BLOCK_BYTES { room.min(AHEAD_BYTES) } else { 0 };
            self.file.write_all_at(&ZEROS[..ahead], end)?;
            self.written = end + ahead as u64;
        }
        Ok(())
    }

    /// Frees the unused space; the segment is complete.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.file.set_len(self.end)?;
        self.file.sync_all()
    }
}

/// Why a block was not written.
#[derive(Debug)]
pub(super) enum AppendError {
    /// No space; the segment is as it was.
    Full,
    /// The content of the disk is unknown.
    Failed(io::Error),
}

fn prepare(file: &File, salt: u32, first: u64, space: u64) -> io::Result<()> {
    take(file, space)?;
    file.write_all_at(&header(salt, first), 0)?;
    file.sync_all()
}

fn header(salt: u32, first: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[0..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&salt.to_le_bytes());
    header[16..24].copy_from_slice(&first.to_le_bytes());
    let crc = crc32c::crc32c(&header[0..24]);
    header[24..28].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Salt in the header of a segment whose first block is `first`; `None` if the header is not whole.
pub(super) fn read_header(segment: &[u8], first: u64) -> Option<u32> {
    let found = segment.first_chunk::<HEADER_BYTES>()?;
    let salt = u32::from_le_bytes([found[12], found[13], found[14], found[15]]);
    (*found == header(salt, first)).then_some(salt)
}

fn salt() -> u32 {
    let random = RandomState::new().build_hasher().finish();
    let [a, b, c, d, ..] = random.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn name(first: u64) -> String {
    format!("{first:020}.log")
}

/// Number of the first block, from the name of a file.
pub(super) fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".log")?.parse().ok()
}

/// Cuts a segment at its last whole block.
pub(super) fn cut(path: &Path, length: u64) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(length)?;
    file.sync_all()
}

/// Flushes `dir`, so that created and unlinked files survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use rustix::fs::{SeekFrom, seek};

    #[test]
    fn small_blocks_overwrite_zeros_and_are_read_back() {
        const SPACE: u64 = 1024 * 1024;
        let dir = tempfile::tempdir().unwrap();
        let mut segment = Segment::create(dir.path(), 1, SPACE).unwrap();
        let blocks: Vec<_> = (1..=9u8).map(|n| vec![n; 1000]).collect();
        segment.append(&blocks[0]).unwrap();
        let written = seek(&segment.file, SeekFrom::Hole(0)).unwrap();
        assert!(written >= AHEAD_BYTES as u64, "{written} bytes");
        for block in &blocks[1..] {
            segment.append(block).unwrap();
        }
        let again = seek(&segment.file, SeekFrom::Hole(0)).unwrap();
        assert_eq!(again, written, "the others went where zeros were");
        let found = fs::read(&segment.path).unwrap();
        let end = HEADER_BYTES + 9 * 1000;
        assert_eq!(found[HEADER_BYTES..end], blocks.concat());
        assert!(found[end..].iter().all(|byte| *byte == 0));
        assert_eq!(found.len() as u64, SPACE, "nothing beyond what was taken");
    }
}
