//! Punches holes where a file holds zeros. The file reads as before.

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Unit of reading and freeing, in bytes; a multiple of the blocks of file systems.
const BLOCK_BYTES: usize = 16 * 1024;

/// Frees all whole blocks of zeros from `from` to the end of the file; returns the offset of that end.
/// Blocks that were not on the disk yet need not reach it: ext4 of Linux 6.18 never writes them; another
/// file system may.
///
/// # Errors
/// Errors of reading; [`io::ErrorKind::Unsupported`] where files have no holes. Then less was freed.
pub(super) fn punch(file: &File, from: u64) -> io::Result<u64> {
    let mut end = from;
    while let Some(begin) = next_data(file, end)? {
        end = seek(file, SeekFrom::Hole(begin))?;
        dig_written(file, begin..end)?;
    }
    Ok(end)
}

fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(from)) {
        Ok(begin) => Ok(Some(begin)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn dig_written(file: &File, written: Range<u64>) -> io::Result<()> {
    const ZEROS: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
    let mut block = ZEROS;
    let bytes = BLOCK_BYTES as u64;
    let mut zeros = 0..0;
    let mut at = written.start.next_multiple_of(bytes);
    while at + bytes <= written.end {
        file.read_exact_at(&mut block, at)?;
        if block != ZEROS {
            give_back(file, &zeros)?;
            zeros = 0..0;
        } else if zeros.is_empty() {
            zeros = at..at + bytes;
        } else {
            zeros.end = at + bytes;
        }
        at += bytes;
    }
    give_back(file, &zeros)
}

fn give_back(file: &File, zeros: &Range<u64>) -> io::Result<()> {
    if !zeros.is_empty() {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, hole, zeros.start, zeros.end - zeros.start)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_take_no_space_and_read_as_before() {
        let file = tempfile::tempfile().unwrap();
        let run = |byte: u8, count: usize| vec![byte; count];
        let content =
            [run(7, 20_000), run(0, 1_000_000), run(8, 50_000), run(0, 300_000), run(9, 1)]
                .concat();
        file.write_all_at(&content, 0).unwrap();
        file.set_len(4_000_000).unwrap();
        let dug = punch(&file, 0);
        if dug.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Unsupported) {
            return skip::skipped("files have no holes here");
        }
        let end = dug.unwrap();
        assert!((content.len() as u64..=content.len() as u64 + 65_536).contains(&end), "{end}");
        let mut found = vec![1; content.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == content, "the file reads differently");
        assert_eq!(file.metadata().unwrap().len(), 4_000_000);
        let space = file.metadata().unwrap().blocks() * 512;
        assert!(space < 250_000, "{space} bytes");
    }
}
