//! Between openraft's types and the messages of the schema. Pure.
//!
//! # Invariants
//! 1. What goes there and back is the same.
//! 2. A message that lacks what it must have is `None`, never a default.

use super::types::{Ballot, Id, LogEntry, Members, Proposal, Types};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{CommittedLeaderId, EmptyNode, Entry, EntryPayload, LogId, Membership, Vote};
use proto::{ShardId, cluster, stored};
use std::collections::BTreeSet;

pub(super) fn id(stored: &stored::LogId) -> Id {
    LogId::new(CommittedLeaderId::new(stored.term, stored.node), stored.index)
}

pub(super) fn stored_id(id: &Id) -> stored::LogId {
    stored::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(super) fn vote(stored: &stored::Vote) -> Ballot {
    let mut vote = Vote::new(stored.term, stored.node);
    if stored.committed {
        vote.commit();
    }
    vote
}

pub(super) fn stored_vote(vote: &Ballot) -> stored::Vote {
    let leader = vote.leader_id();
    stored::Vote { term: leader.term, node: leader.node_id, committed: vote.is_committed() }
}

pub(super) fn membership(stored: &stored::Membership) -> Membership<u64, EmptyNode> {
    let configs = stored.configs.iter().map(|config| config.voters.iter().copied().collect());
    let nodes: BTreeSet<u64> = stored.nodes.iter().copied().collect();
    Membership::new(configs.collect(), nodes)
}

pub(super) fn stored_membership(membership: &Membership<u64, EmptyNode>) -> stored::Membership {
    let configs = membership.get_joint_config().iter();
    stored::Membership {
        configs: configs
            .map(|voters| stored::Voters { voters: voters.iter().copied().collect() })
            .collect(),
        nodes: membership.nodes().map(|(node, _)| *node).collect(),
    }
}

/// The membership that a row of `applied`, or a snapshot, tells of.
pub(super) fn members(
    at: Option<&stored::LogId>,
    membership_row: Option<&stored::Membership>,
) -> Members {
    Members::new(at.map(id), membership_row.map(membership).unwrap_or_default())
}

pub(super) fn entry(stored: stored::Entry) -> Option<LogEntry> {
    let payload = match stored.payload? {
        stored::entry::Payload::Blank(_) => EntryPayload::Blank,
        stored::entry::Payload::Normal(content) => {
            EntryPayload::Normal(Proposal { content, ..Proposal::default() })
        }
        stored::entry::Payload::Membership(members) => {
            EntryPayload::Membership(membership(&members))
        }
    };
    Some(Entry { log_id: id(&stored.id?), payload })
}

pub(super) fn stored_entry(entry: &LogEntry) -> stored::Entry {
    let payload = match &entry.payload {
        EntryPayload::Blank => stored::entry::Payload::Blank(true),
        EntryPayload::Normal(proposal) => stored::entry::Payload::Normal(proposal.content.clone()),
        EntryPayload::Membership(members) => {
            stored::entry::Payload::Membership(stored_membership(members))
        }
    };
    stored::Entry { id: Some(stored_id(&entry.log_id)), payload: Some(payload) }
}

pub(super) fn append(
    group: ShardId,
    request: &AppendEntriesRequest<Types>,
    weak: bool,
) -> cluster::Append {
    cluster::Append {
        group: u32::from(group.0),
        vote: Some(stored_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(stored_id),
        entries: request.entries.iter().map(stored_entry).collect(),
        committed: request.leader_commit.as_ref().map(stored_id),
        weak,
    }
}

pub(super) fn append_request(append: cluster::Append) -> Option<AppendEntriesRequest<Types>> {
    Some(AppendEntriesRequest {
        vote: vote(&append.vote?),
        prev_log_id: append.previous.as_ref().map(id),
        entries: append.entries.into_iter().map(entry).collect::<Option<_>>()?,
        leader_commit: append.committed.as_ref().map(id),
    })
}

/// `free_percent`: space on this node's disk, in hundredths of what should be free.
pub(super) fn append_answer(
    response: &AppendEntriesResponse<u64>,
    free_percent: u64,
) -> cluster::AppendAnswer {
    use cluster::append_answer::Kind;
    let kind = match response {
        AppendEntriesResponse::Success => Some(Kind::Success(true)),
        AppendEntriesResponse::PartialSuccess(matching) => {
            matching.as_ref().map(|matching| Kind::Partial(stored_id(matching)))
        }
        AppendEntriesResponse::HigherVote(vote) => Some(Kind::HigherVote(stored_vote(vote))),
        AppendEntriesResponse::Conflict => Some(Kind::Conflict(true)),
    };
    let free_percent = u32::try_from(free_percent).unwrap_or(u32::MAX);
    cluster::AppendAnswer { kind, free_percent }
}

pub(super) fn append_response(
    answer: &cluster::AppendAnswer,
) -> Option<AppendEntriesResponse<u64>> {
    use cluster::append_answer::Kind;
    Some(match answer.kind.as_ref()? {
        Kind::Success(_) => AppendEntriesResponse::Success,
        Kind::Partial(matching) => AppendEntriesResponse::PartialSuccess(Some(id(matching))),
        Kind::Conflict(_) => AppendEntriesResponse::Conflict,
        Kind::HigherVote(higher) => AppendEntriesResponse::HigherVote(vote(higher)),
    })
}

pub(super) fn vote_request(wanted: &cluster::Vote) -> Option<VoteRequest<u64>> {
    let vote = vote(wanted.vote.as_ref()?);
    Some(VoteRequest { vote, last_log_id: wanted.last.as_ref().map(id) })
}

pub(super) fn vote_answer(response: &VoteResponse<u64>) -> cluster::VoteAnswer {
    cluster::VoteAnswer {
        vote: Some(stored_vote(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(stored_id),
    }
}

pub(super) fn vote_response(answer: &cluster::VoteAnswer) -> Option<VoteResponse<u64>> {
    let last = answer.last.as_ref().map(id);
    Some(VoteResponse::new(vote(answer.vote.as_ref()?), last, answer.granted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use prost::Message as _;

    fn some_id(index: u64) -> Id {
        LogId::new(CommittedLeaderId::new(3, 7), index)
    }

    fn joint() -> Membership<u64, EmptyNode> {
        let configs = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3, 4])];
        Membership::new(configs, BTreeSet::from([9]))
    }

    fn entries() -> Vec<LogEntry> {
        let content = Bytes::from_static(b"content");
        let normal = EntryPayload::Normal(Proposal { content, logged: Logged::new() });
        let membership = EntryPayload::Membership(joint());
        let payloads = [EntryPayload::Blank, normal, membership];
        (4..)
            .zip(payloads)
            .map(|(index, payload)| Entry { log_id: some_id(index), payload })
            .collect()
    }

    use super::super::types::Logged;

    #[test]
    fn an_entry_comes_back_from_its_record_as_it_was() {
        for original in entries() {
            let record = stored_entry(&original).encode_to_vec();
            let back = entry(stored::Entry::decode(record.as_slice()).unwrap()).unwrap();
            assert_eq!(back.log_id, original.log_id);
            match (&back.payload, &original.payload) {
                (EntryPayload::Blank, EntryPayload::Blank) => {}
                (EntryPayload::Normal(back), EntryPayload::Normal(original)) => {
                    assert_eq!(back.content, original.content);
                }
                (EntryPayload::Membership(back), EntryPayload::Membership(original)) => {
                    assert_eq!(back, original);
                }
                (back, original) => panic!("{back:?} for {original:?}"),
            }
        }
    }

    #[test]
    fn the_first_entry_of_a_log_is_not_taken_for_none() {
        let first = Entry::<Types> { log_id: LogId::default(), payload: EntryPayload::Blank };
        let record = stored_entry(&first).encode_to_vec();
        let back = entry(stored::Entry::decode(record.as_slice()).unwrap()).unwrap();
        assert_eq!(back.log_id, LogId::default());
    }

    #[test]
    fn a_mark_of_truncation_is_no_entry() {
        let mark = stored::Entry { id: Some(stored_id(&some_id(4))), payload: None };
        assert!(entry(mark).is_none());
    }

    #[test]
    fn an_append_comes_back_with_its_entries_and_without_an_optional_place() {
        for prev_log_id in [None, Some(some_id(3))] {
            let request = AppendEntriesRequest::<Types> {
                vote: Vote::new_committed(3, 7),
                prev_log_id,
                entries: entries(),
                leader_commit: None,
            };
            let wire = append(ShardId(5), &request, true).encode_to_vec();
            let wire = cluster::Append::decode(wire.as_slice()).unwrap();
            assert_eq!((wire.group, wire.weak), (5, true));
            let back = append_request(wire).unwrap();
            assert_eq!(back.vote, request.vote);
            assert_eq!(back.prev_log_id, prev_log_id);
            assert_eq!(back.leader_commit, None);
            let ids = |entries: &[LogEntry]| entries.iter().map(|e| e.log_id).collect::<Vec<_>>();
            assert_eq!(ids(&back.entries), ids(&request.entries));
        }
    }

    #[test]
    fn answers_come_back_as_they_were() {
        let answers = [
            AppendEntriesResponse::Success,
            AppendEntriesResponse::PartialSuccess(Some(some_id(2))),
            AppendEntriesResponse::Conflict,
            AppendEntriesResponse::HigherVote(Vote::new(4, 1)),
        ];
        for answer in answers {
            let wire = append_answer(&answer, 150);
            assert_eq!((append_response(&wire), wire.free_percent), (Some(answer), 150));
        }
        let granted = VoteResponse::new(Vote::new(4, 1), Some(some_id(2)), true);
        assert_eq!(vote_response(&vote_answer(&granted)), Some(granted));
        assert_eq!(append_response(&cluster::AppendAnswer::default()), None);
    }

    #[test]
    fn a_membership_on_its_way_comes_back_with_learners() {
        let at = stored_id(&some_id(8));
        let back = members(Some(&at), Some(&stored_membership(&joint())));
        assert_eq!(back, Members::new(Some(some_id(8)), joint()));
        assert_eq!(members(None, None), Members::default());
    }
}
