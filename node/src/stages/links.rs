//! A coordinator's control streams: one to every stage of the plan in force.
//!
//! A stage on another node is reached over iroh; one on this node by the same two channels without a wire. What stages
//! say arrives as [`News`], tagged with epoch and index. Not here: what to say ([`cairn_compute::session`] decides).
//! Invariant: dropping [`Links`], or closing an epoch, ends every stage of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cairn_protocol::{
    id::NodeId,
    peer_pb::{self, stage_command::Command},
};
use tokio::{
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use super::bounds;
use crate::{
    data::link::{self, LinkError, MessageReader, MessageWriter},
    net::PeerEvent,
    shell::Node,
};

/// A stage to be opened.
pub(crate) struct Opening {
    pub node: NodeId,
    pub addresses: Vec<SocketAddr>,
    pub open: peer_pb::OpenStage,
}

/// Something a stage said, or that happened to its stream.
#[derive(Debug)]
pub(crate) struct News {
    pub epoch: u32,
    pub index: usize,
    pub what: What,
}

/// See [`News`].
#[derive(Debug)]
pub(crate) enum What {
    Event(peer_pb::stage_event::Event),
    /// The input of this sequence is on its way.
    Sent(u64),
    /// The stream ended or could not be made.
    Closed(String),
}

/// The control streams of one session.
pub(crate) struct Links {
    node: Arc<Node>,
    news: mpsc::Sender<News>,
    epoch: u32,
    stages: Vec<mpsc::Sender<peer_pb::StageCommand>>,
    tasks: JoinSet<()>,
}

impl Links {
    /// None yet; what stages say goes to `news`.
    pub fn new(node: Arc<Node>, news: mpsc::Sender<News>) -> Links {
        Links { node, news, epoch: 0, stages: Vec::new(), tasks: JoinSet::new() }
    }

    /// Opens every stage of a plan at once; those of the plan before are closed.
    pub fn open(&mut self, epoch: u32, openings: Vec<Opening>) {
        self.stages.clear();
        self.epoch = epoch;
        while self.tasks.try_join_next().is_some() {}
        for (index, opening) in openings.into_iter().enumerate() {
            let (commands, receiver) = mpsc::channel(bounds::COMMANDS_MAX);
            let teller = Teller { news: self.news.clone(), epoch, index };
            let node = self.node.clone();
            if opening.node == node.identity.node_id() {
                self.tasks.spawn(local(node, opening.open, receiver, teller));
            } else {
                self.tasks.spawn(remote(node, opening, receiver, teller));
            }
            self.stages.push(commands);
        }
    }

    /// Gives the first stage an input. One of another epoch is dropped.
    pub fn send(&self, input: peer_pb::StageInput) {
        if input.epoch != self.epoch {
            return;
        }
        if let Some(first) = self.stages.first() {
            // Full means that the stage reads nothing: the machine hears no beat and no `Sent`, and acts on that.
            let _ = first.try_send(peer_pb::StageCommand { command: Some(Command::Input(input)) });
        }
    }

    /// Ends the stages of an epoch; each is told what its pages are known by.
    pub fn close(&mut self, epoch: u32, prefixes: Vec<Vec<u8>>) {
        if epoch != self.epoch {
            return;
        }
        for (stage, prefix) in self.stages.drain(..).zip(prefixes.into_iter().chain(std::iter::repeat(Vec::new()))) {
            // A stage that reads nothing is closed by the end of its stream.
            let _ = stage.try_send(peer_pb::StageCommand { command: Some(Command::Close(peer_pb::Close { prefix })) });
        }
    }

    /// Ends every stage and waits until they have been told.
    pub async fn finish(mut self) {
        self.stages.clear();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(bounds::BEAT * 5, all).await;
    }
}

/// Where a stage's news go.
struct Teller {
    news: mpsc::Sender<News>,
    epoch: u32,
    index: usize,
}

impl Teller {
    /// Waits while the session's queue is full: the stream's flow control then holds the stage back.
    async fn tell(&self, what: What) {
        let _ = self.news.send(News { epoch: self.epoch, index: self.index, what }).await;
    }

    async fn event(&self, event: peer_pb::StageEvent) {
        if let Some(event) = event.event {
            self.tell(What::Event(event)).await;
        }
    }
}

fn beat(count: u64) -> peer_pb::StageCommand {
    peer_pb::StageCommand { command: Some(Command::Beat(peer_pb::StageBeat { count, ..Default::default() })) }
}

async fn remote(
    node: Arc<Node>,
    opening: Opening,
    mut commands: mpsc::Receiver<peer_pb::StageCommand>,
    teller: Teller,
) {
    if let Err(error) = converse(&node, opening, &mut commands, &teller).await {
        teller.tell(What::Closed(error.to_string())).await;
    }
}

async fn converse(
    node: &Node,
    opening: Opening,
    commands: &mut mpsc::Receiver<peer_pb::StageCommand>,
    teller: &Teller,
) -> Result<(), LinkError> {
    let heard = AtomicU64::new(0);
    let gone = departed(node.net.peer_events(), opening.node, &heard);
    tokio::pin!(gone);
    let connection = tokio::select! {
        connection = link::dial(node.data.endpoint(), opening.node, &opening.addresses, bounds::DIAL) => connection?,
        () = closed(commands) => return Ok(()),
        error = &mut gone => return Err(error),
    };
    let (send, receive) = connection.open_bi().await.map_err(|e| LinkError::Closed(e.to_string()))?;
    let mut writer = MessageWriter::new(send);
    writer.write(&opening.open).await?;
    let mut reader = MessageReader::new(receive);
    let hearing = async {
        loop {
            let event = reader.read::<peer_pb::StageEvent>().await?;
            heard.fetch_add(1, Ordering::Relaxed);
            teller.event(event).await;
        }
    };
    tokio::pin!(hearing);
    let done = tokio::select! {
        heard = &mut hearing => heard,
        said = speak(&mut writer, commands, teller) => {
            // Until the stage has read that it is closed, and closed its end.
            let _ = tokio::time::timeout(bounds::BEAT * 2, hearing).await;
            said
        }
        error = &mut gone => Err(error),
    };
    connection.close(0u32.into(), b"closed");
    done
}

/// Resolves when a node is gone: its talk connections closed, as they do at once when a process dies, and nothing was
/// heard on the stream for a moment after. The one alone is a hint, and so is the other.
pub(crate) async fn departed(mut events: broadcast::Receiver<PeerEvent>, node: NodeId, heard: &AtomicU64) -> LinkError {
    loop {
        match events.recv().await {
            Ok(PeerEvent::Gone(other)) if other == node => {}
            Ok(_) | Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => std::future::pending().await,
        }
        let before = heard.load(Ordering::Relaxed);
        tokio::time::sleep(bounds::GONE).await;
        if heard.load(Ordering::Relaxed) == before {
            return LinkError::Closed("the node closed its other connections and is silent".to_owned());
        }
    }
}

/// Resolves when nobody can command the stage any more. Commands before it is open cannot be.
async fn closed(commands: &mut mpsc::Receiver<peer_pb::StageCommand>) {
    while commands.recv().await.is_some() {}
}

/// Writes commands and beats until the session closes the stage.
async fn speak(
    writer: &mut MessageWriter,
    commands: &mut mpsc::Receiver<peer_pb::StageCommand>,
    teller: &Teller,
) -> Result<(), LinkError> {
    let mut beats = interval(bounds::BEAT);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut count = 0;
    loop {
        tokio::select! {
            biased;
            command = commands.recv() => {
                let Some(command) = command else { return Ok(()) };
                let sequence = sequence_of(&command);
                writer.write(&command).await?;
                if let Some(sequence) = sequence {
                    teller.tell(What::Sent(sequence)).await;
                }
            }
            _ = beats.tick() => {
                count += 1;
                writer.write(&beat(count)).await?;
            }
        }
    }
}

fn sequence_of(command: &peer_pb::StageCommand) -> Option<u64> {
    match &command.command {
        Some(Command::Input(input)) => Some(input.sequence),
        _ => None,
    }
}

/// A stage in this process: its commands pass through here only to say that they did.
async fn local(
    node: Arc<Node>,
    open: peer_pb::OpenStage,
    commands: mpsc::Receiver<peer_pb::StageCommand>,
    teller: Teller,
) {
    let (events_in, mut events) = mpsc::channel(bounds::EVENTS_MAX);
    let (to_stage, stage_commands) = mpsc::channel(bounds::COMMANDS_MAX);
    let serving = node.stages.serve_local(&node, open, stage_commands, events_in);
    let hearing = async {
        while let Some(event) = events.recv().await {
            teller.event(event).await;
        }
    };
    let speaking = speak_local(to_stage, commands, &teller);
    tokio::join!(serving, hearing, speaking);
    teller.tell(What::Closed("the stage ended".to_owned())).await;
}

async fn speak_local(
    to_stage: mpsc::Sender<peer_pb::StageCommand>,
    mut commands: mpsc::Receiver<peer_pb::StageCommand>,
    teller: &Teller,
) {
    let mut beats = interval(bounds::BEAT);
    let mut count = 0;
    loop {
        let (command, sequence) = tokio::select! {
            biased;
            command = commands.recv() => match command {
                Some(command) => { let sequence = sequence_of(&command); (command, sequence) }
                None => return,
            },
            _ = beats.tick() => { count += 1; (beat(count), None) }
            () = to_stage.closed() => return,
        };
        if to_stage.send(command).await.is_err() {
            return;
        }
        if let Some(sequence) = sequence {
            teller.tell(What::Sent(sequence)).await;
        }
    }
}
