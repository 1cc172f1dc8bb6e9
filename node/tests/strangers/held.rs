//! Garbage, and connections that are held and say nothing, on every port: honest peers and clients still get in.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use cairn_client::{Client, ConnectOptions};
use cairn_node::data::link;
use cairn_protocol::{Keypair, api};
use cairn_testnet::{Testnet, tiny_model, wait_until};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UdpSocket},
    task::JoinSet,
};

use crate::{
    CAIRN, SOON,
    hostile::{self, Lies},
    logged, meet, serving, withstand,
};

/// Where strangers knock: libp2p on TCP and QUIC, iroh, gRPC, HTTP.
struct Ports {
    talk: String,
    quic: String,
    data: String,
    api: String,
    http: String,
}

impl Ports {
    fn of(net: &Testnet) -> Ports {
        let ready = net.node(0).ready();
        let port = |kind: &str| {
            let address = ready.listen.iter().find_map(|address| address.split(kind).nth(1)).unwrap();
            format!("127.0.0.1:{}", address.split('/').next().unwrap())
        };
        Ports {
            talk: port("/tcp/"),
            quic: port("/udp/"),
            data: ready.data.clone(),
            api: ready.api.clone(),
            http: ready.http.clone().unwrap(),
        }
    }
}

/// Connects from another address of this machine, as a stranger elsewhere would; `None` if the door is shut at once.
async fn knock(from: &str, to: &str) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    tokio::time::timeout(SOON, socket.connect(to.parse().unwrap())).await.ok()?.ok()
}

/// Holds `count` connections that say nothing, and knocks again whenever one is hung up on; returns when as many have come.
async fn hold_idle(from: &'static str, to: &str, count: usize) -> Result<JoinSet<()>> {
    let mut held = JoinSet::new();
    let arrivals = Arc::new(AtomicUsize::new(0));
    for _ in 0..count {
        let (to, arrivals) = (to.to_owned(), arrivals.clone());
        held.spawn(async move {
            loop {
                if let Some(mut stream) = knock(from, &to).await {
                    arrivals.fetch_add(1, Ordering::Relaxed);
                    // However it ends, the next one takes its place.
                    let _ = stream.read(&mut [0; 64]).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    wait_until("the idle connections have come", || async { Ok(arrivals.load(Ordering::Relaxed) >= count) }).await?;
    Ok(held)
}

/// A port from which every connection goes on to `to`, where it comes from another address of this machine.
async fn by_way_of(
    from: &'static str,
    to: String,
    arrivals: Arc<AtomicUsize>,
) -> Result<(std::net::SocketAddr, JoinSet<()>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let (address, mut forwarding) = (listener.local_addr()?, JoinSet::new());
    forwarding.spawn(async move {
        let mut links = JoinSet::new();
        while let Ok((mut near, _)) = listener.accept().await {
            let (to, arrivals) = (to.clone(), arrivals.clone());
            links.spawn(async move {
                let Some(mut far) = knock(from, &to).await else { return };
                arrivals.fetch_add(1, Ordering::Relaxed);
                // Either end may hang up.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    Ok((address, forwarding))
}

/// An honest client and an honest probe are served, each over a new connection, within [`SOON`].
async fn serves_newcomers(net: &Testnet) -> Result<()> {
    let node = net.node(0);
    let options = ConnectOptions {
        api: Some(node.ready().api.clone()),
        home: Some(node.home().to_path_buf()),
        ..ConnectOptions::default()
    };
    let serving = async {
        Client::connect(&options).await.context("connect to gRPC")?.status().await.context("a call")?;
        let ports = Ports::of(net);
        let mut http = TcpStream::connect(&ports.http).await?;
        let ask = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", ports.http);
        http.write_all(ask.as_bytes()).await?;
        let mut answer = String::new();
        http.read_to_string(&mut answer).await.context("the probe's answer")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Ok(())
    };
    tokio::time::timeout(SOON, serving).await.context("in time")?
}

/// An honest peer gets in and shows its advert within [`SOON`], trying again as nodes do.
async fn welcomes_a_newcomer(net: &Testnet, seed: u8) -> Result<()> {
    let started = Instant::now();
    let coming = async {
        loop {
            match meet(net, seed, Lies::default()).await {
                Ok(peer) => return peer,
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    };
    let peer = tokio::time::timeout(SOON, coming).await.context("an honest peer is kept out")?;
    let me = peer.key.node_id().to_string();
    wait_until("the newcomer is a member", || async {
        let peers = net.client(0).peers().await?.peers;
        Ok(peers.iter().any(|peer| peer.node_id == me && peer.connected && peer.capacity.is_some()))
    })
    .await?;
    eprintln!("     an honest peer got in after {:?}", started.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_on_the_doors_keep_no_client_out_while_they_are_held() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    withstand(&net, "400 idle connections each on gRPC and HTTP, held", async || {
        let held = (hold_idle("127.0.0.1", &ports.api, 400).await?, hold_idle("127.0.0.1", &ports.http, 400).await?);
        for _ in 0..20 {
            serves_newcomers(&net).await?;
        }
        drop(held);
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_on_the_peers_port_keep_no_honest_peer_out_while_they_are_held() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    withstand(&net, "300 idle connections on libp2p TCP, held and renewed", async || {
        let _held = hold_idle("127.0.0.2", &ports.talk, 300).await?;
        logged(&net, &["an incoming connection failed", "127.0.0.2"]).await?;
        for seed in 1..4 {
            welcomes_a_newcomer(&net, seed).await?;
        }
        serves_newcomers(&net).await
    })
    .await?;
    withstand(&net, "300 idle connections on libp2p TCP from an honest peer's own address, once", async || {
        let mut held = Vec::new();
        for _ in 0..300 {
            held.extend(knock("127.0.0.1", &ports.talk).await);
        }
        welcomes_a_newcomer(&net, 4).await
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_shake_hands_and_say_nothing_keep_no_honest_peer_out() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    let arrivals = Arc::new(AtomicUsize::new(0));
    let (way, _forwarding) = by_way_of("127.0.0.2", ports.talk, arrivals.clone()).await?;
    let address: libp2p::Multiaddr = format!("/ip4/127.0.0.1/tcp/{}", way.port()).parse()?;
    withstand(&net, "300 silent libp2p peers with finished handshakes, held", async || {
        let mut silent = JoinSet::new();
        for _ in 0..300 {
            silent.spawn(hostile::stay_silent(address.clone()));
        }
        logged(&net, &["connected", "/ip4/127.0.0.2/"]).await?;
        // Every peer has come, and those that found no place have come back: what can be taken is taken.
        wait_until("all have come", || async { Ok(arrivals.load(Ordering::Relaxed) >= 1000) }).await?;
        logged(&net, &["an incoming connection failed", "127.0.0.2"]).await?;
        for seed in 1..4 {
            welcomes_a_newcomer(&net, seed).await?;
        }
        serves_newcomers(&net).await
    })
    .await?;
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_every_port_breaks_nothing() -> Result<()> {
    let (net, _folder) = serving().await?;
    let ports = Ports::of(&net);
    let mut garbage = vec![0; 64 << 10];
    blake3::Hasher::new().finalize_xof().fill(&mut garbage);
    for (what, port) in [("libp2p TCP", &ports.talk), ("gRPC", &ports.api), ("HTTP", &ports.http)] {
        withstand(&net, &format!("garbage over 300 connections to {what}"), async || {
            let mut held = Vec::new();
            for _ in 0..300 {
                let Some(mut stream) = knock("127.0.0.2", port).await else { continue };
                // The daemon may hang up half way: that is the point.
                let _ = stream.write_all(&garbage).await;
                held.push(stream);
            }
            welcomes_a_newcomer(&net, 1).await?;
            serves_newcomers(&net).await
        })
        .await?;
    }
    for (what, port) in [("libp2p QUIC", &ports.quic), ("iroh", &ports.data)] {
        withstand(&net, &format!("garbage from 300 sockets to {what}"), async || {
            for n in 0..300u32 {
                let socket = UdpSocket::bind("127.0.0.2:0").await?;
                // Short, long, and what looks like the first packet of a connection.
                let start = (n as usize * 131) % (32 << 10);
                for size in [1, 100, 1200, 1400] {
                    let mut packet = garbage[start..start + size].to_vec();
                    packet[0] |= 0xc0;
                    packet.splice(1..1, 1u32.to_be_bytes());
                    // A full buffer drops it, as a network would.
                    let _ = socket.try_send_to(&packet, port.parse()?);
                }
            }
            welcomes_a_newcomer(&net, 1).await?;
            serves_newcomers(&net).await
        })
        .await?;
    }
    net.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_to_the_bytes_port_stop_no_pull() -> Result<()> {
    let net = Testnet::start(CAIRN, 2, &["-v"]).await?;
    let folder = tempfile::tempdir()?;
    net.publish(0, &tiny_model(folder.path())?, "honest/tiny").await?;
    net.knows(1, "honest/tiny").await?;
    let node = net.node(0).ready().node_id.parse()?;
    let address = net.node(0).ready().data.parse()?;
    withstand(&net, "200 idle iroh connections, for blobs and for stages, held", async || {
        let endpoint = hostile::endpoint(&Keypair::from_seed([9; 32])).await?;
        let mut held = Vec::new();
        for n in 0..200 {
            let alpn = if n % 2 == 0 { iroh_blobs::ALPN } else { link::STAGE_ALPN };
            let id = iroh::EndpointId::from_bytes(cairn_protocol::NodeId::as_bytes(&node))?;
            let to = iroh::EndpointAddr::new(id).with_ip_addr(address);
            held.extend(tokio::time::timeout(SOON, endpoint.connect(to, alpn)).await?);
        }
        ensure!(held.len() > 100, "only {} connections were made", held.len());
        let pull = net.pull(1, api::PullRequest { repo: "honest/tiny".into(), ..Default::default() });
        let pulled = tokio::time::timeout(SOON, pull).await.context("no pull in time")??;
        ensure!(pulled.bytes_fetched > 0, "nothing was fetched: {pulled:?}");
        endpoint.close().await;
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}
