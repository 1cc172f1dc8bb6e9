//! What leaves the swarm's task for the catalogue: questions of peers and gossiped records.
//!
//! Invariant: both queues are bounded, the swarm never waits for them, and every question gets exactly one answer
//! (a dropped [`Reply`] closes the asker's stream).

use cairn_protocol::{
    id::NodeId,
    peer_pb::{Answer, Question, Refused, answer::Say},
    refusal::Reason,
};
use libp2p::{PeerId, gossipsub::MessageId, request_response::ResponseChannel};
use tokio::sync::mpsc;

use super::swarm::Command;

/// The receiving ends; one owner empties them.
#[derive(Debug)]
pub struct Inbox {
    /// Questions that need the catalogue.
    pub questions: mpsc::Receiver<InboundQuestion>,
    /// Records to judge.
    pub records: mpsc::Receiver<GossipedRecord>,
    /// Peers that are ready to be caught up with: connected, proven, listening to gossip.
    pub arrivals: mpsc::Receiver<NodeId>,
}

/// A peer's question.
#[derive(Debug)]
pub struct InboundQuestion {
    /// Who asks; the connection proves it.
    pub from: NodeId,
    /// What; its limits are checked.
    pub question: Question,
    /// Where the answer goes.
    pub reply: Reply,
}

/// The way back to the asker.
#[derive(Debug)]
pub struct Reply {
    pub(super) channel: ResponseChannel<Answer>,
    pub(super) commands: mpsc::Sender<Command>,
}

impl Reply {
    /// Answers. Waits only for a place in the swarm's queue.
    pub async fn send(self, answer: Say) {
        let answer = Answer { say: Some(answer) };
        if self.commands.send(Command::Answer { channel: self.channel, answer }).await.is_err() {
            tracing::debug!("the network has stopped; an answer was dropped");
        }
    }
}

/// An answer that refuses.
pub(crate) fn refused(reason: Reason, why: impl Into<String>) -> Say {
    Say::Refused(Refused { reason: reason.code().to_owned(), why: why.into() })
}

/// A record that a neighbour passed on; it goes no further until it is judged.
#[derive(Debug)]
pub struct GossipedRecord {
    /// The neighbour, not the signer.
    pub from: NodeId,
    /// The envelope as it came.
    pub bytes: Vec<u8>,
    pub(super) message: MessageId,
    pub(super) source: PeerId,
    pub(super) commands: mpsc::Sender<Command>,
}

/// What becomes of a gossiped record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Valid: pass it on.
    Accept,
    /// Neither good nor bad, e.g. older than what we have: don't pass it on.
    Ignore,
    /// No honest node passes this on: penalise the neighbour.
    Reject,
}

impl GossipedRecord {
    /// Says what becomes of it. Waits only for a place in the swarm's queue.
    pub async fn judge(self, verdict: Verdict) {
        let command = Command::Judge { from: self.from, message: self.message, source: self.source, verdict };
        if self.commands.send(command).await.is_err() {
            tracing::debug!("the network has stopped; a verdict was dropped");
        }
    }
}
