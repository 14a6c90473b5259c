//! Promise 5: while a disk fills, strangers' mail is refused first, and people who are there are served
//! last of all to be refused. On real small disks, which need root.

use crate::clusters::{cluster, turn};
use crate::people::{PROGRAM, Person, code, message, settings};
use anyhow::{Result, ensure};
use proto::Code;
use proto::wire::{Send, client_frame::Kind as Ask, server_frame::Kind as Say};
use std::time::Duration;
use tests::cluster::Options;
use tests::disk::SmallDisk;
use tests::node::{Node, eventually};
use tests::wire::Phone;

/// Generous: the machine may be compiling.
const PATIENCE: Duration = Duration::from_mins(1);

const DISK_BYTES: u64 = 256 << 20;

/// The space that should be free: the stages are multiples of it, ten MiB apart and more.
const FREE_MIN: u64 = 40 << 20;

fn storage() -> String {
    settings(&format!(
        "[storage]\nsegment_bytes = \"1MiB\"\ncheckpoint_every = \"1s\"\nfree_bytes_min = \"{}MiB\"",
        FREE_MIN >> 20
    ))
}

/// True if small disks can be mounted here.
fn can_mount() -> bool {
    let probe = tempfile::tempdir().unwrap();
    let mounted = SmallDisk::mount(&probe.path().join("disk"), 1 << 20);
    mounted.map_err(skip::skipped).is_ok()
}

/// So many hundredths of what should be free are free.
fn leave(disk: &SmallDisk, percent: u64) {
    disk.leave(FREE_MIN * percent / 100).unwrap();
}

/// Ada, a contact of both, and Eve, whom nobody knows, write to Bob, who is there, and to Cyx, who is away.
struct Cast {
    ada: Person,
    eve: Person,
    bob: Person,
    cyx: Phone,
}

impl Cast {
    async fn on(node: &Node) -> Self {
        let ada = Person::join(node, "ada").await;
        let eve = Person::join(node, "eve").await;
        let mut bob = Person::join(node, "bob").await;
        let mut cyx = Person::join(node, "cyx").await;
        bob.knows(&ada).await;
        cyx.knows(&ada).await;
        Self { ada, eve, bob, cyx: cyx.hang_up() }
    }

    /// Waits until the node refuses what `who` sends to `to`; the id that was refused.
    async fn refused(who: &mut Person, to: u64) -> u64 {
        let refused = eventually(PATIENCE, async || {
            let id = who.fresh_id();
            let answer = who.wire.ask_as(id, message(to, "is there room?")).await?;
            ensure!(!matches!(answer, Say::Accepted(_)), "there is");
            assert_eq!(code(&answer), Code::StorageFull);
            Ok(id)
        });
        refused.await.unwrap()
    }

    /// Waits until `id` is accepted, which was refused before.
    async fn accepted(who: &mut Person, id: u64, to: u64) {
        let again = async || -> Result<()> {
            who.say_as(id, to, "is there room?").await?;
            Ok(())
        };
        eventually(PATIENCE, again).await.unwrap();
    }

    /// Tells whether Ada's mail to Cyx, Eve's to Bob and Ada's to Bob is accepted.
    async fn others(&mut self) -> [bool; 3] {
        let (bob, cyx) = (self.bob.user(), self.cyx.user);
        let mut accepted = [false; 3];
        let sends = [(&mut self.ada, cyx), (&mut self.eve, bob)];
        for ((who, to), accepted) in sends.into_iter().zip(&mut accepted) {
            *accepted = matches!(who.wire.ask(send(to)).await.unwrap(), Say::Accepted(_));
        }
        accepted[2] = matches!(self.ada.wire.ask(send(bob)).await.unwrap(), Say::Accepted(_));
        accepted
    }

    /// The stages of a disk that fills, and that room comes back.
    async fn see_the_stages(&mut self, disk: &SmallDisk) {
        let (bob, cyx) = (self.bob.user(), self.cyx.user);
        assert_eq!(self.others().await, [true, true, true]);
        leave(disk, 188);
        let first = Self::refused(&mut self.eve, cyx).await;
        assert_eq!(self.others().await, [true, true, true], "only strangers' mail to who is away");
        leave(disk, 163);
        Self::refused(&mut self.eve, bob).await;
        assert_eq!(self.others().await, [true, false, true], "all strangers' mail");
        leave(disk, 125);
        Self::refused(&mut self.ada, cyx).await;
        assert_eq!(self.others().await, [false, false, true], "only who is there gets mail");
        disk.free().unwrap();
        Self::accepted(&mut self.eve, first, cyx).await;
    }
}

fn send(to: u64) -> Ask {
    let Ask::Send(send) = message(to, "hello") else { unreachable!() };
    Ask::Send(Send { ttl_s: 3600, ..send })
}

#[tokio::test]
async fn promise_5_a_disk_that_fills_is_closed_to_strangers_first_and_serves_who_is_there() {
    if !can_mount() {
        return;
    }
    let mut node = Node::prepare(PROGRAM, &storage()).unwrap();
    let disk = SmallDisk::mount(node.target().data_dir(), DISK_BYTES).unwrap();
    node.restart().await.unwrap();
    let mut cast = Cast::on(&node).await;
    cast.see_the_stages(&disk).await;
    node.kill().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promise_5_the_scarcest_disk_of_three_nodes_counts_until_it_is_full() {
    let _turn = turn().await;
    if !can_mount() {
        return;
    }
    let options = Options { settings: storage(), disk: Some(DISK_BYTES), ..Options::of(3) };
    let cluster = cluster(options).await;
    // It leads nothing: others say what its disk has left.
    cluster.admin(0, &["cluster", "drain", "node-2"]).await.unwrap();
    let mut cast = Cast::on(&cluster.nodes()[0]).await;
    let small = cluster.disk(2).unwrap();
    cast.see_the_stages(small).await;
    leave(small, 163);
    let cyx = cast.cyx.user;
    let id = Cast::refused(&mut cast.eve, cyx).await;
    small.fill().unwrap();
    Cast::accepted(&mut cast.eve, id, cyx).await;
}
