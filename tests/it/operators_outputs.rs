//! Stories of a node's standard output and standard error that take nothing: a pipe that nobody reads, a full disk.

use crate::operators_signals::page;
use crate::people::{ada_and_bob, node};
use proto::Code;
use proto::wire::{RegisterStart, client_frame::Kind as Ask, server_frame::Kind as Say};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use tests::disk::SmallDisk;
use tests::node::{Node, PATIENCE, Target, eventually, until};
use tests::wire::Wire;

/// What a pipe takes unless its owner asked for less.
const PIPE_BYTES: usize = 64 * 1024;

/// More PINs than a node keeps for its standard output.
const MANY: usize = 5_000;

/// Asks for a PIN on a connection of its own; the code if it was refused.
async fn ask_pin(target: &Target, number: usize) -> Option<Code> {
    let mut wire = Wire::plain(target).await.unwrap();
    let ask = Ask::RegisterStart(RegisterStart { alias: format!("somebody{number}") });
    match wire.ask(ask).await.unwrap() {
        Say::PinSent(_) => None,
        Say::Refused(refused) => Some(Code::from_number(refused.code)),
        other => panic!("{other:?}"),
    }
}

/// How many lines of `output` the node says it has dropped.
async fn dropped(node: &Node, output: &str) -> u64 {
    let name = format!("natter_output_lines_dropped_total{{output=\"{output}\"}} ");
    let page = page(node, "/metrics").await;
    page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standard_output_that_nobody_reads_holds_nobody_up() {
    let mut node = node("").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    node.stop().await.unwrap();

    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut first = writer.try_clone().unwrap();
    std::thread::spawn(move || first.write_all(&vec![b'\n'; PIPE_BYTES]));
    let mut command = tokio::process::Command::from(node.command().unwrap());
    let mut running = command.stdout(Stdio::from(writer)).kill_on_drop(true).spawn().unwrap();
    drop(command);
    let target = node.target();
    until("the node", PATIENCE, || Ok(target.addresses())).await.unwrap();
    let mut refused = None;
    for number in 0..MANY {
        refused = ask_pin(&target, number).await;
        if refused.is_some() {
            break;
        }
    }
    assert_eq!(refused, Some(Code::PinNotSent), "a PIN that nobody can read");
    for person in [&mut ada, &mut bob] {
        person.again(&target).await;
    }
    ada.say(bob.user(), "in spite of it").await;
    assert_eq!(bob.hear_text().await, "in spite of it");
    assert!(page(&node, "/readyz").await.starts_with("HTTP/1.1 200"));
    let counted = async || {
        anyhow::ensure!(dropped(&node, "stdout").await > 0, "nothing was counted");
        Ok(())
    };
    eventually(PATIENCE, counted).await.unwrap();

    let printed = std::thread::spawn(move || {
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        while !text.contains("natter: lines of stdout dropped lines=") {
            let bytes = reader.read(&mut piece).unwrap();
            assert!(bytes > 0, "the node has ended");
            text += std::str::from_utf8(&piece[..bytes]).unwrap();
        }
        (text, reader)
    });
    let printed = tokio::task::spawn_blocking(|| printed.join().unwrap());
    let (text, _reader) = tokio::time::timeout(PATIENCE, printed).await.unwrap().unwrap();
    assert!(text.contains("natter-pin alias=somebody0 pin="), "{text}");
    assert_eq!(ask_pin(&target, MANY).await, None, "it is read again");
    running.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_on_a_full_disk_hold_nobody_up_and_what_was_lost_is_said_when_there_is_space() {
    let mut node = node("[log]\nfilter = \"trace\"").await;
    let (mut ada, mut bob) = ada_and_bob(&node).await;
    node.stop().await.unwrap();
    let logs = node.dir().join("logs");
    let disk = match SmallDisk::mount(&logs, 8 << 20) {
        Ok(disk) => disk,
        Err(error) => return skip::skipped(error),
    };
    let file = |name| File::options().create(true).append(true).open(logs.join(name)).unwrap();
    let mut command = tokio::process::Command::from(node.command().unwrap());
    command.stdout(file("out")).stderr(file("err")).kill_on_drop(true);
    let mut running = command.spawn().unwrap();
    let target = node.target();
    until("the node", PATIENCE, || Ok(target.addresses())).await.unwrap();
    disk.fill().unwrap();
    for person in [&mut ada, &mut bob] {
        person.again(&target).await;
    }
    // The first may be taken for printed; from then on the node knows.
    let told = async || {
        let refused = ask_pin(&target, 0).await;
        anyhow::ensure!(refused == Some(Code::PinNotSent), "{refused:?}");
        anyhow::ensure!(dropped(&node, "stderr").await > 0 && dropped(&node, "stdout").await > 0);
        Ok(())
    };
    eventually(PATIENCE, told).await.unwrap();
    ada.say(bob.user(), "in spite of it").await;
    assert_eq!(bob.hear_text().await, "in spite of it");
    assert!(page(&node, "/readyz").await.starts_with("HTTP/1.1 200"));

    disk.free().unwrap();
    let said = || {
        let log = std::fs::read_to_string(logs.join("err"))?;
        Ok(log.lines().find(|line| line.contains("lines of stderr dropped")).map(str::to_owned))
    };
    let said = until("what was lost", PATIENCE, said).await.unwrap();
    assert!(said.starts_with("natter: ") && said.contains("No space left"), "{said}");
    running.kill().await.unwrap();
}
