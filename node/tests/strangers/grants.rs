//! Stages asked for by those who have no grant.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, bail, ensure};
use cairn_client::Reason;
use cairn_node::data::link::{self, MessageReader, MessageWriter};
use cairn_protocol::{
    Keypair, RealmId, api,
    peer_pb::{self, stage_event::Event},
    record_pb,
};
use cairn_testnet::{Testnet, tiny_model};
use iroh::{Endpoint, protocol::Router};
use iroh_blobs::{BlobsProtocol, store::mem::MemStore};
use prost::Message;

use crate::{CAIRN, SOON, hostile, withstand};

/// A stage of the whole built-in model, of a revision that nobody has.
fn wanted(net: &Testnet, key: &Keypair) -> Result<peer_pb::OpenStage> {
    Ok(peer_pb::OpenStage {
        session: vec![1; 16],
        epoch: 1,
        realm: net.realm().parse::<RealmId>().ok().context("a realm")?.to_vec(),
        revision: vec![2; 32],
        publisher: vec![3; 32],
        end_layer: 6,
        embedding: true,
        head: true,
        context: 512,
        planes: 2,
        previous_node: key.node_id().to_vec(),
        privacy: "trusted".into(),
        ..Default::default()
    })
}

/// Asks for it as a stranger would, from `from`; the refusal, or what else came.
async fn ask_for_a_stage(net: &Testnet, from: &str, to: SocketAddr) -> Result<peer_pb::Refused> {
    let key = Keypair::from_seed([9; 32]);
    let endpoint = hostile::endpoint_on(&key, from).await?;
    let refused = ask(net, &endpoint, to, wanted(net, &key)?).await;
    endpoint.close().await;
    refused
}

async fn ask(net: &Testnet, from: &Endpoint, to: SocketAddr, open: peer_pb::OpenStage) -> Result<peer_pb::Refused> {
    let node = net.node(0).ready().node_id.parse()?;
    let connection = link::dial(from, node, &[to], SOON).await?;
    let (send, receive) = connection.open_bi().await?;
    let mut writer = MessageWriter::new(send);
    writer.write(&open).await?;
    let mut reader = MessageReader::new(receive);
    let answering = async {
        loop {
            let event: peer_pb::StageEvent = reader.read().await?;
            match event.event {
                Some(Event::Refused(refused)) => return Ok::<_, anyhow::Error>(refused),
                Some(Event::Ready(_)) => bail!("the stage was loaded"),
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, answering).await.context("no answer")?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stage_for_a_stranger_without_a_grant_is_refused_by_name() -> Result<()> {
    let config = "[grant]\ncompute = \"nobody\"\n";
    let net = Testnet::start_configured(CAIRN, 1, &["-v"], &[config]).await?;
    let data = net.node(0).ready().data.parse()?;
    withstand(&net, "50 requests for a stage where nobody has a grant", async || {
        for _ in 0..50 {
            let refused = ask_for_a_stage(&net, "127.0.0.1:0", data).await?;
            ensure!(refused.reason == Reason::NoGrant.code(), "{refused:?}");
            ensure!(refused.why.contains("nobody") && !refused.why.contains('\n'), "{refused:?}");
        }
        Ok(())
    })
    .await?;
    net.stop().await;
    Ok(())
}

/// The address that this machine has on a network; nothing is sent. What comes over it counts as another host, for the door
/// trusts loopback alone. A machine without one can't run the test, which it says, and which is a failure where it must run.
fn address_on_a_network() -> Result<Option<IpAddr>> {
    let address = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("198.51.100.1:9")?;
        Ok(socket.local_addr()?.ip())
    };
    let address = address().ok().filter(|ip| !ip.is_loopback());
    if address.is_none() {
        eprintln!("NOT TESTED: this machine has no address but loopback");
        ensure!(std::env::var_os("CAIRN_REQUIRE_NETWORK").is_none(), "a network address is required");
    }
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_from_another_host_is_not_among_the_listed_and_this_host_is() -> Result<()> {
    let Some(ip) = address_on_a_network()? else { return Ok(()) };
    let home = tempfile::tempdir()?;
    let net = Testnet::start(CAIRN, 1, &["-v", "--data-listen", &format!("{ip}:0")]).await?;
    let data = net.node(0).ready().data.parse()?;
    withstand(&net, "20 requests for a stage from another host, where the listed have the grant", async || {
        for _ in 0..20 {
            let refused = ask_for_a_stage(&net, &format!("{ip}:0"), data).await?;
            ensure!(refused.reason == Reason::NoGrant.code(), "{refused:?}");
            ensure!(refused.why.contains("listed"), "{refused:?}");
        }
        Ok(())
    })
    .await?;
    net.stop().await;
    drop(home);
    // The same request over loopback passes that rule, and fails later for want of the model.
    let net = Testnet::start(CAIRN, 1, &["-v"]).await?;
    let near = ask_for_a_stage(&net, "127.0.0.1:0", net.node(0).ready().data.parse()?).await?;
    ensure!(near.reason != Reason::NoGrant.code(), "{near:?}");
    net.stop().await;
    Ok(())
}

/// The manifest of a published repo, as it lies in the store.
async fn manifest_of(net: &Testnet, revision: &str) -> Result<record_pb::Manifest> {
    let what = Some(api::read_blob_request::What::Hash(revision.to_owned()));
    let mut pieces = net.client(0).read_blob(api::ReadBlobRequest { what, ..Default::default() }).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await? {
        bytes.extend(piece.data);
    }
    Ok(record_pb::Manifest::decode(&bytes[..])?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_only_says_whose_it_is_passes_for_no_trusted_publishers() -> Result<()> {
    let Some(ip) = address_on_a_network()? else { return Ok(()) };
    let (trusted, stranger) = (Keypair::from_seed([60; 32]), Keypair::from_seed([9; 32]));
    let config = format!("trusted = [\"{}\"]\n[grant]\ncompute = \"anyone\"\n", trusted.public());
    let listen = format!("{ip}:0");
    let net = Testnet::start_configured(CAIRN, 1, &["-v", "--data-listen", &listen], &[&config]).await?;
    let folder = tempfile::tempdir()?;
    let published = net.publish(0, &tiny_model(folder.path())?, "honest/tiny").await?;
    let model = manifest_of(&net, &published.revision).await?;
    let layers = model.model.as_ref().context("a model")?.layers;
    // A model that the trusted publisher never saw, under its name and with nobody's signature.
    let claimed = record_pb::Manifest { publisher: trusted.public().to_vec(), ..model }.encode_to_vec();
    let blobs = MemStore::new();
    let revision = *blobs.add_bytes(claimed).await?.hash.as_bytes();
    let endpoint = hostile::endpoint_on(&stranger, &listen).await?;
    let router = Router::builder(endpoint).accept(iroh_blobs::ALPN, BlobsProtocol::new(&blobs, None)).spawn();
    let addresses = router.endpoint().bound_sockets().iter().map(SocketAddr::to_string).collect();
    let open = peer_pb::OpenStage {
        revision: revision.to_vec(),
        publisher: trusted.public().to_vec(),
        end_layer: layers,
        context: 256,
        sources: vec![peer_pb::Source { node: stranger.node_id().to_vec(), addresses }],
        ..wanted(&net, &stranger)?
    };
    let refused = ask(&net, router.endpoint(), net.node(0).ready().data.parse()?, open).await?;
    ensure!(refused.reason == Reason::Untrusted.code(), "{refused:?}");
    ensure!(refused.why.contains("no record is known by which"), "{refused:?}");
    router.shutdown().await?;
    net.stop().await;
    Ok(())
}
