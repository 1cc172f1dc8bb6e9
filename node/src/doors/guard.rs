//! A listener that keeps strangers' connections few and short-lived.
//!
//! Knows nothing of HTTP: it counts connections, and hangs up on those that are silent when they ought to speak.
//!
//! Invariant: at most [`CONNECTIONS_MAX`] connections are open per door; one more is closed at once, so that a client
//! sees an error and not a hang. A connection that has not said hello within [`Patience::hello`] is closed.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::shell::Node;
use crate::telemetry::Counters;

/// Enough for every client of one machine; each costs some 30 KiB until it has said something sensible.
pub const CONNECTIONS_MAX: usize = 256;

/// When accepting fails (no descriptors left), trying again at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// A hello is this many bytes.
    pub hello_bytes: usize,
    /// It must be complete after this.
    pub hello: Duration,
    /// Afterwards some byte must pass in this time; `None` leaves it to the protocol's own keepalive.
    pub idle: Option<Duration>,
}

/// A listener with bounds.
pub struct Guarded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    patience: Patience,
    node: Arc<Node>,
}

impl Guarded {
    /// Puts bounds on a listener.
    pub fn new(listener: TcpListener, patience: Patience, node: Arc<Node>) -> Guarded {
        Guarded { listener, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)), patience, node }
    }

    /// The next connection within the bounds.
    pub async fn next(&self) -> (GuardedStream, SocketAddr) {
        loop {
            let (io, from) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = self.places.clone().try_acquire_owned() else {
                Counters::add(&self.node.counters.connections_refused_total, 1);
                continue;
            };
            // Small answers must not wait for more of them; a socket that refuses the option works all the same.
            let _ = io.set_nodelay(true);
            return (GuardedStream::new(io, place, self.patience), from);
        }
    }
}

impl axum::serve::Listener for Guarded {
    type Io = GuardedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (GuardedStream, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is closed when it is silent for too long.
pub struct GuardedStream {
    io: TcpStream,
    _place: OwnedSemaphorePermit,
    patience: Patience,
    heard_bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl GuardedStream {
    fn new(io: TcpStream, place: OwnedSemaphorePermit, patience: Patience) -> GuardedStream {
        let deadline = Some(Box::pin(tokio::time::sleep(patience.hello)));
        GuardedStream { io, _place: place, patience, heard_bytes: 0, deadline }
    }

    fn is_greeted(&self) -> bool {
        self.heard_bytes >= self.patience.hello_bytes
    }

    /// Some bytes passed: the next must come in time too.
    fn renew(&mut self) {
        if !self.is_greeted() {
            return;
        }
        match (self.patience.idle, &mut self.deadline) {
            (Some(idle), Some(deadline)) => deadline.as_mut().reset(Instant::now() + idle),
            (_, deadline) => *deadline = None,
        }
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buf) {
            let bytes = buf.filled().len() - before;
            if bytes > 0 {
                self.heard_bytes = self.heard_bytes.saturating_add(bytes);
                self.renew();
            }
            return Poll::Ready(read);
        }
        if let Some(deadline) = &mut self.deadline {
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes));
        self.renew();
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write_vectored(cx, parts));
        self.renew();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl tonic::transport::server::Connected for GuardedStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
