//! A listener that keeps strangers' connections few and short-lived.
//!
//! Knows nothing of HTTP: it counts connections, and hangs up on those that are silent when they ought to speak.
//!
//! Invariant: at most [`CONNECTIONS_MAX`] connections have a place at a door. When all are taken, a newcomer gets the place of
//! the one that has waited longest without a hello, for an honest client says it at once; when all have said hello, the
//! newcomer is closed, so that it sees an error and not a hang. A connection that has not said hello within
//! [`Patience::hello`] is closed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
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
    places: Places,
    patience: Patience,
    node: Arc<Node>,
}

impl Guarded {
    /// Puts bounds on a listener.
    pub fn new(listener: TcpListener, patience: Patience, node: Arc<Node>) -> Guarded {
        Guarded { listener, places: Places::default(), patience, node }
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
            let Some(place) = self.places.take(&self.node.counters.connections_refused_total) else { continue };
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

/// Who is at the door. Clones share it.
#[derive(Clone, Debug, Default)]
struct Places {
    /// Held for a look-up, never across an await.
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Of all connections that ever came.
    last: u64,
    /// Connections that have said hello.
    greeted: usize,
    /// Those that have not, in the order in which they came; dropping the sender tells one to go.
    silent: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A connection's place, given back when this is dropped.
#[derive(Debug)]
struct Place {
    places: Places,
    number: u64,
    is_greeted: bool,
    /// Ends when another took this place.
    is_lost: oneshot::Receiver<()>,
}

impl Places {
    /// A free place, else that of the connection that has been silent longest, if any is. Counts who is turned away.
    fn take(&self, turned_away: &AtomicU64) -> Option<Place> {
        let mut taken = self.lock();
        if taken.greeted + taken.silent.len() >= CONNECTIONS_MAX {
            Counters::add(turned_away, 1);
            taken.silent.pop_first()?;
        }
        taken.last += 1;
        let (number, (sender, is_lost)) = (taken.last, oneshot::channel());
        taken.silent.insert(number, sender);
        Some(Place { places: self.clone(), number, is_greeted: false, is_lost })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// It said hello: nobody takes the place any more. False if somebody has.
    fn greet(&mut self) -> bool {
        let mut taken = self.places.lock();
        if !self.is_greeted && taken.silent.remove(&self.number).is_some() {
            taken.greeted += 1;
            self.is_greeted = true;
        }
        self.is_greeted
    }

    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_greeted { Poll::Pending } else { Pin::new(&mut self.is_lost).poll(cx).map(|_| ()) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        if self.is_greeted {
            taken.greeted -= 1;
        } else {
            taken.silent.remove(&self.number);
        }
    }
}

/// A connection that is closed when it is silent for too long.
pub struct GuardedStream {
    io: TcpStream,
    place: Place,
    patience: Patience,
    heard_bytes: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl GuardedStream {
    fn new(io: TcpStream, place: Place, patience: Patience) -> GuardedStream {
        let deadline = Some(Box::pin(tokio::time::sleep(patience.hello)));
        GuardedStream { io, place, patience, heard_bytes: 0, deadline }
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
                if self.is_greeted() && !self.place.greet() {
                    return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
                }
                self.renew();
            }
            return Poll::Ready(read);
        }
        if self.place.poll_lost(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
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

/// Which connection a call came in on; no two of a process have the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct ConnectionNumber(pub u64);

impl tonic::transport::server::Connected for GuardedStream {
    type ConnectInfo = ConnectionNumber;

    fn connect_info(&self) -> ConnectionNumber {
        ConnectionNumber(self.place.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_door_gives_the_longest_silent_place_away_and_no_other() {
        let (places, away) = (Places::default(), AtomicU64::new(0));
        let mut all: Vec<Place> = (0..CONNECTIONS_MAX).map(|_| places.take(&away).unwrap()).collect();
        assert!(all[0].greet());
        let newcomer = places.take(&away).expect("the second came first of the silent");
        assert!(!all[1].greet(), "its place is gone");
        assert!(all[2].greet());
        drop(newcomer);
        for place in &mut all[3..] {
            assert!(place.greet());
        }
        drop(all.remove(1));
        let mut last = places.take(&away).expect("one place is free");
        assert!(last.greet());
        assert!(places.take(&away).is_none(), "all have said hello");
        assert_eq!(away.load(std::sync::atomic::Ordering::Relaxed), 2);
        drop((all, last));
        let taken = places.lock();
        assert_eq!((taken.greeted, taken.silent.len()), (0, 0));
    }
}
