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
    holds(&CLUSTER, 266);
    holds(&CLUSTER, 313);
}

/// `Proposals::next` without `RetryOrder`: what came while an earlier send was under way was not held back
/// when that one was refused.
#[test]
fn nothing_overtakes_a_send_that_was_refused_while_it_was_under_way() {
    holds(&CLUSTER, 64);
    holds(&CLUSTER, 84);
}

/// `RetryOrder::holds_back` forgot all refused sends of a conversation together with the oldest: one that was
/// refused a moment ago was overtaken.
#[test]
fn a_send_that_was_refused_is_waited_for_though_an_earlier_one_never_came_again() {
    holds(&CLUSTER, 332);
}

/// A retry that is recognized makes its run of ids young again; a replica that was read from the
/// tables did not know.
#[test]
fn a_recognized_retry_is_the_same_on_every_replica() {
    holds(&CLUSTER, 14);
    holds(&CLUSTER, 20);
}

/// Notices that came too early were confirmed, and an answer to an earlier offer was taken for one to the
/// offer under way: those in between were let go of, and after them nothing was taken any longer.
#[test]
fn notices_that_come_too_early_are_offered_again() {
    holds(&CLUSTER, 3_480);
    holds(&CLUSTER, 8_713);
}

/// The window forgot that a push was lost when nothing new came after it.
#[test]
fn a_push_that_was_lost_is_read_later() {
    holds(&CLUSTER, 15);
    holds(&CLUSTER, 35);
}

/// Sessions of a node's earlier start stayed online when it had died without a word.
#[test]
fn nobody_is_online_at_a_node_that_has_died() {
    holds(&GOSSIP, 5);
    holds(&GOSSIP, 9);
}
