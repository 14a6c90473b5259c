//! A disk that refuses session rows and then accepts them again.

use super::*;
use std::ops::ControlFlow;

fn batch(rows: &[(&str, Option<&str>)]) -> Batch {
    let mut batch = Batch::default();
    for (key, value) in rows {
        let (table, key) = (Table::Sessions, key.as_bytes().to_vec());
        match value {
            Some(value) => batch.put(table, key, value.as_bytes().to_vec()),
            None => batch.remove(table, key),
        }
    }
    batch
}

fn write(table: &Sled, rows: &[(&str, Option<&str>)]) {
    table.write(batch(rows), Durability::Lazy).unwrap();
}

fn all(table: &Sled) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let scan = Scan { table: Table::Sessions, from: b"", to: b"zz" };
    table
        .scan(scan, &mut |key, value| {
            rows.push((text(key), text(value)));
            ControlFlow::Continue(())
        })
        .unwrap();
    for (key, value) in &rows {
        let got = table.get(Table::Sessions, key.as_bytes()).unwrap();
        assert_eq!(got.as_deref(), Some(value.as_bytes()));
    }
    rows
}

fn rows(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn eventually(what: &str, is: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if is() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("waited in vain: {what}");
}

#[test]
fn what_the_disk_refuses_is_read_all_the_same_and_written_when_it_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("sessions");
    let table = Sled::open(&dir).unwrap();
    write(&table, &[("a", Some("1")), ("b", Some("1")), ("d", Some("1"))]);
    table.flush().unwrap();
    // The probe fails while this directory is in its place.
    let probe = dir.with_extension("probe");
    fs::create_dir(&probe).unwrap();
    write(&table, &[("d", Some("2"))]);
    table.shared.set_refused(&io::Error::from(io::ErrorKind::StorageFull));
    write(&table, &[("a", None)]);
    write(&table, &[("b", Some("2")), ("c", Some("2"))]);
    let expected = rows(&[("b", "2"), ("c", "2"), ("d", "2")]);
    assert_eq!(all(&table), expected);
    assert_eq!(table.get(Table::Sessions, b"a").unwrap(), None);
    assert!(matches!(table.flush(), Err(StorageError::DiskFull { .. })));
    let flushed = table.write(batch(&[("c", Some("2"))]), Durability::Flushed);
    assert!(matches!(flushed, Err(StorageError::DiskFull { .. })));

    fs::remove_dir(&probe).unwrap();
    eventually("the disk takes it", || table.flush().is_ok());
    assert_eq!(all(&table), expected);
    write(&table, &[("e", Some("3"))]);
    drop(table);
    let table = Sled::open(&dir).unwrap();
    assert_eq!(all(&table)[..3], expected);
}

#[test]
fn a_row_is_flushed_soon_though_nobody_asks() {
    let dir = tempfile::tempdir().unwrap();
    let table = Sled::open(&dir.path().join("sessions")).unwrap();
    write(&table, &[("a", Some("1"))]);
    assert!(table.shared.backlog().get(b"a").is_some());
    eventually("it is flushed", || table.shared.backlog().get(b"a").is_none());
    assert_eq!(all(&table), rows(&[("a", "1")]));
}

#[test]
fn a_table_that_cannot_be_opened_again_keeps_rows_in_memory_and_tries_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("sessions");
    let table = Sled::open(&dir).unwrap();
    write(&table, &[("a", Some("1")), ("b", Some("1"))]);
    table.flush().unwrap();
    let (file, away) = (dir.join("db"), dir.join("db.away"));
    fs::rename(&file, &away).unwrap();
    fs::create_dir(&file).unwrap();
    table.shared.set_refused(&io::Error::from(io::ErrorKind::StorageFull));
    let round = || table.flusher.as_ref().unwrap().thread().unpark();
    eventually("it cannot be opened", || {
        round();
        table.shared.db().is_none()
    });
    write(&table, &[("b", Some("2"))]);
    assert_eq!(table.get(Table::Sessions, b"b").unwrap(), Some(b"2".to_vec()));
    assert!(matches!(table.get(Table::Sessions, b"a"), Err(StorageError::DiskFull { .. })));

    fs::remove_dir(&file).unwrap();
    fs::rename(&away, &file).unwrap();
    eventually("it is opened", || {
        round();
        table.flush().is_ok()
    });
    assert_eq!(all(&table), rows(&[("a", "1"), ("b", "2")]));
}
