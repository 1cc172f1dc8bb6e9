//! One call from admission to end: its place, its deadline, its cancellation.
//!
//! Invariant: a flow ends when its client hangs up, when its deadline passes or when the node stops, whichever is first;
//! it never outlives its place, so at most [`CALLS_MAX`] flows run at once.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cairn_protocol::refusal::{Reason, Refusal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::Stream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::auth::Auth;
use super::status::status;
use crate::shell::Node;
use crate::telemetry::Counters;

/// Calls under way at once. Reads take microseconds and generations hold an engine, so more would only wait inside.
pub(super) const CALLS_MAX: usize = 128;

/// Events between a flow and a client that reads slowly; then the flow waits. Pieces are at most 256 KiB: 4 MiB a call.
const EVENTS_MAX: usize = 16;

/// The answer of a streaming call.
pub(super) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the three services share.
#[derive(Clone)]
pub(super) struct Calls {
    pub(super) node: Arc<Node>,
    pub(super) auth: Auth,
    places: Arc<Semaphore>,
}

/// Whether a call needs the token on loopback.
#[derive(Clone, Copy)]
pub(super) enum Needs<'a> {
    Nothing,
    /// The token, for a call of this name.
    Token(&'a str),
}

impl Calls {
    pub(super) fn new(node: Arc<Node>, auth: Auth) -> Calls {
        Calls { node, auth, places: Arc::new(Semaphore::new(CALLS_MAX)) }
    }

    /// Runs a flow that answers once.
    pub(super) async fn once<Q, A, F>(
        &self,
        request: Request<Q>,
        needs: Needs<'_>,
        flow: impl FnOnce(Arc<Node>, Q) -> F,
    ) -> Result<Response<A>, Status>
    where
        F: Future<Output = Result<A, Refusal>>,
    {
        let (place, deadline) = self.admit(request.metadata(), needs)?;
        let answer = bounded(&self.node, deadline, flow(self.node.clone(), request.into_inner())).await;
        drop(place);
        answer.map(Response::new).map_err(|refusal| self.refuse(&refusal))
    }

    /// Runs a flow that answers with a stream. The flow has a task of its own, so that a slow reader does not slow its
    /// heartbeats; dropping the stream cancels it.
    pub(super) fn stream<Q, A, F>(
        &self,
        request: Request<Q>,
        needs: Needs<'_>,
        flow: impl FnOnce(Arc<Node>, Q, mpsc::Sender<A>) -> F,
    ) -> Result<Response<Events<A>>, Status>
    where
        F: Future<Output = Result<(), Refusal>> + Send + 'static,
        A: Send + 'static,
    {
        let (place, deadline) = self.admit(request.metadata(), needs)?;
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let (end, ended) = oneshot::channel();
        let flow = flow(self.node.clone(), request.into_inner(), events);
        let hung_up = tokio_util::sync::CancellationToken::new();
        let guard = hung_up.clone().drop_guard();
        let calls = self.clone();
        self.node.tasks.spawn(async move {
            let result = tokio::select! {
                result = bounded(&calls.node, deadline, flow) => result,
                () = hung_up.cancelled() => Ok(()),
            };
            drop(place);
            // A client that hung up hears no end.
            let _ = end.send(result.map_err(|refusal| calls.refuse(&refusal)));
        });
        let state = Hearing { heard, ended: Some(ended), _guard: guard };
        Ok(Response::new(Box::pin(futures::stream::unfold(state, Hearing::next))))
    }

    fn admit(
        &self,
        metadata: &MetadataMap,
        needs: Needs<'_>,
    ) -> Result<(OwnedSemaphorePermit, Option<Duration>), Status> {
        let allowed = match needs {
            Needs::Nothing => self.auth.admit(metadata),
            Needs::Token(call) => self.auth.require(metadata, call),
        };
        allowed.map_err(|refusal| self.refuse(&refusal))?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            self.refuse(
                &Refusal::new(Reason::Busy, "this node", format!("{CALLS_MAX} calls are under way"))
                    .try_this("again later"),
            )
        })?;
        Counters::add(&self.node.counters.calls_total, 1);
        Ok((place, deadline(metadata)))
    }

    fn refuse(&self, refusal: &Refusal) -> Status {
        Counters::add(&self.node.counters.refusals_total, 1);
        status(refusal)
    }
}

/// A call whose stream is being read.
struct Hearing<A> {
    heard: mpsc::Receiver<A>,
    ended: Option<oneshot::Receiver<Result<(), Status>>>,
    _guard: tokio_util::sync::DropGuard,
}

impl<A> Hearing<A> {
    async fn next(mut self) -> Option<(Result<A, Status>, Hearing<A>)> {
        if let Some(event) = self.heard.recv().await {
            return Some((Ok(event), self));
        }
        match self.ended.take()?.await {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some((Err(status), self)),
            Err(_) => {
                let lost = Refusal::new(Reason::Internal, "the call", "it ended without saying why")
                    .try_this("the node's log");
                Some((Err(status(&lost)), self))
            }
        }
    }
}

async fn bounded<T>(
    node: &Node,
    deadline: Option<Duration>,
    flow: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let late = async {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = flow => result,
        () = node.shutdown.cancelled() => Err(Refusal::new(Reason::Unavailable, "the call", "this node is stopping").try_this("another node")),
        () = late => Err(Refusal::new(Reason::Deadline, "the call", "its deadline passed").try_this("a longer deadline")),
    }
}

/// `grpc-timeout`: at most eight digits and a unit. One that does not parse is no deadline, as in gRPC's own libraries.
fn deadline(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let unit = text.chars().last()?;
    let digits = &text[..text.len() - unit.len_utf8()];
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number * 3600)),
        'M' => Some(Duration::from_secs(number * 60)),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_as_grpc_writes_it() {
        let read = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            deadline(&metadata)
        };
        assert_eq!(read("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(read("2S"), Some(Duration::from_secs(2)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "123456789S", "-1S", "5x", "5 S"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
