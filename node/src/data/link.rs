//! Stage streams: what travels between a coordinator and its stages, and from a stage to the next, over iroh under an
//! ALPN of our own.
//!
//! Two kinds of stream, one per connection:
//!
//! * **control** (bidirectional, coordinator → stage): an `OpenStage`, then `StageCommand`s; `StageEvent`s come back.
//!   Each message is a protobuf behind a little-endian `u32` length.
//! * **data** (unidirectional, stage → next stage): an introduction of session and epoch, then frames of
//!   [`cairn_protocol::frame`]: a fixed header and the F32 payload it announces.
//!
//! Not here: who may open a stage, what a frame means, when a peer counts as lost. Invariant: no length that a peer
//! sends is allocated before it was held against a limit, and bytes are read into buffers that live as long as the stream.

use std::{net::SocketAddr, time::Duration};

use cairn_protocol::{
    frame::{self, FrameHeader},
    id::{NodeId, SessionId},
    limits,
};
use iroh::{
    Endpoint, EndpointAddr, EndpointId, TransportAddr,
    endpoint::{ConnectOptions, Connection, QuicTransportConfig, RecvStream, SendStream},
};

/// The ALPN of tasks that are whole on one node: one bidirectional stream of messages a connection, an `OpenTask` and then
/// `TaskEvent`s back.
pub const TASK_ALPN: &[u8] = b"cairn/task/1";

/// The ALPN of stage streams.
pub const STAGE_ALPN: &[u8] = b"cairn/stage/1";

/// How long a stage link may hear nothing before QUIC calls it dead. Heartbeats of ours tell much sooner on a control
/// stream; this is what tells a stage that the *next* one is gone while the coordinator still sees both.
const IDLE_MAX: Duration = Duration::from_secs(5);

/// How often QUIC says something on a silent link.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Bytes of a data stream's introduction: session, epoch.
const INTRODUCTION_BYTES: usize = 20;

/// What a stage stream can do wrong.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The other node could not be reached.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// The stream or its connection ended.
    #[error("the stream ended: {0}")]
    Closed(String),
    /// A message claimed more than its limit.
    #[error("a message of {bytes} bytes, at most {bytes_max} are taken")]
    TooLong {
        /// Claimed length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Bytes that are not what this stream carries.
    #[error("not a stage message: {0}")]
    Garbage(String),
}

/// Opens a connection for stage streams to `node`. Dropping the future gives up.
pub async fn dial(
    endpoint: &Endpoint,
    node: NodeId,
    addresses: &[SocketAddr],
    deadline: Duration,
) -> Result<Connection, LinkError> {
    dial_for(STAGE_ALPN, endpoint, node, addresses, deadline).await
}

/// The same for streams under another ALPN.
pub async fn dial_for(
    alpn: &[u8],
    endpoint: &Endpoint,
    node: NodeId,
    addresses: &[SocketAddr],
    deadline: Duration,
) -> Result<Connection, LinkError> {
    let id = EndpointId::from_bytes(node.as_bytes()).map_err(|e| LinkError::Unreachable(e.to_string()))?;
    let mut address = EndpointAddr::new(id);
    for a in addresses {
        address = address.with_ip_addr(*a);
    }
    let connecting = async {
        let options = ConnectOptions::new().with_transport_config(transport());
        let connecting = endpoint.connect_with_opts(address, alpn, options).await;
        let connecting = connecting.map_err(|e| LinkError::Unreachable(e.to_string()))?;
        connecting.await.map_err(|e| LinkError::Unreachable(e.to_string()))
    };
    match tokio::time::timeout(deadline, connecting).await {
        Ok(done) => done,
        Err(_) => Err(LinkError::Unreachable(format!("no answer within {} ms", deadline.as_millis()))),
    }
}

/// How connections of this node tell that the other end is gone. The whole endpoint uses it: while one connection to a
/// node that died is thought alive, new ones go to its old address.
pub(super) fn transport() -> QuicTransportConfig {
    let idle = IDLE_MAX.try_into().ok();
    QuicTransportConfig::builder()
        .max_idle_timeout(idle)
        .keep_alive_interval(KEEP_ALIVE)
        .default_path_keep_alive_interval(KEEP_ALIVE)
        .default_path_max_idle_timeout(IDLE_MAX)
        .build()
}

/// Who is at the other end of a connection; iroh has checked the key.
pub fn remote_node(connection: &Connection) -> NodeId {
    NodeId::from(*connection.remote_id().as_bytes())
}

/// Whether the other end is on this machine: a direct path whose far address is a loopback address. No other machine
/// can make such a path, since kernels drop loopback addresses that arrive on a wire.
pub fn is_same_host(connection: &Connection) -> bool {
    connection.paths().iter().any(|path| match path.remote_addr() {
        TransportAddr::Ip(address) => is_loopback(*address),
        _ => false,
    })
}

fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Writes length-prefixed protobuf messages.
pub struct MessageWriter {
    stream: SendStream,
    buffer: Vec<u8>,
}

impl MessageWriter {
    /// Over this stream.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, buffer: Vec::with_capacity(256) }
    }

    /// Writes one message. When dropped half way, the stream is unusable.
    pub async fn write<M: prost::Message>(&mut self, message: &M) -> Result<(), LinkError> {
        self.buffer.clear();
        self.buffer.extend_from_slice(&[0; 4]);
        message.encode(&mut self.buffer).map_err(|e| LinkError::Garbage(e.to_string()))?;
        let bytes = self.buffer.len() - 4;
        check_length(bytes, limits::STAGE_MESSAGE_BYTES_MAX)?;
        self.buffer[..4].copy_from_slice(&(bytes as u32).to_le_bytes());
        self.stream.write_all(&self.buffer).await.map_err(|e| LinkError::Closed(e.to_string()))
    }

    /// Says that nothing follows, and waits until the other end has it all or is gone.
    pub async fn finish(mut self) {
        if self.stream.finish().is_ok() {
            let _ = tokio::time::timeout(KEEP_ALIVE, self.stream.stopped()).await;
        }
    }
}

/// Reads length-prefixed protobuf messages. Not safe to drop between a message's bytes: give it a task of its own.
pub struct MessageReader {
    stream: RecvStream,
    buffer: Vec<u8>,
}

impl MessageReader {
    /// Over this stream.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: Vec::with_capacity(256) }
    }

    /// The next message; an error when the stream ends, is not protobuf, or claims too much.
    pub async fn read<M: prost::Message + Default>(&mut self) -> Result<M, LinkError> {
        let mut length = [0; 4];
        self.read_exact(&mut length).await?;
        let bytes = u32::from_le_bytes(length) as usize;
        check_length(bytes, limits::STAGE_MESSAGE_BYTES_MAX)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(bytes, 0);
        let read = self.stream.read_exact(&mut buffer).await.map_err(|e| LinkError::Closed(e.to_string()));
        self.buffer = buffer;
        read?;
        M::decode(self.buffer.as_slice()).map_err(|e| LinkError::Garbage(e.to_string()))
    }

    async fn read_exact(&mut self, into: &mut [u8]) -> Result<(), LinkError> {
        self.stream.read_exact(into).await.map_err(|e| LinkError::Closed(e.to_string()))
    }
}

fn check_length(bytes: usize, bytes_max: usize) -> Result<(), LinkError> {
    if bytes > bytes_max { Err(LinkError::TooLong { bytes, bytes_max }) } else { Ok(()) }
}

/// Which session and epoch a data stream belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction {
    /// The session.
    pub session: SessionId,
    /// Its epoch: one more with every plan.
    pub epoch: u32,
}

/// The sending end of a data stream.
pub struct FrameWriter {
    stream: SendStream,
    buffer: Vec<u8>,
}

impl FrameWriter {
    /// Opens a data stream and introduces it.
    pub async fn open(connection: &Connection, introduction: Introduction) -> Result<Self, LinkError> {
        let mut stream = connection.open_uni().await.map_err(|e| LinkError::Closed(e.to_string()))?;
        let mut bytes = [0; INTRODUCTION_BYTES];
        bytes[..16].copy_from_slice(introduction.session.as_bytes());
        bytes[16..].copy_from_slice(&introduction.epoch.to_le_bytes());
        stream.write_all(&bytes).await.map_err(|e| LinkError::Closed(e.to_string()))?;
        Ok(Self { stream, buffer: Vec::new() })
    }

    /// Sends one frame; `values` are `count × width`, token-major.
    pub async fn write(&mut self, header: &FrameHeader, values: &[f32]) -> Result<(), LinkError> {
        self.buffer.clear();
        header.encode(&mut self.buffer);
        frame::put_values(values, &mut self.buffer);
        self.stream.write_all(&self.buffer).await.map_err(|e| LinkError::Closed(e.to_string()))
    }

    /// Resolves when the receiver wants no more of this stream, or is gone.
    pub fn stopped(&self) -> impl Future<Output = String> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(Some(code)) => format!("the next stage refused the stream (code {code})"),
                Ok(None) => "the next stage ended the stream".to_owned(),
                Err(error) => error.to_string(),
            }
        }
    }
}

/// The receiving end of a data stream. Not safe to drop between a frame's bytes: give it a task of its own.
pub struct FrameReader {
    stream: RecvStream,
    buffer: Vec<u8>,
}

impl FrameReader {
    /// Over this stream.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// The first bytes of the stream.
    pub async fn introduction(&mut self) -> Result<Introduction, LinkError> {
        let mut bytes = [0; INTRODUCTION_BYTES];
        self.stream.read_exact(&mut bytes).await.map_err(|e| LinkError::Closed(e.to_string()))?;
        let mut session = [0; 16];
        session.copy_from_slice(&bytes[..16]);
        let epoch = u32::from_le_bytes([bytes[16], bytes[17], bytes[18], bytes[19]]);
        Ok(Introduction { session: SessionId::from(session), epoch })
    }

    /// The next frame. `width` is what this stage's model says; a frame of another, or of more than `count_max`
    /// positions, is garbage.
    pub async fn read(&mut self, width: u32, count_max: u32) -> Result<(FrameHeader, Vec<f32>), LinkError> {
        let mut head = [0; frame::HEADER_BYTES];
        self.stream.read_exact(&mut head).await.map_err(|e| LinkError::Closed(e.to_string()))?;
        let header = FrameHeader::parse(&head).map_err(|e| LinkError::Garbage(e.to_string()))?;
        if header.width != width {
            return Err(LinkError::Garbage(format!("a frame {} wide, the model is {width}", header.width)));
        }
        if header.count > count_max {
            return Err(LinkError::Garbage(format!(
                "a frame of {} positions, at most {count_max} are taken",
                header.count
            )));
        }
        self.buffer.resize(header.payload_bytes(), 0);
        self.stream.read_exact(&mut self.buffer).await.map_err(|e| LinkError::Closed(e.to_string()))?;
        Ok((header, frame::values(&self.buffer)))
    }

    /// Tells the sender that this stream is not wanted.
    pub fn refuse(&mut self) {
        let _ = self.stream.stop(1u32.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_seen_through_a_mapped_address() {
        assert!(is_loopback("127.0.0.1:1".parse().unwrap()));
        assert!(is_loopback("[::ffff:127.0.0.1]:1".parse().unwrap()));
        assert!(is_loopback("[::1]:1".parse().unwrap()));
        assert!(!is_loopback("192.168.1.4:1".parse().unwrap()));
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_anything_is_allocated() {
        assert!(check_length(limits::STAGE_MESSAGE_BYTES_MAX, limits::STAGE_MESSAGE_BYTES_MAX).is_ok());
        let refused = check_length(u32::MAX as usize, limits::STAGE_MESSAGE_BYTES_MAX);
        assert!(matches!(refused, Err(LinkError::TooLong { .. })));
    }
}
