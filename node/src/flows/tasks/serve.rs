//! Doing a task here, for a peer or for this node's own clients: admitted, loaded, computed pass by pass.
//!
//! Not here: bytes on streams ([`crate::data::task_door`]). Passes run on the engine's thread between those of stages; the
//! next is asked for when the last was taken, so several tasks share the engine turn by turn, and one whose asker is gone
//! ends with its pass. Invariant: when [`serve`] returns, or its future is dropped, the task's place is given back.

use std::{sync::Arc, time::Duration};

use cairn_compute::{
    engine::WorkError,
    tasks::embed::{Embedder, Encoded},
};
use cairn_protocol::{
    limits::PIECE_BYTES_MAX,
    peer_pb::{self, task_event::Event},
    refusal::{Reason, Refusal},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    BEAT,
    model::{self, Fetched},
    request::TaskRequest,
};
use crate::{shell::Node, stages::Asker};

/// Longest task: fetching a model of some gigabytes, and computing all that one request may hold.
const TASK_MAX: Duration = Duration::from_secs(1800);

/// Serves one task; a refusal has been told to the asker. The receiver's end cancels it.
pub(crate) async fn serve(
    node: &Arc<Node>,
    asker: Asker,
    open: peer_pb::OpenTask,
    events: mpsc::Sender<peer_pb::TaskEvent>,
) {
    if let Err(refusal) = admitted(node, asker, open, &events).await {
        let (reason, why) = (refusal.reason.code(), refusal.why);
        tracing::info!(peer = %asker.node.short(), reason, why, "task refused");
        let _ = say(&events, Event::Refused(peer_pb::Refused { reason: reason.to_owned(), why })).await;
    }
}

async fn admitted(
    node: &Arc<Node>,
    asker: Asker,
    open: peer_pb::OpenTask,
    events: &mpsc::Sender<peer_pb::TaskEvent>,
) -> Result<(), Refusal> {
    let request = TaskRequest::parse(open)?;
    let is_held = matches!(node.registry.blobs().has(request.revision.blob()).await, Ok(true));
    let _place = node.stages.rooms().enter_task(&request, &asker, is_held)?;
    let fetched = Fetched::default();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (working, deadline) = (work(node, &request, &asker, events, &fetched), sleep(TASK_MAX));
    tokio::pin!(working, deadline);
    loop {
        tokio::select! {
            done = &mut working => return done,
            // A full queue holds what will be taken for a sign of life.
            _ = beat.tick() => drop(events.try_send(peer_pb::TaskEvent { event: Some(Event::Beat(fetched.beat())) })),
            () = events.closed() => return Err(gone()),
            () = &mut deadline => {
                let why = format!("it took longer than {} s", TASK_MAX.as_secs());
                return Err(Refusal::new(Reason::Deadline, "a task", why).try_this("fewer texts"));
            }
        }
    }
}

async fn work(
    node: &Arc<Node>,
    request: &TaskRequest,
    asker: &Asker,
    events: &mpsc::Sender<peer_pb::TaskEvent>,
    fetched: &Fetched,
) -> Result<(), Refusal> {
    let model = model::load(node, request, asker, fetched).await?;
    let encoded = Arc::new(model::encode(&model, request).await?);
    let width = model.embedder.width();
    for pass in model.embedder.passes(&encoded) {
        let mut first = pass.start;
        let vectors = compute(node, &model.embedder, &encoded, pass).await?;
        for values in vectors.chunks(rows_of_a_piece(width) * width) {
            let piece = peer_pb::VectorsPiece { first: first as u32, width: width as u32, values: values.to_vec() };
            say(events, Event::Vectors(piece)).await?;
            first += values.len() / width;
        }
    }
    let done = peer_pb::TaskDone { tokens: encoded.tokens(), truncated: encoded.truncated };
    say(events, Event::Done(done)).await
}

fn rows_of_a_piece(width: usize) -> usize {
    (PIECE_BYTES_MAX / 4 / width).max(1)
}

/// One pass on the engine's thread.
async fn compute(
    node: &Node,
    embedder: &Arc<Embedder>,
    encoded: &Arc<Encoded>,
    pass: std::ops::Range<usize>,
) -> Result<Vec<f32>, Refusal> {
    let (done, computed) = oneshot::channel();
    embedder.compute(&node.engine, encoded, pass, move |result| drop(done.send(result)));
    let vectors = computed.await.unwrap_or(Err(WorkError::Stopped)).map_err(|error| {
        let (reason, attempt) = match &error {
            WorkError::Busy => (Reason::Busy, "again in a moment"),
            WorkError::Stopped => (Reason::Unavailable, "another node"),
            WorkError::Panicked(_) => (Reason::Internal, "the node's log"),
        };
        Refusal::new(reason, "a task", error.to_string()).try_this(attempt)
    })?;
    match vectors.iter().all(|value| value.is_finite()) {
        true => Ok(vectors),
        false => Err(Refusal::new(Reason::Unsupported, "the model", "its vectors hold values that are no numbers")
            .try_this("another model")),
    }
}

async fn say(events: &mpsc::Sender<peer_pb::TaskEvent>, event: Event) -> Result<(), Refusal> {
    events.send(peer_pb::TaskEvent { event: Some(event) }).await.map_err(|_| gone())
}

fn gone() -> Refusal {
    Refusal::new(Reason::Cancelled, "a task", "its asker is gone").try_this("a new request")
}
