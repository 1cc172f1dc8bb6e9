//! A stream that waits for the other side only so long.
//!
//! For the blobs library, which by itself waits for ever, with the request's place taken, for a peer that asks and then
//! neither reads nor ends its question. Not a rate: who takes a piece of 16 KiB in time keeps its place. Invariant: nothing
//! that waits for the peer waits longer than the patience given.

use std::{io, time::Duration};

use bytes::Bytes;
use iroh::endpoint::VarInt;
use iroh_blobs::util::{RecvStream, SendStream};

/// One direction of a stream, and the patience with who is at its other end.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    patience: Duration,
}

impl<S> Patient<S> {
    /// Waits `patience` at most, for each piece anew.
    pub fn new(stream: S, patience: Duration) -> Patient<S> {
        Patient { stream, patience }
    }
}

impl<S: SendStream> SendStream for Patient<S> {
    async fn send_bytes(&mut self, bytes: Bytes) -> io::Result<()> {
        within(self.patience, self.stream.send_bytes(bytes)).await
    }

    async fn send(&mut self, buf: &[u8]) -> io::Result<()> {
        within(self.patience, self.stream.send(buf)).await
    }

    async fn sync(&mut self) -> io::Result<()> {
        within(self.patience, self.stream.sync()).await
    }

    fn reset(&mut self, code: VarInt) -> io::Result<()> {
        self.stream.reset(code)
    }

    async fn stopped(&mut self) -> io::Result<Option<VarInt>> {
        within(self.patience, self.stream.stopped()).await
    }

    fn id(&self) -> u64 {
        self.stream.id()
    }
}

impl<S: RecvStream> RecvStream for Patient<S> {
    async fn recv_bytes(&mut self, len: usize) -> io::Result<Bytes> {
        within(self.patience, self.stream.recv_bytes(len)).await
    }

    async fn recv_bytes_exact(&mut self, len: usize) -> io::Result<Bytes> {
        within(self.patience, self.stream.recv_bytes_exact(len)).await
    }

    async fn recv_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        within(self.patience, self.stream.recv_exact(target)).await
    }

    fn stop(&mut self, code: VarInt) -> io::Result<()> {
        self.stream.stop(code)
    }

    fn id(&self) -> u64 {
        self.stream.id()
    }
}

async fn within<T>(patience: Duration, waiting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(patience, waiting).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
