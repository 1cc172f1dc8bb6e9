//! The accepting end of stage streams: what a connection under [`link::STAGE_ALPN`] is for, and its bytes.
//!
//! A connection serves one purpose, told by its first stream: a control stream makes this node a stage, a data stream
//! brings another stage's output. Not here: who may have a stage ([`crate::stages`]). Invariant: a peer that says
//! nothing, or something else, costs one of a bounded number of places for a bounded time, and has an eighth of them at most.

use std::{sync::Arc, time::Duration};

use cairn_compute::StepInput;
use cairn_protocol::{id::NodeId, limits, peer_pb};
use iroh::{
    endpoint::{Connection, RecvStream, SendStream},
    protocol::{AcceptError, ProtocolHandler},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    link::{self, FrameReader, LinkError, MessageReader, MessageWriter},
    silent::Silent,
};
use crate::{
    shell::Node,
    stages::{Asker, Control, Run, StageHost, Step, bounds},
};

/// Most unread bytes of one stage connection: two frames of the largest chunk on a wide model.
const UNREAD_BYTES_MAX: u32 = 16 << 20;

/// The handler to register under [`link::STAGE_ALPN`].
#[derive(Clone)]
pub struct StageDoor {
    host: StageHost,
    silent: Silent,
}

impl std::fmt::Debug for StageDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StageDoor")
    }
}

impl StageDoor {
    /// Before this host.
    pub fn new(host: StageHost) -> StageDoor {
        StageDoor { host, silent: Silent::default() }
    }
}

impl ProtocolHandler for StageDoor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        if let Err(why) = receive(&self.host, &self.silent, &connection).await {
            tracing::debug!(peer = %link::remote_node(&connection).short(), why, "stage connection refused");
            connection.close(1u32.into(), why.as_bytes());
        }
        Ok(())
    }

    async fn shutdown(&self) {
        self.host.close();
    }
}

/// A connection's first stream.
enum First {
    Control(SendStream, RecvStream),
    Data(RecvStream),
}

async fn receive(host: &StageHost, silent: &Silent, connection: &Connection) -> Result<(), &'static str> {
    let node = host.node().ok_or("starting or stopping")?;
    let from = link::remote_node(connection);
    let own_place = silent.place(from).ok_or("too many connections of this node that say nothing")?;
    let place = (own_place, host.stranger().ok_or("too many connections that say nothing")?);
    connection.set_receive_window(UNREAD_BYTES_MAX.into());
    let first = async {
        tokio::select! {
            control = connection.accept_bi() => control.map(|(send, receive)| First::Control(send, receive)),
            data = connection.accept_uni() => data.map(First::Data),
        }
    };
    let first = timeout(bounds::INTRODUCTION, first).await.map_err(|_| "silent")?.map_err(|_| "gone")?;
    match first {
        First::Control(send, receive) => {
            let mut reader = MessageReader::new(receive);
            let open = timeout(bounds::INTRODUCTION, reader.read::<peer_pb::OpenStage>()).await;
            let open = open.map_err(|_| "silent")?.map_err(|_| "not a stage request")?;
            drop(place);
            control(host, &node, connection, open, MessageWriter::new(send), reader).await;
        }
        First::Data(stream) => {
            let mut reader = FrameReader::new(stream);
            let introduction = timeout(bounds::INTRODUCTION, reader.introduction()).await;
            let introduction = introduction.map_err(|_| "silent")?.map_err(|_| "not a stage stream")?;
            let Some(run) = host.rooms().find(introduction, from).await else {
                reader.refuse();
                return Err("no session here expects this stream");
            };
            drop((place, node));
            take_frames(&run, from, reader).await;
        }
    }
    Ok(())
}

/// Runs a stage for the other end: reads its commands, writes what the stage says.
async fn control(
    host: &StageHost,
    node: &Arc<Node>,
    connection: &Connection,
    open: peer_pb::OpenStage,
    writer: MessageWriter,
    reader: MessageReader,
) {
    let (to_writer, events) = mpsc::channel(bounds::EVENTS_MAX);
    let (to_stage, commands) = mpsc::channel(bounds::INPUTS_MAX);
    let over = CancellationToken::new();
    let remote = link::remote_node(connection);
    let asker = Asker {
        node: remote,
        is_self: false,
        is_same_host: link::is_same_host(connection),
        is_listed: node.config.listed.contains(&remote),
    };
    let serving = async {
        host.serve(node, asker, open, Control { commands, events: to_writer }).await;
        over.cancel();
    };
    let reading = async {
        tokio::select! {
            _ = read_commands(reader, to_stage) => {}
            () = over.cancelled() => {}
        }
    };
    tokio::join!(serving, reading, write_events(writer, events, &over));
}

async fn read_commands(mut reader: MessageReader, to_stage: mpsc::Sender<peer_pb::StageCommand>) -> LinkError {
    loop {
        match reader.read::<peer_pb::StageCommand>().await {
            Ok(command) => {
                if to_stage.send(command).await.is_err() {
                    return LinkError::Closed("over".to_owned());
                }
            }
            Err(error) => return error,
        }
    }
}

async fn write_events(
    mut writer: MessageWriter,
    mut events: mpsc::Receiver<peer_pb::StageEvent>,
    over: &CancellationToken,
) {
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event,
            () = over.cancelled() => events.try_recv().ok(),
        };
        let Some(event) = event else { return writer.finish().await };
        if writer.write(&event).await.is_err() {
            return;
        }
    }
}

/// Feeds a stage with the frames of the stage before it.
async fn take_frames(run: &Arc<Run>, from: NodeId, mut reader: FrameReader) {
    loop {
        let permit = tokio::select! {
            permit = run.permit() => permit,
            () = run.closed.cancelled() => return,
        };
        let frame = tokio::select! {
            frame = reader.read(run.width(), limits::FRAME_POSITIONS_MAX) => frame,
            () = run.closed.cancelled() => return,
        };
        let (header, values) = match frame {
            Ok(frame) => frame,
            Err(error) => {
                // The end of a session closes its links in no order: give the close of this one a moment to arrive.
                let _ = timeout(Duration::from_millis(50), run.closed.cancelled()).await;
                return run.lose(from, error.to_string());
            }
        };
        if header.session != run.session() || header.epoch != run.epoch() || !run.is_new(header.sequence) {
            continue;
        }
        let (first_position, count, sample) = (header.first_position, header.count, header.sample);
        let step = Step { sequence: header.sequence, first_position, count, sample };
        run.submit(step, StepInput::Hidden { first_position, count, values, sample }, permit);
    }
}
