//! Seeds that have found something. Each is named after what it must not find again, and was seen to
//! find it once more when the core was broken again. A change of what seeds do makes other stories of
//! them: then break the core as the test says, and look for a seed that finds it.

use crate::seeds::{CLUSTER, GOSSIP, Simulation};

fn holds(simulation: &Simulation, seed: u64) {
    simulation.run(seed, false).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
}

/// `Spill::gone` empty, `Seat::is_expired` blind to it, or pages read before the checkpoint of the
/// same batch has begun: the row of an expired entry was released once more.
#[test]
fn an_entry_that_expired_is_told_once_while_its_row_is_being_deleted() {
    holds(&CLUSTER, 234);
    holds(&CLUSTER, 388);
}

/// `Proposals::next` without `Held`: what came while an earlier send was under way was not held back
/// when that one was refused.
#[test]
fn nothing_overtakes_a_send_that_was_refused_while_it_was_under_way() {
    holds(&CLUSTER, 1);
    holds(&CLUSTER, 33);
}

/// A retry that is recognized makes its run of ids young again; a replica that was read from the
/// tables did not know.
#[test]
fn a_recognized_retry_is_the_same_on_every_replica() {
    holds(&CLUSTER, 25);
    holds(&CLUSTER, 28);
}

/// The window forgot that a push was lost when nothing new came after it.
#[test]
fn a_push_that_was_lost_is_read_later() {
    holds(&CLUSTER, 5);
    holds(&CLUSTER, 17);
}

/// Sessions of a node's earlier start stayed online when it had died without a word.
#[test]
fn nobody_is_online_at_a_node_that_has_died() {
    holds(&GOSSIP, 5);
    holds(&GOSSIP, 9);
}
