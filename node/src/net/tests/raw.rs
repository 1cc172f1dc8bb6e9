//! A peer that speaks the right protocols and says the wrong things.

use std::io;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, StreamExt};
use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, kad, noise, request_response,
    swarm::{SwarmEvent, dial_opts::DialOpts},
    tcp, yamux,
};

use super::*;

/// Writes what it is given, whatever it is.
#[derive(Clone, Default)]
struct RawCodec;

impl request_response::Codec for RawCodec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, _: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        Ok(Vec::new())
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        let mut bytes = Vec::new();
        io.take(1 << 20).read_to_end(&mut bytes).await?;
        if bytes.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, bytes: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        io.write_all(&bytes).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, _: &mut T, _: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        Ok(())
    }
}

type Raw = Swarm<request_response::Behaviour<RawCodec>>;

fn raw_peer() -> Raw {
    let name = StreamProtocol::try_from_owned(format!("/cairn/1/{}/ask", RealmId::PUBLIC)).expect("a name");
    let config = request_response::Config::default().with_request_timeout(PATIENCE);
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|_| request_response::Behaviour::new([(name, request_response::ProtocolSupport::Full)], config))
        .expect("a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build()
}

/// Connects to the node, and names it.
async fn connect(raw: &mut Raw, node: &Node) -> libp2p::PeerId {
    let address: Multiaddr = node.net.listen_addresses().remove(0).parse().expect("an address");
    raw.dial(DialOpts::from(address)).expect("a dial");
    loop {
        if let SwarmEvent::ConnectionEstablished { peer_id, .. } = raw.select_next_some().await {
            return peer_id;
        }
    }
}

/// Asks and waits for what comes of it; true if the connection closed at that.
async fn say(raw: &mut Raw, peer: &libp2p::PeerId, bytes: Vec<u8>) -> bool {
    raw.behaviour_mut().send_request(peer, bytes);
    loop {
        match raw.select_next_some().await {
            SwarmEvent::ConnectionClosed { .. } => return true,
            SwarmEvent::Behaviour(request_response::Event::OutboundFailure { error, .. }) => {
                if matches!(error, request_response::OutboundFailure::ConnectionClosed) {
                    return true;
                }
                return false;
            }
            SwarmEvent::Behaviour(request_response::Event::Message {
                message: request_response::Message::Response { .. },
                ..
            }) => panic!("garbage was answered"),
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unreadable_and_oversized_questions_cut_their_sender_off_after_ten() {
    let a = node(1, &[]).await;
    let mut raw = raw_peer();
    let run = async {
        let peer = connect(&mut raw, &a).await;
        let mut closed_after = None;
        for n in 0..20u8 {
            let bytes = if n % 2 == 0 { vec![0xff; 50] } else { vec![0x0a; 100_000] };
            if say(&mut raw, &peer, bytes).await {
                closed_after = Some(n + 1);
                break;
            }
        }
        closed_after
    };
    let closed_after = tokio::time::timeout(PATIENCE, run).await.expect("in time");
    assert!(closed_after.is_some_and(|n| (10..=12).contains(&n)), "{closed_after:?}");
    a.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connected_stranger_without_an_advert_is_cut_off_in_time() {
    let a = node(1, &[]).await;
    let mut raw = raw_peer();
    let start = Instant::now();
    let run = async {
        connect(&mut raw, &a).await;
        while !matches!(raw.select_next_some().await, SwarmEvent::ConnectionClosed { .. }) {}
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it is cut off");
    assert!(start.elapsed() < Duration::from_millis(bounds::PROOF_MS + 3000), "{:?}", start.elapsed());
    assert!(a.net.peers().is_empty(), "a stranger is not a member");
    a.net.shutdown().await;
}

/// Speaks Kademlia and nothing else.
fn table_peer() -> Swarm<kad::Behaviour<kad::store::MemoryStore>> {
    let name = StreamProtocol::try_from_owned(format!("/cairn/1/{}/kad", RealmId::PUBLIC)).expect("a name");
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .expect("a transport")
        .with_behaviour(|key| {
            let peer = key.public().to_peer_id();
            kad::Behaviour::with_config(peer, kad::store::MemoryStore::new(peer), kad::Config::new(name))
        })
        .expect("a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_puts_values_into_the_table_is_cut_off_long_before_its_time_to_show_an_advert() {
    let a = node(1, &[]).await;
    let mut raw = table_peer();
    let address: Multiaddr = a.net.listen_addresses().remove(0).parse().expect("an address");
    raw.dial(DialOpts::from(address)).expect("a dial");
    let start = Instant::now();
    let run = async {
        loop {
            match raw.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    for n in 0..12u8 {
                        let value = kad::Record::new(vec![n; 32], vec![n]);
                        raw.behaviour_mut().put_record_to(value, std::iter::once(peer_id), kad::Quorum::One);
                    }
                }
                SwarmEvent::ConnectionClosed { .. } => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(PATIENCE, run).await.expect("it is cut off");
    assert!(start.elapsed() < Duration::from_millis(bounds::PROOF_MS / 2), "{:?}", start.elapsed());
    a.net.shutdown().await;
}
