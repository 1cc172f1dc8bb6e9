//! One node's answer to a task: asked, heard, and held against what was asked.
//!
//! This node is asked by the same messages without a wire. Invariant: what leaves here is exactly the vectors that were
//! asked for, in order, each of the right width and all of numbers; a node that says anything else has failed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cairn_protocol::{
    api,
    id::NodeId,
    peer_pb::{self, task_event::Event},
    refusal::{Reason, Refusal},
};
use tokio::{sync::mpsc, time::timeout};

use super::{SILENCE, serve::serve};
use crate::{
    data::link::{self, LinkError, MessageReader, MessageWriter},
    shell::Node,
    stages::{Asker, bounds, links},
};

/// Events between the parts of this node.
const EVENTS_MAX: usize = 4;

/// What became of an attempt.
#[derive(Debug)]
pub(super) enum Failure {
    /// The node is gone, or was never there.
    Lost(String),
    /// It would not.
    Refused(Refusal),
    /// It said what can't be.
    Malformed(String),
    /// Nobody waits for the answer any more.
    Unwanted,
}

/// What of an answer is passed on at once.
#[derive(Debug, PartialEq)]
pub(super) enum Said {
    /// How far the fetch of the model is.
    Progress(api::Progress),
    /// The next vectors.
    Vectors(peer_pb::VectorsPiece),
}

/// A node that is asked.
pub(super) struct Target {
    pub node: NodeId,
    pub addresses: Vec<SocketAddr>,
}

/// Asks one node; pieces go to `said` as they come. Dropping the future ends the task there.
pub(super) async fn ask(
    node: &Arc<Node>,
    target: &Target,
    open: peer_pb::OpenTask,
    answer: &mut Answer,
    said: &mpsc::Sender<Said>,
) -> Result<peer_pb::TaskDone, Failure> {
    if target.node == node.identity.node_id() {
        return ask_here(node, open, answer, said).await;
    }
    let heard = AtomicU64::new(0);
    tokio::select! {
        done = ask_there(node, target, &open, answer, said, &heard) => done,
        error = links::departed(node.net.peer_events(), target.node, &heard) => Err(Failure::Lost(error.to_string())),
    }
}

async fn ask_here(
    node: &Arc<Node>,
    open: peer_pb::OpenTask,
    answer: &mut Answer,
    said: &mpsc::Sender<Said>,
) -> Result<peer_pb::TaskDone, Failure> {
    let own = Asker { node: node.identity.node_id(), is_self: true, is_same_host: true, is_listed: true };
    let (events, mut heard) = mpsc::channel(EVENTS_MAX);
    let hearing = async move {
        while let Some(event) = heard.recv().await {
            if let Some(done) = answer.take(event, said).await? {
                return Ok(done);
            }
        }
        Err(Failure::Lost("it ended without an answer".to_owned()))
    };
    tokio::join!(serve(node, own, open, events), hearing).1
}

async fn ask_there(
    node: &Arc<Node>,
    target: &Target,
    open: &peer_pb::OpenTask,
    answer: &mut Answer,
    said: &mpsc::Sender<Said>,
    heard: &AtomicU64,
) -> Result<peer_pb::TaskDone, Failure> {
    let lost = |error: LinkError| Failure::Lost(error.to_string());
    let dialled = link::dial_for(link::TASK_ALPN, node.data.endpoint(), target.node, &target.addresses, bounds::DIAL);
    let connection = dialled.await.map_err(lost)?;
    let opened = connection.open_bi().await;
    let (send, receive) = opened.map_err(|error| Failure::Lost(error.to_string()))?;
    let mut writer = MessageWriter::new(send);
    let written = timeout(SILENCE, writer.write(open)).await;
    written.map_err(|_| Failure::Lost("it takes no request".to_owned()))?.map_err(lost)?;
    let mut reader = MessageReader::new(receive);
    loop {
        // A read that was given up is not gone on with: the connection ends with this attempt.
        let event = timeout(SILENCE, reader.read::<peer_pb::TaskEvent>()).await;
        let event = event.map_err(|_| Failure::Lost(format!("it said nothing for {} s", SILENCE.as_secs())))?;
        let event = event.map_err(|error| match error {
            LinkError::TooLong { .. } | LinkError::Garbage(_) => Failure::Malformed(error.to_string()),
            LinkError::Closed(_) | LinkError::Unreachable(_) => lost(error),
        })?;
        heard.fetch_add(1, Ordering::Relaxed);
        if let Some(done) = answer.take(event, said).await? {
            connection.close(0u32.into(), b"done");
            return Ok(done);
        }
    }
}

/// What was asked, and how much of it is answered.
#[derive(Debug)]
pub(super) struct Answer {
    texts: usize,
    width: usize,
    answered: usize,
    bytes_needed: u64,
}

impl Answer {
    /// Nothing yet of vectors of this width.
    pub fn to(texts: usize, width: usize) -> Answer {
        Answer { texts, width, answered: 0, bytes_needed: 0 }
    }

    /// Texts that have their vectors.
    pub fn answered(&self) -> usize {
        self.answered
    }

    /// Takes what a node said; `Some` when that is all.
    async fn take(
        &mut self,
        event: peer_pb::TaskEvent,
        said: &mpsc::Sender<Said>,
    ) -> Result<Option<peer_pb::TaskDone>, Failure> {
        let said_so = match self.judge(event)? {
            Judged::Done(done) => return Ok(Some(done)),
            Judged::Nothing => return Ok(None),
            Judged::Said(what) => what,
        };
        let count = match &said_so {
            Said::Vectors(piece) => piece.values.len() / self.width,
            Said::Progress(_) => 0,
        };
        said.send(said_so).await.map_err(|_| Failure::Unwanted)?;
        self.answered += count;
        Ok(None)
    }

    fn judge(&mut self, event: peer_pb::TaskEvent) -> Result<Judged, Failure> {
        match event.event {
            Some(Event::Beat(beat)) => Ok(self.progress(beat)),
            Some(Event::Vectors(piece)) => self.vectors(piece).map(|piece| Judged::Said(Said::Vectors(piece))),
            Some(Event::Done(done)) if self.answered == self.texts => Ok(Judged::Done(done)),
            Some(Event::Done(_)) => {
                Err(Failure::Malformed(format!("it ended after {} of {} texts", self.answered, self.texts)))
            }
            Some(Event::Refused(refused)) => Err(Failure::Refused(refusal(refused))),
            None => Ok(Judged::Nothing),
        }
    }

    fn progress(&mut self, beat: peer_pb::TaskBeat) -> Judged {
        if beat.bytes_needed == 0 || beat.bytes_done >= beat.bytes_needed || self.answered > 0 {
            return Judged::Nothing;
        }
        self.bytes_needed = beat.bytes_needed;
        let (bytes_done, bytes_total) = (beat.bytes_done, beat.bytes_needed);
        Judged::Said(Said::Progress(api::Progress {
            phase: "fetch".to_owned(),
            bytes_done,
            bytes_total,
            item: String::new(),
            place: 0,
        }))
    }

    fn vectors(&self, piece: peer_pb::VectorsPiece) -> Result<peer_pb::VectorsPiece, Failure> {
        let malformed = |why: String| Err(Failure::Malformed(why));
        if piece.width as usize != self.width || !piece.values.len().is_multiple_of(self.width) {
            return malformed(format!(
                "{} values in rows of {}, not of {}",
                piece.values.len(),
                piece.width,
                self.width
            ));
        }
        let count = piece.values.len() / self.width;
        if piece.first as usize != self.answered || count == 0 || count > self.texts - self.answered {
            let (first, answered, texts) = (piece.first, self.answered, self.texts);
            return malformed(format!("{count} vectors from {first} on, after {answered} of {texts}"));
        }
        match piece.values.iter().all(|value| value.is_finite()) {
            true => Ok(piece),
            false => malformed("values that are no numbers".to_owned()),
        }
    }
}

enum Judged {
    Nothing,
    Said(Said),
    Done(peer_pb::TaskDone),
}

/// What a peer's refusal means; a reason that is not known here is a fault of its.
fn refusal(refused: peer_pb::Refused) -> Refusal {
    let reason = Reason::from_code(&refused.reason).unwrap_or(Reason::Internal);
    let why: String = refused.why.chars().filter(|c| !c.is_control()).take(500).collect();
    Refusal::new(reason, "a task", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(first: u32, width: u32, values: Vec<f32>) -> peer_pb::TaskEvent {
        peer_pb::TaskEvent { event: Some(Event::Vectors(peer_pb::VectorsPiece { first, width, values })) }
    }

    fn done() -> peer_pb::TaskEvent {
        peer_pb::TaskEvent { event: Some(Event::Done(peer_pb::TaskDone { tokens: 9, truncated: 0 })) }
    }

    #[tokio::test]
    async fn an_answer_is_whole_in_order_and_of_numbers_or_malformed() {
        let (said, mut heard) = mpsc::channel(16);
        let mut answer = Answer::to(3, 2);
        assert!(answer.take(vectors(0, 2, vec![1.0, 2.0]), &said).await.unwrap().is_none());
        assert_eq!(answer.answered(), 1);
        for wrong in [
            vectors(0, 2, vec![1.0, 2.0]),
            vectors(2, 2, vec![1.0, 2.0]),
            vectors(1, 3, vec![1.0, 2.0, 3.0]),
            vectors(1, 0, vec![]),
            vectors(1, 2, vec![]),
            vectors(1, 2, vec![1.0, 2.0, 3.0]),
            vectors(1, 2, vec![0.0; 6]),
            vectors(1, 2, vec![1.0, f32::NAN]),
            vectors(1, 2, vec![f32::INFINITY, 1.0]),
            done(),
        ] {
            let failure = answer.take(wrong.clone(), &said).await;
            assert!(matches!(failure, Err(Failure::Malformed(_))), "{wrong:?}");
            assert_eq!(answer.answered(), 1);
        }
        assert!(answer.take(vectors(1, 2, vec![0.0; 4]), &said).await.unwrap().is_none());
        assert_eq!(answer.take(done(), &said).await.unwrap().unwrap().tokens, 9);
        drop(said);
        let mut firsts = Vec::new();
        while let Some(Said::Vectors(piece)) = heard.recv().await {
            firsts.push(piece.first);
        }
        assert_eq!(firsts, [0, 1]);
    }

    #[tokio::test]
    async fn a_peers_refusal_can_not_write_on_a_terminal() {
        let refused = peer_pb::Refused { reason: "no_such".into(), why: "\u{1b}[2J".to_owned() + &"x".repeat(9999) };
        let event = peer_pb::TaskEvent { event: Some(Event::Refused(refused)) };
        let failure = Answer::to(1, 1).take(event, &mpsc::channel(1).0).await;
        let Err(Failure::Refused(refusal)) = failure else { panic!("{failure:?}") };
        assert!(refusal.reason == Reason::Internal && refusal.why.len() <= 500 && !refusal.why.contains('\u{1b}'));
    }
}
