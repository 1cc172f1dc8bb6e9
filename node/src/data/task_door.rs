//! The accepting end of tasks: what a connection under [`link::TASK_ALPN`] asks, and the bytes of the answer.
//!
//! Not here: who may ask, and what is computed ([`crate::flows::tasks`]). Invariant: a peer that says nothing, or something
//! else, costs one of a bounded number of places for a bounded time; one that hangs up or reads nothing ends its task.

use std::time::Duration;

use cairn_protocol::peer_pb;
use iroh::{
    endpoint::Connection,
    protocol::{AcceptError, ProtocolHandler},
};
use tokio::{sync::mpsc, time::timeout};

use super::{
    link::{self, MessageReader, MessageWriter},
    silent::Silent,
};
use crate::{
    flows::tasks,
    stages::{Asker, StageHost, bounds},
};

/// Most unread bytes of a task's connection: one request.
const UNREAD_BYTES_MAX: u32 = 2 << 20;
/// Events that wait for the writer: two pieces of an answer, and signs of life.
const EVENTS_MAX: usize = 4;
/// How long the other end may leave a piece of the answer unread.
const PATIENCE: Duration = Duration::from_secs(20);

/// The handler to register under [`link::TASK_ALPN`].
#[derive(Clone)]
pub struct TaskDoor {
    host: StageHost,
    silent: Silent,
}

impl std::fmt::Debug for TaskDoor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TaskDoor")
    }
}

impl TaskDoor {
    /// Before the node of this host.
    pub fn new(host: StageHost) -> TaskDoor {
        TaskDoor { host, silent: Silent::default() }
    }
}

impl ProtocolHandler for TaskDoor {
    async fn accept(&self, connection: Connection) -> Result<(), AcceptError> {
        if let Err(why) = answer(&self.host, &self.silent, &connection).await {
            tracing::debug!(peer = %link::remote_node(&connection).short(), why, "task connection ended");
            connection.close(1u32.into(), why.as_bytes());
        }
        Ok(())
    }
}

async fn answer(host: &StageHost, silent: &Silent, connection: &Connection) -> Result<(), &'static str> {
    let node = host.node().ok_or("starting or stopping")?;
    let from = link::remote_node(connection);
    let own_place = silent.place(from).ok_or("too many connections of this node that say nothing")?;
    let place = (own_place, host.stranger().ok_or("too many connections that say nothing")?);
    connection.set_receive_window(UNREAD_BYTES_MAX.into());
    let opened = async {
        let (send, receive) = connection.accept_bi().await.map_err(|_| "gone")?;
        let open = MessageReader::new(receive).read::<peer_pb::OpenTask>().await.map_err(|_| "not a task")?;
        Ok::<_, &'static str>((send, open))
    };
    let (send, open) = timeout(bounds::INTRODUCTION, opened).await.map_err(|_| "silent")??;
    drop(place);
    let asker = Asker {
        node: from,
        is_self: false,
        is_same_host: link::is_same_host(connection),
        is_listed: node.config.listed.contains(&from),
    };
    let (events, said) = mpsc::channel(EVENTS_MAX);
    let serving = tasks::serve(&node, asker, open, events);
    // Whoever ends first ends both: the flow's future is dropped with its task.
    tokio::select! {
        ((), written) = async { tokio::join!(serving, write(MessageWriter::new(send), said)) } => written,
        _ = connection.closed() => Err("the asking node hung up"),
        () = node.shutdown.cancelled() => Err("stopping"),
    }
}

/// Writes what the task says until it is over. Dropping `said` on an error ends the task, which then can't say more.
async fn write(mut writer: MessageWriter, mut said: mpsc::Receiver<peer_pb::TaskEvent>) -> Result<(), &'static str> {
    while let Some(event) = said.recv().await {
        match timeout(PATIENCE, writer.write(&event)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return Err("gone"),
            Err(_) => return Err("it reads nothing"),
        }
    }
    writer.finish().await;
    Ok(())
}
