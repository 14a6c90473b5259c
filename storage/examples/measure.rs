//! Measures storage: durable appends, votes, the time of a start, snapshots and sessions.
//! `cargo run --profile dist -p storage --example measure [DIR]`; without a directory a temporary one is
//! used. CPU is user and system time of all threads.
#![allow(clippy::print_stdout, reason = "it is there to print figures")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]
#![allow(clippy::disallowed_methods, reason = "it measures real time")]

use proto::{DeviceId, Seq, ShardId, UserId, stored};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use storage::{Row, Storage, StorageOptions};

const RECORD_BYTES: usize = 300;
const RUN: Duration = Duration::from_secs(3);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let temporary = tempfile::tempdir()?;
    let dir = std::env::args().nth(1).map_or(temporary.path().to_owned(), PathBuf::from);
    if std::env::args().nth(2).is_some() {
        return sessions(&dir.join("sessions"), 1_000_000);
    }
    for waiters in [1, 64, 1024] {
        appends(&dir.join(format!("appends-{waiters}")), waiters)?;
    }
    votes(&dir.join("votes"))?;
    start_with_log(&dir.join("log"), 200_000)?;
    sessions(&dir.join("sessions"), 1_000_000)?;
    snapshots(&dir.join("snapshots"), 1_000_000)?;
    start_with_tables(&dir.join("tables"), 1_000_000)
}

/// The place `index` of a group's log.
fn at(index: u64) -> stored::Applied {
    let id = Some(stored::LogId { term: 1, node: 7, index });
    stored::Applied { id, ..Default::default() }
}

fn votes(dir: &Path) -> Outcome<()> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let mut waits_us = Vec::new();
    for term in 0..500 {
        let begun = Instant::now();
        let vote = stored::Vote { term, node: 1, committed: false };
        storage.save_vote(ShardId((term % 17) as u16), &vote)?;
        waits_us.push(begun.elapsed().as_micros());
    }
    waits_us.sort_unstable();
    println!("vote: p50 {} us, p99 {} us", waits_us[250], waits_us[495]);
    storage.close();
    Ok(())
}

/// Sessions as replication writes and reads them.
fn sessions(dir: &Path, rows: u64) -> Outcome<()> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let (table, before) = (storage.sessions(), resident()?);
    let row = |n: u64| {
        let user = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
        let (node, since_ms) = (n.wrapping_mul(0xd134_2543_de82_ef95), !n << 3);
        let last_seen_ms = 1_760_000_000_000 + n;
        let session = stored::Session {
            node,
            incarnation: 9,
            version: n,
            online: true,
            last_seen_ms,
            since_ms,
            ..Default::default()
        };
        ((UserId(user), DeviceId(1)), Some(session))
    };
    for round in ["new", "again"] {
        let (begun, cpu) = (Instant::now(), cpu_s()?);
        let mut longest = Duration::ZERO;
        for first in (0..rows).step_by(500) {
            let batch: Vec<_> = (first..first + 500).map(row).collect();
            let one = Instant::now();
            table.write(&batch)?;
            longest = longest.max(one.elapsed());
        }
        let spent = begun.elapsed();
        println!(
            "{rows} sessions put by 500, {round}: {:.1} s, {:.0}/s, longest batch {} ms, CPU {:.1} s",
            spent.as_secs_f64(),
            rows as f64 / spent.as_secs_f64(),
            longest.as_millis(),
            cpu_s()? - cpu
        );
    }
    let (begun, cpu) = (Instant::now(), cpu_s()?);
    for n in (0..rows).step_by(10) {
        let ((user, device), _) = row(n * 7 % rows);
        table.get(user, device)?.ok_or("a row is missing")?;
    }
    let us = |seconds: f64| seconds * 1e6 / (rows / 10) as f64;
    println!("get: {:.1} us, CPU {:.1} us", us(begun.elapsed().as_secs_f64()), us(cpu_s()? - cpu));
    let (begun, cpu, mut found) = (Instant::now(), cpu_s()?, 0u64);
    table.scan(&mut |_, _, _| found += 1)?;
    let spent_s = begun.elapsed().as_secs_f64();
    println!("{found} scanned: {spent_s:.2} s, CPU {:.2} s", cpu_s()? - cpu);
    let (begun, mut after, mut pages) = (Instant::now(), None, 0);
    loop {
        after = table.scan_from(after, 500, &mut |_, _, _| ())?;
        pages += 1;
        if after.is_none() {
            break;
        }
    }
    println!("the same in {pages} pages: {:.2} s", begun.elapsed().as_secs_f64());
    table.flush()?;
    println!("resident {before} before, {} after; disk {} MB", resident()?, disk_mb(dir)?);
    storage.close();
    let begun = Instant::now();
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    println!("opened again: {:.2} s, resident {}", begun.elapsed().as_secs_f64(), resident()?);
    storage.close();
    Ok(())
}

/// Bytes that the files of the sessions take.
fn disk_mb(dir: &Path) -> Outcome<u64> {
    let mut bytes = 0;
    let mut folders = vec![dir.join("sessions")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += entry.metadata()?.len();
            }
        }
    }
    Ok(bytes / 1_000_000)
}

/// A group of many messages goes to another node, and is forgotten there.
fn snapshots(dir: &Path, messages: u64) -> Outcome<()> {
    let group = ShardId(1);
    let (from, _) = Storage::open(&dir.join("from"), StorageOptions::default())?;
    let (to, _) = Storage::open(&dir.join("to"), StorageOptions::default())?;
    let users = (1..).map(UserId).filter(|user| user.shard() == group);
    for (number, user) in users.take(usize::try_from(messages / 1000)?).enumerate() {
        let rows = (1..=1000).map(|n| Row::Message(user, Seq(n), Some(envelope(n))));
        from.checkpoint(group, at(number as u64), rows.collect())?;
    }
    let before = resident()?;
    let (begun, mut bytes, mut wait) = (Instant::now(), 0, Duration::ZERO);
    let (mut export, mut import) = (from.export(group)?, to.import(group)?);
    loop {
        let one = Instant::now();
        let Some(piece) = export.next(256 * 1024)? else { break };
        wait += one.elapsed();
        bytes += piece.len();
        import.write(&piece)?;
    }
    println!(
        "snapshot of {messages} messages: {} MB, exported and written in {:.1} s ({:.1} s of it read)",
        bytes / 1_000_000,
        begun.elapsed().as_secs_f64(),
        wait.as_secs_f64()
    );
    let timed = |what: &str, work: &mut dyn FnMut() -> Outcome<()>| -> Outcome<()> {
        let (begun, cpu) = (Instant::now(), cpu_s()?);
        work()?;
        let spent_s = begun.elapsed().as_secs_f64();
        println!("{what}: {spent_s:.1} s, CPU {:.1} s", cpu_s()? - cpu);
        Ok(())
    };
    let mut import = Some(import);
    timed("checked", &mut || {
        import.take().map(storage::Import::finish).transpose()?;
        Ok(())
    })?;
    timed("installed", &mut || to.install(group).map(|_| ()).map_err(Into::into))?;
    timed("wiped", &mut || to.wipe(group, None).map_err(Into::into))?;
    println!("resident {before} before, {} after", resident()?);
    from.close();
    to.close();
    Ok(())
}

/// `waiters` appends are always under way; each that is answered is followed by another.
fn appends(dir: &Path, waiters: usize) -> Outcome<()> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let (sender, answers) = channel::<(Instant, Result<(), storage::LogError>)>();
    let index = Arc::new(AtomicU64::new(0));
    let append = || {
        let (sender, begun) = (sender.clone(), Instant::now());
        let n = index.fetch_add(1, Ordering::Relaxed);
        let shard = ShardId((n % 16) as u16);
        let done = Box::new(move |outcome| {
            sender.send((begun, outcome)).ok();
        });
        storage.log().append(shard, n / 16, vec![7; RECORD_BYTES], done);
    };
    let (begun, cpu) = (Instant::now(), cpu_s()?);
    (0..waiters).for_each(|_| append());
    let mut waits_us = Vec::new();
    while begun.elapsed() < RUN {
        let (asked, outcome) = answers.recv()?;
        outcome?;
        waits_us.push(asked.elapsed().as_micros());
        append();
        if waits_us.len() % 200_000 == 0 {
            let applied = index.load(Ordering::Relaxed) / 16 - 100;
            for shard in 0..16 {
                storage.checkpoint(ShardId(shard), at(applied), Vec::new())?;
            }
        }
    }
    let (elapsed_s, cpu_s) = (begun.elapsed().as_secs_f64(), cpu_s()? - cpu);
    waits_us.sort_unstable();
    let (count, usage) = (waits_us.len(), storage.usage());
    println!(
        "{waiters:5} waiters: {:8.0} durable appends/s of {RECORD_BYTES} bytes, p50 {} us, p99 {} us, \
         {:.1} appends a flush, {:.2} us CPU an append",
        count as f64 / elapsed_s,
        waits_us[count / 2],
        waits_us[count * 99 / 100],
        usage.appended_records as f64 / usage.flushes as f64,
        cpu_s * 1e6 / count as f64,
    );
    storage.close();
    Ok(())
}

/// User and system time of this process, in seconds.
fn cpu_s() -> Outcome<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}

fn start_with_log(dir: &Path, records: u64) -> Outcome<()> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let (sender, answers) = channel();
    for n in 0..records {
        let sender = sender.clone();
        let done = Box::new(move |outcome| {
            sender.send(outcome).ok();
        });
        storage.log().append(ShardId((n % 16) as u16), n / 16, vec![7; RECORD_BYTES], done);
    }
    (0..records).try_for_each(|_| answers.recv()?.map_err(Box::<dyn Error>::from))?;
    storage.close();
    let begun = Instant::now();
    let (storage, found) = Storage::open(dir, StorageOptions::default())?;
    let count: usize = found.records.iter().map(|found| found.records.len()).sum();
    println!("start with {count} records in the log: {:.2} s", begun.elapsed().as_secs_f64());
    storage.close();
    Ok(())
}

/// A thousand mailboxes of a thousand messages for every million.
fn start_with_tables(dir: &Path, messages: u64) -> Outcome<()> {
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let users: Vec<UserId> = (1..=messages / 1000).map(UserId).collect();
    let begun = Instant::now();
    for shard in (0..16).map(ShardId) {
        let of_shard = users.iter().filter(|user| user.shard() == shard);
        for (number, user) in of_shard.enumerate() {
            let message = |n| Row::Message(*user, Seq(n), Some(envelope(n)));
            let cursors = stored::Cursors { next: 1001, ..Default::default() };
            let rows = (1..=1000).map(message).chain([Row::Cursors(*user, Some(cursors))]);
            storage.checkpoint(shard, at(number as u64), rows.collect())?;
        }
    }
    println!("{messages} messages to the tables: {:.1} s", begun.elapsed().as_secs_f64());
    drop(storage);

    let begun = Instant::now();
    let (storage, _) = Storage::open(dir, StorageOptions::default())?;
    let mut rows = 0;
    for shard in (0..16).map(ShardId) {
        storage.load(shard, &mut |_| rows += 1)?;
    }
    let (opened_s, read) = (begun.elapsed().as_secs_f64(), Instant::now());
    println!("start with {messages} messages in the tables, {rows} rows loaded: {opened_s:.2} s");
    let mut count = 0;
    for user in &users {
        count += storage.messages(*user, Seq(0), Seq(u64::MAX), 1000, usize::MAX)?.len();
    }
    println!(
        "{count} of them read: {:.2} s; resident {}",
        read.elapsed().as_secs_f64(),
        resident()?
    );
    let begun = Instant::now();
    let now_ms = 31 * 24 * 3600 * 1000;
    let due = storage.due(users[0].shard(), now_ms, 1000)?.len();
    println!("{due} due entries found: {:.3} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    for user in &users {
        let gone = Row::MessagesGone { user: *user, first: Seq(1), last: Seq(1000) };
        storage.checkpoint(user.shard(), at(1_000_000), vec![gone])?;
    }
    println!("all removed: {:.2} s", begun.elapsed().as_secs_f64());
    let begun = Instant::now();
    storage.maintain(true)?;
    println!("maintained: {:.2} s; resident {}", begun.elapsed().as_secs_f64(), resident()?);
    storage.close();
    Ok(())
}

fn envelope(n: u64) -> stored::Envelope {
    let body = vec![7; RECORD_BYTES].into();
    let message = stored::Message { from: 1, send_id: n, body, ..Default::default() };
    let content = Some(stored::envelope::Content::Message(message));
    stored::Envelope { at_ms: n, expires_ms: 30 * 24 * 3600 * 1000 + n, content }
}

fn resident() -> Outcome<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("?");
    Ok(line.trim_start_matches("VmRSS:").trim().to_owned())
}
