//! What a replica decides, told without clock, disk or tasks. The simulation tells the long stories.

use super::super::command::Outcome;
use super::super::machine::MachineLimits;
use super::*;
use prost::Message as _;
use proto::Code;

const ME: NodeId = NodeId(1);

fn replica() -> ReplicaCore {
    let shard = ShardId(3);
    let machine = Machine::new(shard, MachineLimits::default());
    ReplicaCore::new(ME, shard, Loaded { machine, applied: None }, 10_000)
}

fn actions_after(core: &mut ReplicaCore, item: Item) -> Vec<Action> {
    core.step(item, 0);
    std::iter::from_fn(|| core.next_action()).collect()
}

fn entry(index: u64, commands: Vec<stored::Command>) -> Committed {
    let batch = stored::Batch { commands, ..stored::Batch::default() };
    let id = stored::LogId { term: 1, node: 1, index };
    Committed { id, content: Some(batch.encode_to_vec().into()), membership: None }
}

#[test]
fn a_replica_that_meets_a_command_it_does_not_know_stops_by_name() {
    let mut core = replica();
    let what = None;
    let notices = vec![stored::Notice { number: 1, user: 7, what }];
    let take = stored::TakeNotices { from_shard: 9, notices };
    let unknown = [None, Some(Command::TakeNotices(take))];
    for kind in unknown {
        let ack = Some(Command::Ack(stored::Ack::default()));
        let commands = [ack, kind].map(|kind| stored::Command { kind }).to_vec();
        let actions = actions_after(&mut core, Item::Committed(vec![entry(7, commands)], 5));
        let [Action::Forget(5), Action::Stop(why)] = actions.as_slice() else {
            panic!("it goes on");
        };
        assert!(why.contains("shard 3") && why.contains("entry 7"), "{why}");
        assert!(why.contains("newer version"), "{why}");
        assert!(core.applied().id.is_none(), "nothing of the batch was applied");
    }
}

#[test]
fn a_leader_does_not_propose_what_it_does_not_know() {
    let mut core = replica();
    let leads = Leadership { me_leads: true, term: 1, voters: 1, ..Leadership::default() };
    actions_after(&mut core, Item::Stands(leads));
    let commands = vec![stored::Command { kind: None }];
    let actions = actions_after(&mut core, Item::ProposeAll(commands, 5));
    let [Action::AnswerAll(5, outcomes)] = actions.as_slice() else { panic!("no answer") };
    assert_eq!(*outcomes, [Outcome::Refused(Code::NotSupported)]);
    let actions = actions_after(&mut core, Item::Settle);
    assert!(actions.is_empty(), "there is nothing to propose");
}
