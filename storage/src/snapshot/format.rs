//! The encoding of a snapshot: one stream, cut into pieces at any byte.
//!
//! ```text
//! header  "natter S" 8 | version 4 | group 2 | length 4 | stored::Applied
//! row     table 1 | length of the key 2 | length of the value 4 | key | value
//! end     0 | rows 8 | crc 4
//! ```
//!
//! Little-endian. Keys are those of the tables without the home. The crc (crc32c) covers all before
//! it.

use crate::StorageError;
use crate::schema::Table;
use bytes::{Bytes, BytesMut};
use prost::Message;
use proto::{ShardId, stored};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const MAGIC: [u8; 8] = *b"natter S";

/// Version of the encoding.
const VERSION: u32 = 1;

const HEADER_BYTES: usize = 18;
const ROW_HEADER_BYTES: usize = 6;
const END_BYTES: usize = 8;

/// Longest row, in bytes: a greater length is damage.
const ROW_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Writes the stream.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    buffer: BytesMut,
    crc: u32,
    rows: u64,
}

impl Encoder {
    /// Begins the stream of a group.
    pub(super) fn new(group: ShardId, applied: &stored::Applied) -> Self {
        let mut encoder = Self::default();
        let applied = applied.encode_to_vec();
        encoder.add(&MAGIC);
        encoder.add(&VERSION.to_le_bytes());
        encoder.add(&group.0.to_le_bytes());
        encoder.add(&u32::try_from(applied.len()).unwrap_or(u32::MAX).to_le_bytes());
        encoder.add(&applied);
        encoder
    }

    fn add(&mut self, bytes: &[u8]) {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        self.buffer.extend_from_slice(bytes);
    }

    pub(super) fn row(&mut self, table: u8, key: &[u8], value: &[u8]) {
        let key_length = u16::try_from(key.len()).unwrap_or(u16::MAX).to_le_bytes();
        let value_length = u32::try_from(value.len()).unwrap_or(u32::MAX).to_le_bytes();
        self.add(&[table]);
        self.add(&key_length);
        self.add(&value_length);
        self.add(key);
        self.add(value);
        self.rows += 1;
    }

    pub(super) fn end(&mut self) {
        self.add(&[0]);
        self.add(&self.rows.to_le_bytes());
        self.buffer.extend_from_slice(&self.crc.to_le_bytes());
    }

    /// Number of bytes that wait to be taken.
    pub(super) fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Takes up to `bytes_max` bytes.
    pub(super) fn take(&mut self, bytes_max: usize) -> Bytes {
        let bytes = bytes_max.min(self.buffer.len());
        self.buffer.split_to(bytes).freeze()
    }
}

/// Called with table, key without its home, and value of each row.
pub(super) type Visit<'a> = dyn FnMut(Table, &[u8], &[u8]) -> Result<(), StorageError> + 'a;

/// Reads the stream of `group` in `path` to its end. Its content is valid only if this returns `Ok`.
pub(super) fn read(
    path: &Path,
    group: ShardId,
    visit: &mut Visit<'_>,
) -> Result<stored::Applied, StorageError> {
    let file = File::open(path).map_err(|error| StorageError::io(path, error))?;
    let input = BufReader::with_capacity(256 * 1024, file);
    let mut decoder = Decoder { path, input, crc: 0 };
    let applied = decoder.header(group)?;
    let mut rows = 0u64;
    let (mut key, mut value) = (Vec::new(), Vec::new());
    while let Some(table) = decoder.row(&mut key, &mut value)? {
        visit(table, &key, &value)?;
        rows += 1;
    }
    decoder.end(rows)?;
    Ok(applied)
}

struct Decoder<'a> {
    path: &'a Path,
    input: BufReader<File>,
    crc: u32,
}

impl Decoder<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), StorageError> {
        self.input.read_exact(bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.bad("it ends too early")
            } else {
                StorageError::io(self.path, error)
            }
        })?;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StorageError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes).map(|()| bytes)
    }

    /// Reads `length` bytes into `bytes`; allocates only as bytes arrive, since `length` may be damaged.
    fn bytes(&mut self, length: usize, bytes: &mut Vec<u8>) -> Result<(), StorageError> {
        if length > ROW_BYTES_MAX {
            return Err(self.bad("a row is too long"));
        }
        bytes.clear();
        let taken = Read::by_ref(&mut self.input).take(length as u64).read_to_end(bytes);
        if taken.map_err(|error| StorageError::io(self.path, error))? < length {
            return Err(self.bad("it ends too early"));
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        Ok(())
    }

    fn header(&mut self, group: ShardId) -> Result<stored::Applied, StorageError> {
        let header: [u8; HEADER_BYTES] = self.array()?;
        let [magic @ .., v0, v1, v2, v3, g0, g1, l0, l1, l2, l3] = header;
        if magic != MAGIC {
            return Err(self.bad("it is no snapshot"));
        }
        let version = u32::from_le_bytes([v0, v1, v2, v3]);
        if version != VERSION {
            return Err(self.bad(format!("it has version {version}, known is {VERSION}")));
        }
        if u16::from_le_bytes([g0, g1]) != group.0 {
            return Err(self.bad("it is of another group"));
        }
        let mut applied = Vec::new();
        self.bytes(u32::from_le_bytes([l0, l1, l2, l3]) as usize, &mut applied)?;
        let applied = stored::Applied::decode(applied.as_slice());
        applied.map_err(|_| self.bad("its place in the log is not understood"))
    }

    fn row(
        &mut self,
        key: &mut Vec<u8>,
        value: &mut Vec<u8>,
    ) -> Result<Option<Table>, StorageError> {
        let [number] = self.array()?;
        if number == 0 {
            return Ok(None);
        }
        let table = Table::STATE.into_iter().find(|(known, _)| *known == number);
        let (_, table) = table.ok_or_else(|| self.bad("it has a table that is not known"))?;
        let [k0, k1, value_length @ ..]: [u8; ROW_HEADER_BYTES] = self.array()?;
        self.bytes(u16::from_le_bytes([k0, k1]).into(), key)?;
        self.bytes(u32::from_le_bytes(value_length) as usize, value)?;
        Ok(Some(table))
    }

    fn end(&mut self, rows: u64) -> Result<(), StorageError> {
        let counted: [u8; END_BYTES] = self.array()?;
        let crc = self.crc;
        if self.array()? != crc.to_le_bytes() || u64::from_le_bytes(counted) != rows {
            return Err(self.bad("its checksum is wrong"));
        }
        match self.input.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.bad("it goes on behind its end")),
            Err(error) => Err(StorageError::io(self.path, error)),
        }
    }

    fn bad(&self, what: impl Into<String>) -> StorageError {
        StorageError::BadSnapshot { file: self.path.to_owned(), what: what.into() }
    }
}
